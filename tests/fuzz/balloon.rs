//! A balloon's queues: pages given, taken and reported, and statistics of any making.
#![no_main]

mod rings;

use peapod::devices::virtio::balloon::Balloon;
use peapod::devices::virtio::worker::Job;
use vmm_sys_util::epoll::EventSet;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let balloon = Balloon::new(64 << 20).unwrap();
    let mut activation = rings::activation(bytes, 4);
    // Statistics, and reporting of free pages.
    activation.features = 1 << 1 | 1 << 5;
    let mut job = balloon.job(activation);
    // Twice, for what the first time left in the rings.
    for (_, token) in job.watched().repeat(2) {
        job.ready(token, EventSet::IN);
    }
});
