//! One UDP flow: the guest's port and a far end, and the host socket connected to it.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use socket2::{Domain, MsgHdr, Protocol, SockRef, Socket, Type};

use super::{Carried, Key};
use crate::sys;

/// How long a flow is kept without traffic (RFC 4787, REQ-5).
const IDLE: Duration = Duration::from_secs(300);
/// A look-up is one question and one answer.
const IDLE_DNS: Duration = Duration::from_secs(30);
const DNS_PORT: u16 = 53;
/// Linux sends so many segments at once (UDP_MAX_SEGMENTS, include/linux/udp.h, before 6.9).
const MAX_SEGMENTS: usize = 64;
/// And so many bytes (RFC 768's length, less the headers).
const MAX_BYTES: usize = 65_507;

/// A flow.
#[derive(Debug)]
pub struct Udp {
    /// Its name.
    pub key: Key,
    /// Connected to the far end.
    pub socket: UdpSocket,
    /// What went through.
    pub carried: Carried,
    /// Datagrams that the socket had no room for.
    pub unsent: u64,
    used: Instant,
    /// The kernel cuts what is sent into datagrams.
    cuts: bool,
}

/// A datagram that could not be sent, and why.
#[derive(Debug)]
pub struct Unsent {
    /// Its place among those that were to be sent.
    pub index: usize,
    /// Said by the system.
    pub error: io::Error,
}

impl Udp {
    /// A flow to `to` that begins now: from the guest's own port where that is free, so that what
    /// depends on the port works (RFC 4787, REQ-3a), and so from one port to all far ends.
    pub fn open(key: Key, to: SocketAddr, now: Instant) -> io::Result<Self> {
        let domain = if to.is_ipv6() {
            Domain::IPV6
        } else {
            Domain::IPV4
        };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        let any: IpAddr = if to.is_ipv6() {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        // Shared by the flows of one port; each is connected and gets its own far end's only.
        socket.set_reuse_address(true)?;
        if socket
            .bind(&SocketAddr::new(any, key.guest_port).into())
            .is_err()
        {
            socket.set_reuse_address(false)?;
        }
        sys::dont_fragment(&socket, to.is_ipv6())?;
        sys::hear_errors(&socket, to.is_ipv6())?;
        socket.connect(&to.into())?;
        sys::receive_joined(&socket);
        Ok(Self {
            key,
            socket: socket.into(),
            carried: Carried::default(),
            unsent: 0,
            used: now,
            cuts: true,
        })
    }

    /// A datagram went through.
    pub fn touch(&mut self, now: Instant) {
        self.used = now;
    }

    /// The MTU of the path, as far as it is known.
    pub fn path_mtu(&self) -> io::Result<u16> {
        sys::path_mtu(self.socket.as_raw_fd(), self.key.remote.is_ipv6())
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

    /// Sends datagrams, those of one size in one call. What the socket has no room for is lost,
    /// as datagrams are; any other error comes back, the first of them.
    pub fn send(&mut self, datagrams: &[&[u8]]) -> Option<Unsent> {
        let mut first = None;
        let mut rest = datagrams;
        let mut index = 0;
        while let Some(size) = rest.first().map(|datagram| datagram.len()) {
            let count = if self.cuts { run(rest) } else { 1 };
            let (now, later) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            match self.send_run(now, size) {
                Err(error) if count > 1 && is_refusal_to_cut(&error) => {
                    self.cuts = false;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.unsent += count as u64;
                }
                Err(error) => {
                    first.get_or_insert(Unsent { index, error });
                }
                Ok(n) => self.carried.from_guest += n as u64,
            }
            rest = later;
            index += count;
        }
        first
    }

    fn send_run(&self, datagrams: &[&[u8]], size: usize) -> io::Result<usize> {
        match datagrams {
            [datagram] => self.socket.send(datagram),
            _ => {
                let slices: Vec<IoSlice<'_>> =
                    datagrams.iter().map(|bytes| IoSlice::new(bytes)).collect();
                let control = sys::cut_into(size as u16);
                let message = MsgHdr::new()
                    .with_buffers(&slices)
                    .with_control(control.as_bytes());
                SockRef::from(&self.socket).sendmsg(&message, 0)
            }
        }
    }
}

/// How many of the first datagrams go in one call: of one size, the last perhaps shorter.
fn run(datagrams: &[&[u8]]) -> usize {
    let size = datagrams.first().map_or(0, |first| first.len());
    if size == 0 {
        return 1;
    }
    let most = MAX_SEGMENTS.min(MAX_BYTES / size).max(1);
    let same = datagrams
        .iter()
        .take(most)
        .take_while(|datagram| datagram.len() == size)
        .count();
    let shorter = same < most
        && datagrams
            .get(same)
            .is_some_and(|last| !last.is_empty() && last.len() < size);
    same + usize::from(shorter)
}

/// A device that cannot sum checksums (EIO), or a path with a smaller MTU than the segments
/// (EINVAL), refuses to cut.
fn is_refusal_to_cut(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_of_one_size_go_together_with_a_shorter_last_one() {
        let sizes = |sizes: &[usize]| {
            let bytes: Vec<Vec<u8>> = sizes.iter().map(|size| vec![0; *size]).collect();
            run(&bytes.iter().map(Vec::as_slice).collect::<Vec<_>>())
        };
        assert_eq!(sizes(&[10, 10, 10]), 3);
        assert_eq!(sizes(&[10, 10, 4, 4]), 3);
        assert_eq!(sizes(&[10, 11]), 1);
        assert_eq!(sizes(&[0, 0]), 1);
        assert_eq!(sizes(&[10, 0]), 1);
        assert_eq!(sizes(&[1; 100]), MAX_SEGMENTS);
        assert_eq!(sizes(&[40_000; 3]), 1);
    }

    #[test]
    fn what_is_sent_arrives_as_it_was_cut() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = server.local_addr().unwrap();
        let key = Key {
            transport: crate::config::Transport::Udp,
            guest_port: 0,
            remote: to,
        };
        let mut flow = Udp::open(key, to, Instant::now()).unwrap();
        let datagrams: [&[u8]; 4] = [b"aaaa", b"bbbb", b"cc", b""];
        assert!(flow.send(&datagrams).is_none());
        let mut bytes = [0; 100];
        for want in datagrams {
            let n = server.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..n], want);
        }
    }
}
