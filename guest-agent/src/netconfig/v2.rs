//! Version 2: netplan's format, as far as cloud-init knows it
//! (cloud-init's "Networking config Version 2").

use std::net::IpAddr;

use super::model::{Cidr, Config, Dhcp, Kind, Link, Matching, Route};
use crate::yaml::{Map, Node};

const OVERRIDES: [&str; 9] = [
    "hostname",
    "route-metric",
    "send-hostname",
    "use-dns",
    "use-domains",
    "use-hostname",
    "use-mtu",
    "use-ntp",
    "use-routes",
];
/// A bond's parameters, by netplan's names and the kernel's.
const BOND: [(&str, &str); 9] = [
    ("mode", "mode"),
    ("mii-monitor-interval", "miimon"),
    ("lacp-rate", "lacp_rate"),
    ("transmit-hash-policy", "xmit_hash_policy"),
    ("up-delay", "updelay"),
    ("down-delay", "downdelay"),
    ("primary", "primary"),
    ("ad-select", "ad_select"),
    ("min-links", "min_links"),
];

/// Reads it.
pub fn parse(config: &Node) -> Result<Config, String> {
    let mut parsed = Config::default();
    for (key, node) in config.map().into_iter().flatten() {
        let kind = match &**key {
            "version" | "renderer" => continue,
            "ethernets" | "vlans" | "bonds" | "bridges" => &**key,
            _ => {
                parsed.odd(node, key);
                continue;
            }
        };
        for (name, node) in mapping(node, key)? {
            let link = link(kind, name, node, &mut parsed)?;
            parsed.links.push(link);
        }
    }
    Ok(parsed)
}

impl Config {
    /// Something that is not understood.
    pub(super) fn odd(&mut self, node: &Node, key: &str) {
        self.warnings
            .push(node.wrong(key, "not known to the agent, and left out"));
    }
}

fn mapping<'a>(node: &'a Node, key: &str) -> Result<&'a Map, String> {
    let wrong = || node.wrong(key, format!("a mapping, not {}", node.kind()));
    node.map().ok_or_else(wrong)
}

fn link(kind: &str, name: &str, node: &Node, parsed: &mut Config) -> Result<Link, String> {
    let mut link = Link {
        name: super::name(node, name)?,
        kind: match kind {
            "vlans" => Kind::Vlan {
                id: number(node, "id")?.ok_or_else(|| node.wrong(name, "a vlan has an id"))?,
                link: text(node, "link").ok_or_else(|| node.wrong(name, "a vlan has a link"))?,
            },
            "bonds" => Kind::Bond {
                members: words(node, "interfaces"),
                options: Vec::new(),
            },
            "bridges" => Kind::Bridge {
                members: words(node, "interfaces"),
                stp: None,
            },
            _ => Kind::Card,
        },
        ..Link::default()
    };
    for (key, value) in mapping(node, name)? {
        match &**key {
            "match" => link.matching = matching(value, parsed)?,
            "set-name" => {
                let name = value.scalar().unwrap_or_default();
                link.set_name = Some(super::name(value, &name)?);
            }
            "dhcp4" if value.is_true() => {
                link.dhcp4 = Some(dhcp(node.get("dhcp4-overrides"), parsed)?);
            }
            "dhcp6" if value.is_true() => {
                link.dhcp6 = Some(dhcp(node.get("dhcp6-overrides"), parsed)?);
            }
            "accept-ra" => link.accept_ra = Some(value.is_true()),
            "addresses" => {
                for (text, node) in items(value) {
                    let cidr = Cidr::parse(&text, None).map_err(|why| node.wrong(key, why))?;
                    link.addresses.push(cidr);
                }
            }
            "gateway4" | "gateway6" => {
                link.routes.push(Route::default_by(address(value, key)?));
            }
            "routes" => {
                for node in value.list().unwrap_or_default() {
                    link.routes.push(route(node)?);
                }
            }
            "nameservers" => nameservers(value, &mut link, parsed)?,
            "mtu" => link.mtu = number(node, "mtu")?,
            "wakeonlan" => link.wakeonlan = value.is_true(),
            "optional" => link.optional = value.is_true(),
            "parameters" => parameters(value, &mut link, parsed)?,
            // Read above, or what there is nothing to do for.
            "id" | "link" | "interfaces" | "dhcp4" | "dhcp6" | "dhcp4-overrides"
            | "dhcp6-overrides" | "renderer" => {}
            _ => parsed.odd(value, &format!("{name}: {key}")),
        }
    }
    Ok(link)
}

fn matching(node: &Node, parsed: &mut Config) -> Result<Matching, String> {
    let mut matching = Matching::default();
    for (key, value) in mapping(node, "match")? {
        let word = value.scalars().into_iter().next();
        match &**key {
            "macaddress" => matching.mac = word.map(|mac| super::mac(value, &mac)).transpose()?,
            "driver" => matching.driver = word.map(|w| super::pattern(value, &w)).transpose()?,
            "name" => matching.name = word.map(|w| super::pattern(value, &w)).transpose()?,
            _ => parsed.odd(value, &format!("match: {key}")),
        }
    }
    Ok(matching)
}

fn dhcp(overrides: Option<&Node>, parsed: &mut Config) -> Result<Dhcp, String> {
    let mut dhcp = Dhcp::default();
    let Some(overrides) = overrides else {
        return Ok(dhcp);
    };
    for (key, value) in mapping(overrides, "overrides")? {
        match (OVERRIDES.contains(&&**key), value.scalar()) {
            (true, Some(word)) => {
                let word = super::word(value, &word.to_lowercase())?;
                dhcp.0.push((key.clone(), word));
            }
            _ => parsed.odd(value, key),
        }
    }
    Ok(dhcp)
}

fn route(node: &Node) -> Result<Route, String> {
    let via = node.get("via").map(|via| address(via, "via")).transpose()?;
    let to = text(node, "to").ok_or_else(|| node.wrong("to", "a route goes somewhere"))?;
    let to = match &*to {
        "default" => Cidr::default_of(via.is_some_and(|via| via.is_ipv6())),
        to => {
            let host = if to.contains(':') { "128" } else { "32" };
            Cidr::parse(to, Some(host)).map_err(|why| node.wrong("to", why))?
        }
    };
    Ok(Route {
        to,
        via,
        metric: number(node, "metric")?,
        on_link: node.flag("on-link", false),
    })
}

fn nameservers(node: &Node, link: &mut Link, parsed: &mut Config) -> Result<(), String> {
    for (key, value) in mapping(node, "nameservers")? {
        match &**key {
            "addresses" => {
                for (_, node) in items(value) {
                    link.dns.push(address(&node, key)?);
                }
            }
            "search" => {
                for (text, node) in items(value) {
                    link.search.push(super::word(&node, &text)?);
                }
            }
            _ => parsed.odd(value, &format!("nameservers: {key}")),
        }
    }
    Ok(())
}

fn parameters(node: &Node, link: &mut Link, parsed: &mut Config) -> Result<(), String> {
    for (key, value) in mapping(node, "parameters")? {
        let word = value.scalar().unwrap_or_default();
        let word = super::word(value, &word)?;
        let known = BOND.iter().find(|(name, _)| name == key);
        match (&mut link.kind, known) {
            (Kind::Bond { options, .. }, Some((_, name))) => {
                options.push(((*name).to_owned(), word));
            }
            (Kind::Bridge { stp, .. }, _) if key == "stp" => *stp = Some(value.is_true()),
            _ => parsed.odd(value, &format!("parameters: {key}")),
        }
    }
    Ok(())
}

/// A list's items, or the one that stands for a list, each as text and with its place.
pub(super) fn items(node: &Node) -> Vec<(String, Node)> {
    let list = node.list().unwrap_or(std::slice::from_ref(node));
    let text = |node: &Node| Some((node.scalar()?, node.clone()));
    list.iter().filter_map(text).collect()
}

pub(super) fn address(node: &Node, key: &str) -> Result<IpAddr, String> {
    let text = node.scalar().unwrap_or_default();
    let wrong = |_| node.wrong(key, format!("{text:?} is no address"));
    text.trim().parse().map_err(wrong)
}

pub(super) fn number<N: std::str::FromStr>(node: &Node, key: &str) -> Result<Option<N>, String> {
    let Some(value) = node.get(key) else {
        return Ok(None);
    };
    let number = value.scalar().and_then(|text| text.trim().parse().ok());
    match number {
        Some(number) => Ok(Some(number)),
        None => Err(value.wrong(key, "not a number that it may be")),
    }
}

fn text(node: &Node, key: &str) -> Option<String> {
    let text = node.get(key)?.scalar()?;
    (!text.is_empty()).then_some(text)
}

fn words(node: &Node, key: &str) -> Vec<String> {
    node.get(key).map(Node::scalars).unwrap_or_default()
}

/// netplan's name for a bond's parameter.
pub(super) fn bond_name(kernel: &str) -> Option<&'static str> {
    let found = BOND.iter().find(|(_, name)| *name == kernel);
    found.map(|(name, _)| *name)
}
