//! sock_diag(7): the kernel lists the sockets of a state, and no others.

use std::io;

use netdev::netlink::Netlink;
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::{Transport, Waiting};

pub struct Diag(Netlink);

impl Diag {
    pub fn open() -> io::Result<Self> {
        Netlink::open_for(NETLINK_SOCK_DIAG).map(Self)
    }

    /// Fails with ENOENT where the kernel has no module for a transport.
    pub fn waiting(&mut self) -> io::Result<Vec<Waiting>> {
        let mut all = Vec::new();
        for (transport, protocol, states) in [
            (Transport::Tcp, IPPROTO_TCP, StateFlags::LISTEN),
            (Transport::Udp, IPPROTO_UDP, StateFlags::CLOSE),
        ] {
            for (family, socket_id) in [
                (AF_INET, SocketId::new_v4()),
                (AF_INET6, SocketId::new_v6()),
            ] {
                let request = SockDiagMessage::InetRequest(InetRequest {
                    family,
                    protocol,
                    extensions: ExtensionFlags::empty(),
                    states: states.clone(),
                    socket_id,
                });
                self.0.dump(request, |message| {
                    if let SockDiagMessage::InetResponse(socket) = message {
                        let id = &socket.header.socket_id;
                        all.push(Waiting {
                            transport,
                            address: id.source_address,
                            port: id.source_port,
                        });
                    }
                })?;
            }
        }
        Ok(all)
    }
}
