//! The network of a guest whose root does not bring it up by itself: DHCP on the first card.

mod dhcp;

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

pub use dhcp::Lease;
use netdev::netlink::Netlink;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Brings up loopback and the first network card, and configures the card by DHCP; `None` where
/// there is no card.
pub fn configure() -> io::Result<Option<Lease>> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    for link in links.iter().filter(|link| link.is_loopback) {
        netlink.bring_up(link.index, None)?;
    }
    let cards = links.iter().filter(|link| link.is_ethernet);
    let Some(card) = cards.min_by_key(|link| link.index) else {
        return Ok(None);
    };
    netlink.bring_up(card.index, None)?;
    let lease = dhcp::ask(&card.name, card.mac)?;
    if let Some(mtu) = lease.mtu {
        netlink.bring_up(card.index, Some(mtu))?;
    }
    netlink.add_address(card.index, lease.address.into(), lease.prefix)?;
    if let Some(router) = lease.router {
        netlink.add_default_route(card.index, router.into())?;
    }
    Ok(Some(lease))
}

/// Tells the root what the lease says of names: its resolv.conf, and the host's name where
/// nobody has set one.
pub fn tell_root(lease: &Lease) -> io::Result<()> {
    if let Some(name) = &lease.hostname {
        rustix::system::sethostname(name.as_bytes())?;
    }
    // A link is there because somebody else writes the file.
    let linked = fs::symlink_metadata(RESOLV_CONF).is_ok_and(|m| m.is_symlink());
    if linked || lease.nameservers.is_empty() {
        return Ok(());
    }
    write_whole(Path::new(RESOLV_CONF), &resolv_conf(lease))
}

fn resolv_conf(lease: &Lease) -> String {
    let mut text = String::new();
    for server in &lease.nameservers {
        text += &format!("nameserver {server}\n");
    }
    if !lease.search.is_empty() {
        text += &format!("search {}\n", lease.search.join(" "));
    }
    text
}

fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, path)
}

/// Bits of a netmask that are set.
fn prefix(mask: Ipv4Addr) -> u8 {
    u32::from(mask).leading_ones() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_s_names_become_a_resolv_conf() {
        let lease = Lease {
            address: Ipv4Addr::new(10, 0, 2, 2),
            prefix: prefix(Ipv4Addr::new(255, 255, 255, 0)),
            nameservers: vec![Ipv4Addr::new(10, 96, 0, 10), Ipv4Addr::new(10, 0, 2, 1)],
            search: vec!["default.svc.cluster.local".to_owned(), "svc".to_owned()],
            ..Lease::default()
        };
        assert_eq!(lease.prefix, 24);
        assert_eq!(
            resolv_conf(&lease),
            "nameserver 10.96.0.10\nnameserver 10.0.2.1\nsearch default.svc.cluster.local svc\n"
        );
    }
}
