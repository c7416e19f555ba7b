//! The pod's listening sockets: a forwarded port each.
//!
//! A TCP port is bound from the start, so that one that is taken is known at once, but listens
//! only while the guest's side accepts connections: a client then finds what it would find in the
//! guest.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::{Forward, Transport};
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
pub struct Forwards {
    ports: Vec<ListeningPort>,
    clients: HashMap<(u16, SocketAddr), (SocketAddr, usize)>,
}

impl Forwards {
    /// Binds every forward's socket, or none.
    pub fn bind(forwards: &[Forward]) -> Result<Self, ForwardError> {
        let ports = forwards
            .iter()
            .map(|forward| {
                let listener = listen(forward).map_err(|error| match error.kind() {
                    io::ErrorKind::AddrInUse => ForwardError::InUse(forward.bind),
                    _ => ForwardError::Bind(forward.bind, error),
                })?;
                let mut port = ListeningPort {
                    listener,
                    bind: forward.bind,
                    guest_port: forward.guest_port,
                    listens: true,
                };
                port.set_listening(false)
                    .map_err(|error| ForwardError::Bind(forward.bind, error))?;
                Ok(port)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            ports,
            clients: HashMap::new(),
        })
    }

    /// The ports.
    pub fn ports(&self) -> &[ListeningPort] {
        &self.ports
    }

    /// The ports, to open and close.
    pub fn ports_mut(&mut self) -> &mut [ListeningPort] {
        &mut self.ports
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
        self.clients.insert((guest_port, seen), (client, index));
    }

    /// Whether the guest calls a client of its `guest_port` `to`.
    pub fn knows(&self, guest_port: u16, to: SocketAddr) -> bool {
        self.clients.contains_key(&(guest_port, to))
    }

    /// Sends the guest's datagram to the client that it calls `to`, if it is one.
    pub fn answer(&self, guest_port: u16, to: SocketAddr, payload: &[u8]) {
        let Some((client, index)) = self.clients.get(&(guest_port, to)) else {
            return;
        };
        if let Some(ListeningPort {
            listener: Listener::Udp(socket),
            ..
        }) = self.ports.get(*index)
        {
            // Like any datagram, it may be lost.
            let _ = socket.send_to(payload, client);
        }
    }

    /// The guest is gone, and whom it knew; nobody is to be called.
    pub fn forget(&mut self) {
        self.clients.clear();
        for port in &mut self.ports {
            if let Err(error) = port.set_listening(false) {
                tracing::warn!("port {}: {error}", port.bind);
            }
        }
    }
}

fn listen(forward: &Forward) -> io::Result<Listener> {
    let v6 = forward.bind.is_ipv6();
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let (kind, protocol) = match forward.transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
        Transport::Icmp => return Err(io::ErrorKind::Unsupported.into()),
    };
    let socket = Socket::new(domain, kind.nonblocking(), Some(protocol))?;
    if v6 {
        // IPv4 has a socket of its own.
        socket.set_only_v6(true)?;
    }
    if forward.transport == Transport::Tcp {
        // Connections that are over may still keep the port for a minute.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&forward.bind.into())?;
    if forward.transport == Transport::Udp {
        sys::receive_joined(&socket);
        return Ok(Listener::Udp(socket.into()));
    }
    // Each accepted connection has it from here.
    socket.set_tcp_nodelay(true)?;
    start_listening(&socket)?;
    Ok(Listener::Tcp(socket))
}

fn start_listening(socket: &Socket) -> io::Result<()> {
    // Connections from before may live or linger.
    socket.set_reuse_address(true)?;
    socket.listen(BACKLOG)?;
    // But nobody may bind it beside us, while we don't listen either.
    socket.set_reuse_address(false)
}

impl ListeningPort {
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

    /// Lets clients connect, or has them refused while the port stays ours. A UDP port is always
    /// open. Fails where somebody took the port from under us.
    pub fn set_listening(&mut self, listens: bool) -> io::Result<()> {
        let Listener::Tcp(socket) = &self.listener else {
            return Ok(());
        };
        match (self.listens, listens) {
            (false, true) => start_listening(socket)?,
            // Ends listening, not the binding (tcp_disconnect() in Linux's net/ipv4/tcp.c).
            (true, false) => socket.shutdown(Shutdown::Read)?,
            _ => {}
        }
        self.listens = listens;
        Ok(())
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

    /// A port of loopback that nobody has.
    fn free() -> SocketAddr {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap()
    }

    fn forward(bind: SocketAddr) -> Forward {
        Forward {
            transport: Transport::Tcp,
            bind,
            guest_port: 80,
        }
    }

    #[test]
    fn a_port_that_does_not_listen_refuses_and_is_nobody_else_s() {
        let bind = free();
        let mut forwards = Forwards::bind(&[forward(bind)]).unwrap();
        for _ in 0..3 {
            let refused = TcpStream::connect(bind).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            // with SO_REUSEADDR, as std sets it
            let taken = std::net::TcpListener::bind(bind).unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
            assert!(matches!(
                Forwards::bind(&[forward(bind)]),
                Err(ForwardError::InUse(_))
            ));
            forwards.ports_mut()[0].set_listening(true).unwrap();
            TcpStream::connect(bind).unwrap();
            let port = forwards.ports()[0].take(&mut []).unwrap();
            assert!(matches!(port, Port::Connection { guest_port: 80, .. }));
            forwards.forget();
        }
    }

    #[test]
    fn a_port_opens_again_beside_its_connections_and_what_lingers_of_them() {
        let bind = free();
        let mut forwards = Forwards::bind(&[forward(bind)]).unwrap();
        let port = &mut forwards.ports_mut()[0];
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
        drop(Forwards::bind(&[forward(bind)]).unwrap());
        // Our side ends first, and so it lingers.
        drop((socket, client));
        Forwards::bind(&[forward(bind)]).unwrap();
    }
}
