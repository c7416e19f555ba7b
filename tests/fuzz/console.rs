//! A console device's queues, messages of any making, and a host that answers what it is sent.
#![no_main]

mod rings;
mod waiting;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use peapod::devices::virtio::console::Console;

/// So often the device hears of what has come.
const ROUNDS: usize = 4;
/// As many queues as the device has.
const QUEUES: u64 = 6;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (ours, mut host) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let mut console = Console::new("fuzzed", ours).unwrap();
    let (mut job, epoll) = console.job(rings::activation(bytes, QUEUES)).unwrap();
    waiting::watch(&epoll, job.watched());
    for _ in 0..ROUNDS {
        waiting::turn(&epoll, &mut job);
        let mut said = [0; 4096];
        if let Ok(len) = host.read(&mut said) {
            let _ = host.write(&said[..len]);
        }
        let _ = host.write(b"hello");
    }
});
