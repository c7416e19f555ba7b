//! Disks made by the tools that make real ones, and damaged ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

use super::*;

pub(super) const ROOT: &str = "5ea90d00-0000-4000-8000-000000000001";
const MIB: usize = 1 << 20;

fn run(folder: &Path, script: &str) {
    // Where Debian has mke2fs, mkfs.vfat and sfdisk, which is not in everybody's path.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.args(["-ec", script]).current_dir(folder);
    let output = command.env("PATH", path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// A tree of files.
fn tree(folder: &Path, files: &[(&str, &str)]) -> PathBuf {
    let tree = folder.join(format!("tree{}", fs::read_dir(folder).unwrap().count()));
    fs::create_dir(&tree).unwrap();
    for (path, content) in files {
        let path = tree.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    tree
}

/// An ext4 of 8 MiB with these files.
pub(super) fn ext4(files: &[(&str, &str)]) -> Vec<u8> {
    ext4_with("", files)
}

fn ext4_with(options: &str, files: &[(&str, &str)]) -> Vec<u8> {
    let folder = TempDir::new().unwrap();
    let tree = tree(folder.path(), files);
    let script = format!(
        "mke2fs -q -t ext4 {options} -L root -U {ROOT} -d {} image 8M",
        tree.display()
    );
    run(folder.path(), &script);
    fs::read(folder.path().join("image")).unwrap()
}

/// A vfat of 8 MiB with these files.
fn vfat(files: &[(&str, &str)]) -> Vec<u8> {
    let folder = TempDir::new().unwrap();
    let tree = tree(folder.path(), files);
    let script = format!(
        "mkfs.vfat -C -i 1234abcd -n ESP image 8192 >&2; cd {}; mcopy -s -i ../image * ::",
        tree.display()
    );
    run(folder.path(), &script);
    fs::read(folder.path().join("image")).unwrap()
}

/// A disk with these partitions by sfdisk: type and content.
fn partitioned(label: &str, partitions: &[(&str, &[u8])]) -> Vec<u8> {
    let folder = TempDir::new().unwrap();
    let mut table = format!("label: {label}\n");
    let mut image = vec![0; MIB];
    for (kind, content) in partitions {
        let (start, size) = (image.len() / 512, content.len() / 512);
        table += &format!("start={start}, size={size}, type={kind}\n");
        image.extend_from_slice(content);
    }
    image.resize(image.len() + MIB, 0);
    fs::write(folder.path().join("image"), image).unwrap();
    fs::write(folder.path().join("table"), table).unwrap();
    run(folder.path(), "sfdisk -q image <table");
    fs::read(folder.path().join("image")).unwrap()
}

fn read(bytes: Vec<u8>) -> Disk {
    Disk::read(Box::new(bytes))
}

fn ids(disk: &Disk) -> Vec<&str> {
    disk.entries.iter().map(|e| e.id.as_str()).collect()
}

const GRUB_CFG: &str = "\
set default=0
menuentry 'Debian' --id debian {
    search --no-floppy --fs-uuid --set=root 5ea90d00-0000-4000-8000-000000000001
    linux /boot/vmlinuz root=UUID=5ea90d00-0000-4000-8000-000000000001 ro quiet
    initrd /boot/early.img /boot/initrd.img
}
";

fn root_with_grub() -> Vec<u8> {
    ext4(&[
        ("/boot/grub/grub.cfg", GRUB_CFG),
        ("/boot/vmlinuz", "kernel"),
        ("/boot/early.img", "early"),
        ("/boot/initrd.img", "initrd"),
    ])
}

fn boots_debian(bytes: Vec<u8>) {
    let disk = read(bytes);
    let entry = disk.default_entry().unwrap();
    assert_eq!(entry.title, "Debian");
    assert_eq!(entry.cmdline, format!("root=UUID={ROOT} ro quiet"));
    let loaded = disk.load(entry).unwrap();
    assert_eq!(loaded.kernel, b"kernel");
    // The second archive lies at a multiple of four.
    assert_eq!(loaded.initramfs.unwrap(), b"early\0\0\0initrd\0\0");
    assert!(!disk.is_plain_root());
}

#[test]
fn grub_s_entry_is_found_on_a_gpt_an_mbr_a_logical_partition_and_a_bare_disk() {
    let root = root_with_grub();
    boots_debian(root.clone());
    let bios_boot = vec![0; MIB];
    boots_debian(partitioned(
        "gpt",
        &[
            ("21686148-6449-6E6F-744E-656564454649", &bios_boot),
            ("0FC63DAF-8483-4772-8E79-3D69D8477DE4", &root),
        ],
    ));
    boots_debian(partitioned("dos", &[("83", &root)]));
    // An extended partition, and in it what sfdisk makes the fifth.
    let folder = TempDir::new().unwrap();
    let mut image = vec![0; 2 * MIB];
    image.extend_from_slice(&root);
    image.resize(12 * MIB, 0);
    fs::write(folder.path().join("image"), image).unwrap();
    let table = "label: dos\nstart=2048, size=20480, type=5\nstart=4096, size=16384, type=83\n";
    fs::write(folder.path().join("table"), table).unwrap();
    run(folder.path(), "sfdisk -q image <table");
    let disk = fs::read(folder.path().join("image")).unwrap();
    assert!(
        read(disk.clone()).entries[0]
            .source
            .starts_with("partition 5 (ext4)")
    );
    boots_debian(disk);
}

const ESP: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
const XBOOTLDR: &str = "BC13C2FF-59E6-4262-A352-B275FD6F7172";

/// As kernel-install lays it out.
const OLD: &str = "title Debian\nversion 6.1\nmachine-id 8a\nsort-key debian\n\
                   options root=LABEL=root\noptions quiet\nlinux /8a/6.1/linux\ninitrd /8a/6.1/initrd\n";

fn boot_partition(config: &str) -> Vec<u8> {
    let new = OLD.replace("6.1", "6.12");
    vfat(&[
        ("/loader/loader.conf", config),
        ("/loader/entries/8a-6.1.conf", OLD),
        ("/loader/entries/8a-6.12.conf", &new),
        ("/loader/entries/README", "no entry"),
        ("/8a/6.1/linux", "old"),
        ("/8a/6.1/initrd", "initrd"),
        ("/8a/6.12/linux", "new"),
        ("/8a/6.12/initrd", "initrd"),
    ])
}

#[test]
fn a_loader_for_uefi_is_found_on_vfat_alone_and_in_either_case() {
    let esp = vfat(&[("/efi/boot/bootx64.efi", "PE")]);
    let root = ext4(&[("/EFI/BOOT/BOOTX64.EFI", "PE")]);
    let found = |partitions: &[(&str, &[u8])]| {
        let disk = read(partitioned("gpt", partitions));
        assert!(disk.default_entry().is_err());
        disk.efi_loader().map_err(|error| error.to_string())
    };
    assert_eq!(
        found(&[("L", &root), (ESP, &esp)]).unwrap(),
        "partition 2 (vfat): /EFI/BOOT/BOOTX64.EFI"
    );
    let why = found(&[("L", &root)]).unwrap_err();
    assert!(
        why.ends_with("looked for /EFI/BOOT/BOOTX64.EFI on no vfat"),
        "{why}"
    );
}

#[test]
fn the_newest_entry_of_the_boot_partition_is_the_default_unless_loader_conf_names_another() {
    let root = ext4(&[("/etc/fstab", "")]);
    let disk = |config| {
        let boot = boot_partition(config);
        let esp = vfat(&[("/loader/loader.conf", "default nothing-like-this\n")]);
        let (esp, boot) = (&esp[..], &boot[..]);
        read(partitioned(
            "gpt",
            &[(ESP, esp), (XBOOTLDR, boot), ("L", &root)],
        ))
    };
    let newest = disk("timeout 3\n");
    assert_eq!(ids(&newest), ["8a-6.12", "8a-6.1"]);
    let entry = newest.default_entry().unwrap();
    assert_eq!(entry.title, "Debian (6.12)");
    assert_eq!(entry.cmdline, "root=LABEL=root quiet");
    assert_eq!(
        entry.source,
        "partition 2 (vfat): /loader/entries/8a-6.12.conf"
    );
    assert_eq!(newest.load(entry).unwrap().kernel, b"new");
    let named = disk("default 8a-6.1.conf\n");
    assert_eq!(named.default_entry().unwrap().id, "8a-6.1");
}

#[test]
fn entries_that_are_written_for_grub_are_left_to_it() {
    let config = "set kernelopts='root=LABEL=root ro'\nsearch --label --set=root ESP\nblscfg\n";
    let boot = vfat(&[
        ("/grub2/grub.cfg", config),
        (
            "/loader/entries/m-6.9.conf",
            "title F\nlinux /k\noptions $kernelopts quiet\n",
        ),
        ("/k", "kernel"),
    ]);
    let disk = read(partitioned("gpt", &[(XBOOTLDR, &boot)]));
    let entry = disk.default_entry().unwrap();
    assert_eq!(entry.cmdline, "root=LABEL=root ro quiet");
    assert_eq!(disk.load(entry).unwrap().kernel, b"kernel");
}

#[test]
fn an_entry_without_its_files_is_named_with_the_place() {
    let esp = vfat(&[("/loader/entries/a.conf", "title A\nlinux /gone\n")]);
    let disk = read(partitioned("gpt", &[(ESP, &esp)]));
    let error = disk
        .load(disk.default_entry().unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with(
            "partition 1 (vfat): /loader/entries/a.conf: `A`: partition 1 (vfat): /gone: "
        ),
        "{error}"
    );
}

/// A PE file of 64 bits with these sections, as ukify would make it of a stub.
fn pe(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut image = vec![0; 0x400];
    image[..2].copy_from_slice(b"MZ");
    image[0x3c] = 0x40;
    image[0x40..0x44].copy_from_slice(b"PE\0\0");
    let header: [(usize, u16); 4] = [
        (0, 0x8664),
        (2, sections.len() as u16),
        (16, 240),
        (18, 0x2022),
    ];
    for (at, value) in header {
        image[0x44 + at..0x46 + at].copy_from_slice(&value.to_le_bytes());
    }
    image[0x58..0x5a].copy_from_slice(&0x20bu16.to_le_bytes());
    image[0x58 + 108] = 16;
    for (i, (name, data)) in sections.iter().enumerate() {
        let at = 0x58 + 240 + i * 40;
        image[at..at + name.len()].copy_from_slice(name.as_bytes());
        let start = image.len();
        let padded = data.len().next_multiple_of(0x200);
        let fields = [data.len(), 0x1000 * (i + 1), padded, start];
        for (field, value) in fields.iter().enumerate() {
            let at = at + 8 + field * 4;
            image[at..at + 4].copy_from_slice(&(*value as u32).to_le_bytes());
        }
        image.extend_from_slice(data);
        image.resize(start + padded, 0);
    }
    image
}

#[test]
fn a_unified_kernel_image_is_taken_apart() {
    let image = pe(&[
        (
            ".osrel",
            b"ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian 12\"\n",
        ),
        (".cmdline", b"root=LABEL=root quiet\0"),
        (".linux", b"kernel"),
        (".initrd", b"initrd"),
    ]);
    let folder = TempDir::new().unwrap();
    let linux = folder.path().join("tree/EFI/Linux");
    fs::create_dir_all(&linux).unwrap();
    fs::write(linux.join("debian-6.1+3.efi"), image).unwrap();
    run(
        folder.path(),
        "mkfs.vfat -C image 8192 >&2; cd tree; mcopy -s -i ../image * ::",
    );
    let esp = fs::read(folder.path().join("image")).unwrap();
    let disk = read(partitioned("gpt", &[(ESP, &esp)]));
    let entry = disk.default_entry().unwrap();
    assert_eq!(
        (entry.id.as_str(), entry.title.as_str()),
        ("debian-6.1", "Debian 12")
    );
    assert_eq!(entry.cmdline, "root=LABEL=root quiet");
    let loaded = disk.load(entry).unwrap();
    assert_eq!(loaded.kernel, b"kernel");
    assert_eq!(loaded.initramfs.as_deref(), Some(&b"initrd\0\0"[..]));
}

#[test]
fn a_kernel_that_no_loader_names_is_started_with_its_own_root() {
    let disk = read(ext4(&[
        ("/boot/vmlinuz-6.1.0-9-amd64", "old"),
        ("/boot/vmlinuz-6.1.0-10-amd64", "new"),
        ("/boot/initrd.img-6.1.0-10-amd64", "initrd"),
    ]));
    assert_eq!(ids(&disk), ["6.1.0-10-amd64", "6.1.0-9-amd64"]);
    let entry = disk.default_entry().unwrap();
    assert_eq!(entry.cmdline, format!("root=UUID={ROOT} ro"));
    assert_eq!(entry.initrd(), ["/boot/initrd.img-6.1.0-10-amd64"]);
    assert_eq!(disk.load(entry).unwrap().kernel, b"new");
}

#[test]
fn a_file_system_without_a_kernel_is_a_plain_root_and_a_partition_with_one_is_not() {
    let root = ext4(&[("/etc/fstab", "")]);
    assert!(read(root.clone()).is_plain_root());
    let disk = read(partitioned("gpt", &[("L", &root)]));
    assert!(!disk.is_plain_root());
    let error = disk.default_entry().unwrap_err().to_string();
    assert_eq!(
        error,
        "has nothing to boot; looked for /boot/grub/grub.cfg, /boot/grub2/grub.cfg, /grub/grub.cfg, \
         /grub2/grub.cfg on partition 1 (ext4); looked for /loader/entries/*.conf, \
         /boot/loader/entries/*.conf on partition 1 (ext4); looked for /boot/vmlinuz-* on partition 1 (ext4)"
            .replace("; looked for /loader", "; /loader")
            .replace("; looked for /boot/vm", "; /boot/vm")
    );
}

#[test]
fn what_cannot_be_read_is_said_by_name() {
    let mut xfs = vec![0; MIB];
    xfs[..4].copy_from_slice(b"XFSB");
    let mut lvm = vec![0; MIB];
    lvm[512..520].copy_from_slice(b"LABELONE");
    lvm[512 + 0x18..512 + 0x20].copy_from_slice(b"LVM2 001");
    for (bytes, said) in [
        (xfs.clone(), "xfs: it is not read here"),
        (
            partitioned("gpt", &[("L", &xfs), ("L", &lvm)]),
            "partition 2 (LVM): it is not read here",
        ),
        (
            vec![0; MIB],
            "has neither a partition table nor a file system that is known",
        ),
    ] {
        let disk = read(bytes);
        assert!(!disk.is_plain_root());
        let error = disk.default_entry().unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let mut gpt = partitioned("gpt", &[("L", &xfs)]);
    gpt[512 + 60] ^= 1;
    let error = read(gpt).default_entry().unwrap_err().to_string();
    assert!(error.contains("its GPT is damaged"), "{error}");
}

#[test]
fn no_bytes_of_a_disk_make_its_reader_panic() {
    let root = root_with_grub();
    let esp = boot_partition("default 8a*\n");
    let mut sound = vec![partitioned("gpt", &[(ESP, &esp), ("L", &root)])];
    sound.push(partitioned("dos", &[("83", &root)]));
    sound.push(root);
    sound.push(esp);
    // Without checksums, more of what is wrong is believed.
    let files = [
        ("/boot/grub/grub.cfg", GRUB_CFG),
        ("/boot/vmlinuz", "kernel"),
    ];
    sound.push(ext4_with("-O ^metadata_csum,^has_journal", &files));
    sound.push(ext4_with(
        "-O ^metadata_csum,^extents,^64bit -b 1024",
        &files,
    ));
    // Where there is something: what is zeros decides about little.
    let places: Vec<Vec<usize>> = sound
        .iter()
        .map(|image| (0..image.len()).filter(|at| image[*at] != 0).collect())
        .collect();
    let patches = prop::collection::vec(
        (any::<prop::sample::Index>(), any::<u64>(), 0usize..9),
        1..8,
    );
    let mut runner = TestRunner::new(Config::with_cases(200));
    let case = (any::<prop::sample::Index>(), patches);
    let run = |(which, patches): (prop::sample::Index, Vec<(prop::sample::Index, u64, usize)>)| {
        let which = which.index(sound.len());
        let mut image = sound[which].clone();
        for (at, value, len) in patches {
            let at = places[which][at.index(places[which].len())].min(image.len() - 8);
            image[at..at + len.min(8)].copy_from_slice(&value.to_le_bytes()[..len.min(8)]);
        }
        let disk = read(image);
        for entry in &disk.entries {
            let _ = disk.load(entry);
        }
        let _ = disk.default_entry();
        let _ = disk.efi_loader();
        Ok(())
    };
    runner.run(&case, run).unwrap();
}
