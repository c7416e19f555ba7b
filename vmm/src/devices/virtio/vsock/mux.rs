//! All the connections of a guest: what its packets do to them, and the packets that they have
//! for it.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Connection, Filled, Notice};
use super::packet::{HEADER, HOST_CID, Header, Op, STREAM};
use crate::devices::virtio::buffers::{self, Slices};

/// The most connections at once, those that have not said yet where they want to go among them.
const MAX_CONNECTIONS: usize = 512;
/// The most refusals that wait for the guest to make room; a guest that makes none loses some.
const MAX_REFUSALS: usize = 64;
/// Longer than any `CONNECT 4294967295\n`.
const MAX_LINE: usize = 32;
/// Host ports for connections that the host opens: above those that services have.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// The token of the listening socket.
pub const LISTENER: u64 = u64::MAX - 1;

/// What listens on the host's ports.
pub trait Ports: Send {
    /// The stream to what listens on `port`, for the guest's port `from`.
    fn connect(&mut self, port: u32, from: u32) -> io::Result<UnixStream>;
}

/// A connection's ports: the host's and the guest's.
type Key = (u32, u32);

/// The connections.
pub struct Mux {
    cid: u64,
    ports: Box<dyn Ports>,
    listener: Option<UnixListener>,
    epoll: Arc<Epoll>,
    connections: HashMap<Key, Connection>,
    /// Streams that have not said yet where they want to go.
    greeting: HashMap<u64, (UnixStream, Vec<u8>)>,
    /// Whose descriptor an epoll token is.
    tokens: HashMap<u64, Key>,
    next_token: u64,
    next_port: u32,
    /// Connections with something for the guest, in turn.
    line: VecDeque<Key>,
    refusals: VecDeque<Key>,
}

impl Mux {
    /// No connections; `listener` takes the host's own, each of which says first where it wants
    /// to go.
    pub fn new(
        cid: u64,
        ports: Box<dyn Ports>,
        listener: Option<UnixListener>,
        epoll: Arc<Epoll>,
    ) -> Self {
        Self {
            cid,
            ports,
            listener,
            epoll,
            connections: HashMap::new(),
            greeting: HashMap::new(),
            tokens: HashMap::new(),
            next_token: 0,
            next_port: FIRST_HOST_PORT,
            line: VecDeque::new(),
            refusals: VecDeque::new(),
        }
    }

    /// Ends every connection; the services and the listener are for the next guest.
    pub fn into_parts(self) -> (Box<dyn Ports>, Option<UnixListener>) {
        (self.ports, self.listener)
    }

    /// The host's listening socket.
    pub fn listener(&self) -> Option<&UnixListener> {
        self.listener.as_ref()
    }

    /// A packet from the guest.
    pub fn packet(&mut self, header: &Header, data: Slices<'_>) {
        let key = (header.destination_port, header.source_port);
        if header.source_cid != self.cid || header.destination_cid != HOST_CID {
            return;
        }
        if header.kind != STREAM {
            return self.refuse(key, header);
        }
        if header.op == Some(Op::Request) {
            return self.request(key, header);
        }
        let Some(connection) = self.connections.get_mut(&key) else {
            return self.refuse(key, header);
        };
        connection.credit(header);
        match header.op {
            Some(Op::Response) if connection.requested => {
                connection.requested = false;
                connection.greet(&format!("OK {}\n", key.0));
            }
            Some(Op::Reset) => return self.remove(key),
            Some(Op::Shutdown) => connection.shut(header.flags),
            Some(Op::Data) if !connection.requested => {
                if connection.receive(&data).is_err() {
                    connection.note(Notice::Reset);
                }
            }
            Some(Op::CreditUpdate) => {}
            Some(Op::CreditRequest) => connection.note(Notice::Credit),
            // What makes no sense here ends the connection.
            _ => connection.note(Notice::Reset),
        }
        self.stand_in_line(key);
    }

    fn request(&mut self, key: Key, header: &Header) {
        let full = self.connections.len() + self.greeting.len() >= MAX_CONNECTIONS;
        if full || self.connections.contains_key(&key) {
            return self.refuse(key, header);
        }
        match self.ports.connect(key.0, key.1) {
            Ok(stream) => {
                if let Err(error) = self.add(key, stream, Notice::Connected) {
                    tracing::warn!("vsock: {error}");
                    return self.refuse(key, header);
                }
                if let Some(connection) = self.connections.get_mut(&key) {
                    connection.credit(header);
                }
            }
            Err(error) => {
                tracing::debug!("vsock: nobody is at port {}: {error}", key.0);
                self.refuse(key, header);
            }
        }
    }

    fn refuse(&mut self, key: Key, header: &Header) {
        // A reset is not answered by a reset.
        if header.op != Some(Op::Reset) && self.refusals.len() < MAX_REFUSALS {
            self.refusals.push_back(key);
        }
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn watch(&self, fd: RawFd, token: u64) -> io::Result<()> {
        // Edge-triggered: an event a change, whatever the guest's room.
        let events =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.epoll
            .ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
    }

    fn add(&mut self, key: Key, stream: UnixStream, first: Notice) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let token = self.token();
        self.watch(stream.as_raw_fd(), token)?;
        self.tokens.insert(token, key);
        self.connections.insert(key, Connection::new(stream, first));
        self.stand_in_line(key);
        Ok(())
    }

    fn remove(&mut self, key: Key) {
        // Closing the stream takes it out of epoll.
        self.connections.remove(&key);
        self.tokens.retain(|_, k| *k != key);
    }

    fn stand_in_line(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key)
            && connection.has_output()
            && !std::mem::replace(&mut connection.in_line, true)
        {
            self.line.push_back(key);
        }
    }

    /// Something happened to the descriptor that is watched under `token`.
    pub fn event(&mut self, token: u64, events: EventSet) {
        if token == LISTENER {
            return self.accept();
        }
        if self.greeting.contains_key(&token) {
            return self.greeted(token);
        }
        let Some(key) = self.tokens.get(&token).copied() else {
            return;
        };
        if let Some(connection) = self.connections.get_mut(&key) {
            if events.intersects(
                EventSet::IN | EventSet::HANG_UP | EventSet::READ_HANG_UP | EventSet::ERROR,
            ) {
                connection.mark_readable();
            }
            if events.contains(EventSet::HANG_UP) {
                connection.mark_gone();
            }
            if events.contains(EventSet::OUT) {
                connection.flush();
            }
        }
        self.stand_in_line(key);
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        let Ok((stream, _)) = listener.accept() else {
            return;
        };
        if self.connections.len() + self.greeting.len() >= MAX_CONNECTIONS {
            return;
        }
        let token = self.token();
        let watched = stream
            .set_nonblocking(true)
            .and_then(|()| self.watch(stream.as_raw_fd(), token));
        match watched {
            Ok(()) => {
                self.greeting.insert(token, (stream, Vec::new()));
            }
            Err(error) => tracing::warn!("vsock: {error}"),
        }
    }

    /// Reads `CONNECT <port>\n`, a byte at a time: what follows is the guest's.
    fn greeted(&mut self, token: u64) {
        let Some((mut stream, mut line)) = self.greeting.remove(&token) else {
            return;
        };
        let port = loop {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => break parse_connect(&line),
                Ok(1) if line.len() < MAX_LINE => line.extend(byte),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.greeting.insert(token, (stream, line));
                    return;
                }
                _ => break None,
            }
        };
        let Some(port) = port else {
            return;
        };
        let key = loop {
            let key = (self.next_port, port);
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            if !self.connections.contains_key(&key) {
                break key;
            }
        };
        self.tokens.insert(token, key);
        let mut connection = Connection::new(stream, Notice::Request);
        // More may lie there already, of which epoll has told.
        connection.mark_readable();
        self.connections.insert(key, connection);
        self.stand_in_line(key);
    }

    /// Whether a packet may wait for the guest.
    pub fn has_output(&self) -> bool {
        !self.refusals.is_empty() || !self.line.is_empty()
    }

    /// Writes the next packet into the guest's buffers; how many bytes, or `None` where there is
    /// nothing to send or no room for a header.
    pub fn next(&mut self, to: &Slices<'_>) -> Option<usize> {
        if let Some(key) = self.refusals.pop_front() {
            return self.write(key, to.clone(), Op::Reset, 0, 0, (0, 0));
        }
        while let Some(key) = self.line.pop_front() {
            let Some(connection) = self.connections.get_mut(&key) else {
                continue;
            };
            connection.in_line = false;
            let written = self.output(key, to);
            self.stand_in_line(key);
            if written.is_some() {
                return written;
            }
        }
        None
    }

    fn output(&mut self, key: Key, to: &Slices<'_>) -> Option<usize> {
        let connection = self.connections.get_mut(&key)?;
        let mut data = to.clone();
        let mut len = 0;
        if connection.notices.is_empty() {
            buffers::put(&mut data, &[0; HEADER])?;
            match connection.fill(data) {
                Filled::Data(n) => len = n,
                // It has left a notice.
                Filled::End => {}
                Filled::Nothing if connection.notices.is_empty() => return None,
                Filled::Nothing => {}
            }
        }
        let told = connection.tell();
        let (op, flags) = match connection.notices.pop_front() {
            None => (Op::Data, 0),
            Some(Notice::Connected) => (Op::Response, 0),
            Some(Notice::Request) => (Op::Request, 0),
            Some(Notice::Credit) => (Op::CreditUpdate, 0),
            Some(Notice::Shutdown) => (Op::Shutdown, connection.ended()),
            Some(Notice::Reset) => (Op::Reset, 0),
        };
        if op == Op::Reset {
            self.remove(key);
        }
        self.write(key, to.clone(), op, flags, len, told)
    }

    fn write(
        &self,
        key: Key,
        mut to: Slices<'_>,
        op: Op,
        flags: u32,
        len: usize,
        (buf_alloc, fwd_cnt): (u32, u32),
    ) -> Option<usize> {
        let header = Header {
            source_cid: HOST_CID,
            destination_cid: self.cid,
            source_port: key.0,
            destination_port: key.1,
            len: len as u32,
            kind: STREAM,
            op: Some(op),
            flags,
            buf_alloc,
            fwd_cnt,
        };
        buffers::put(&mut to, &header.bytes())?;
        Some(HEADER + len)
    }
}

fn parse_connect(line: &[u8]) -> Option<u32> {
    let port = std::str::from_utf8(line).ok()?.strip_prefix("CONNECT ")?;
    port.trim_end_matches('\r').parse().ok()
}
