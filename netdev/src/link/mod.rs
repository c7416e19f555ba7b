//! The guest's side: where frames come from and go to.

pub mod capture;
#[cfg(test)]
pub mod fake;
pub mod header;
pub mod limited;
pub mod loans;
pub mod metered;
pub mod tap;
pub mod virtqueue;

use std::os::fd::RawFd;

use loans::{Loan, Loans};

/// A frame from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Received {
    /// Its bytes, without any offload header.
    pub len: usize,
    /// UDP: the frame is several datagrams of so many bytes, one behind the other behind one
    /// header, the last perhaps shorter.
    pub datagrams: Option<u16>,
    /// The frame was lent: only its first [`loans::HEAD`] bytes were copied.
    pub loan: Option<Loan>,
}

/// What a frame to the guest leaves for its network card to do, in the words of
/// `struct virtio_net_hdr` (virtio 1.2, section 5.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// Where the checksum starts and where, from there, it lies; `None` where it is whole.
    pub checksum: Option<(u16, u16)>,
    /// How the frame is to be cut, where it is.
    pub segments: Option<Segments>,
}

/// How a card cuts a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// Into what.
    pub kind: SegmentKind,
    /// Bytes of data in each.
    pub size: u16,
    /// Bytes of all headers.
    pub headers: u16,
}

/// What a card cuts a frame into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP segments over IPv4.
    Tcp4,
    /// TCP segments over IPv6.
    Tcp6,
    /// UDP datagrams.
    Udp,
}

/// What the guest's driver takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Partial checksums.
    pub checksum: bool,
    /// TCP over IPv4 in frames of up to 64 KiB.
    pub tso4: bool,
    /// TCP over IPv6 in frames of up to 64 KiB.
    pub tso6: bool,
    /// Several datagrams in one frame.
    pub uso: bool,
}

/// A guest's network card, seen from outside.
pub trait Link {
    /// Copies the guest's next frame to the start of `place`; `None` where there is none. One that
    /// cannot be read, or is longer than `place`, has no bytes; [`MAX_FRAME`] bytes hold any. A link
    /// with [`Link::loans`] may lend a long one of TCP, until [`Link::end_batch`].
    fn receive(&mut self, place: &mut [u8]) -> Option<Received>;

    /// The frames that are lent now, by a link that lends any.
    fn loans(&self) -> Option<&Loans> {
        None
    }

    /// The frames that were received are dealt with: the guest may have its buffers back.
    fn end_batch(&mut self) {}

    /// Gives the guest a frame made of `parts`; false where it has no room for it now.
    fn send(&mut self, parts: &[&[u8]], offload: Offload) -> bool;

    /// Tells the guest of what was sent and received since the last call.
    fn flush(&mut self);

    /// Bytes of one flow after which [`Link::flush`] pays: where the guest hears of frames only by it, it
    /// takes those while more are fetched.
    fn piece(&self) -> usize {
        usize::MAX
    }

    /// What to wait on: each can be read when the guest sent frames or made room.
    fn descriptors(&self) -> Vec<RawFd>;

    /// One of [`Link::descriptors`] can be read: takes the notification.
    fn acknowledge(&mut self);

    /// What the guest's driver takes.
    fn capabilities(&self) -> Capabilities;

    /// The guest need not tell of frames that it sends, for they are looked for by [`Link::waits`];
    /// or it has to again, and then true says that some came meanwhile. It is a hint: descriptors
    /// may be ready all the same, and are where a link knows no better.
    fn quiet(&mut self, _quiet: bool) -> bool {
        false
    }

    /// Whether there are frames of which a quiet guest did not tell.
    fn waits(&mut self) -> bool {
        false
    }
}

/// The longest frame: Ethernet and the largest packet.
pub const MAX_FRAME: usize = crate::wire::ETHERNET + 65_535;
