//! ifupdown's stanzas (interfaces(5)).

use std::net::IpAddr;

use super::model::{Config, Kind, Link, Route};
use super::{File, HEAD, link_file};

const PATH: &str = "/etc/network/interfaces.d/50-cloud-init";

/// One file for all links, as /etc/network/interfaces of every Debian sources it.
pub fn render(config: &Config) -> Vec<File> {
    let mut files: Vec<File> = config.links.iter().filter_map(link_file).collect();
    let stanzas: Vec<String> = config
        .links
        .iter()
        .map(|link| stanza(link, config))
        .collect();
    files.push((PATH.into(), format!("{HEAD}{}", stanzas.join("\n"))));
    files
}

fn stanza(link: &Link, config: &Config) -> String {
    let mut methods = Vec::new();
    if let Some(dhcp) = &link.dhcp4 {
        let metric = dhcp
            .get("route-metric")
            .map(|m| format!("    metric {m}\n"));
        methods.push(("inet dhcp", metric.unwrap_or_default()));
    }
    let accept = link
        .accept_ra
        .map(|accept| format!("    accept_ra {}\n", u8::from(accept)));
    let accept = accept.unwrap_or_default();
    let mut gateways: Vec<IpAddr> = link.routes.iter().filter_map(gateway).collect();
    for address in &link.addresses {
        let v6 = address.ip.is_ipv6();
        let (method, accept) = match v6 {
            true => ("inet6 static", &*accept),
            false => ("inet static", ""),
        };
        let mut lines = format!("    address {address}\n{accept}");
        if let Some(at) = gateways.iter().position(|gateway| gateway.is_ipv6() == v6) {
            lines += &format!("    gateway {}\n", gateways.remove(at));
        }
        methods.push((method, lines));
    }
    let fixed6 = link.addresses.iter().any(|address| address.ip.is_ipv6());
    match (&link.dhcp6, link.accept_ra) {
        (Some(_), _) => methods.push(("inet6 dhcp", accept)),
        (None, Some(true)) if !fixed6 => methods.push(("inet6 auto", String::new())),
        _ => {}
    }
    if methods.is_empty() {
        methods.push(("inet manual", String::new()));
    }
    let name = link.device();
    // What carries another link only is brought up with that.
    let mut text = match (&link.kind, methods.first()) {
        (Kind::Card, Some(("inet manual", _))) => String::new(),
        _ => format!("auto {name}\n"),
    };
    for (number, (method, lines)) in methods.iter().enumerate() {
        text += &format!("iface {name} {method}\n{lines}");
        if number == 0 {
            text += &common(link, config);
        }
    }
    text
}

/// What is said once of a link, in its first stanza.
fn common(link: &Link, config: &Config) -> String {
    let mut text = String::new();
    let mut line = |words: String| text += &format!("    {words}\n");
    match &link.kind {
        Kind::Card => {}
        Kind::Vlan { link, id } => {
            line(format!("vlan-raw-device {link}"));
            line(format!("vlan_id {id}"));
        }
        Kind::Bond { options, .. } => {
            line("bond-slaves none".to_owned());
            for (name, value) in options {
                line(format!("bond-{} {value}", name.replace('_', "-")));
            }
        }
        Kind::Bridge { members, stp } => {
            line(format!("bridge_ports {}", members.join(" ")));
            if let Some(stp) = stp {
                line(format!("bridge_stp {}", if *stp { "on" } else { "off" }));
            }
        }
    }
    for other in &config.links {
        if let Kind::Bond { members, .. } = &other.kind
            && members.contains(&link.name)
        {
            line(format!("bond-master {}", other.name));
        }
    }
    if let Some(mtu) = link.mtu {
        line(format!("mtu {mtu}"));
    }
    if link.wakeonlan {
        line("ethernet-wol g".to_owned());
    }
    if !link.dns.is_empty() {
        let servers: Vec<String> = link.dns.iter().map(IpAddr::to_string).collect();
        line(format!("dns-nameservers {}", servers.join(" ")));
    }
    if !link.search.is_empty() {
        line(format!("dns-search {}", link.search.join(" ")));
    }
    for route in &link.routes {
        let fixed = |v6| {
            link.addresses
                .iter()
                .any(|address| address.ip.is_ipv6() == v6)
        };
        if gateway(route).is_some_and(|gateway| fixed(gateway.is_ipv6())) {
            continue;
        }
        // The link may be left without one that cannot be; ifup would take it for a failure.
        let words = self::route(route);
        line(format!("post-up ip route add {words} dev $IFACE || true"));
        line(format!("pre-down ip route del {words} dev $IFACE || true"));
    }
    text
}

/// A route that an address's stanza has a word for.
fn gateway(route: &Route) -> Option<IpAddr> {
    let plain = route.to.is_default() && route.metric.is_none() && !route.on_link;
    route.via.filter(|_| plain)
}

fn route(route: &Route) -> String {
    let mut text = match route.to.is_default() {
        true => "default".to_owned(),
        false => route.to.to_string(),
    };
    if let Some(via) = route.via {
        text += &format!(" via {via}");
    }
    if let Some(metric) = route.metric {
        text += &format!(" metric {metric}");
    }
    if route.on_link {
        text += " onlink";
    }
    text
}
