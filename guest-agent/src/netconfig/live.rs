//! A network-config done at once, by this process: for a root that has nobody to bring its network up.
//! Cards only: whoever builds bridges has a program for it.

use std::fs;
use std::io;
use std::path::Path;

use netdev::netlink::{self, Change, Netlink};

use super::model::{Cidr, Config, Dhcp, Kind, Link, Matching};
use super::{CARDS, says_no};
use crate::network::{self, Names, Taken};
use crate::pattern::matches;

/// Configures every card that is spoken of. What went wrong.
pub fn bring_up(config: Config) -> Vec<String> {
    let mut failures = config.warnings;
    let mut names = Names::default();
    let mut netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(error) => {
            failures.push(format!("netlink: {error}"));
            return failures;
        }
    };
    for link in &config.links {
        let done = card(link, &mut netlink).and_then(|card| configure(link, card, &mut netlink));
        match done {
            Ok(more) => names.extend(more),
            Err(why) => failures.push(format!("{}: {why}", link.name)),
        }
    }
    if let Err(error) = network::tell_root(&names) {
        failures.push(error.to_string());
    }
    failures
}

/// The card that is meant.
fn card(link: &Link, netlink: &mut Netlink) -> Result<netlink::Link, String> {
    if link.kind != Kind::Card {
        return Err(
            "a VLAN, a bond and a bridge need a root that brings its network up itself".into(),
        );
    }
    let links = netlink.links().map_err(|error| error.to_string())?;
    let cards: Vec<_> = links.into_iter().filter(|link| link.is_ethernet).collect();
    let found = cards.iter().find(|card| {
        let known = Known::of(card);
        match &link.matching {
            // The name is a custom of people, then: KubeVirt's users write enp1s0.
            matching if *matching == Matching::default() => known.is_called(&link.name),
            matching => known.matches(matching),
        }
    });
    found.cloned().ok_or_else(|| {
        let there: Vec<_> = cards.iter().map(|card| &*card.name).collect();
        format!(
            "no card is meant by it; there is {}",
            match &there[..] {
                [] => "none".to_owned(),
                there => there.join(", "),
            }
        )
    })
}

/// What a card is known by.
struct Known<'a> {
    name: &'a str,
    /// The name that systemd would give it (systemd.net-naming-scheme(7)).
    by_place: Option<String>,
    mac: String,
    driver: Option<String>,
}

impl<'a> Known<'a> {
    fn of(card: &'a netlink::Link) -> Self {
        let device = Path::new(CARDS).join(&card.name).join("device");
        let driver = fs::read_link(device.join("driver")).ok();
        let bytes = card.mac.iter().map(|byte| format!("{byte:02x}"));
        Self {
            name: &card.name,
            by_place: fs::canonicalize(device)
                .ok()
                .and_then(|path| by_place(&path)),
            mac: bytes.collect::<Vec<_>>().join(":"),
            driver: driver.and_then(|path| Some(path.file_name()?.to_str()?.to_owned())),
        }
    }

    fn is_called(&self, name: &str) -> bool {
        self.name == name || self.by_place.as_deref() == Some(name)
    }

    fn matches(&self, matching: &Matching) -> bool {
        let Matching { mac, driver, name } = matching;
        let like = |pattern: &String, text: &Option<String>| {
            text.as_ref().is_some_and(|text| matches(pattern, text))
        };
        mac.as_ref().is_none_or(|mac| *mac == self.mac)
            && (driver.as_ref()).is_none_or(|pattern| like(pattern, &self.driver))
            && (name.as_ref())
                .is_none_or(|pattern| matches(pattern, self.name) || like(pattern, &self.by_place))
    }
}

/// `enpBUSsSLOT`, of a device's path in sysfs: the innermost PCI address in it.
fn by_place(path: &Path) -> Option<String> {
    path.iter().rev().find_map(|part| {
        let (rest, function) = part.to_str()?.split_once('.')?;
        let mut numbers = rest
            .split(':')
            .map(|text| u32::from_str_radix(text, 16).ok());
        let (domain, bus, slot) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let domain = match domain {
            0 => String::new(),
            domain => format!("P{domain}"),
        };
        let function = match function.parse().ok()? {
            0 => String::new(),
            function @ 1..8 => format!("f{function}"),
            _ => return None,
        };
        Some(format!("en{domain}p{bus}s{slot}{function}"))
    })
}

/// What a link is to be called that matched `card`.
fn wanted_name(link: &Link) -> Option<&str> {
    match (&link.set_name, link.matching == Matching::default()) {
        (Some(name), _) => Some(name),
        (None, true) => Some(&link.name),
        (None, false) => None,
    }
}

/// Whether it says no more than what is done where nobody says anything.
fn is_plain(link: &Link) -> bool {
    let usual = |dhcp: &Option<Dhcp>| dhcp.as_ref().is_none_or(|dhcp| dhcp.0.is_empty());
    link.dhcp4.is_some()
        && usual(&link.dhcp4)
        && usual(&link.dhcp6)
        && link.accept_ra.is_none()
        && link.mtu.is_none()
        && link.addresses.is_empty()
        && link.routes.is_empty()
}

/// Whether a card has the address that it was leased before anybody knew what is wanted.
fn has_lease(card: &netlink::Link, netlink: &mut Netlink) -> io::Result<bool> {
    let mut found = false;
    netlink.addresses(|address| {
        found |= address.header.index == card.index
            && netlink::own_address(&address).is_some_and(|ip| ip.is_ipv4());
    })?;
    Ok(found)
}

fn configure(link: &Link, mut card: netlink::Link, netlink: &mut Netlink) -> Result<Names, String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| format!("{what}: {error}")
    };
    let name = wanted_name(link).filter(|name| *name != card.name);
    let mut names = Names {
        nameservers: link.dns.clone(),
        ndots: None,
        search: link.search.clone(),
        hostname: None,
    };
    if name.is_none() && is_plain(link) && has_lease(&card, netlink).map_err(failed("addresses"))? {
        return Ok(names);
    }
    // Nothing stays of what was leased before.
    let down = Change {
        index: card.index,
        up: Some(false),
        ..Change::default()
    };
    netlink.change_link(down).map_err(failed("down"))?;
    netlink
        .remove_addresses(card.index)
        .map_err(failed("addresses"))?;
    if let Some(name) = name {
        let renamed = Change {
            index: card.index,
            name: Some(name),
            ..Change::default()
        };
        netlink.change_link(renamed).map_err(failed(name))?;
        name.clone_into(&mut card.name);
    }
    network::prepare(&card);
    if let Some(accept) = link.accept_ra {
        let path = format!("/proc/sys/net/ipv6/conf/{}/accept_ra", card.name);
        let accept = if accept { "2" } else { "0" };
        fs::write(path, accept).map_err(failed("accept-ra"))?;
    }
    let up = Change {
        index: card.index,
        up: Some(true),
        mtu: link.mtu,
        name: None,
    };
    netlink.change_link(up).map_err(failed("up"))?;
    for Cidr { ip, prefix } in &link.addresses {
        let added = netlink.add_address(card.index, *ip, *prefix);
        added.map_err(failed(&format!("address {ip}/{prefix}")))?;
    }
    let taken = |dhcp: &Option<Dhcp>| dhcp.as_ref().map(|dhcp| taken(dhcp, link.mtu.is_some()));
    let (v4, v6) = (taken(&link.dhcp4), taken(&link.dhcp6));
    if v4.is_some() || v6.is_some() {
        names.extend(network::lease(&card, v4, v6).map_err(failed("DHCP"))?);
    }
    for route in &link.routes {
        let via = route
            .via
            .map(|via| format!(" via {via}"))
            .unwrap_or_default();
        let added = netlink.add_route(
            card.index,
            &netlink::Route {
                to: route.to.ip,
                prefix: route.to.prefix,
                via: route.via,
                metric: route.metric,
                on_link: route.on_link,
                leased: false,
            },
        );
        added.map_err(failed(&format!("route to {}{via}", route.to)))?;
    }
    Ok(names)
}

/// What is taken of a lease; not its MTU where there is one of the user's own.
fn taken(dhcp: &Dhcp, own_mtu: bool) -> Taken {
    Taken {
        dns: !says_no(dhcp, "use-dns"),
        domains: !says_no(dhcp, "use-domains"),
        hostname: !says_no(dhcp, "use-hostname"),
        mtu: !own_mtu && !says_no(dhcp, "use-mtu"),
        routes: !says_no(dhcp, "use-routes"),
        metric: dhcp.get("route-metric").and_then(|text| text.parse().ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_known_by_its_place_as_systemd_names_it() {
        for (path, name) in [
            (
                "/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/virtio0",
                Some("enp1s0"),
            ),
            ("/sys/devices/pci0000:00/0000:00:1f.2", Some("enp0s31f2")),
            ("/sys/devices/pci0001:00/0001:0a:00.0", Some("enP1p10s0")),
            ("/sys/devices/platform/a.b", None),
            ("/sys/devices/virtual/net/lo", None),
        ] {
            assert_eq!(by_place(Path::new(path)).as_deref(), name, "{path}");
        }
    }

    #[test]
    fn a_card_is_matched_by_all_that_is_said_of_it() {
        let card = Known {
            name: "eth0",
            by_place: Some("enp1s0".into()),
            mac: "02:00:00:00:00:01".into(),
            driver: Some("virtio_net".into()),
        };
        assert!(card.is_called("eth0") && card.is_called("enp1s0") && !card.is_called("eth1"));
        let matching = |mac: Option<&str>, driver: Option<&str>, name: Option<&str>| {
            let text = |text: Option<&str>| text.map(str::to_owned);
            card.matches(&Matching {
                mac: text(mac),
                driver: text(driver),
                name: text(name),
            })
        };
        assert!(matching(
            Some("02:00:00:00:00:01"),
            Some("virtio*"),
            Some("en*")
        ));
        assert!(matching(None, None, Some("eth?")) && !matching(None, None, Some("et")));
        assert!(!matching(Some("02:00:00:00:00:02"), None, Some("en*")));
        assert!(!matching(None, Some("e1000"), None));
    }

    #[test]
    fn a_lease_s_parts_are_refused_one_by_one() {
        let dhcp = Dhcp(vec![
            ("use-dns".into(), "false".into()),
            ("route-metric".into(), "50".into()),
        ]);
        let wanted = Taken {
            dns: false,
            mtu: false,
            metric: Some(50),
            ..Taken::default()
        };
        assert_eq!(taken(&dhcp, true), wanted);
        assert_eq!(taken(&Dhcp::default(), false), Taken::default());
    }
}
