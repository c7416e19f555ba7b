//! What a boot loader reads: its configuration, an entry, an image; or a damaged disk. The first
//! byte says which.
#![no_main]

use std::cell::LazyCell;
use std::io::{Cursor, Write};

use peapod::boot::entries::Disk;

const SIZE: usize = 256 << 10;
const GRUB_CFG: &str =
    "load_env\nset default=$saved_entry\nmenuentry a { linux /k $x\ninitrd /i }\n";

/// A vfat, as a whole disk, with these files.
fn vfat(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut disk = Cursor::new(vec![0; SIZE]);
    fatfs::format_volume(&mut disk, fatfs::FormatVolumeOptions::new()).unwrap();
    {
        let system = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new()).unwrap();
        for (path, content) in files {
            let mut folder = system.root_dir();
            let mut names = path.split('/').peekable();
            while let Some(name) = names.next() {
                if names.peek().is_some() {
                    folder = folder.create_dir(name).unwrap();
                } else {
                    folder
                        .create_file(name)
                        .unwrap()
                        .write_all(content)
                        .unwrap();
                }
            }
        }
    }
    disk.into_inner()
}

thread_local! {
    static SOUND: LazyCell<Vec<u8>> = const { LazyCell::new(|| {
        let grubenv = b"# GRUB Environment Block\nsaved_entry=a\n";
        vfat(&[
            ("grub/grub.cfg", GRUB_CFG.as_bytes()),
            ("grub/grubenv", grubenv),
            ("loader/entries/a.conf", b"title A\nlinux /k\n"),
            ("k", b"kernel"),
            ("i", b"initrd"),
        ])
    }) };
}

fn read(bytes: Vec<u8>) {
    let disk = Disk::read(Box::new(bytes));
    for entry in &disk.entries {
        let _ = disk.load(entry);
    }
    let _ = disk.default_entry();
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    match kind % 4 {
        0 => read(vfat(&[("grub/grub.cfg", rest), ("k", b"kernel")])),
        1 => read(vfat(&[
            ("loader/entries/a-1+2.conf", rest),
            ("k", b"kernel"),
        ])),
        // The front of a disk, with its partition table.
        2 => {
            let mut disk = SOUND.with(|sound| (**sound).clone());
            let len = rest.len().min(SIZE);
            disk[..len].copy_from_slice(&rest[..len]);
            read(disk);
        }
        // Places, and what is there instead.
        _ => {
            let mut disk = SOUND.with(|sound| (**sound).clone());
            for patch in rest.as_chunks::<4>().0 {
                let at = u32::from_le_bytes([patch[0], patch[1], patch[2], 0]) as usize;
                disk[at % SIZE] = patch[3];
            }
            read(disk);
        }
    }
});
