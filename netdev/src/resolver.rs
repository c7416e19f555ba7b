//! The pod's /etc/resolv.conf (resolv.conf(5)), read here because a static binary must not ask
//! the C library.

use std::fs::{self, Metadata};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// The port of nameservers.
pub const PORT: u16 = 53;
/// What glibc takes at most: nameservers, and dots.
const MAX_NAMESERVERS: usize = 3;
const MAX_NDOTS: u8 = 15;
/// DHCPv4's option, of those that are a site's own (RFC 3942), in which a guest is told `ndots`, a byte.
pub const NDOTS_OPTION: u8 = 224;
const FILE: &str = "/etc/resolv.conf";
/// A file that is longer is nobody's.
const MOST: u64 = 64 << 10;
/// The file is looked at no more often, however often names are asked for.
const PAUSE: Duration = Duration::from_secs(1);

/// Where names are looked up.
#[derive(Debug, Clone, Default)]
pub struct Resolver {
    /// Nameservers, the first first.
    pub nameservers: Vec<Nameserver>,
    /// Search domains.
    pub search: Vec<String>,
    /// Dots from which on a name is first asked for as it is, if that is said.
    pub ndots: Option<u8>,
    follows: Option<Follows>,
}

/// A nameserver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nameserver {
    /// Its address.
    pub address: IpAddr,
    /// The link, by name or number, on which a link-local address is (RFC 4007, section 11).
    pub zone: Option<String>,
}

/// The pod's file, as it was when it was read last.
#[derive(Debug, Clone)]
struct Follows {
    stamp: Option<Stamp>,
    looked: Instant,
    /// What a user has given in its place.
    nameservers: bool,
    search: bool,
}

/// What tells a file from what was there before: device, number, change and length.
type Stamp = (u64, u64, i64, i64, u64);

impl Nameserver {
    /// Reads an address; a link-local one needs its link (`fe80::1%eth0`).
    fn parse(word: &str) -> Option<Self> {
        let (address, zone) = match word.split_once('%') {
            Some((address, zone)) => (address, Some(zone)),
            None => (word, None),
        };
        let server = Self {
            address: address.parse().ok()?,
            zone: zone.map(str::to_owned),
        };
        (server.is_link_local() == server.zone.is_some()).then_some(server)
    }

    fn is_link_local(&self) -> bool {
        matches!(self.address, IpAddr::V6(v6) if v6.is_unicast_link_local())
    }

    /// Whether it can only be reached from the pod itself. The C library takes an unspecified
    /// address for loopback.
    pub fn is_pod_only(&self) -> bool {
        let address = self.address.to_canonical();
        address.is_loopback() || address.is_unspecified() || self.is_link_local()
    }
}

impl From<IpAddr> for Nameserver {
    fn from(address: IpAddr) -> Self {
        Self {
            address,
            zone: None,
        }
    }
}

impl Resolver {
    /// Reads the file's text; what it does not know it passes over, as the C library does.
    pub fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    if let Some(server) = words.next().and_then(Nameserver::parse)
                        && resolver.nameservers.len() < MAX_NAMESERVERS
                    {
                        resolver.nameservers.push(server);
                    }
                }
                // The last of these lines counts.
                Some("search" | "domain") => resolver.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    let ndots = words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok());
                    for dots in ndots {
                        resolver.ndots = Some(MAX_NDOTS.min(dots));
                    }
                }
                _ => {}
            }
        }
        resolver
    }

    /// The pod's own; empty where there is no such file. It follows the file from here on.
    pub fn of_the_pod() -> Self {
        let mut resolver = Self {
            follows: Some(Follows {
                stamp: None,
                looked: Instant::now(),
                nameservers: true,
                search: true,
            }),
            ..Self::default()
        };
        resolver.read();
        resolver
    }

    /// Asks these nameservers instead, and no file's.
    pub fn set_nameservers(&mut self, servers: &[IpAddr]) {
        self.nameservers = servers.iter().copied().map(Nameserver::from).collect();
        if let Some(follows) = &mut self.follows {
            follows.nameservers = false;
        }
    }

    /// Searches these domains instead, and no file's.
    pub fn set_search(&mut self, domains: Vec<String>) {
        self.search = domains;
        if let Some(follows) = &mut self.follows {
            follows.search = false;
        }
    }

    /// Reads the file again where it has changed, at most once a second.
    pub fn refresh(&mut self, now: Instant) {
        if let Some(follows) = &mut self.follows
            && now.saturating_duration_since(follows.looked) >= PAUSE
        {
            follows.looked = now;
            self.read();
        }
    }

    /// Reads the file, unless it is the one that was read last. While there is none, the last counts.
    fn read(&mut self) {
        let (Some(follows), Ok(file)) = (&mut self.follows, fs::metadata(FILE)) else {
            return;
        };
        let stamp = Some(stamp(&file));
        if follows.stamp == stamp || file.len() > MOST {
            return;
        }
        let Ok(text) = fs::read_to_string(FILE) else {
            return;
        };
        follows.stamp = stamp;
        let new = Self::parse(&text);
        if follows.nameservers {
            self.nameservers = new.nameservers;
        }
        if follows.search {
            self.search = new.search;
        }
        self.ndots = new.ndots;
    }
}

fn stamp(file: &Metadata) -> Stamp {
    let change = (file.ctime(), file.ctime_nsec());
    (file.dev(), file.ino(), change.0, change.1, file.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_s_file_is_read() {
        let resolver = Resolver::parse(
            "# made by kubelet\nsearch default.svc.cluster.local svc.cluster.local\n\
             nameserver 10.96.0.10\nnameserver fe80::1%eth0\noptions ndots:5 timeout:1\n\
             nameserver x\nnameserver fe80::2\nnameserver 192.0.2.1%eth0\n\
             nameserver fd00:10:96::a\nnameserver 192.0.2.2\n",
        );
        let server = |address: &str, zone: Option<&str>| Nameserver {
            address: address.parse().unwrap(),
            zone: zone.map(str::to_owned),
        };
        let wanted = [
            server("10.96.0.10", None),
            server("fe80::1", Some("eth0")),
            server("fd00:10:96::a", None),
        ];
        assert_eq!(resolver.nameservers, wanted);
        assert_eq!(
            resolver.search,
            ["default.svc.cluster.local", "svc.cluster.local"]
        );
        assert_eq!(resolver.ndots, Some(5));
        for (text, ndots) in [
            ("", None),
            ("options ndots:x", None),
            ("options ndots:200", Some(15)),
            ("options ndots:2 ndots:3\noptions rotate", Some(3)),
        ] {
            assert_eq!(Resolver::parse(text).ndots, ndots, "{text}");
        }
    }

    #[test]
    fn what_only_the_pod_reaches_is_told_apart() {
        for (word, pod_only) in [
            ("127.0.0.53", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("0.0.0.0", true),
            ("fe80::1%eth0", true),
            ("169.254.20.10", false),
            ("10.96.0.10", false),
        ] {
            let server = Nameserver::parse(word).unwrap();
            assert_eq!(server.is_pod_only(), pod_only, "{word}");
        }
    }
}
