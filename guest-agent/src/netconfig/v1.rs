//! Version 1: a list of things to configure (cloud-init's "Networking config Version 1").

use std::net::IpAddr;

use super::model::{Cidr, Config, Dhcp, Kind, Link, Matching, Route};
use super::v2::{address, items, number};
use crate::yaml::Node;

/// Reads it.
pub fn parse(list: &Node) -> Result<Config, String> {
    let list = list
        .list()
        .ok_or_else(|| list.wrong("config", format!("a list, not {}", list.kind())))?;
    let mut parsed = Config::default();
    // What is said of all links, once they are all known.
    let (mut routes, mut dns) = (Vec::new(), Vec::new());
    for node in list {
        let kind = node.get("type").and_then(Node::scalar).unwrap_or_default();
        match &*kind {
            "loopback" => {}
            "physical" | "vlan" | "bond" | "bridge" => {
                let link = link(&kind, node, &mut parsed)?;
                parsed.links.push(link);
            }
            "nameserver" => dns.push(node),
            "route" => routes.push(route(node, "destination")?),
            _ => parsed.odd(node, &format!("type: {kind}")),
        }
    }
    for route in routes {
        // A route belongs to the link that its gateway is on.
        let reaches = |link: &Link| {
            let mut networks = link.addresses.iter();
            route
                .via
                .is_some_and(|via| networks.any(|network| network.contains(via)))
        };
        let place = parsed.links.iter().position(reaches).unwrap_or(0);
        if let Some(link) = parsed.links.get_mut(place) {
            link.routes.push(route);
        }
    }
    for node in dns {
        let (servers, search) = names(node, "address", "search")?;
        let of = node.get("interface").and_then(Node::scalar);
        for link in &mut parsed.links {
            let meant = match &of {
                Some(name) => link.name == *name,
                None => link.has(false) || link.has(true),
            };
            if meant {
                link.dns.extend(&servers);
                link.search.extend_from_slice(&search);
            }
        }
    }
    Ok(parsed)
}

fn link(kind: &str, node: &Node, parsed: &mut Config) -> Result<Link, String> {
    let text = |key: &str| node.get(key).and_then(Node::scalar);
    let wanted = |key: &str| text(key).ok_or_else(|| node.wrong(key, format!("a {kind} has one")));
    let name = super::name(node, &wanted("name")?)?;
    let mac = text("mac_address")
        .map(|mac| super::mac(node, &mac))
        .transpose()?;
    let members = |key: &str| node.get(key).map(Node::scalars).unwrap_or_default();
    let mut link = Link {
        // A card that is known by its address is to have the name.
        set_name: mac
            .is_some()
            .then(|| name.clone())
            .filter(|_| kind == "physical"),
        matching: Matching {
            mac,
            ..Matching::default()
        },
        kind: match kind {
            "vlan" => Kind::Vlan {
                id: number(node, "vlan_id")?.ok_or_else(|| node.wrong("vlan_id", "missing"))?,
                link: super::name(node, &wanted("vlan_link")?)?,
            },
            "bond" => Kind::Bond {
                members: members("bond_interfaces"),
                options: Vec::new(),
            },
            "bridge" => Kind::Bridge {
                members: members("bridge_interfaces"),
                stp: None,
            },
            _ => Kind::Card,
        },
        name,
        mtu: number(node, "mtu")?,
        accept_ra: node.get("accept-ra").map(Node::is_true),
        wakeonlan: node.flag("wakeonlan", false),
        ..Link::default()
    };
    for (key, value) in node.get("params").and_then(Node::map).into_iter().flatten() {
        let word = super::word(value, &value.scalar().unwrap_or_default())?;
        match &mut link.kind {
            Kind::Bond { options, .. } => {
                let key = key
                    .trim_start_matches("bond")
                    .trim_start_matches(['-', '_']);
                options.push((key.replace('-', "_"), word));
            }
            Kind::Bridge { stp, .. } if key == "bridge_stp" => *stp = Some(value.is_true()),
            _ => parsed.odd(value, &format!("params: {key}")),
        }
    }
    for subnet in node.get("subnets").and_then(Node::list).unwrap_or_default() {
        self::subnet(subnet, &mut link, parsed)?;
    }
    Ok(link)
}

fn subnet(node: &Node, link: &mut Link, parsed: &mut Config) -> Result<(), String> {
    let text = |key: &str| node.get(key).and_then(Node::scalar);
    let kind = text("type").unwrap_or_default();
    match &*kind {
        "dhcp" | "dhcp4" => link.dhcp4 = Some(Dhcp::default()),
        "dhcp6" | "ipv6_dhcpv6-stateful" => link.dhcp6 = Some(Dhcp::default()),
        "ipv6_dhcpv6-stateless" | "ipv6_slaac" => link.accept_ra = Some(true),
        "static" | "static6" => {
            let written =
                text("address").ok_or_else(|| node.wrong("address", "a static subnet has one"))?;
            let prefix = text("prefix").or_else(|| text("netmask"));
            let cidr = Cidr::parse(&written, prefix.as_deref());
            link.addresses
                .push(cidr.map_err(|why| node.wrong("address", why))?);
        }
        "manual" | "loopback" => {}
        _ => parsed.odd(node, &format!("subnet type: {kind}")),
    }
    if let Some(gateway) = node.get("gateway") {
        let gateway = address(gateway, "gateway")?;
        link.routes.push(Route::default_by(gateway));
    }
    for node in node.get("routes").and_then(Node::list).unwrap_or_default() {
        link.routes.push(route(node, "network")?);
    }
    let (servers, search) = names(node, "dns_nameservers", "dns_search")?;
    link.dns.extend(servers);
    link.search.extend(search);
    link.mtu = number(node, "mtu")?.or(link.mtu);
    Ok(())
}

/// Name servers and search domains, lists or words of one text.
fn names(node: &Node, servers: &str, search: &str) -> Result<(Vec<IpAddr>, Vec<String>), String> {
    let words = |key: &str| {
        let items = node.get(key).map(items).unwrap_or_default();
        let split = |(text, node): (String, Node)| {
            let words = text.split_whitespace().map(str::to_owned);
            words.map(|word| (word, node.clone())).collect::<Vec<_>>()
        };
        items.into_iter().flat_map(split).collect::<Vec<_>>()
    };
    let server = |(word, node): (String, Node)| {
        let wrong = |_| node.wrong(servers, format!("{word:?} is no address"));
        word.parse().map_err(wrong)
    };
    let domain = |(word, node): (String, Node)| super::word(&node, &word);
    Ok((
        words(servers)
            .into_iter()
            .map(server)
            .collect::<Result<_, _>>()?,
        words(search)
            .into_iter()
            .map(domain)
            .collect::<Result<_, _>>()?,
    ))
}

fn route(node: &Node, key: &str) -> Result<Route, String> {
    let text = |key: &str| node.get(key).and_then(Node::scalar);
    let written = text(key).ok_or_else(|| node.wrong(key, "a route goes somewhere"))?;
    let prefix = text("prefix").or_else(|| text("netmask"));
    Ok(Route {
        to: Cidr::parse(&written, prefix.as_deref()).map_err(|why| node.wrong(key, why))?,
        via: node
            .get("gateway")
            .map(|via| address(via, "gateway"))
            .transpose()?,
        metric: number(node, "metric")?,
        on_link: false,
    })
}
