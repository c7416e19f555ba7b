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

use netdev::netlink::{Link, Netlink, Route};

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
    /// Dots from which on a name is first asked for as it is.
    pub ndots: Option<u8>,
    /// The guest's own.
    pub hostname: Option<String>,
}

/// What is taken of a lease besides the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Name servers.
    pub dns: bool,
    /// Search domains.
    pub domains: bool,
    /// The guest's own name.
    pub hostname: bool,
    /// The network's MTU.
    pub mtu: bool,
    /// The way out.
    pub routes: bool,
    /// How bad that is.
    pub metric: Option<u32>,
}

impl Default for Taken {
    fn default() -> Self {
        Self {
            dns: true,
            domains: true,
            hostname: true,
            mtu: true,
            routes: true,
            metric: None,
        }
    }
}

impl Taken {
    fn of(self, mut names: Names) -> Names {
        if !self.dns {
            names.nameservers.clear();
        }
        if !self.domains {
            names.search.clear();
            names.ndots = None;
        }
        names.hostname = names.hostname.filter(|_| self.hostname);
        names
    }
}

impl Names {
    /// Adds what others say.
    pub fn extend(&mut self, more: Self) {
        for server in more.nameservers {
            if !self.nameservers.contains(&server) {
                self.nameservers.push(server);
            }
        }
        for domain in more.search {
            if !self.search.contains(&domain) {
                self.search.push(domain);
            }
        }
        self.ndots = self.ndots.or(more.ndots);
        self.hostname = self.hostname.take().or(more.hostname);
    }
}

/// Brings up loopback and the first network card, which is ready for [`lease`] then. `None` where there
/// is no card.
pub fn bring_up() -> io::Result<Option<Link>> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    for link in links.iter().filter(|link| link.is_loopback) {
        netlink.bring_up(link.index, None)?;
    }
    let cards = links.into_iter().filter(|link| link.is_ethernet);
    let Some(card) = cards.min_by_key(|link| link.index) else {
        return Ok(None);
    };
    prepare(&card);
    netlink.bring_up(card.index, None)?;
    Ok(Some(card))
}

/// Readies a card for addresses of its own, before it is brought up.
pub fn prepare(card: &Link) {
    // A kernel without IPv6 has no such file, and nothing to ready.
    let _ = dhcp6::prepare(&card.name);
}

/// Asks for a card's addresses, by DHCP and by DHCPv6, and takes of the answers what is wanted. It
/// is enough to have one; the other may come later.
pub fn lease(card: &Link, v4: Option<Taken>, v6: Option<Taken>) -> io::Result<Names> {
    let (give, given) = channel();
    let families: [(Family, Option<Taken>); 2] = [(configure_v4, v4), (configure_v6, v6)];
    for (family, taken) in families {
        let Some(taken) = taken else { continue };
        let (give, card) = (give.clone(), card.clone());
        thread::spawn(move || {
            // Nobody waits for the second one that is late.
            let _ = give.send(family(&card, taken));
        });
    }
    drop(give);
    collect(&given)
}

type Family = fn(&Link, Taken) -> io::Result<Option<Names>>;

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
            (Some(Ok(Some(more))), Some(names)) => names.extend(more),
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

fn configure_v4(card: &Link, taken: Taken) -> io::Result<Option<Names>> {
    let lease = dhcp::ask(&card.name, card.mac)?;
    let mut netlink = Netlink::open()?;
    if let (Some(mtu), true) = (lease.mtu, taken.mtu) {
        netlink.bring_up(card.index, Some(mtu))?;
    }
    netlink.add_address(card.index, lease.address.into(), lease.prefix)?;
    if let (Some(router), true) = (lease.router, taken.routes) {
        let route = Route {
            metric: taken.metric,
            ..Route::leased_default(router.into())
        };
        netlink.add_route(card.index, &route)?;
    }
    Ok(Some(taken.of(lease.names)))
}

fn configure_v6(card: &Link, taken: Taken) -> io::Result<Option<Names>> {
    let Some(lease) = dhcp6::ask(card)? else {
        return Ok(None);
    };
    // Which networks are on the link is the advertisements' to say (RFC 5942).
    Netlink::open()?.add_address(card.index, lease.address.into(), 128)?;
    Ok(Some(taken.of(lease.names)))
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
    if let Some(ndots) = names.ndots {
        text += &format!("options ndots:{ndots}\n");
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
            ndots: Some(5),
            hostname: None,
        };
        assert_eq!(prefix(Ipv4Addr::new(255, 255, 255, 0)), 24);
        assert_eq!(
            resolv_conf(&names),
            "nameserver 10.96.0.10\nnameserver fd00::10\nsearch default.svc.cluster.local svc\n\
             options ndots:5\n"
        );
    }

    #[test]
    fn one_family_is_enough_and_both_are_joined() {
        let names = |server: &str| {
            Ok(Some(Names {
                nameservers: vec![server.parse().unwrap()],
                search: vec!["svc".to_owned()],
                ..Names::default()
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
