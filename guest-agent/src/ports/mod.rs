//! The ports that programs of the guest listen on, which the VMM publishes: sock_diag(7), and
//! where the kernel has no module for that, /proc/net (proc(5)).

mod diag;
mod proc;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant};

use crate::protocol::Event;
use crate::say;
use crate::voice::Voice;

/// There is no event for a new listener, so they are looked for: this often while something has
/// changed of late, ...
const SOON: Duration = Duration::from_millis(200);
/// ... which is so long ...
const LATELY: Duration = Duration::from_secs(30);
/// ... and this often then.
const LATER: Duration = Duration::from_secs(2);
/// DHCP's clients (RFC 2131, RFC 8415) listen to nobody but their servers.
const CLIENTS: [u16; 2] = [68, 546];
/// What Linux gives where it does not say (ip(7)).
const EPHEMERAL: RangeInclusive<u16> = 32768..=60999;

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

/// A socket that waits for others: a TCP one that listens, a UDP one that is not connected.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Waiting {
    transport: Transport,
    address: IpAddr,
    port: u16,
}

/// The ports at which the guest can be reached from outside.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Ports {
    tcp: BTreeSet<u16>,
    udp: BTreeSet<u16>,
    /// The first and the last that the kernel gives to clients.
    clients: (u16, u16),
}

impl Ports {
    /// Of `waiting`; those of UDP that the kernel chose, from `ephemeral`, are some client's.
    fn of(waiting: &[Waiting], ephemeral: &RangeInclusive<u16>) -> Self {
        let mut ports = Self {
            clients: (*ephemeral.start(), *ephemeral.end()),
            ..Self::default()
        };
        // The loopback is not outside.
        for socket in waiting.iter().filter(|s| !s.address.is_loopback()) {
            let port = socket.port;
            match socket.transport {
                Transport::Tcp => ports.tcp.insert(port),
                Transport::Udp if CLIENTS.contains(&port) || ephemeral.contains(&port) => false,
                Transport::Udp => ports.udp.insert(port),
            };
        }
        ports
    }

    fn event(&self) -> Event {
        Event::Ports {
            tcp: self.tcp.iter().copied().collect(),
            udp: self.udp.iter().copied().collect(),
            clients: Some(self.clients),
        }
    }
}

/// Tells the VMM of the ports as they come and go, on a thread of its own.
pub fn watch(voice: &Voice) {
    let voice = voice.clone();
    thread::spawn(move || {
        if let Err(error) = tell(&voice) {
            say!("the ports that programs listen on cannot be told: {error}");
        }
    });
}

fn tell(voice: &Voice) -> io::Result<()> {
    let mut source = Source::open();
    let (mut told, mut changed) = (None, Instant::now());
    loop {
        let ports = Ports::of(&source.waiting()?, &ephemeral());
        if told.as_ref() != Some(&ports) {
            voice.ports(ports.event());
            told = Some(ports);
            changed = Instant::now();
        }
        let lately = changed.elapsed() < LATELY;
        thread::sleep(if lately { SOON } else { LATER });
    }
}

fn ephemeral() -> RangeInclusive<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => EPHEMERAL,
    }
}

/// Where they are read.
enum Source {
    Diag(diag::Diag),
    Proc,
}

impl Source {
    fn open() -> Self {
        let diag = diag::Diag::open().and_then(|mut diag| {
            diag.waiting()?;
            Ok(diag)
        });
        diag.map_or(Self::Proc, Self::Diag)
    }

    fn waiting(&mut self) -> io::Result<Vec<Waiting>> {
        match self {
            Self::Diag(diag) => diag.waiting(),
            Self::Proc => proc::waiting(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn both_sources_see_who_listens() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let six = TcpListener::bind("[::1]:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let wanted = [
            (Transport::Tcp, tcp.local_addr().unwrap()),
            (Transport::Tcp, six.local_addr().unwrap()),
            (Transport::Udp, udp.local_addr().unwrap()),
        ];
        let mut sources = vec![proc::waiting().unwrap()];
        // A kernel may be without its modules, as a guest's may.
        if let Source::Diag(mut diag) = Source::open() {
            sources.push(diag.waiting().unwrap());
        }
        for waiting in sources {
            for (transport, at) in wanted {
                let (address, port) = (at.ip(), at.port());
                let socket = Waiting {
                    transport,
                    address,
                    port,
                };
                assert!(waiting.contains(&socket), "{socket:?} in {waiting:?}");
            }
        }
    }

    #[test]
    fn what_nobody_outside_can_reach_or_wants_is_left_out() {
        let waiting = |transport, address: &str, port| Waiting {
            transport,
            address: address.parse().unwrap(),
            port,
        };
        let ports = Ports::of(
            &[
                waiting(Transport::Tcp, "0.0.0.0", 80),
                waiting(Transport::Tcp, "::", 80),
                waiting(Transport::Tcp, "127.0.0.1", 81),
                waiting(Transport::Tcp, "::1", 82),
                waiting(Transport::Tcp, "10.0.2.2", 40_000),
                waiting(Transport::Udp, "::", 53),
                waiting(Transport::Udp, "0.0.0.0", 68),
                waiting(Transport::Udp, "0.0.0.0", 40_000),
            ],
            &EPHEMERAL,
        );
        assert_eq!(
            ports.event(),
            Event::Ports {
                tcp: vec![80, 40_000],
                udp: vec![53],
                clients: Some((32_768, 60_999)),
            }
        );
    }
}
