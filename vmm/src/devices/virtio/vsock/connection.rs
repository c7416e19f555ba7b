//! One stream between a port of the guest and a socket of the host: its credit, both ways
//! (virtio 1.2, section 5.10.6.3), and how it ends.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use vm_memory::VolatileSlice;

use super::packet::{Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::devices::virtio::buffers;

/// The room for data that the guest is told: what one connection may keep of our memory.
pub const ROOM: u32 = 256 << 10;
/// The most data in one packet to the guest.
const MAX_DATA: usize = 64 << 10;

/// The guest sent more than it was told that there is room for.
#[derive(Debug, PartialEq, Eq)]
pub struct Overrun;

/// What reading from the host's side gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Filled {
    /// So many bytes.
    Data(usize),
    /// The host will send no more.
    End,
    /// Nothing now.
    Nothing,
}

/// What is to be told to the guest, in this order, apart from data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The guest's request: it is connected.
    Connected,
    /// The host's request.
    Request,
    /// The connection is over.
    Reset,
    /// The host will send no more.
    Shutdown,
    /// How much room there is.
    Credit,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// The guest's answer to the host's request is awaited.
    pub requested: bool,
    /// What is to be told next.
    pub notices: VecDeque<Notice>,
    /// It stands in the line of those that have something for the guest.
    pub in_line: bool,
    // From the guest: bytes that have come, bytes that the stream has taken, and the latter as
    // the guest was last told.
    arrived: u32,
    taken: u32,
    told: u32,
    held: VecDeque<u8>,
    guest_done: bool,
    // To the guest: bytes sent, its room, and the bytes that it has taken out of it.
    sent: u32,
    peer_room: u32,
    peer_taken: u32,
    guest_deaf: bool,
    host_done: bool,
    host_gone: bool,
    readable: bool,
}

impl Connection {
    /// A connection over `stream`, which must not block.
    pub fn new(stream: UnixStream, first: Notice) -> Self {
        Self {
            stream,
            requested: first == Notice::Request,
            notices: VecDeque::from([first]),
            in_line: false,
            arrived: 0,
            taken: 0,
            told: 0,
            held: VecDeque::new(),
            guest_done: false,
            sent: 0,
            peer_room: 0,
            peer_taken: 0,
            guest_deaf: false,
            host_done: false,
            host_gone: false,
            readable: false,
        }
    }

    /// The stream's descriptor.
    pub fn descriptor(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Takes the guest's word for its room.
    pub fn credit(&mut self, header: &Header) {
        self.peer_room = header.buf_alloc;
        self.peer_taken = header.fwd_cnt;
    }

    /// Our room, for a header, and what was taken out of it; from now on the guest knows.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.taken;
        (ROOM, self.taken)
    }

    /// Tells a notice, once.
    pub fn note(&mut self, notice: Notice) {
        if !self.notices.contains(&notice) {
            self.notices.push_back(notice);
        }
    }

    /// The stream may be read.
    pub fn mark_readable(&mut self) {
        self.readable = true;
    }

    /// The host's side has closed both directions.
    pub fn mark_gone(&mut self) {
        self.host_gone = true;
    }

    /// Which directions the host's side has ended, as a shutdown's flags.
    pub fn ended(&self) -> u32 {
        SHUTDOWN_SEND | if self.host_gone { SHUTDOWN_RECEIVE } else { 0 }
    }

    /// Whether there is something for the guest, as far as one can know before reading.
    pub fn has_output(&self) -> bool {
        let data = !self.requested
            && self.readable
            && !self.host_done
            && (self.guest_deaf || self.room() > 0);
        data || !self.notices.is_empty()
    }

    fn room(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.peer_taken);
        self.peer_room.saturating_sub(under_way)
    }

    /// Takes the guest's data: to the stream what it takes now, the rest into our room.
    pub fn receive(&mut self, data: &[VolatileSlice<'_>]) -> Result<(), Overrun> {
        let len = u32::try_from(buffers::len(data)).map_err(|_| Overrun)?;
        let kept = self.arrived.wrapping_sub(self.taken);
        if kept.checked_add(len).is_none_or(|sum| sum > ROOM) || self.guest_done {
            return Err(Overrun);
        }
        self.arrived = self.arrived.wrapping_add(len);
        let mut skip = if self.held.is_empty() {
            self.write_now(data)
        } else {
            0
        };
        for slice in data {
            let here = skip.min(slice.len());
            skip -= here;
            if let Ok(rest) = slice.offset(here) {
                let mut bytes = vec![0; rest.len()];
                rest.copy_to(&mut bytes[..]);
                self.held.extend(bytes);
            }
        }
        self.after_write();
        Ok(())
    }

    fn write_now(&mut self, data: &[VolatileSlice<'_>]) -> usize {
        let vectors = buffers::iovecs(data);
        let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: each vector is a slice of the guest's memory, which `data` keeps mapped; only
        // the kernel reads through them. The count is that of the vectors or less.
        let n = unsafe { libc::writev(self.descriptor(), vectors.as_ptr(), count) };
        match usize::try_from(n) {
            Ok(n) => {
                self.taken = self.taken.wrapping_add(n as u32);
                n
            }
            Err(_) => {
                self.write_failed(&io::Error::last_os_error());
                0
            }
        }
    }

    /// The stream may be written again.
    pub fn flush(&mut self) {
        while !self.held.is_empty() {
            let (front, _) = self.held.as_slices();
            match self.stream.write(front) {
                Ok(n) => {
                    self.held.drain(..n);
                    self.taken = self.taken.wrapping_add(n as u32);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.write_failed(&error);
                    break;
                }
            }
        }
        self.after_write();
    }

    /// A full stream is tried again when it has room; one that nobody reads any more is over.
    fn write_failed(&mut self, error: &io::Error) {
        if !matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
        ) {
            self.note(Notice::Reset);
        }
    }

    fn after_write(&mut self) {
        // The guest hears of new room once half of it has come free since it last heard.
        if self.taken.wrapping_sub(self.told) >= ROOM / 2 {
            self.note(Notice::Credit);
        }
        if self.held.is_empty() && self.guest_done {
            // An error means that the host's side is gone already.
            let _ = self.stream.shutdown(std::net::Shutdown::Write);
            if self.host_done || self.guest_deaf {
                self.note(Notice::Reset);
            }
        }
    }

    /// The guest ends one or both directions.
    pub fn shut(&mut self, flags: u32) {
        self.guest_deaf |= flags & SHUTDOWN_RECEIVE != 0;
        self.guest_done |= flags & SHUTDOWN_SEND != 0;
        self.after_write();
    }

    /// Reads from the stream into the guest's buffers, as much as it has room for.
    pub fn fill(&mut self, mut to: Vec<VolatileSlice<'_>>) -> Filled {
        if !self.readable || self.requested || self.host_done {
            return Filled::Nothing;
        }
        if self.guest_deaf {
            // What nobody will hear is read and thrown away, so that the end is seen.
            return self.drain();
        }
        let most = MAX_DATA.min(self.room() as usize);
        if most == 0 || buffers::truncate(&mut to, most).is_err() || buffers::len(&to) == 0 {
            return Filled::Nothing;
        }
        let vectors = buffers::iovecs(&to);
        let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: each vector is a slice of the guest's memory, which `to` keeps mapped; only the
        // kernel writes through them. The count is that of the vectors or less.
        let n = unsafe { libc::readv(self.descriptor(), vectors.as_ptr(), count) };
        self.filled(n)
    }

    fn drain(&mut self) -> Filled {
        let mut bytes = [0u8; 4096];
        // SAFETY: the array is as long as the length says and is written by the kernel only.
        let n = unsafe { libc::read(self.descriptor(), bytes.as_mut_ptr().cast(), bytes.len()) };
        match self.filled(n) {
            Filled::Data(n) => {
                self.sent = self.sent.wrapping_sub(n as u32);
                Filled::Nothing
            }
            other => other,
        }
    }

    fn filled(&mut self, n: libc::ssize_t) -> Filled {
        match usize::try_from(n) {
            Ok(0) => {
                self.host_done = true;
                self.note(Notice::Shutdown);
                self.after_write();
                Filled::End
            }
            Ok(n) => {
                self.sent = self.sent.wrapping_add(n as u32);
                Filled::Data(n)
            }
            Err(_) => {
                match io::Error::last_os_error().kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => self.readable = false,
                    _ => {
                        self.readable = false;
                        self.note(Notice::Reset);
                    }
                }
                Filled::Nothing
            }
        }
    }

    /// Writes a line to the host's side; what it does not take at once is lost.
    pub fn greet(&mut self, line: &str) {
        let _ = self.stream.write(line.as_bytes());
    }
}
