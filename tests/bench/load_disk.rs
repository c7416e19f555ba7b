//! Reads and writes a disk in a guest, past the guest's own cache, as `ci/bench block` has it do:
//! `load-disk DEVICE SECONDS`. A line each: what was done, how deep, and how much a second.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const SMALL: usize = 4096;
const LARGE: usize = 1 << 20;
const MIB: f64 = 1048576.0;
/// O_DIRECT on x86: the guest's page cache has no part in it.
const DIRECT: i32 = 0o40000;

/// What one does: its name, bytes at once, how many at a time, whether it writes, whether in order.
const LOADS: [(&str, usize, u64, bool, bool); 6] = [
    ("sequential-read", LARGE, 1, false, true),
    ("sequential-write", LARGE, 1, true, true),
    ("random-read", SMALL, 1, false, false),
    ("random-read", SMALL, 32, false, false),
    ("random-write", SMALL, 1, true, false),
    ("random-write", SMALL, 32, true, false),
];

/// Memory of `len` bytes that begins where the kernel can read to directly.
fn buffer(len: usize) -> (Vec<u8>, usize) {
    let bytes = vec![0x5a; len + SMALL];
    let skip = bytes.as_ptr().align_offset(SMALL);
    (bytes, skip)
}

/// The numbers 0 to `count`, each somewhere else than the last (Knuth's multiplier).
fn place(n: u64, count: u64) -> u64 {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % count
}

fn main() {
    let mut words = std::env::args().skip(1);
    let usage = "usage: load-disk DEVICE SECONDS";
    let device = words.next().expect(usage);
    let seconds: f64 = words.next().and_then(|n| n.parse().ok()).expect(usage);
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(DIRECT)
        .open(&device)
        .expect(&device);
    let size = std::io::Seek::seek(&mut &disk, std::io::SeekFrom::End(0)).unwrap();
    for (name, len, depth, writes, ordered) in LOADS {
        let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let count = size / len as u64;
        let begin = Instant::now();
        thread::scope(|scope| {
            for _ in 0..depth {
                scope.spawn(|| work(&disk, len, count, writes, ordered, (&next, &stop)));
            }
            thread::sleep(Duration::from_secs_f64(seconds));
            stop.store(true, Ordering::Relaxed);
        });
        let each = next.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64();
        let figure = match len {
            LARGE => each * len as f64 / MIB,
            _ => each,
        };
        println!("load-disk {name} {depth} {figure:.1}");
    }
    println!("load-disk done");
}

fn work(
    disk: &File,
    len: usize,
    count: u64,
    writes: bool,
    ordered: bool,
    (next, stop): (&AtomicU64, &AtomicBool),
) {
    let (mut bytes, skip) = buffer(len);
    let bytes = &mut bytes[skip..skip + len];
    while !stop.load(Ordering::Relaxed) {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let at = match ordered {
            true => n % count,
            false => place(n, count),
        } * len as u64;
        match writes {
            true => disk.write_all_at(bytes, at).expect("write"),
            false => disk.read_exact_at(bytes, at).expect("read"),
        }
    }
}
