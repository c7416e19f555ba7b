//! A socket device's queues, packets of any making, and a host that answers what it is sent.
#![no_main]

mod rings;
mod waiting;

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use peapod::devices::virtio::vsock::{Ports, Vsock};

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
    waiting::watch(&epoll, job.watched());
    for _ in 0..ROUNDS {
        waiting::turn(&epoll, &mut job);
        STREAMS.with(|streams| streams.borrow_mut().iter_mut().for_each(echo));
    }
});
