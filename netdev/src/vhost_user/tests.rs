//! A VMM that somebody else wrote (the vhost crate's frontend), with rings driven by hand.

use std::net::{Ipv4Addr, Shutdown};
use std::time::{Duration, Instant};

use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Address, Bytes, GuestMemoryBackend};

use super::*;
use crate::config::GATEWAY_MAC;
use crate::link::fake;
use crate::wire::{Arp, Frame, parse};

const MEMORY: usize = 1 << 20;
const SIZE: u16 = 16;
/// Bytes of `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;
const WRITE: u16 = 2;

/// A ring in the guest's memory: descriptors, then the available and the used ring.
struct Split {
    at: u64,
    /// Chains made available so far.
    available: u16,
    kick: EventFd,
    call: EventFd,
}

impl Split {
    fn new(at: u64) -> Self {
        Self {
            at,
            available: 0,
            // Blocking, as nobody should make them.
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
        }
    }

    fn places(&self) -> [GuestAddress; 3] {
        [0, 0x400, 0x800].map(|offset| GuestAddress(self.at + offset))
    }

    /// Makes a buffer available.
    fn add(&mut self, memory: &GuestMemoryMmap, buffer: u64, len: u32, flags: u16) {
        let [descriptors, available, _] = self.places();
        let index = self.available % SIZE;
        let at = descriptors.unchecked_add(u64::from(index) * 16);
        memory.write_obj(buffer, at).unwrap();
        memory.write_obj(len, at.unchecked_add(8)).unwrap();
        memory.write_obj(flags, at.unchecked_add(12)).unwrap();
        let place = available.unchecked_add(4 + 2 * u64::from(index));
        memory.write_obj(index, place).unwrap();
        self.available += 1;
        memory
            .write_obj(self.available, available.unchecked_add(2))
            .unwrap();
    }

    /// How many chains came back.
    fn used(&self, memory: &GuestMemoryMmap) -> u16 {
        let [.., used] = self.places();
        memory.read_obj(used.unchecked_add(2)).unwrap()
    }
}

/// Waits until an event has been signalled.
fn wait(event: &EventFd, failure: &str) {
    let start = Instant::now();
    while event.read().is_err() {
        assert!(start.elapsed() < Duration::from_secs(5), "{failure}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A VMM with one guest.
struct Vmm {
    memory: GuestMemoryMmap,
    file: File,
    frontend: Frontend,
    rings: [Split; QUEUES],
}

impl Vmm {
    fn new(socket: UnixStream) -> Self {
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(MEMORY as u64).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let range = (GuestAddress(0), MEMORY, Some(offset));
        Self {
            memory: GuestMemoryMmap::from_ranges_with_files([range]).unwrap(),
            file,
            frontend: Frontend::from_stream(socket, QUEUES as u64),
            rings: [Split::new(0x1000), Split::new(0x2000)],
        }
    }

    fn theirs(&self, at: GuestAddress) -> u64 {
        self.memory.get_host_address(at).unwrap() as u64
    }

    /// What a VMM says before the guest's driver has set anything up.
    fn greet(&mut self) {
        self.frontend.set_owner().unwrap();
        let features = self.frontend.get_features().unwrap();
        assert_eq!(features & virtqueue::FEATURES, virtqueue::FEATURES);
        let wanted = VhostUserProtocolFeatures::REPLY_ACK;
        let offered = self.frontend.get_protocol_features().unwrap();
        assert!(offered.contains(wanted));
        self.frontend.set_protocol_features(wanted).unwrap();
        let flags = vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY;
        self.frontend.set_hdr_flags(flags);
    }

    /// What it says when the driver has, with each ring's next available entry.
    fn start(&mut self, bases: [u16; QUEUES]) -> std::result::Result<(), vhost::Error> {
        let all = self.frontend.get_features().unwrap();
        let features = all & !(1 << VIRTIO_RING_F_EVENT_IDX);
        self.frontend.set_features(features)?;
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: self.theirs(GuestAddress(0)),
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        };
        self.frontend.set_mem_table(&[region])?;
        for (index, base) in bases.into_iter().enumerate() {
            let [descriptors, available, used] = self.rings[index].places();
            let config = VringConfigData {
                queue_max_size: SIZE,
                queue_size: SIZE,
                flags: 0,
                desc_table_addr: self.theirs(descriptors),
                used_ring_addr: self.theirs(used),
                avail_ring_addr: self.theirs(available),
                log_addr: None,
            };
            let ring = &self.rings[index];
            self.frontend.set_vring_num(index, SIZE)?;
            self.frontend.set_vring_base(index, base)?;
            self.frontend.set_vring_addr(index, &config)?;
            self.frontend.set_vring_kick(index, &ring.kick)?;
            self.frontend.set_vring_call(index, &ring.call)?;
        }
        for index in 0..QUEUES {
            self.frontend.set_vring_enable(index, true)?;
        }
        Ok(())
    }

    /// Has the guest ask for the gateway, and returns the frame that comes back.
    fn ask(&mut self) -> Vec<u8> {
        let question = Arp {
            operation: 1,
            sender: ([2; 6], Ipv4Addr::new(10, 0, 2, 2)),
            target: ([0; 6], Ipv4Addr::new(10, 0, 2, 1)),
        };
        let (sent, received) = (0x1_0000, 0x2_0000);
        let frame = [&[0; HEADER][..], &question.frame()].concat();
        self.memory.write_slice(&frame, GuestAddress(sent)).unwrap();
        let before = self.rings[0].used(&self.memory);
        let [receive, transmit] = &mut self.rings;
        receive.add(&self.memory, received, 2048, WRITE);
        transmit.add(&self.memory, sent, frame.len() as u32, 0);
        transmit.kick.write(1).unwrap();
        wait(&self.rings[0].call, "no interrupt");
        assert_eq!(self.rings[0].used(&self.memory), before + 1);
        let mut answer = vec![0; HEADER + 42];
        self.memory
            .read_slice(&mut answer, GuestAddress(received))
            .unwrap();
        answer.split_off(HEADER)
    }
}

fn is_the_gateway_s(answer: &[u8]) {
    let Some((mac, Frame::Arp(arp))) = parse(answer) else {
        panic!("no ARP: {answer:?}");
    };
    assert_eq!(mac, GATEWAY_MAC);
    assert_eq!(arp.sender, (GATEWAY_MAC, Ipv4Addr::new(10, 0, 2, 1)));
}

type Served = JoinHandle<(Option<Engine>, io::Result<()>)>;

/// A VMM whose card an engine serves, and a copy of the engine's end of the connection.
fn vmm(engine: Engine) -> (Vmm, UnixStream, Served) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let copy = ours.try_clone().unwrap();
    let thread = std::thread::spawn(move || serve(ours, engine));
    (Vmm::new(theirs), copy, thread)
}

#[test]
fn a_guest_is_answered_stops_and_goes_on_and_the_engine_comes_back() {
    let mut engine = Engine::new(fake::config()).unwrap();
    // One VMM after another.
    for _ in 0..2 {
        let (mut vmm, _, thread) = vmm(engine);
        vmm.greet();
        vmm.start([0, 0]).unwrap();
        is_the_gateway_s(&vmm.ask());
        is_the_gateway_s(&vmm.ask());
        let base = |vmm: &Vmm, index| vmm.frontend.get_vring_base(index).unwrap() as u16;
        let bases = [base(&vmm, 0), base(&vmm, 1)];
        assert_eq!(bases, [2, 2]);
        // A ring without its kick is not served.
        let transmit = &vmm.rings[1];
        transmit.kick.write(1).unwrap();
        vmm.start(bases).unwrap();
        is_the_gateway_s(&vmm.ask());
        drop(vmm);
        let (back, result) = thread.join().unwrap();
        result.unwrap();
        engine = back.unwrap();
    }
    assert_eq!(engine.counters().frames.get(), 6);
}

#[test]
fn a_ring_outside_memory_ends_the_connection_and_not_the_network() {
    let (mut vmm, _, thread) = vmm(Engine::new(fake::config()).unwrap());
    vmm.greet();
    vmm.start([0, 0]).unwrap();
    vmm.frontend.get_vring_base(0).unwrap();
    let config = VringConfigData {
        queue_max_size: SIZE,
        queue_size: SIZE,
        flags: 0,
        desc_table_addr: 0x10,
        used_ring_addr: 0x20,
        avail_ring_addr: 0x30,
        log_addr: None,
    };
    vmm.frontend.set_vring_addr(0, &config).unwrap();
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    assert!(vmm.frontend.set_vring_kick(0, &kick).is_err());
    let (engine, result) = thread.join().unwrap();
    assert!(result.is_err() && engine.is_some());
}

#[test]
fn a_driver_that_breaks_a_ring_is_told_of_by_the_rings_error_events() {
    let (mut vmm, _, thread) = vmm(Engine::new(fake::config()).unwrap());
    vmm.greet();
    vmm.start([0, 0]).unwrap();
    is_the_gateway_s(&vmm.ask());
    let errors = [(); QUEUES].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
    for (index, error) in errors.iter().enumerate() {
        vmm.frontend.set_vring_err(index, error).unwrap();
    }
    assert!(errors.iter().all(|error| error.read().is_err()));
    // More chains than the ring has room for.
    let [_, available, _] = vmm.rings[1].places();
    let index = available.unchecked_add(2);
    vmm.memory.write_obj(1000_u16, index).unwrap();
    vmm.rings[1].kick.write(1).unwrap();
    for error in &errors {
        wait(error, "nobody is told");
    }
    drop(vmm);
    assert!(thread.join().unwrap().1.is_ok());
}

#[test]
fn whoever_shuts_the_socket_gets_the_engine_back() {
    let (mut vmm, copy, thread) = vmm(Engine::new(fake::config()).unwrap());
    vmm.greet();
    vmm.start([0, 0]).unwrap();
    is_the_gateway_s(&vmm.ask());
    copy.shutdown(Shutdown::Both).unwrap();
    let (engine, result) = thread.join().unwrap();
    result.unwrap();
    assert!(engine.is_some());
}
