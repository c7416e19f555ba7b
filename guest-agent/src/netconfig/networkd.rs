//! systemd-networkd's files (systemd.network(5), systemd.netdev(5), systemd.link(5)).

use std::fmt::Write as _;
use std::net::IpAddr;

use super::model::{Config, Dhcp, Kind, Link, Route};
use super::{File, HEAD, link_file};

const FOLDER: &str = "/etc/systemd/network";
/// What is taken of a lease: netplan's names and networkd's.
const OVERRIDES: [(&str, &str); 9] = [
    ("hostname", "Hostname"),
    ("route-metric", "RouteMetric"),
    ("send-hostname", "SendHostname"),
    ("use-dns", "UseDNS"),
    ("use-domains", "UseDomains"),
    ("use-hostname", "UseHostname"),
    ("use-mtu", "UseMTU"),
    ("use-ntp", "UseNTP"),
    ("use-routes", "UseRoutes"),
];
/// Of these networkd's DHCPv6 knows only some.
const OVERRIDES6: [&str; 6] = [
    "route-metric",
    "send-hostname",
    "use-dns",
    "use-domains",
    "use-hostname",
    "use-ntp",
];
/// A bond's parameters: the kernel's names and networkd's.
const BOND: [(&str, &str, &str); 9] = [
    ("mode", "Mode", ""),
    ("miimon", "MIIMonitorSec", "ms"),
    ("lacp_rate", "LACPTransmitRate", ""),
    ("xmit_hash_policy", "TransmitHashPolicy", ""),
    ("updelay", "UpDelaySec", "ms"),
    ("downdelay", "DownDelaySec", "ms"),
    ("ad_select", "AdSelect", ""),
    ("min_links", "MinLinks", ""),
    ("primary", "", ""),
];

/// A `.network` for each link, and what makes the links that are no cards.
pub fn render(config: &Config) -> Vec<File> {
    let mut files = Vec::new();
    for link in &config.links {
        files.extend(link_file(link));
        files.extend(netdev(link));
        files.push(file(link, "network", network(link, config)));
    }
    files
}

fn file(link: &Link, extension: &str, text: String) -> File {
    let path = format!("{FOLDER}/10-cloud-init-{}.{extension}", link.device());
    (path.into(), format!("{HEAD}{text}"))
}

fn netdev(link: &Link) -> Option<File> {
    let head = |kind: &str| format!("[NetDev]\nName={}\nKind={kind}\n", link.name);
    let text = match &link.kind {
        Kind::Card => return None,
        Kind::Vlan { id, .. } => format!("{}\n[VLAN]\nId={id}\n", head("vlan")),
        Kind::Bridge { stp, .. } => {
            let stp = stp.map(|stp| format!("\n[Bridge]\nSTP={stp}\n"));
            head("bridge") + &stp.unwrap_or_default()
        }
        Kind::Bond { options, .. } => {
            let mut text = format!("{}\n[Bond]\n", head("bond"));
            for (name, key, unit) in BOND {
                let value = options.iter().find(|(known, _)| known == name);
                if let (Some((_, value)), false) = (value, key.is_empty()) {
                    // writing to a String cannot fail
                    let _ = writeln!(text, "{key}={value}{unit}");
                }
            }
            text
        }
    };
    Some(file(link, "netdev", text))
}

fn network(link: &Link, config: &Config) -> String {
    let mut text = "[Match]\n".to_owned();
    let mut line = |key: &str, value: &str| {
        text += &format!("{key}={value}\n");
    };
    let matching = &link.matching;
    if let Some(mac) = &matching.mac {
        line("MACAddress", mac);
    }
    if let Some(driver) = &matching.driver {
        line("Driver", driver);
    }
    match (&link.set_name, &matching.name) {
        (Some(name), _) => line("Name", name),
        (None, Some(pattern)) => line("Name", pattern),
        (None, None) if matching.mac.is_some() || matching.driver.is_some() => {}
        (None, None) => line("Name", &link.name),
    }
    if link.mtu.is_some() || link.optional {
        text += "\n[Link]\n";
        if let Some(mtu) = link.mtu {
            text += &format!("MTUBytes={mtu}\n");
        }
        if link.optional {
            text += "RequiredForOnline=no\n";
        }
    }
    text += "\n[Network]\n";
    let dhcp = match (&link.dhcp4, &link.dhcp6) {
        (Some(_), Some(_)) => "yes",
        (Some(_), None) => "ipv4",
        (None, Some(_)) => "ipv6",
        (None, None) => "no",
    };
    text += &format!("DHCP={dhcp}\n");
    if let Some(accept) = link.accept_ra {
        text += &format!("IPv6AcceptRA={}\n", if accept { "yes" } else { "no" });
    }
    for address in &link.addresses {
        text += &format!("Address={address}\n");
    }
    if !link.dns.is_empty() {
        text += &format!("DNS={}\n", joined(&link.dns));
    }
    if !link.search.is_empty() {
        text += &format!("Domains={}\n", link.search.join(" "));
    }
    for other in &config.links {
        match &other.kind {
            Kind::Vlan { link: below, .. } if *below == link.name => {
                text += &format!("VLAN={}\n", other.name);
            }
            Kind::Bond { members, .. } if members.contains(&link.name) => {
                text += &format!("Bond={}\n", other.name);
            }
            Kind::Bridge { members, .. } if members.contains(&link.name) => {
                text += &format!("Bridge={}\n", other.name);
            }
            _ => {}
        }
    }
    for (family, dhcp) in [(4, &link.dhcp4), (6, &link.dhcp6)] {
        text += &dhcp
            .as_ref()
            .map(|dhcp| lease(family, dhcp))
            .unwrap_or_default();
    }
    for route in &link.routes {
        text += &self::route(route);
    }
    text
}

fn lease(family: u8, dhcp: &Dhcp) -> String {
    let known = OVERRIDES
        .iter()
        .filter(|(name, _)| family == 4 || OVERRIDES6.contains(name));
    let lines: String = known
        .filter_map(|(name, key)| Some(format!("{key}={}\n", dhcp.get(name)?)))
        .collect();
    match &*lines {
        "" => lines,
        _ => format!("\n[DHCPv{family}]\n{lines}"),
    }
}

fn route(route: &Route) -> String {
    let mut text = "\n[Route]\n".to_owned();
    if !(route.to.is_default() && route.via.is_some()) {
        text += &format!("Destination={}\n", route.to);
    }
    if let Some(via) = route.via {
        text += &format!("Gateway={via}\n");
    }
    if let Some(metric) = route.metric {
        text += &format!("Metric={metric}\n");
    }
    if route.on_link {
        text += "GatewayOnLink=yes\n";
    }
    text
}

fn joined(addresses: &[IpAddr]) -> String {
    let words: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    words.join(" ")
}
