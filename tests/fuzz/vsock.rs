//! A socket device's queues, packets of any making, and a host that answers what it is sent.
#![no_main]

mod rings;

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use peapod::devices::virtio::vsock::{Ports, Vsock};
use peapod::devices::virtio::worker::Job;
use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

/// So often the device hears of what has come.
const ROUNDS: usize = 4;

type Streams = Rc<RefCell<Vec<UnixStream>>>;

thread_local! {
    static STREAMS: Streams = Streams::default();
}

/// A service on every even port.
struct Echo;

impl Ports for Echo {
    fn connect(&mut self, port: u32, _: u32) -> io::Result<UnixStream> {
        if port % 2 == 1 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        STREAMS.with(|streams| streams.borrow_mut().push(theirs));
        Ok(ours)
    }
}

fn echo(stream: &mut UnixStream) {
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes) {
        Ok(0) => drop(stream.shutdown(std::net::Shutdown::Write)),
        Ok(len) => drop(stream.write(&bytes[..len])),
        Err(_) => {}
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    STREAMS.with(|streams| streams.borrow_mut().clear());
    let mut vsock = Vsock::new(Box::new(Echo), None).unwrap();
    let (mut job, epoll) = vsock.job(rings::activation(bytes, 2)).unwrap();
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
        STREAMS.with(|streams| streams.borrow_mut().iter_mut().for_each(echo));
    }
});
