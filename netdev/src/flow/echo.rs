//! One flow of ICMP echoes: the guest's identifier and a far end, and a ping socket of the host
//! (icmp(7)), which a pod has where `net.ipv4.ping_group_range` allows it.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Carried, Key};
use crate::wire::Icmp;

/// How long a flow is kept without traffic (RFC 5508, REQ-2: at least 60 s).
const IDLE: Duration = Duration::from_secs(60);

/// A flow.
#[derive(Debug)]
pub struct Echo {
    /// Its name.
    pub key: Key,
    /// A ping socket, connected to the far end; like a UDP socket but for what it carries.
    pub socket: UdpSocket,
    /// What went through, ICMP's header included.
    pub carried: Carried,
    used: Instant,
}

impl Echo {
    /// A flow to `to` that begins now.
    pub fn open(key: Key, to: SocketAddr, now: Instant) -> io::Result<Self> {
        let (domain, protocol) = if to.is_ipv6() {
            (Domain::IPV6, Protocol::ICMPV6)
        } else {
            (Domain::IPV4, Protocol::ICMPV4)
        };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(protocol))?;
        socket.connect(&to.into())?;
        Ok(Self {
            key,
            socket: socket.into(),
            carried: Carried::default(),
            used: now,
        })
    }

    /// When it is forgotten.
    pub fn deadline(&self) -> Instant {
        self.used + IDLE
    }

    /// Sends the guest's echo on; the kernel puts its own identifier and checksum.
    pub fn send(&mut self, question: &Icmp<'_>, now: Instant) -> io::Result<usize> {
        self.used = now;
        let [_, _, high, low] = question.rest;
        let (kind, code) = question.kind;
        let mut bytes = vec![kind, code, 0, 0, 0, 0, high, low];
        bytes.extend(question.payload);
        let sent = self.socket.send(&bytes)?;
        self.carried.from_guest += sent as u64;
        Ok(sent)
    }

    /// An answer as the guest is to see it, from what the socket gave; `None` where it is none.
    pub fn answer<'a>(&self, bytes: &'a [u8]) -> Option<Icmp<'a>> {
        let message = Icmp::parse(bytes)?;
        let (_, answer) = Icmp::echo(self.key.remote.is_ipv6());
        let [high, low] = self.key.guest_port.to_be_bytes();
        let [_, _, s0, s1] = message.rest;
        (message.kind == answer).then_some(Icmp {
            rest: [high, low, s0, s1],
            ..message
        })
    }
}
