//! The network card's queues: frames from the guest, room for frames to it, and control messages.
#![no_main]

mod rings;

use netdev::link::virtqueue::{FEATURES, Virtqueue, VirtqueueLink};
use netdev::link::{Link, MAX_FRAME, Offload, SegmentKind, Segments};
use peapod::devices::virtio::ActiveQueue;

/// So often the link is looked at.
const ROUNDS: usize = 4;
/// A driver need not let anybody come to an end.
const FRAMES: usize = 64;

fn virtqueue(active: ActiveQueue) -> Virtqueue {
    Virtqueue::new(active.queue, active.kick, || {})
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let activation = rings::activation(bytes, 3);
    let mut queues = activation.queues.into_iter().flatten().map(virtqueue);
    let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) else {
        return;
    };
    // What the driver has taken of the features is its own affair as well.
    let taken = bytes.get(..8).map_or(0, |bytes| {
        u64::from_le_bytes(bytes.try_into().unwrap_or_default())
    });
    let features = FEATURES & taken | 1 << 32;
    let mut link = VirtqueueLink::new(
        activation.memory,
        receive,
        transmit,
        queues.next(),
        features,
    );
    let mut place = vec![0; MAX_FRAME];
    let segments = Segments {
        kind: SegmentKind::Tcp4,
        size: 1400,
        headers: 54,
    };
    let cut = Offload {
        checksum: Some((34, 16)),
        segments: Some(segments),
    };
    for _ in 0..ROUNDS {
        link.acknowledge();
        for _ in 0..FRAMES {
            match link.receive(&mut place) {
                Some(frame) => {
                    assert!(frame.len <= place.len());
                    if let (Some(loan), Some(loans)) = (frame.loan, link.loans()) {
                        let whole = place.get_mut(..frame.len).unwrap_or_default();
                        loans.copy(loan, 0, whole).unwrap();
                    }
                }
                None => break,
            }
        }
        link.end_batch();
        link.send(&[&[1; 60]], Offload::default());
        link.send(&[&[2; 54], &[3; 20_000]], cut);
        link.flush();
        link.quiet(true);
        link.waits();
        link.quiet(false);
    }
});
