//! Published ports, as they are written: `[IP:]HOSTPORT:GUESTPORT[/tcp|udp]`, and ranges of equal
//! length in place of each port.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::config::{Forward, Transport};

/// How it is written, in help.
pub const SPEC: &str = "[IP:]HOSTPORT:GUESTPORT[/tcp|udp]";

/// A port that is published, or a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// TCP or UDP.
    pub transport: Transport,
    /// Where to listen; everywhere, where nothing is said.
    pub address: Option<IpAddr>,
    /// The ports to listen on.
    pub host: RangeInclusive<u16>,
    /// The guest's port for the first of them; the others follow.
    pub guest: u16,
}

impl Publish {
    /// A forward for each port, in each family that the guest has.
    pub fn forwards(&self, v4: bool, v6: bool) -> Vec<Forward> {
        let everywhere = [
            v4.then_some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            v6.then_some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        ];
        let one = [self.address, None];
        let addresses = if self.address.is_some() {
            one
        } else {
            everywhere
        };
        let ports = self.host.clone().zip(self.guest..=u16::MAX);
        ports
            .flat_map(|(host, guest_port)| {
                addresses.into_iter().flatten().map(move |address| Forward {
                    transport: self.transport,
                    bind: SocketAddr::new(address, host),
                    guest_port,
                })
            })
            .collect()
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            None => {}
        }
        let (first, last) = (*self.host.start(), *self.host.end());
        let (guest, guest_last) = (self.guest, self.guest.saturating_add(last - first));
        let transport = self.transport;
        if first == last {
            return write!(f, "{first}:{guest}/{transport}");
        }
        write!(f, "{first}-{last}:{guest}-{guest_last}/{transport}")
    }
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected [IP:]HOSTPORT:GUESTPORT[/tcp|udp], where a port may be a range";
        let (ports, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
        let transport = match protocol {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            other => return Err(format!("`{other}` is neither tcp nor udp")),
        };
        let (rest, guest) = ports.rsplit_once(':').ok_or(expected)?;
        let (address, host) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((ip, host)) => {
                let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
                let address = bare.unwrap_or(ip).parse();
                let address = address.map_err(|_| format!("`{ip}` is not an IP address"))?;
                (Some(address), host)
            }
        };
        let (host, guest) = (range(host)?, range(guest)?);
        if host.len() != guest.len() {
            let (host, guest) = (host.len(), guest.len());
            return Err(format!("{host} ports cannot be {guest} of the guest's"));
        }
        Ok(Self {
            transport,
            address,
            host,
            guest: *guest.start(),
        })
    }
}

/// A port, or a range: `FIRST-LAST`.
pub fn range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| match text.parse() {
        Ok(0) | Err(_) => Err(format!("`{text}` is not a port (1 to 65535)")),
        Ok(port) => Ok(port),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("`{text}` is not a range: {first} is after {last}"));
    }
    Ok(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwards(text: &str) -> Vec<String> {
        let publish: Publish = text.parse().unwrap();
        let forwards = publish.forwards(true, true).into_iter();
        let shown = |f: Forward| format!("{} {} {}", f.transport, f.bind, f.guest_port);
        forwards.map(shown).collect()
    }

    #[test]
    fn ports_and_ranges_are_published_everywhere_or_at_an_address() {
        assert_eq!(
            forwards("80:8080"),
            ["tcp 0.0.0.0:80 8080", "tcp [::]:80 8080"]
        );
        assert_eq!(forwards("127.0.0.1:53:5353/udp"), ["udp 127.0.0.1:53 5353"]);
        assert_eq!(
            forwards("[::1]:8000-8002:9000-9002"),
            [
                "tcp [::1]:8000 9000",
                "tcp [::1]:8001 9001",
                "tcp [::1]:8002 9002"
            ]
        );
        assert_eq!(forwards("127.0.0.1:1-65535:1-65535").len(), 65_535);
        let publish: Publish = "80:80".parse().unwrap();
        assert_eq!(publish.forwards(true, false).len(), 1);
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for (text, wrong) in [
            ("80", "expected"),
            ("0:80", "`0` is not a port"),
            ("80:65536", "`65536` is not a port"),
            ("80:80/sctp", "`sctp` is neither"),
            ("x:80:80", "`x` is not an IP address"),
            ("80-79:80-81", "80 is after 79"),
            ("80-82:80-81", "3 ports cannot be 2"),
            ("80-82:80", "3 ports cannot be 1"),
            ("80-:80", "`` is not a port"),
        ] {
            let error = text.parse::<Publish>().unwrap_err();
            assert!(error.contains(wrong), "{text}: {error}");
        }
    }

    #[test]
    fn it_is_written_as_it_is_read() {
        for text in ["80:8080/tcp", "[::1]:1-2:3-4/udp", "127.0.0.1:80:80/tcp"] {
            assert_eq!(text.parse::<Publish>().unwrap().to_string(), text);
        }
    }
}
