//! A console device's queues, messages of any making, and a host that answers what it is sent.
#![no_main]

mod rings;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use peapod::devices::virtio::console::Console;
use peapod::devices::virtio::worker::Job;
use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

/// So often the device hears of what has come.
const ROUNDS: usize = 4;
/// As many queues as the device has.
const QUEUES: u64 = 6;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (ours, mut host) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let mut console = Console::new("fuzzed", ours).unwrap();
    let (mut job, epoll) = console.job(rings::activation(bytes, QUEUES)).unwrap();
    for (fd, token) in job.watched() {
        let event = EpollEvent::new(EventSet::IN, token);
        epoll.ctl(ControlOperation::Add, fd, event).unwrap();
    }
    for _ in 0..ROUNDS {
        let mut events = [EpollEvent::default(); 16];
        let count = epoll.wait(0, &mut events).unwrap();
        for event in &events[..count] {
            job.ready(event.data(), event.event_set());
        }
        let mut said = [0; 4096];
        if let Ok(len) = host.read(&mut said) {
            let _ = host.write(&said[..len]);
        }
        let _ = host.write(b"hello");
    }
});
