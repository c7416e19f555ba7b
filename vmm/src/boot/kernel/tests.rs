//! Of kernels' files.

use std::io::{Seek, Write};
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::packed::unpack;
use super::*;

/// A bzImage with one setup sector whose payload is `payload`.
fn bz_image(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x201] = 0x6a;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend_from_slice(payload);
    image
}

fn content(kernel: &Kernel) -> Vec<u8> {
    let mut file = &*kernel.file;
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_bz_image_is_unpacked_once_and_kept_by_its_content() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmlinuz");
    std::fs::write(&path, bz_image(&gzip(b"\x7fELF and so on"))).unwrap();
    let cache = directory.path().join("cache");
    let kernel = Kernel::open(&path, &cache, Unpacked::Here).unwrap();
    assert_eq!(content(&kernel), b"\x7fELF and so on");
    let inode = |kernel: &Kernel| kernel.file.metadata().unwrap().ino();
    let again = Kernel::open(&path, &cache, Unpacked::Here).unwrap();
    assert_eq!(inode(&again), inode(&kernel));
    let entries = std::fs::read_dir(&cache)
        .unwrap()
        .map(|e| e.unwrap().path());
    let unpacked = entries.filter(|path| !path.is_symlink());
    assert_eq!(unpacked.count(), 1);
}

#[test]
fn a_file_is_read_again_only_where_it_has_changed() {
    let directory = tempfile::tempdir().unwrap();
    let (path, cache) = (
        directory.path().join("vmlinuz"),
        directory.path().join("cache"),
    );
    let open = || content(&Kernel::open(&path, &cache, Unpacked::Here).unwrap());
    let write = |text: &[u8]| {
        std::fs::write(&path, bz_image(&gzip(text))).unwrap();
        std::thread::sleep(2 * SETTLED);
    };
    write(b"\x7fELF one");
    assert_eq!(open(), b"\x7fELF one");
    let unpacked = cache.join(unpacked(&std::fs::read(&path).unwrap()));
    std::fs::write(&unpacked, b"\x7fELF known").unwrap();
    assert_eq!(open(), b"\x7fELF known");
    write(b"\x7fELF two");
    assert_eq!(open(), b"\x7fELF two");
    // Somebody has tidied the cache.
    std::fs::remove_dir_all(&cache).unwrap();
    assert_eq!(open(), b"\x7fELF two");
}

#[test]
fn a_payload_is_unpacked_whatever_the_kernel_s_build_packed_it_with() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name| directory.path().join(name);
    let elf: Vec<u8> = (0..300_000u32)
        .flat_map(|n| (n / 7).to_le_bytes())
        .collect();
    let elf = [ELF_MAGIC, &elf].concat();
    std::fs::write(file("elf"), &elf).unwrap();
    // As scripts/Makefile.lib calls them; the length follows.
    for command in [
        "gzip -n -9 -c",
        "xz --check=crc32 --x86 --lzma2=dict=128MiB -c",
        "zstd -q --ultra -22 -c",
        "lz4 -q -l -9 -c",
    ] {
        let script = format!("cat elf | {command} >packed");
        let mut shell = std::process::Command::new("sh");
        let status = shell.args(["-c", &script]).current_dir(&directory).status();
        assert!(status.unwrap().success(), "{command}");
        let mut payload = std::fs::read(file("packed")).unwrap();
        payload.extend_from_slice(&(elf.len() as u32).to_le_bytes());
        std::fs::write(file("vmlinuz"), bz_image(&payload)).unwrap();
        let kernel = Kernel::open(&file("vmlinuz"), &file("cache"), Unpacked::Here).unwrap();
        assert!(content(&kernel) == elf, "{command}");
    }
}

#[test]
fn each_kind_of_bad_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmlinuz");
    let mut cut = bz_image(&gzip(b"\x7fELF"));
    cut.truncate(1030);
    for (content, expected) in [
        (vec![0; 2048], "neither a bzImage nor an ELF image"),
        (cut, "its payload goes past its end"),
        (bz_image(b"\x28\xb5\x2f\xfd"), "truncated or damaged"),
        (bz_image(b"\xfd7zXZ\0"), "truncated or damaged"),
        (bz_image(b"BZh9"), "packed with bzip2"),
        (bz_image(&gzip(b"no kernel")), "no ELF image"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = Kernel::open(&path, directory.path(), Unpacked::Here)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("vmlinuz") && error.contains(expected),
            "{error}"
        );
    }
    let missing =
        Kernel::open(Path::new("/nowhere"), directory.path(), Unpacked::Here).unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("kernel /nowhere: No such file"),
        "{missing}"
    );
}

/// The same with the 64-bit entry, and memory from 1 MiB to unpack itself in.
fn for_64_bits(mut image: Vec<u8>) -> Vec<u8> {
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x211] = 1;
    image[0x236] = 1;
    image[0x258..0x260].copy_from_slice(&0x10_0000u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x2_0000u32.to_le_bytes());
    image
}

#[test]
fn what_is_not_unpacked_here_unpacks_itself() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmlinuz");
    let bzip2 = for_64_bits(bz_image(b"BZh9 and so on"));
    let gzip = for_64_bits(bz_image(&gzip(b"\x7fELF")));
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    for (image, by) in [(bzip2, Unpacked::Here), (gzip, Unpacked::ByItself)] {
        std::fs::write(&path, &image).unwrap();
        let cache = directory.path().join("cache");
        let given = Kernel::open(&path, &cache, by).unwrap();
        let disk_s = Kernel::from_image(&path, &image, &cache, by).unwrap();
        for kernel in [given, disk_s] {
            assert!(content(&kernel) == image);
            let loaded = kernel.load(&memory).unwrap();
            let Entry::Linux64(entry, Some(header)) = loaded.entry else {
                panic!("{loaded:?}")
            };
            assert_eq!({ header.init_size }, 0x2_0000);
            assert_eq!((entry.0, loaded.end.0), (0x10_0200, 0x12_0000));
            let small = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x11_0000)]).unwrap();
            assert!(matches!(kernel.load(&small), Err(KernelError::Room(..))));
        }
    }
}

#[test]
fn what_cannot_unpack_itself_is_refused_where_it_is_asked_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmlinuz");
    for image in [b"\x7fELF".to_vec(), bz_image(&gzip(b"\x7fELF"))] {
        std::fs::write(&path, &image).unwrap();
        let by = Unpacked::ByItself;
        for refused in [
            Kernel::open(&path, directory.path(), by),
            Kernel::from_image(&path, &image, directory.path(), by),
        ] {
            assert!(matches!(refused, Err(KernelError::Kaslr(_))), "{refused:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_image_makes_the_reader_panic(mut image in prop::collection::vec(any::<u8>(), 0..4096)) {
        if let Some(magic) = image.get_mut(0x202..0x206) {
            magic.copy_from_slice(b"HdrS");
        }
        let _ = unpack(&image);
    }
}
