//! The two ends of a connection, in the guest and on the host: what each says is known to the
//! other by heart.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{RecvError, State};

use super::world::World;

/// Bytes that are read or written at once.
const BLOCK: usize = 16 << 10;

/// One end's socket, non-blocking.
pub trait Stream {
    fn read(&mut self, world: &mut World<'_>, place: &mut [u8]) -> io::Result<usize>;
    fn write(&mut self, world: &mut World<'_>, bytes: &[u8]) -> io::Result<usize>;
    fn end(&mut self, world: &mut World<'_>);
}

impl Stream for TcpStream {
    fn read(&mut self, _: &mut World<'_>, place: &mut [u8]) -> io::Result<usize> {
        Read::read(self, place)
    }

    fn write(&mut self, _: &mut World<'_>, bytes: &[u8]) -> io::Result<usize> {
        Write::write(self, bytes)
    }

    fn end(&mut self, _: &mut World<'_>) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

impl Stream for SocketHandle {
    fn read(&mut self, world: &mut World<'_>, place: &mut [u8]) -> io::Result<usize> {
        let socket = world.tcp(*self);
        match socket.recv_slice(place) {
            Ok(0) => Err(ErrorKind::WouldBlock.into()),
            Ok(n) => Ok(n),
            Err(RecvError::Finished) => Ok(0),
            Err(RecvError::InvalidState) => Err(is_opening(socket.state())),
        }
    }

    fn write(&mut self, world: &mut World<'_>, bytes: &[u8]) -> io::Result<usize> {
        let socket = world.tcp(*self);
        match socket.send_slice(bytes) {
            Ok(0) => Err(ErrorKind::WouldBlock.into()),
            Ok(n) => Ok(n),
            Err(_) => Err(is_opening(socket.state())),
        }
    }

    fn end(&mut self, world: &mut World<'_>) {
        world.tcp(*self).close();
    }
}

fn is_opening(state: State) -> io::Error {
    match state {
        State::Listen | State::SynSent | State::SynReceived => ErrorKind::WouldBlock.into(),
        _ => ErrorKind::ConnectionReset.into(),
    }
}

/// One end.
#[derive(Debug)]
pub struct End<S> {
    pub stream: S,
    /// Bytes that it says in all, and has said.
    pub to_say: usize,
    pub said: usize,
    /// Whether it ends its way when it has said all.
    pub ends: bool,
    pub ended: bool,
    /// Whether it listens at present, and how much it takes at once.
    pub listens: bool,
    pub block: usize,
    pub heard: usize,
    /// Whether the other's end was heard, or the connection was reset.
    pub heard_end: bool,
    pub was_reset: bool,
    voice: u8,
}

impl<S: Stream> End<S> {
    /// An end that says so many bytes and ends, and hears everything.
    pub fn new(stream: S, to_say: usize, voice: u8) -> Self {
        Self {
            stream,
            to_say,
            said: 0,
            ends: true,
            ended: false,
            listens: true,
            block: BLOCK,
            heard: 0,
            heard_end: false,
            was_reset: false,
            voice,
        }
    }

    /// Says and hears what it can now.
    pub fn step(&mut self, world: &mut World<'_>) {
        let mut block = [0; BLOCK];
        while self.listens && !self.heard_end && !self.was_reset {
            match self.stream.read(world, &mut block[..self.block]) {
                Ok(0) => self.heard_end = true,
                Ok(n) => {
                    for (at, byte) in (self.heard..).zip(&block[..n]) {
                        assert_eq!(*byte, word(!self.voice, at), "byte {at}");
                    }
                    self.heard += n;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.was_reset = true,
            }
            world.moved += 1;
        }
        while self.said < self.to_say && !self.was_reset {
            let len = BLOCK.min(self.to_say - self.said);
            for (at, byte) in (self.said..).zip(&mut block[..len]) {
                *byte = word(self.voice, at);
            }
            match self.stream.write(world, &block[..len]) {
                Ok(n) => self.said += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.was_reset = true,
            }
            world.moved += 1;
        }
        if self.said == self.to_say && self.ends && !self.ended && !self.was_reset {
            self.stream.end(world);
            self.ended = true;
            world.moved += 1;
        }
    }

    /// Whether it has said all and heard the other's end.
    pub fn is_done(&self) -> bool {
        self.ended && self.heard_end
    }
}

/// Byte `at` of what a voice says.
fn word(voice: u8, at: usize) -> u8 {
    // Of a period that no power of two divides, so that what was moved is found.
    ((at % 251) as u8)
        .wrapping_add((at / 251) as u8)
        .wrapping_add(voice)
}

/// The two ends of a connection, which say so many bytes each.
pub fn ends(
    (guest, host): (SocketHandle, TcpStream),
    up: usize,
    down: usize,
) -> (End<SocketHandle>, End<TcpStream>) {
    (End::new(guest, up, b'g'), End::new(host, down, !b'g'))
}

/// Both ends say what they have to say, and hear each other.
pub fn finish(world: &mut World<'_>, ends: &mut (End<SocketHandle>, End<TcpStream>)) {
    let (guest, host) = ends;
    world.until("both ends have said and heard everything", |world| {
        guest.step(world);
        host.step(world);
        assert!(!guest.was_reset && !host.was_reset, "{guest:?} {host:?}");
        guest.is_done() && host.is_done()
    });
    assert_eq!((guest.heard, host.heard), (host.said, guest.said));
    assert_eq!((guest.said, host.said), (guest.to_say, host.to_say));
}
