//! Links to networks, their addresses and what went through them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use netdev::netlink::{Netlink, own_address};

use crate::protocol::{Address, Interface, Traffic};

/// More links, or addresses of one, are not told of.
const MOST: usize = 64;

/// All of them.
pub fn all() -> io::Result<Vec<Interface>> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let mut addresses: BTreeMap<u32, Vec<Address>> = BTreeMap::new();
    netlink.addresses(|message| {
        let prefix = message.header.prefix_len;
        let known = addresses.entry(message.header.index).or_default();
        if known.len() < MOST {
            known.extend(own_address(&message).map(|ip| Address { ip, prefix }));
        }
    })?;
    let told = links.into_iter().take(MOST).map(|link| {
        let [a, b, c, d, e, f] = link.mac;
        Interface {
            mac: format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
            up: link.is_up,
            addresses: addresses.remove(&link.index).unwrap_or_default(),
            received: traffic(&link.name, "rx"),
            sent: traffic(&link.name, "tx"),
            name: link.name,
        }
    });
    Ok(told.collect())
}

/// As sysfs counts it.
fn traffic(link: &str, way: &str) -> Traffic {
    let folder = Path::new("/sys/class/net").join(link).join("statistics");
    let count = |what: &str| {
        let text = std::fs::read_to_string(folder.join(format!("{way}_{what}")));
        let number = text.ok().and_then(|text| text.trim().parse().ok());
        number.unwrap_or_default()
    };
    Traffic {
        bytes: count("bytes"),
        packets: count("packets"),
        errors: count("errors"),
        dropped: count("dropped"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_its_address() {
        let all = all().unwrap();
        let lo = all.iter().find(|link| link.name == "lo").unwrap();
        let own = Address {
            ip: [127, 0, 0, 1].into(),
            prefix: 8,
        };
        assert!(lo.addresses.contains(&own), "{lo:?}");
        assert_eq!(lo.mac, "00:00:00:00:00:00");
    }
}
