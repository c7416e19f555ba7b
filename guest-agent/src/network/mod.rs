//! The network of a guest whose root does not bring it up by itself: DHCP and DHCPv6 on the first
//! card.

mod dhcp;
mod dhcp6;
mod exchange;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use netdev::netlink::{Link, Netlink};

use crate::say;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long the second family may take when there is the first.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a server says of names.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Names {
    /// Where they are asked for.
    pub nameservers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// The guest's own.
    pub hostname: Option<String>,
}

/// Brings up loopback and the first network card, and configures the card in the families that
/// somebody gives it addresses of. It is enough to have one; the other may come later. `None` where
/// there is no card.
pub fn configure() -> io::Result<Option<Names>> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    for link in links.iter().filter(|link| link.is_loopback) {
        netlink.bring_up(link.index, None)?;
    }
    let cards = links.iter().filter(|link| link.is_ethernet);
    let Some(card) = cards.min_by_key(|link| link.index) else {
        return Ok(None);
    };
    // A kernel without IPv6 has no such file, and nothing to ready.
    let _ = dhcp6::prepare(&card.name);
    netlink.bring_up(card.index, None)?;
    let (give, given) = channel();
    for family in [configure_v4, configure_v6] {
        let (give, card) = (give.clone(), card.clone());
        thread::spawn(move || {
            // Nobody waits for the second one that is late.
            let _ = give.send(family(&card));
        });
    }
    drop(give);
    collect(&given).map(Some)
}

/// The names of the families, as soon as there is one and the other has had a moment.
fn collect(given: &Receiver<io::Result<Option<Names>>>) -> io::Result<Names> {
    let mut names: Option<Names> = None;
    let mut failures = Vec::new();
    loop {
        let next = match &names {
            None => given.recv().ok(),
            Some(_) => given.recv_timeout(PATIENCE).ok(),
        };
        match (next, &mut names) {
            (Some(Ok(Some(more))), None) => names = Some(more),
            (Some(Ok(Some(more))), Some(names)) => {
                names.nameservers.extend(more.nameservers);
                let new = more
                    .search
                    .into_iter()
                    .filter(|s| !names.search.contains(s));
                let new: Vec<_> = new.collect();
                names.search.extend(new);
                names.hostname = names.hostname.take().or(more.hostname);
            }
            (Some(Ok(None)), _) => {}
            (Some(Err(error)), None) => failures.push(error.to_string()),
            (Some(Err(error)), Some(_)) => say!("network: {error}"),
            (None, _) => break,
        }
    }
    names.ok_or_else(|| match &failures[..] {
        [] => io::Error::other("nobody gives the guest an address"),
        failures => io::Error::other(failures.join("; ")),
    })
}

fn configure_v4(card: &Link) -> io::Result<Option<Names>> {
    let lease = dhcp::ask(&card.name, card.mac)?;
    let mut netlink = Netlink::open()?;
    if let Some(mtu) = lease.mtu {
        netlink.bring_up(card.index, Some(mtu))?;
    }
    netlink.add_address(card.index, lease.address.into(), lease.prefix)?;
    if let Some(router) = lease.router {
        netlink.add_default_route(card.index, router.into())?;
    }
    Ok(Some(lease.names))
}

fn configure_v6(card: &Link) -> io::Result<Option<Names>> {
    let Some(lease) = dhcp6::ask(card)? else {
        return Ok(None);
    };
    // Which networks are on the link is the advertisements' to say (RFC 5942).
    Netlink::open()?.add_address(card.index, lease.address.into(), 128)?;
    Ok(Some(lease.names))
}

/// Tells the root of names: its resolv.conf, and the host's own where nobody has set one.
pub fn tell_root(names: &Names) -> io::Result<()> {
    if let Some(name) = &names.hostname {
        rustix::system::sethostname(name.as_bytes())?;
    }
    // A link is there because somebody else writes the file.
    let linked = fs::symlink_metadata(RESOLV_CONF).is_ok_and(|m| m.is_symlink());
    if linked || names.nameservers.is_empty() {
        return Ok(());
    }
    write_whole(Path::new(RESOLV_CONF), &resolv_conf(names))
}

fn resolv_conf(names: &Names) -> String {
    let mut text = String::new();
    for server in &names.nameservers {
        text += &format!("nameserver {server}\n");
    }
    if !names.search.is_empty() {
        text += &format!("search {}\n", names.search.join(" "));
    }
    text
}

/// Search domains as resolv.conf has them.
fn search_list(names: &[impl ToString]) -> Vec<String> {
    let names = names.iter().map(ToString::to_string);
    let bare = names.map(|name| name.trim_end_matches('.').to_owned());
    bare.filter(|name| is_name(name)).collect()
}

/// Whether a word is one that may stand in resolv.conf: letters, digits, `-`, `_` and dots.
fn is_name(word: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !word.is_empty() && word.len() < 254 && word.chars().all(good)
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
    fn names_become_a_resolv_conf() {
        let names = Names {
            nameservers: vec![
                Ipv4Addr::new(10, 96, 0, 10).into(),
                "fd00::10".parse().unwrap(),
            ],
            search: vec!["default.svc.cluster.local".to_owned(), "svc".to_owned()],
            hostname: None,
        };
        assert_eq!(prefix(Ipv4Addr::new(255, 255, 255, 0)), 24);
        assert_eq!(
            resolv_conf(&names),
            "nameserver 10.96.0.10\nnameserver fd00::10\nsearch default.svc.cluster.local svc\n"
        );
    }

    #[test]
    fn one_family_is_enough_and_both_are_joined() {
        let names = |server: &str| {
            Ok(Some(Names {
                nameservers: vec![server.parse().unwrap()],
                search: vec!["svc".to_owned()],
                hostname: None,
            }))
        };
        let collect = |results: Vec<io::Result<Option<Names>>>| {
            let (give, given) = channel();
            results.into_iter().for_each(|r| give.send(r).unwrap());
            drop(give);
            super::collect(&given)
        };
        let both = collect(vec![names("10.0.2.3"), names("fd00::3")]).unwrap();
        assert_eq!((both.nameservers.len(), both.search.len()), (2, 1));
        let failed = || Err(io::Error::other("no DHCP server answers"));
        assert!(collect(vec![failed(), names("fd00::3")]).is_ok());
        assert!(collect(vec![Ok(None), names("10.0.2.3")]).is_ok());
        let none = collect(vec![Ok(None), failed()]).unwrap_err().to_string();
        assert_eq!(none, "no DHCP server answers");
    }
}
