//! The randomness device's queue.
#![no_main]

mod rings;

use peapod::devices::virtio::rng::Rng;
use peapod::devices::virtio::worker::Job;
use vmm_sys_util::epoll::EventSet;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some(mut job) = Rng::job(rings::activation(bytes, 1)) else {
        return;
    };
    // Twice, for what the first time left in the rings.
    for _ in 0..2 {
        job.ready(0, EventSet::IN);
    }
});
