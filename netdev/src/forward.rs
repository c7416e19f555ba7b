//! The pod's listening sockets: a forwarded port each.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

use crate::config::{Forward, Transport};

/// Clients of forwarded UDP ports that are remembered at most; then all are forgotten, and each
/// is known again by its next datagram.
const MAX_CLIENTS: usize = 4096;

/// A port that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Somebody else has it.
    #[error("port {0}: already in use; choose another with --publish")]
    InUse(SocketAddrV4),
    /// Something else.
    #[error("port {0}: {1}")]
    Bind(SocketAddrV4, io::Error),
}

enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// One forwarded port.
pub struct ListeningPort {
    listener: Listener,
    guest_port: u16,
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
        client: SocketAddrV4,
        /// Which of the pod's addresses was called.
        local: Ipv4Addr,
        /// For which of the guest's ports.
        guest_port: u16,
    },
    /// A datagram, in the caller's buffer.
    Datagram {
        /// Its length.
        len: usize,
        /// Who sent it.
        client: SocketAddrV4,
        /// The address that the port is bound to.
        local: Ipv4Addr,
        /// For which of the guest's ports.
        guest_port: u16,
    },
}

/// All of them, and the clients of the UDP ones: what the guest calls a client, the client, and
/// the port that it came by.
pub struct Forwards {
    ports: Vec<ListeningPort>,
    clients: HashMap<(u16, SocketAddrV4), (SocketAddrV4, usize)>,
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
                Ok(ListeningPort {
                    listener,
                    guest_port: forward.guest_port,
                })
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

    /// The ports, to take from.
    pub fn ports_mut(&mut self) -> &mut [ListeningPort] {
        &mut self.ports
    }

    /// The guest will call `client` of `index`'s port `seen`.
    pub fn remember(
        &mut self,
        guest_port: u16,
        seen: SocketAddrV4,
        client: SocketAddrV4,
        index: usize,
    ) {
        if self.clients.len() >= MAX_CLIENTS {
            self.clients.clear();
        }
        self.clients.insert((guest_port, seen), (client, index));
    }

    /// Sends the guest's datagram to the client that it calls `to`, if it is one.
    pub fn answer(&self, guest_port: u16, to: SocketAddrV4, payload: &[u8]) -> bool {
        let Some((client, index)) = self.clients.get(&(guest_port, to)) else {
            return false;
        };
        if let Some(ListeningPort {
            listener: Listener::Udp(socket),
            ..
        }) = self.ports.get(*index)
        {
            // Like any datagram, it may be lost.
            let _ = socket.send_to(payload, client);
        }
        true
    }

    /// The guest is gone, and whom it knew.
    pub fn forget(&mut self) {
        self.clients.clear();
    }
}

fn listen(forward: &Forward) -> io::Result<Listener> {
    Ok(match forward.transport {
        Transport::Tcp => {
            let listener = TcpListener::bind(forward.bind)?;
            listener.set_nonblocking(true)?;
            Listener::Tcp(listener)
        }
        Transport::Udp => {
            let socket = UdpSocket::bind(forward.bind)?;
            socket.set_nonblocking(true)?;
            Listener::Udp(socket)
        }
    })
}

impl ListeningPort {
    /// What to wait on.
    pub fn descriptor(&self) -> RawFd {
        match &self.listener {
            Listener::Tcp(listener) => listener.as_raw_fd(),
            Listener::Udp(socket) => socket.as_raw_fd(),
        }
    }

    /// The next connection or datagram; a datagram goes into `buffer`.
    pub fn take(&mut self, buffer: &mut [u8]) -> Port {
        let guest_port = self.guest_port;
        match &self.listener {
            Listener::Tcp(listener) => match listener.accept() {
                Ok((socket, SocketAddr::V4(client))) => {
                    let local = match socket.local_addr() {
                        Ok(SocketAddr::V4(local)) => *local.ip(),
                        _ => Ipv4Addr::UNSPECIFIED,
                    };
                    // A socket that could not be prepared is closed by being dropped.
                    let ready = socket.set_nonblocking(true).and(socket.set_nodelay(true));
                    match ready {
                        Ok(()) => Port::Connection {
                            socket,
                            client,
                            local,
                            guest_port,
                        },
                        Err(_) => Port::Nothing,
                    }
                }
                _ => Port::Nothing,
            },
            Listener::Udp(socket) => match (socket.recv_from(buffer), socket.local_addr()) {
                (Ok((len, SocketAddr::V4(client))), Ok(SocketAddr::V4(local))) => Port::Datagram {
                    len,
                    client,
                    local: *local.ip(),
                    guest_port,
                },
                _ => Port::Nothing,
            },
        }
    }
}
