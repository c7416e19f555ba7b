//! Guests that never stop.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use netdev::engine::Engine;
use netdev::link::{Capabilities, Link, Offload, Received};
use vmm_sys_util::eventfd::EventFd;

use super::drive;

/// A card that always has another frame, which says nothing.
struct Endless(EventFd);

impl Link for Endless {
    fn receive(&mut self, place: &mut [u8]) -> Option<Received> {
        place[..60].fill(0);
        Some(Received {
            len: 60,
            ..Received::default()
        })
    }

    fn send(&mut self, _: &[&[u8]], _: Offload) -> bool {
        true
    }

    fn flush(&mut self) {}

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.0.as_raw_fd()]
    }

    fn acknowledge(&mut self) {}

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
}

#[test]
fn a_guest_that_never_stops_sending_can_be_stopped() {
    let (stop, done) = (EventFd::new(0).unwrap(), mpsc::channel());
    let stopped = stop.try_clone().unwrap();
    let mut engine = Engine::new(drive::config(Vec::new(), Vec::new())).unwrap();
    let counters = engine.counters();
    thread::spawn(move || {
        let result = engine.run(&mut Endless(EventFd::new(0).unwrap()), stopped.as_raw_fd());
        done.0.send(result.is_ok()).unwrap();
    });
    // Though nothing but the first look says so, the network sees that there are more.
    while counters.frames.get() < 100_000 {
        thread::yield_now();
    }
    stop.write(1).unwrap();
    assert_eq!(done.1.recv_timeout(Duration::from_secs(20)), Ok(true));
}
