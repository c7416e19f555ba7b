//! The guest's side: where frames come from and go to.

use std::os::fd::RawFd;

/// What a frame to the guest leaves for its network card to do, in the words of
/// `struct virtio_net_hdr` (virtio 1.2, section 5.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// Where the checksum starts and where, from there, it lies; `None` where it is whole.
    pub checksum: Option<(u16, u16)>,
    /// Bytes of data in each segment, where the frame is to be cut into segments.
    pub segment: Option<u16>,
    /// Bytes of all headers, where it is to be cut.
    pub headers: u16,
}

/// What the guest's driver takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Partial checksums.
    pub checksum: bool,
    /// TCP over IPv4 in frames of up to 64 KiB.
    pub tso4: bool,
}

/// A guest's network card, seen from outside.
pub trait Link {
    /// Puts the guest's next frame, without any offload header, into `frame`; false where there
    /// is none.
    fn receive(&mut self, frame: &mut Vec<u8>) -> bool;

    /// Gives the guest a frame made of `parts`; false where it has no room for it now.
    fn send(&mut self, parts: &[&[u8]], offload: Offload) -> bool;

    /// Tells the guest of what was sent and received since the last call.
    fn flush(&mut self);

    /// What to wait on: each can be read when the guest sent frames or made room.
    fn descriptors(&self) -> Vec<RawFd>;

    /// One of [`Link::descriptors`] can be read: takes the notification.
    fn acknowledge(&mut self);

    /// What the guest's driver takes.
    fn capabilities(&self) -> Capabilities;
}
