//! A file system's label, read from its first blocks: which disk is a seed, before it is mounted.

use std::io::{self, Read, Seek, SeekFrom};

/// What the first blocks say of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// As mount(2) takes it.
    pub kind: &'static str,
    /// Without the blanks that fill it up.
    pub label: String,
}

/// ECMA-119, section 8.4: the primary volume descriptor is sector 16 of 2,048 bytes; its
/// identifier lies at 1, the volume's name at 40.
const ISO_DESCRIPTOR: u64 = 16 * 2048;
const ISO_LABEL: std::ops::Range<usize> = 40..72;
/// The FAT specification (fatgen103): the boot sector's signature, and the two places where the
/// volume's name may be, each after the extended boot signature.
const FAT_SIGNATURE: usize = 510;
const FAT_EXTENDED: u8 = 0x29;
const FAT16: usize = 38;
const FAT32: usize = 66;
const FAT_LABEL: usize = 11;

/// Reads the label of the vfat or iso9660 file system in `device`; `None` where it is neither.
pub fn read(device: &mut (impl Read + Seek)) -> io::Result<Option<FileSystem>> {
    let Some(boot) = block::<512>(device, 0)? else {
        return Ok(None);
    };
    if let Some(label) = fat_label(&boot) {
        return Ok(Some(file_system("vfat", label)));
    }
    let Some(descriptor) = block::<72>(device, ISO_DESCRIPTOR)? else {
        return Ok(None);
    };
    Ok(match (descriptor.get(..6), descriptor.get(ISO_LABEL)) {
        (Some([1, b'C', b'D', b'0', b'0', b'1']), Some(label)) => {
            Some(file_system("iso9660", label))
        }
        _ => None,
    })
}

fn file_system(kind: &'static str, label: &[u8]) -> FileSystem {
    let label = String::from_utf8_lossy(label);
    let label = label.trim_end_matches([' ', '\0']).to_owned();
    FileSystem { kind, label }
}

/// `N` bytes at `at`, or `None` where the device ends before them.
fn block<const N: usize>(device: &mut (impl Read + Seek), at: u64) -> io::Result<Option<[u8; N]>> {
    let mut bytes = [0; N];
    device.seek(SeekFrom::Start(at))?;
    match device.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn fat_label(boot: &[u8; 512]) -> Option<&[u8]> {
    if boot.get(FAT_SIGNATURE..) != Some(&[0x55, 0xaa]) {
        return None;
    }
    [FAT32, FAT16].into_iter().find_map(|at| {
        let kind = boot.get(at + 5 + FAT_LABEL..)?;
        let is_fat = boot.get(at) == Some(&FAT_EXTENDED) && kind.starts_with(b"FAT");
        is_fat.then(|| boot.get(at + 5..at + 5 + FAT_LABEL))?
    })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn read_bytes(bytes: Vec<u8>) -> Option<FileSystem> {
        read(&mut Cursor::new(bytes)).unwrap()
    }

    #[test]
    fn a_vfat_that_mkfs_made_tells_its_label() {
        let directory = tempfile::tempdir().unwrap();
        for (bits, label) in [("12", "cidata"), ("16", "CIDATA"), ("32", "cidata")] {
            let path = directory.path().join(bits);
            // Of the package dosfstools.
            let mut mkfs = std::process::Command::new("mkfs.vfat");
            mkfs.args(["-C", "-F", bits, "-n", label]).arg(&path);
            let made = crate::children::run(mkfs.arg("40000"));
            assert!(made.success(), "{made:?}");
            let found = read(&mut std::fs::File::open(&path).unwrap())
                .unwrap()
                .unwrap();
            assert_eq!((found.kind, &*found.label), ("vfat", label));
        }
    }

    #[test]
    fn an_iso_tells_its_label_and_anything_else_has_none() {
        let mut iso = vec![0; 0x8800];
        iso[0x8000..0x8006].copy_from_slice(b"\x01CD001");
        iso[0x8028..0x8048].copy_from_slice(b"cidata                          ");
        let found = read_bytes(iso.clone()).unwrap();
        assert_eq!((found.kind, &*found.label), ("iso9660", "cidata"));
        iso[0x8000] = 2;
        assert_eq!(read_bytes(iso), None);
        assert_eq!(read_bytes(vec![0; 600]), None);
        assert_eq!(read_bytes(Vec::new()), None);
    }
}
