//! Frames over queues that a driver set up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Address, Bytes, GuestAddress};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::super::{SegmentKind, Segments};
use super::*;

const WRITE: u16 = 2;
const ALL: u64 = !(1 << VIRTIO_RING_F_EVENT_IDX);

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

fn active(queue: Queue) -> Virtqueue {
    Virtqueue::new(queue, EventFd::new(EFD_NONBLOCK).unwrap(), || {})
}

/// A link whose receive queue has `receive` and whose transmit queue has `transmit`.
fn link<'m>(
    memory: &'m GuestMemoryMmap,
    receive: &[RawDescriptor],
    transmit: &[RawDescriptor],
) -> (VirtqueueLink, MockSplitQueue<'m, GuestMemoryMmap>) {
    let rx = MockSplitQueue::create(memory, GuestAddress(0), 16);
    let tx = MockSplitQueue::create(memory, GuestAddress(0x8000), 16);
    for descriptor in receive.chunks(1) {
        assert_eq!(descriptor.len(), 1);
    }
    if !receive.is_empty() {
        rx.add_desc_chains(receive, 0).unwrap();
    }
    if !transmit.is_empty() {
        tx.build_desc_chain(transmit).unwrap();
    }
    let queues = (
        active(rx.create_queue().unwrap()),
        active(tx.create_queue().unwrap()),
    );
    (
        VirtqueueLink::new(memory.clone(), queues.0, queues.1, None, ALL),
        rx,
    )
}

fn buffer(at: u64, len: u32, flags: u16) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(at, len, flags, 0))
}

#[test]
fn a_frame_that_the_driver_sent_in_pieces_arrives_without_its_header() {
    let memory = memory();
    memory
        .write_slice(&[0xff; 12], GuestAddress(0x1_0000))
        .unwrap();
    memory
        .write_slice(b"a frame", GuestAddress(0x2_0000))
        .unwrap();
    let chain = [
        buffer(0x1_0000, 12, 0),
        buffer(0x2_0000, 2, 0),
        buffer(0x2_0002, 5, 0),
    ];
    let (mut link, _rx) = link(&memory, &[], &chain);
    let mut frame = [0; 100];
    let received = link.receive(&mut frame).unwrap();
    assert_eq!(&frame[..received.len], b"a frame");
    assert_eq!(link.receive(&mut frame), None);
}

#[test]
fn a_chain_outside_memory_or_too_long_is_a_frame_without_bytes() {
    for chain in [
        [buffer(1 << 40, 60, 0)],
        [buffer(0, 0xffff_ffff, 0)],
        [buffer(0, 12, 0)],
    ] {
        let memory = memory();
        let (mut link, _rx) = link(&memory, &[], &chain);
        let received = link.receive(&mut [0; 100]);
        assert_eq!(received.map(|received| received.len), Some(0));
        assert_eq!(link.receive(&mut [0; 100]), None);
    }
}

#[test]
fn room_that_no_frame_will_ever_have_is_told_of_and_not_waited_for() {
    let memory = memory();
    let buffers = [buffer(0x1_0000, 8, WRITE); 4];
    let (mut link, _rx) = link(&memory, &buffers, &[]);
    // Every frame has to fit into one buffer now.
    link.features &= !(1 << VIRTIO_NET_F_MRG_RXBUF);
    let told = Arc::new(AtomicBool::new(false));
    let tell = told.clone();
    link.report_to(move || tell.store(true, Ordering::Relaxed));
    assert!(!link.send(&[b"a frame"], Offload::default()));
    assert!(told.load(Ordering::Relaxed));
}

#[test]
fn a_frame_larger_than_a_buffer_takes_several_and_says_how_many() {
    let memory = memory();
    let buffers = [0x1_0000, 0x2_0000, 0x3_0000].map(|at| buffer(at, 16, WRITE));
    let (mut link, rx) = link(&memory, &buffers, &[]);
    let offload = Offload {
        checksum: Some((34, 16)),
        segments: Some(Segments {
            kind: SegmentKind::Tcp4,
            size: 1460,
            headers: 54,
        }),
    };
    assert!(link.send(&[b"0123", b"456789"], offload));
    let mut header = [0; 16];
    memory
        .read_slice(&mut header, GuestAddress(0x1_0000))
        .unwrap();
    assert_eq!(header, *b"\x01\x01\x36\0\xb4\x05\x22\0\x10\0\x02\x000123");
    let mut rest = [0; 6];
    memory
        .read_slice(&mut rest, GuestAddress(0x2_0000))
        .unwrap();
    assert_eq!(&rest, b"456789");
    assert_eq!(u16::from_le(rx.used().idx().load()), 2);
    // one buffer is left: not enough
    assert!(!link.send(&[&[0; 20]], Offload::default()));
    assert!(link.send(&[&[0; 4]], Offload::default()));
    assert!(!link.send(&[&[0; 1]], Offload::default()));
}

#[test]
fn the_driver_switches_offloads_and_no_other_feature() {
    let memory = memory();
    let ring = MockSplitQueue::create(&memory, GuestAddress(0x4000), 16);
    let (mut link, _rx) = link(&memory, &[], &[]);
    let send = |class: u8, features: u64| {
        let command = [&[class, 0][..], &features.to_le_bytes()].concat();
        memory
            .write_slice(&command, GuestAddress(0x1_0000))
            .unwrap();
        memory.write_obj(7_u8, GuestAddress(0x2_0000)).unwrap();
        let chain = [buffer(0x1_0000, 10, 0), buffer(0x2_0000, 1, WRITE)];
        ring.build_desc_chain(&chain).unwrap();
    };
    let answer = || memory.read_obj::<u8>(GuestAddress(0x2_0000)).unwrap();
    link.control = Some(active(ring.create_queue().unwrap()));
    let kick = |link: &mut VirtqueueLink| {
        link.control.as_ref().unwrap().kick.write(1).unwrap();
        link.acknowledge();
    };
    send(5, 1 << VIRTIO_NET_F_GUEST_CSUM);
    kick(&mut link);
    assert_eq!(answer(), 0);
    let checksum_only = Capabilities {
        checksum: true,
        ..Capabilities::default()
    };
    assert_eq!(link.capabilities(), checksum_only);
    send(1, u64::MAX);
    kick(&mut link);
    assert_eq!(answer(), 1, "a command that is not known here");
    assert_eq!(link.capabilities(), checksum_only);
}

#[test]
fn a_quiet_driver_need_not_kick_and_its_frames_are_found_all_the_same() {
    const SIZE: u16 = 16;
    for by_event in [false, true] {
        let memory = memory();
        let ring = MockSplitQueue::create(&memory, GuestAddress(0x4000), SIZE);
        let (mut link, _rx) = link(&memory, &[], &[]);
        let mut queue: Queue = ring.create_queue().unwrap();
        queue.set_event_idx(by_event);
        link.transmit = active(queue);
        let sent = std::cell::Cell::new(0_u16);
        let send = || {
            let frame = [buffer(0x1_0000, 12 + 20, 0)];
            ring.add_desc_chains(&frame, 0).unwrap();
            sent.set(sent.get() + 1);
        };
        // Virtio 1.2, sections 2.7.8 and 2.7.10: the used ring's flags, or what follows it.
        let has_to_kick = || {
            let (used, event) = (ring.used_addr(), 4 + 8 * u64::from(SIZE));
            let at = if by_event { event } else { 0 };
            let said: u16 = memory.read_obj(used.unchecked_add(at)).unwrap();
            said == if by_event { sent.get() } else { 0 }
        };
        let frame = &mut [0; 100];
        assert!(!link.quiet(false), "it never was");
        send();
        assert!(link.receive(frame).is_some());
        assert_eq!(link.receive(frame), None);
        assert!(has_to_kick());
        link.quiet(true);
        assert!(!link.waits());
        send();
        assert!(link.waits());
        assert!(link.receive(frame).is_some());
        assert_eq!(link.receive(frame), None);
        assert!(!link.waits());
        assert!(!has_to_kick());
        assert!(!link.quiet(false));
        assert!(has_to_kick());
        link.quiet(true);
        assert_eq!(link.receive(frame), None);
        send();
        assert!(link.quiet(false), "one came before it knew");
    }
}

/// A frame of `len` bytes that says that it is of TCP or of UDP, and the chain that it lies in.
fn long_frame(memory: &GuestMemoryMmap, at: u64, len: usize, protocol: u8) -> [RawDescriptor; 2] {
    let mut frame: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[23] = protocol;
    memory.write_slice(&[0; 12], GuestAddress(at)).unwrap();
    memory.write_slice(&frame, GuestAddress(at + 12)).unwrap();
    let first = 12 + len as u32 / 2;
    [
        buffer(at, first, 0),
        buffer(at + u64::from(first), len as u32 + 12 - first, 0),
    ]
}

#[test]
fn a_long_frame_of_a_stream_is_lent_until_its_batch_ends() {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let memory = memory();
    let ring = MockSplitQueue::create(&memory, GuestAddress(0x4000), 16);
    let (mut link, _rx) = link(&memory, &[], &[]);
    link.transmit = active(ring.create_queue().unwrap());
    let used = || u16::from_le(ring.used().idx().load());
    let mut chains = Vec::new();
    for (index, (len, protocol)) in [(9000, UDP), (9000, TCP), (600, TCP), (9000, TCP)]
        .into_iter()
        .enumerate()
    {
        let at = 0x1_0000 * (1 + index as u64);
        chains.extend(long_frame(&memory, at, len, protocol));
    }
    for (index, descriptor) in chains.iter_mut().enumerate() {
        let flags = u16::from(index % 2 == 0);
        let plain = Descriptor::from(*descriptor);
        let next = index as u16 + flags;
        *descriptor = Descriptor::new(plain.addr().0, plain.len(), flags, next).into();
    }
    ring.add_desc_chains(&chains, 0).unwrap();
    let mut place = vec![0; 10_000];
    for (len, is_lent) in [(9000, false), (9000, true), (600, false), (9000, true)] {
        place.fill(0xff);
        let received = link.receive(&mut place).unwrap();
        assert_eq!((received.len, received.loan.is_some()), (len, is_lent));
        let copied = if is_lent { loans::HEAD } else { len };
        assert_eq!(place[copied - 1], ((copied - 1) % 251) as u8);
        assert_eq!(place[copied], 0xff, "what was not copied");
        if let Some(loan) = received.loan {
            link.loans.copy(loan, 0, &mut place[..len]).unwrap();
            assert_eq!(place[len - 1], ((len - 1) % 251) as u8);
        }
    }
    assert_eq!(used(), 1, "the first, before which none was lent");
    link.end_batch();
    assert_eq!((used(), link.positions()[1]), (4, 4));
    let given: Vec<u32> = (0..4)
        .map(|index| u32::from_le(ring.used().ring().ref_at(index).unwrap().load().id()))
        .collect();
    assert_eq!(given, [0, 2, 4, 6]);
}
