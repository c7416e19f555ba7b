//! One UDP flow: the guest's port and a far end, and the host socket connected to it.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use super::Key;

/// How long a flow is kept without traffic (RFC 4787, REQ-5).
const IDLE: Duration = Duration::from_secs(300);
/// A look-up is one question and one answer.
const IDLE_DNS: Duration = Duration::from_secs(30);
const DNS_PORT: u16 = 53;

/// A flow.
#[derive(Debug)]
pub struct Udp {
    /// Its name.
    pub key: Key,
    /// Connected to the far end.
    pub socket: UdpSocket,
    used: Instant,
}

impl Udp {
    /// A flow that begins now.
    pub fn new(key: Key, socket: UdpSocket, now: Instant) -> Self {
        Self {
            key,
            socket,
            used: now,
        }
    }

    /// A datagram went through.
    pub fn touch(&mut self, now: Instant) {
        self.used = now;
    }

    /// When it is forgotten.
    pub fn deadline(&self) -> Instant {
        self.used
            + if self.key.remote.port() == DNS_PORT {
                IDLE_DNS
            } else {
                IDLE
            }
    }
}
