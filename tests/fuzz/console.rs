//! A console device's queues, messages of any making, somebody who types, and a host that answers what it
//! is sent.
#![no_main]

mod rings;
mod waiting;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use peapod::devices::terminal::Keyboard;
use peapod::devices::virtio::console::{Console, Terminal};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// So often the device hears of what has come.
const ROUNDS: usize = 4;
/// As many queues as the device has.
const QUEUES: u64 = 6;

/// Somebody who always has more to type.
struct Typist;

impl Keyboard for Typist {
    fn take(&mut self, most: usize) -> Vec<u8> {
        vec![b'x'; most]
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (ours, mut host) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let typed = EventFd::new(EFD_NONBLOCK).unwrap();
    let bell = typed.try_clone().unwrap();
    let terminal = Terminal {
        screen: Box::new(std::io::sink()),
        keyboard: Box::new(Typist),
        typed,
    };
    let mut console = Console::new(Some(terminal), Some(("fuzzed", ours))).unwrap();
    let (mut job, epoll) = console.job(rings::activation(bytes, QUEUES)).unwrap();
    waiting::watch(&epoll, job.watched());
    for _ in 0..ROUNDS {
        waiting::turn(&epoll, &mut job);
        let mut said = [0; 4096];
        if let Ok(len) = host.read(&mut said) {
            let _ = host.write(&said[..len]);
        }
        let _ = host.write(b"hello");
        let _ = bell.write(1);
    }
});
