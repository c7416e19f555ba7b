//! NetworkManager's profiles (nm-settings-keyfile(5)).

use std::hash::{DefaultHasher, Hash, Hasher};

use super::model::{Config, Dhcp, Kind, Link};
use super::{File, HEAD, link_file, says_no};
use crate::os::CloudInit;

const FOLDER: &str = "/etc/NetworkManager/system-connections";

/// A profile for each link.
pub fn render(config: &Config, cloud_init: CloudInit) -> Vec<File> {
    let mut files = Vec::new();
    for link in &config.links {
        files.extend(link_file(link));
        let name = match cloud_init {
            CloudInit::V22 => link.device(),
            CloudInit::V25 => &link.name,
        };
        let path = format!("{FOLDER}/cloud-init-{name}.nmconnection");
        let text = profile(link, config, cloud_init);
        files.push((path.into(), format!("{HEAD}{text}")));
    }
    files
}

fn profile(link: &Link, config: &Config, cloud_init: CloudInit) -> String {
    let kind = match &link.kind {
        Kind::Card => "ethernet",
        Kind::Vlan { .. } => "vlan",
        Kind::Bond { .. } => "bond",
        Kind::Bridge { .. } => "bridge",
    };
    let mut text = format!(
        "[connection]\nid=cloud-init {}\nuuid={}\ntype={kind}\n",
        link.name,
        uuid(&link.name)
    );
    if cloud_init >= CloudInit::V25 {
        // Before what NetworkManager would make of itself for the same card.
        text += "autoconnect-priority=120\n";
    }
    for other in &config.links {
        let (master, members) = match &other.kind {
            Kind::Bond { members, .. } => ("bond", members),
            Kind::Bridge { members, .. } => ("bridge", members),
            _ => continue,
        };
        if members.contains(&link.name) {
            text += &format!("slave-type={master}\nmaster={}\n", uuid(&other.name));
        }
    }
    let by_name = link.matching.mac.is_none() && link.matching.name.is_none();
    if by_name || link.kind != Kind::Card {
        text += &format!("interface-name={}\n", link.device());
    }
    if let Some(pattern) = &link.matching.name {
        text += &format!("\n[match]\ninterface-name={pattern};\n");
    }
    text += &format!("\n[{kind}]\n");
    match &link.kind {
        Kind::Card => {
            if let Some(mac) = &link.matching.mac {
                text += &format!("mac-address={}\n", mac.to_uppercase());
            }
            if let Some(mtu) = link.mtu {
                text += &format!("mtu={mtu}\n");
            }
            if link.wakeonlan {
                // NM_SETTING_WIRED_WAKE_ON_LAN_MAGIC
                text += "wake-on-lan=64\n";
            }
        }
        Kind::Vlan { id, link } => {
            let known = config.links.iter().any(|other| other.name == *link);
            let parent = if known { uuid(link) } else { link.clone() };
            text += &format!("id={id}\nparent={parent}\n");
        }
        Kind::Bond { options, .. } => {
            for (name, value) in options {
                text += &format!("{name}={value}\n");
            }
        }
        Kind::Bridge { stp, .. } => {
            if let Some(stp) = stp {
                text += &format!("stp={stp}\n");
            }
        }
    }
    text + &family(link, false, cloud_init) + &family(link, true, cloud_init)
}

fn family(link: &Link, v6: bool, cloud_init: CloudInit) -> String {
    let section = if v6 { "ipv6" } else { "ipv4" };
    let dhcp = if v6 { &link.dhcp6 } else { &link.dhcp4 };
    let addresses: Vec<_> = link
        .addresses
        .iter()
        .filter(|a| a.ip.is_ipv6() == v6)
        .collect();
    let automatic = dhcp.is_some() || (v6 && link.accept_ra == Some(true));
    let method = match (automatic, addresses.is_empty()) {
        (true, _) => "auto",
        (false, false) => "manual",
        (false, true) => "disabled",
    };
    let mut text = format!("\n[{section}]\nmethod={method}\n");
    if method == "disabled" {
        return text;
    }
    // Who has the one family is better off than who waits in vain for the other.
    let may_fail = v6 && automatic && link.has(false);
    text += &format!("may-fail={may_fail}\n");
    for (number, address) in (1..).zip(&addresses) {
        text += &format!("address{number}={address}\n");
    }
    let routes = link
        .routes
        .iter()
        .filter(|route| route.to.ip.is_ipv6() == v6);
    let mut number = 0;
    for route in routes {
        let via = route.via.map(|via| via.to_string()).unwrap_or_default();
        if route.to.is_default() && route.metric.is_none() {
            text += &format!("gateway={via}\n");
            continue;
        }
        number += 1;
        let metric = route
            .metric
            .map(|metric| format!(",{metric}"))
            .unwrap_or_default();
        text += &format!("route{number}={},{via}{metric}\n", route.to);
    }
    let servers = link.dns.iter().filter(|server| server.is_ipv6() == v6);
    let servers: String = servers.map(|server| format!("{server};")).collect();
    if !servers.is_empty() {
        text += &format!("dns={servers}\n");
    }
    let of_both = cloud_init >= CloudInit::V25;
    if !link.search.is_empty() && (of_both || v6 != link.has(false)) {
        text += &format!("dns-search={};\n", link.search.join(";"));
    }
    text + &dhcp.as_ref().map(lease).unwrap_or_default()
}

fn lease(dhcp: &Dhcp) -> String {
    let mut text = String::new();
    if let Some(metric) = dhcp.get("route-metric") {
        text += &format!("route-metric={metric}\n");
    }
    for (key, ours) in [
        ("use-dns", "ignore-auto-dns"),
        ("use-routes", "ignore-auto-routes"),
    ] {
        if says_no(dhcp, key) {
            text += &format!("{ours}=true\n");
        }
    }
    text
}

/// One of the link's own, the same whenever it is made (RFC 9562, version 8).
fn uuid(name: &str) -> String {
    let half = |salt: &str| {
        let mut hasher = DefaultHasher::new();
        (salt, name).hash(&mut hasher);
        hasher.finish()
    };
    let (high, low) = (half("peapod"), half("agent"));
    format!(
        "{:08x}-{:04x}-8{:03x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low >> 48 & 0x3fff | 0x8000,
        low & 0xffff_ffff_ffff
    )
}
