//! A block device's queue, and requests of any making.
#![no_main]

mod rings;

use std::path::Path;

use peapod::devices::virtio::block::Block;
use peapod::devices::virtio::block::disk::RawDisk;
use peapod::devices::virtio::worker::Job;
use vmm_sys_util::epoll::EventSet;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let disk = RawDisk::empty(16 << 10, Path::new("/dev/shm")).unwrap();
    let mut block = Block::new(Box::new(disk), "serial", None);
    let activation = rings::activation(bytes, 1);
    let mut job = block.job(activation).unwrap().unwrap();
    // Twice, for what the first time left in the rings.
    for _ in 0..2 {
        job.ready(0, EventSet::IN);
    }
});
