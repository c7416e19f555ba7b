//! A device's work as its thread would do it, where it waits by epoll.

use std::os::fd::RawFd;

use peapod::devices::virtio::worker::Job;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Has `epoll` hear of these, each with its token.
pub fn watch(epoll: &Epoll, watched: Vec<(RawFd, u64)>) {
    for (fd, token) in watched {
        let event = EpollEvent::new(EventSet::IN, token);
        epoll.ctl(ControlOperation::Add, fd, event).unwrap();
    }
}

/// Has the device hear of what has come.
pub fn turn(epoll: &Epoll, job: &mut impl Job) {
    let mut events = [EpollEvent::default(); 16];
    let count = epoll.wait(0, &mut events).unwrap();
    for event in &events[..count] {
        job.ready(event.data(), event.event_set());
    }
}
