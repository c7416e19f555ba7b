//! How kernels are entered that are not entered by PVH.

use std::path::{Path, PathBuf};
use std::process::Command;

use peapod_tests::{Manifest, Vm, image, peapod};

use super::BOOT;

/// Where a kernel is linked to run, and to be loaded.
const LINKED: &str = "kernel at ffffffff81000000 01000000";
/// The same of the one that runs.
const TELL: &str = "echo kernel at $(sed -n 's/ . _text$//p' /proc/kallsyms) \
    $(sed -n 's/^ *\\([0-9a-f]*\\)-.* : Kernel code$/\\1/p' /proc/iomem)\nbusybox poweroff\n";

/// What a guest said of its kernel's place.
fn place(directory: &Path, options: &[&str]) -> String {
    let manifest = Manifest::new("kernels", TELL).write(directory);
    let mut vm = Vm::run(&manifest, options);
    assert_eq!(vm.wait(BOOT), 0);
    let console = vm.console();
    let line = console.lines().find(|line| line.contains("kernel at "));
    line.expect("the kernel's place").trim().to_owned()
}

#[test]
fn a_kernel_that_unpacks_itself_chooses_where_it_runs() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path(), &["--kaslr"]);
    // One time in a hundred thousand it chooses both as they would be.
    assert!(!place.ends_with(LINKED), "{place}");
}

#[test]
fn a_kernel_without_a_pvh_entry_is_booted_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = without_pvh(directory.path());
    let place = place(directory.path(), &["--kernel", kernel.to_str().unwrap()]);
    assert!(place.ends_with(LINKED), "{place}");
}

/// The tests' kernel, unpacked, its note of a PVH entry made one that nobody knows.
fn without_pvh(directory: &Path) -> PathBuf {
    let manifest = Manifest::new("unpack", "").write(directory);
    let mut unpack = Command::new(peapod());
    unpack.args(["run", "--dry-run", "--kernel"]);
    unpack.arg(image("vmlinuz").canonicalize().unwrap());
    unpack.arg(&manifest).env("XDG_CACHE_HOME", directory);
    assert!(unpack.status().unwrap().success());
    let kept = directory.join("peapod/kernels").read_dir().unwrap();
    let mut paths = kept.map(|entry| entry.unwrap().path());
    let kernel = paths.find(|path| !path.is_symlink()).unwrap();
    let mut elf = std::fs::read(&kernel).unwrap();
    // The note's name has four bytes, what it says eight, and its type is XEN_ELFNOTE_PHYS32_ENTRY.
    let note = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";
    let at = elf.windows(note.len()).position(|bytes| bytes == note);
    elf[at.expect("a PVH entry") + 8] = 99;
    std::fs::write(&kernel, elf).unwrap();
    kernel
}
