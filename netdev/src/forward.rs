//! The pod's listening sockets: a forwarded port each.
//!
//! A TCP port is bound from the start, so that one that is taken is known at once, but listens
//! only while the guest's side accepts connections: a client then finds what it would find in the
//! guest. So is a UDP port, where the guest tells what it listens on; else it is open.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::{Forward, Transport};
use crate::control::{self, ForwardStatus, MAX_FORWARDS};
use crate::counters::{Counters, ForwardCounters};
use crate::flow::Carried;
use crate::sys;

/// Clients of forwarded UDP ports that are remembered at most; then all are forgotten, and each
/// is known again by its next datagram.
const MAX_CLIENTS: usize = 4096;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// A port that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Somebody else has it.
    #[error("port {0}: already in use; choose another with --publish")]
    InUse(SocketAddr),
    /// Something else.
    #[error("port {0}: {1}")]
    Bind(SocketAddr, io::Error),
}

/// What the guest tells of the UDP ports that its programs listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// They are these,
    pub udp: Vec<u16>,
    /// and of those in here perhaps others: it takes them for clients'.
    pub unknown: RangeInclusive<u16>,
}

impl Told {
    fn has(&self, port: u16) -> bool {
        self.udp.contains(&port) || self.unknown.contains(&port)
    }
}

enum Listener {
    Tcp(Socket),
    Udp(UdpSocket),
}

/// One forwarded port.
pub struct ListeningPort {
    listener: Listener,
    bind: SocketAddr,
    guest_port: u16,
    listens: bool,
    counters: Arc<ForwardCounters>,
}

/// What came in at a port.
pub enum Port {
    /// Nothing more now.
    Nothing,
    /// A connection.
    Connection {
        /// The client's.
        socket: TcpStream,
        /// Who called.
        client: SocketAddr,
        /// Which of the pod's addresses was called.
        local: IpAddr,
        /// For which of the guest's ports.
        guest_port: u16,
    },
    /// Datagrams of one client, joined, in the caller's buffer.
    Datagrams {
        /// Their length together.
        len: usize,
        /// Each one's, but perhaps the last's.
        size: usize,
        /// Who sent them.
        client: SocketAddr,
        /// The address that the port is bound to.
        local: IpAddr,
        /// For which of the guest's ports.
        guest_port: u16,
    },
}

/// All of them, and the clients of the UDP ones: what the guest calls a client, the client, and
/// the port that it came by.
#[derive(Default)]
pub struct Forwards {
    /// A removed one leaves its place empty, so that the others keep theirs.
    ports: Vec<Option<ListeningPort>>,
    clients: HashMap<(u16, SocketAddr), (SocketAddr, usize)>,
}

impl Forwards {
    /// Binds every forward's socket, or none.
    pub fn bind(forwards: &[Forward], counters: &Counters) -> Result<Self, ForwardError> {
        let ports = forwards
            .iter()
            .map(|forward| ListeningPort::bind(forward, counters).map(Some))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            ports,
            clients: HashMap::new(),
        })
    }

    /// The ports, each with its place.
    pub fn ports(&self) -> impl Iterator<Item = (usize, &ListeningPort)> {
        let ports = self.ports.iter().enumerate();
        ports.filter_map(|(index, port)| Some((index, port.as_ref()?)))
    }

    /// The ports, to open and close.
    pub fn ports_mut(&mut self) -> impl Iterator<Item = (usize, &mut ListeningPort)> {
        let ports = self.ports.iter_mut().enumerate();
        ports.filter_map(|(index, port)| Some((index, port.as_mut()?)))
    }

    /// The port at that place.
    pub fn port(&self, index: usize) -> Option<&ListeningPort> {
        self.ports.get(index)?.as_ref()
    }

    /// Adds one; returns its place and where it is bound.
    pub fn insert(&mut self, port: ListeningPort) -> Result<usize, control::Error> {
        let free = self.ports.iter().position(Option::is_none);
        let index = free.unwrap_or(self.ports.len());
        if index >= MAX_FORWARDS {
            return Err(control::Error::TooMany);
        }
        if free.is_none() {
            self.ports.push(None);
        }
        if let Some(place) = self.ports.get_mut(index) {
            *place = Some(port);
        }
        Ok(index)
    }

    /// Takes one out, whose socket is closed with it; its clients are forgotten.
    pub fn remove(&mut self, transport: Transport, bind: SocketAddr) -> Option<ListeningPort> {
        let same = |port: &&ListeningPort| port.transport() == transport && port.bind == bind;
        let (index, _) = self.ports().find(|(_, port)| same(port))?;
        self.clients.retain(|_, (_, other)| *other != index);
        self.ports.get_mut(index)?.take()
    }

    /// Each forward and what came by it.
    pub fn status(&self) -> Vec<ForwardStatus> {
        self.ports().map(|(_, port)| port.status()).collect()
    }

    /// The guest will call `client` of `index`'s port `seen`.
    pub fn remember(
        &mut self,
        guest_port: u16,
        seen: SocketAddr,
        client: SocketAddr,
        index: usize,
    ) {
        if self.clients.len() >= MAX_CLIENTS {
            self.clients.clear();
        }
        let known = self.clients.insert((guest_port, seen), (client, index));
        if let Some(port) = self.port(index)
            && known.is_none()
        {
            port.counters.connections.add();
        }
    }

    /// Whether the guest calls a client of its `guest_port` `to`.
    pub fn knows(&self, guest_port: u16, to: SocketAddr) -> bool {
        self.clients.contains_key(&(guest_port, to))
    }

    /// Sends the guest's datagram to the client that it calls `to`, if it is one; false where it
    /// is lost, as any datagram may be.
    pub fn answer(&self, guest_port: u16, to: SocketAddr, payload: &[u8]) -> bool {
        let Some((client, index)) = self.clients.get(&(guest_port, to)) else {
            return false;
        };
        if let Some(ListeningPort {
            listener: Listener::Udp(socket),
            counters,
            ..
        }) = self.port(*index)
            && socket.send_to(payload, client).is_ok()
        {
            counters.from_guest.add_many(payload.len() as u64);
            return true;
        }
        false
    }

    /// The guest is gone, and whom it knew; nobody is to be called.
    pub fn forget(&mut self) {
        self.clients.clear();
        for port in self.ports.iter_mut().flatten() {
            if let Err(error) = port.set_listening(false) {
                tracing::warn!("port {}: {error}", port.bind);
            }
        }
    }
}

fn listen(forward: &Forward) -> io::Result<Listener> {
    let bind = forward.bind;
    if bind.port() == 0 {
        // One that the kernel chooses is lost with the first end of listening.
        return Err(io::ErrorKind::InvalidInput.into());
    }
    match forward.transport {
        Transport::Tcp => tcp(bind).map(Listener::Tcp),
        Transport::Udp => udp(bind, false).map(Listener::Udp),
        Transport::Icmp => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// A socket at `bind`, beside others where `reuse` and they let it.
fn bound(bind: SocketAddr, (kind, protocol): (Type, Protocol), reuse: bool) -> io::Result<Socket> {
    let domain = Domain::for_address(bind);
    let socket = Socket::new(domain, kind.nonblocking(), Some(protocol))?;
    if bind.is_ipv6() {
        // IPv4 has a socket of its own.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(reuse)?;
    socket.bind(&bind.into())?;
    Ok(socket)
}

/// A socket that listens at `bind`.
fn tcp(bind: SocketAddr) -> io::Result<Socket> {
    // Connections that are over may still keep the port for a minute.
    let socket = bound(bind, (Type::STREAM, Protocol::TCP), true)?;
    // Each accepted connection has these from here; urgent data is data in its place (RFC 6093, section 5).
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    start_listening(&socket)?;
    Ok(socket)
}

fn start_listening(socket: &Socket) -> io::Result<()> {
    // Connections from before may live or linger.
    socket.set_reuse_address(true)?;
    socket.listen(BACKLOG)?;
    // But nobody may bind it beside us, while we don't listen either.
    socket.set_reuse_address(false)
}

/// Another socket at the same port, which `closed` keeps until then. (One of IPv6 that has been connected
/// and is not any more is found by nobody who calls another address than loopback's: seen with 6.18.)
fn beside(closed: &UdpSocket, bind: SocketAddr) -> io::Result<UdpSocket> {
    let closed = SockRef::from(closed);
    closed.set_reuse_address(true)?;
    let opened = udp(bind, true);
    closed.set_reuse_address(false)?;
    opened
}

/// A socket for datagrams at `bind`, where none may be but one that lets others.
fn udp(bind: SocketAddr, beside: bool) -> io::Result<UdpSocket> {
    let socket = bound(bind, (Type::DGRAM, Protocol::UDP), beside)?;
    socket.set_reuse_address(false)?;
    sys::receive_joined(&socket);
    Ok(socket.into())
}

/// Where a socket that is bound so reaches itself.
fn own_address(bind: SocketAddr) -> SocketAddr {
    let own = match bind.ip() {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        own => own,
    };
    SocketAddr::new(own, bind.port())
}

impl ListeningPort {
    /// Binds a forward's socket, which does not listen yet.
    pub fn bind(forward: &Forward, counters: &Counters) -> Result<Self, ForwardError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => ForwardError::InUse(forward.bind),
            _ => ForwardError::Bind(forward.bind, error),
        };
        let listener = listen(forward).map_err(failed)?;
        let mut port = Self {
            listener,
            bind: forward.bind,
            guest_port: forward.guest_port,
            listens: true,
            counters: counters.forward(forward),
        };
        port.set_listening(false).map_err(failed)?;
        Ok(port)
    }

    /// Where it is bound.
    pub fn bound(&self) -> SocketAddr {
        self.bind
    }

    /// What came by it.
    pub fn counters(&self) -> &Arc<ForwardCounters> {
        &self.counters
    }

    /// TCP or UDP.
    pub fn transport(&self) -> Transport {
        match self.listener {
            Listener::Tcp(_) => Transport::Tcp,
            Listener::Udp(_) => Transport::Udp,
        }
    }

    fn status(&self) -> ForwardStatus {
        ForwardStatus {
            forward: Forward {
                transport: self.transport(),
                bind: self.bind,
                guest_port: self.guest_port,
            },
            listens: self.listens,
            connections: self.counters.connections.get(),
            refused: self.counters.refused.get(),
            carried: Carried {
                to_guest: self.counters.to_guest.get(),
                from_guest: self.counters.from_guest.get(),
            },
        }
    }

    /// The guest's TCP port, if it is one, and whether it is reached by IPv6.
    pub fn tcp(&self) -> Option<(u16, bool)> {
        match self.listener {
            Listener::Tcp(_) => Some((self.guest_port, self.bind.is_ipv6())),
            Listener::Udp(_) => None,
        }
    }

    /// Whether clients can connect, or send datagrams.
    pub fn listens(&self) -> bool {
        self.listens
    }

    /// Lets clients connect, or send, or has them refused while the port stays ours. Fails where
    /// somebody took the port from under us.
    pub fn set_listening(&mut self, listens: bool) -> io::Result<()> {
        if self.listens == listens {
            return Ok(());
        }
        match &mut self.listener {
            Listener::Tcp(socket) if listens => start_listening(socket)?,
            // Ends listening, not the binding (tcp_disconnect() in Linux's net/ipv4/tcp.c).
            Listener::Tcp(socket) => socket.shutdown(Shutdown::Read)?,
            Listener::Udp(socket) if listens => *socket = beside(socket, self.bind)?,
            // What comes from others than itself finds no socket then, as where there is none.
            Listener::Udp(socket) => socket.connect(own_address(self.bind))?,
        }
        self.listens = listens;
        Ok(())
    }

    /// Whether somebody may listen on its guest's UDP port, by what the guest tells.
    pub fn is_wanted(&self, told: Option<&Told>) -> bool {
        told.is_none_or(|told| told.has(self.guest_port))
    }

    /// Opens or closes it by what the guest tells of its UDP ports; one that it says nothing of is open.
    /// Returns whether it is open by that, with another descriptor.
    pub fn follow(&mut self, told: Option<&Told>) -> io::Result<bool> {
        if self.transport() != Transport::Udp {
            return Ok(false);
        }
        let listened = self.listens;
        self.set_listening(self.is_wanted(told))?;
        Ok(self.listens && !listened)
    }

    /// What to wait on.
    pub fn descriptor(&self) -> RawFd {
        match &self.listener {
            Listener::Tcp(listener) => listener.as_raw_fd(),
            Listener::Udp(socket) => socket.as_raw_fd(),
        }
    }

    /// The next connection or datagrams; the latter go into `buffer`. `Err` where there is none
    /// for want of descriptors or memory.
    pub fn take(&self, buffer: &mut [u8]) -> io::Result<Port> {
        let taken = match &self.listener {
            Listener::Tcp(listener) => self.accept(listener),
            Listener::Udp(socket) => self.receive(socket, buffer),
        };
        match taken {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Port::Nothing),
            result => result,
        }
    }

    fn accept(&self, listener: &Socket) -> io::Result<Port> {
        let (socket, client) = listener.accept4(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)?;
        // Neither it nor what lingers of it keeps the port from being bound again: it does not
        // have that from the listening socket.
        socket.set_reuse_address(true)?;
        let local = socket.local_addr()?;
        let (Some(client), Some(local)) = (client.as_socket(), local.as_socket()) else {
            return Ok(Port::Nothing);
        };
        Ok(Port::Connection {
            socket: socket.into(),
            client,
            local: local.ip(),
            guest_port: self.guest_port,
        })
    }

    fn receive(&self, socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Port> {
        let (len, size, client) = sys::receive_from(SockRef::from(socket), buffer)?;
        Ok(Port::Datagrams {
            len,
            size: size.map_or(len, usize::from),
            client,
            local: socket.local_addr()?.ip(),
            guest_port: self.guest_port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::fake;

    fn forward(bind: SocketAddr) -> Forward {
        Forward {
            transport: Transport::Tcp,
            bind,
            guest_port: 80,
        }
    }

    #[test]
    fn a_port_that_does_not_listen_refuses_and_is_nobody_else_s() {
        let bind = fake::free();
        let counters = Counters::default();
        let mut forwards = Forwards::bind(&[forward(bind)], &counters).unwrap();
        for _ in 0..3 {
            let refused = TcpStream::connect(bind).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            // with SO_REUSEADDR, as std sets it
            let taken = std::net::TcpListener::bind(bind).unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
            assert!(matches!(
                Forwards::bind(&[forward(bind)], &counters),
                Err(ForwardError::InUse(_))
            ));
            let (_, port) = forwards.ports_mut().next().unwrap();
            port.set_listening(true).unwrap();
            TcpStream::connect(bind).unwrap();
            let port = port.take(&mut []).unwrap();
            assert!(matches!(port, Port::Connection { guest_port: 80, .. }));
            forwards.forget();
        }
    }

    #[test]
    fn a_udp_port_is_closed_while_the_guest_tells_that_nobody_listens_and_nobody_else_s() {
        for bind in [
            fake::free(),
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), fake::free().port()),
        ] {
            let counters = Counters::default();
            let udp = Forward {
                transport: Transport::Udp,
                ..forward(bind)
            };
            let mut forwards = Forwards::bind(&[udp], &counters).unwrap();
            let (_, port) = forwards.ports_mut().next().unwrap();
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(("127.0.0.1", bind.port())).unwrap();
            client
                .set_read_timeout(Some(std::time::Duration::from_secs(5)))
                .unwrap();
            let told = |udp: &[u16], unknown| Told {
                udp: udp.to_vec(),
                unknown,
            };
            for (told, open) in [
                (None, true),
                (Some(told(&[], 1000..=2000)), false),
                (Some(told(&[80], 1000..=2000)), true),
                (Some(told(&[81], 1000..=2000)), false),
                (Some(told(&[], 80..=80)), true),
            ] {
                port.follow(told.as_ref()).unwrap();
                assert_eq!(port.listens(), open, "{told:?}");
                client.send(b"x").unwrap();
                let mut bytes = [0; 8];
                let taken = port.take(&mut bytes).unwrap();
                if open {
                    assert!(matches!(
                        taken,
                        Port::Datagrams {
                            len: 1,
                            guest_port: 80,
                            ..
                        }
                    ));
                } else {
                    assert!(matches!(taken, Port::Nothing));
                    let refused = client.recv(&mut bytes).unwrap_err();
                    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
                }
                assert!(UdpSocket::bind(bind).is_err());
            }
        }
    }

    #[test]
    fn a_port_opens_again_beside_its_connections_and_what_lingers_of_them() {
        let bind = fake::free();
        let counters = Counters::default();
        let mut forwards = Forwards::bind(&[forward(bind)], &counters).unwrap();
        let (_, port) = forwards.ports_mut().next().unwrap();
        port.set_listening(true).unwrap();
        let client = TcpStream::connect(bind).unwrap();
        let Ok(Port::Connection { socket, .. }) = port.take(&mut []) else {
            panic!("no connection");
        };
        // The guest's service starts anew.
        port.set_listening(false).unwrap();
        assert!(std::net::TcpListener::bind(bind).is_err());
        port.set_listening(true).unwrap();
        drop(forwards);
        drop(Forwards::bind(&[forward(bind)], &counters).unwrap());
        // Our side ends first, and so it lingers.
        drop((socket, client));
        Forwards::bind(&[forward(bind)], &counters).unwrap();
    }
}
