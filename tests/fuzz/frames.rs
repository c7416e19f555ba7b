//! One frame, before a gateway that lets no flow begin: readers of headers, and services.
#![no_main]

mod network;

use std::cell::RefCell;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Instant;

use netdev::config::Config;
use netdev::engine::{Engine, Run};
use netdev::link::{Capabilities, Link, MAX_FRAME, Offload, Received};
use netdev::resolver::Resolver;
use netdev::wire::{self, Frame, Icmp, Packet, Segment, Udp};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A card with one frame in it.
struct Card {
    frame: Rc<RefCell<Vec<u8>>>,
    notify: Rc<EventFd>,
}

impl Link for Card {
    fn receive(&mut self, place: &mut [u8]) -> Option<Received> {
        let frame = std::mem::take(&mut *self.frame.borrow_mut());
        place[..frame.len()].copy_from_slice(&frame);
        (!frame.is_empty()).then_some(Received {
            len: frame.len(),
            ..Received::default()
        })
    }

    fn send(&mut self, parts: &[&[u8]], _: Offload) -> bool {
        let answer = parts.concat();
        match wire::parse(&answer).unwrap().1 {
            Frame::Arp(_) => {}
            Frame::Ip(packet) => assert!(Packet::parse(packet).is_some()),
            Frame::Other => panic!("an answer of no known type"),
        }
        true
    }

    fn flush(&mut self) {}

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.notify.as_raw_fd()]
    }

    fn acknowledge(&mut self) {
        let _ = self.notify.read();
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
}

/// The gateway, which keeps nothing from one frame to the next.
struct Gateway {
    run: Run<'static>,
    frame: Rc<RefCell<Vec<u8>>>,
    notify: Rc<EventFd>,
}

impl Gateway {
    fn new() -> Self {
        let config = Config {
            hostname: "details".to_owned(),
            resolver: Resolver::parse("nameserver ::1\nsearch default.svc.cluster.local"),
            eager: true,
            max_flows: 0,
            memory: 128 << 20,
            ..network::config()
        };
        let frame = Rc::default();
        let notify = Rc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let card = Card {
            frame: Rc::clone(&frame),
            notify: Rc::clone(&notify),
        };
        // One for the whole process.
        let engine = Box::leak(Box::new(Engine::new(config).unwrap()));
        let run = engine.attach(Box::leak(Box::new(card)), &Instant::now);
        Self {
            run: run.unwrap(),
            frame,
            notify,
        }
    }
}

thread_local! {
    static GATEWAY: RefCell<Gateway> = RefCell::new(Gateway::new());
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if bytes.len() > MAX_FRAME {
        return;
    }
    if let Some(packet) = Packet::parse(bytes) {
        let _ = (
            Segment::parse(packet.payload),
            Udp::parse(packet.payload),
            Icmp::parse(packet.payload),
        );
    }
    GATEWAY.with_borrow_mut(|gateway| {
        *gateway.frame.borrow_mut() = bytes.to_vec();
        gateway.notify.write(1).unwrap();
        gateway.run.turn(false).unwrap();
        assert_eq!(gateway.run.flows(), 0);
    });
});
