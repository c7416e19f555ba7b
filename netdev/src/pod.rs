//! What the pod's own network looks like, and that it has changed (rtnetlink(7)).

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::netlink::{Link, Netlink, own_address};

/// Links, and addresses, that are looked at: more than a pod has.
const MOST: usize = 16_384;

/// The pod's network as it was when it was last looked at.
pub struct Pod {
    /// Hears of changes, and does not block.
    events: Socket,
    /// Asks how things are.
    questions: Netlink,
    /// The only link whose way out counts, where there is one.
    only: Option<u32>,
    /// Something has changed since the last look.
    stale: bool,
    view: View,
}

/// How the pod reaches what lies beyond it, in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uplink {
    /// The pod's address there.
    pub address: IpAddr,
    /// Bits of the address' network.
    pub prefix: u8,
    /// The next hop of the default route, if it has one.
    pub gateway: Option<IpAddr>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct View {
    /// In order.
    addresses: Vec<IpAddr>,
    /// The links' names and numbers.
    links: Vec<(String, u32)>,
    v4: Way,
    v6: Way,
}

/// The way out in one family.
#[derive(Debug, Default, PartialEq, Eq)]
struct Way {
    is_there: bool,
    uplink: Option<Uplink>,
    mtu: Option<u32>,
}

impl Pod {
    /// Looks at the network namespace of the calling thread, and listens for changes from here on.
    /// Fails where there is no netlink to be had.
    pub fn open() -> io::Result<Self> {
        Self::with(Netlink::open()?, None)
    }

    /// As [`open`](Self::open), but no other way out than by `interface` counts; without a default
    /// route there its address is that of the uplink. An error where there is no such interface.
    pub fn open_by(interface: &str) -> io::Result<Self> {
        let mut questions = Netlink::open()?;
        let links = questions.links()?;
        let link = links.iter().find(|link| link.name == interface);
        let link = link.ok_or(ErrorKind::NotFound)?;
        Self::with(questions, Some(link.index))
    }

    fn with(questions: Netlink, only: Option<u32>) -> io::Result<Self> {
        let mut events = Socket::new(NETLINK_ROUTE)?;
        events.bind_auto()?;
        events.set_non_blocking(true)?;
        for group in [
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV6_IFADDR,
            libc::RTNLGRP_IPV6_ROUTE,
        ] {
            events.add_membership(group)?;
        }
        let mut pod = Self {
            events,
            questions,
            only,
            stale: true,
            view: View::default(),
        };
        pod.refresh()?;
        Ok(pod)
    }

    /// A pod that has these addresses, whatever this one has.
    #[cfg(test)]
    #[allow(clippy::unwrap_used)] // a test fails by panicking
    pub fn of(addresses: &[IpAddr]) -> Self {
        let mut pod = Self::open().unwrap();
        pod.view.addresses = addresses.to_vec();
        pod.view.addresses.sort_unstable();
        pod
    }

    /// What becomes readable when [`refresh`](Self::refresh) has something to do.
    pub fn descriptor(&self) -> RawFd {
        self.events.as_raw_fd()
    }

    /// Looks again where the kernel has told of a change; returns whether anything of what is
    /// shown here is other than it was. After an error, the next call looks in any case.
    pub fn refresh(&mut self) -> io::Result<bool> {
        self.drain()?;
        if !self.stale {
            return Ok(false);
        }
        let view = self.look()?;
        self.stale = false;
        let changed = view != self.view;
        self.view = view;
        Ok(changed)
    }

    /// The pod's own addresses of both families, loopback's included, in order.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.view.addresses
    }

    /// Whether a packet to `address` would stay in the pod.
    pub fn is_own(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        // All of 127.0.0.0/8, of which the kernel shows one; and connect() takes none for it.
        let is_loopback = address.is_loopback() || address.is_unspecified();
        is_loopback || self.view.addresses.binary_search(&address).is_ok()
    }

    /// The number of the link that is called so, or has that number.
    pub fn link(&self, name: &str) -> Option<u32> {
        let is_it = |(other, index): &&(String, u32)| other == name || name.parse() == Ok(*index);
        self.view.links.iter().find(is_it).map(|(_, index)| *index)
    }

    /// Whether the pod reaches anybody but itself by IPv6, or by IPv4, link-local addresses aside.
    pub fn has_route(&self, v6: bool) -> bool {
        self.way(v6).is_there
    }

    /// What packets may measure on the default route, by IPv4 or IPv6, whichever is less: its own
    /// MTU or its link's. `None` without a default route.
    pub fn mtu(&self) -> Option<u32> {
        self.view.v4.mtu.into_iter().chain(self.view.v6.mtu).min()
    }

    /// Where the default route of IPv6, or IPv4, leaves the pod; the one of the least metric.
    pub fn uplink(&self, v6: bool) -> Option<Uplink> {
        self.way(v6).uplink
    }

    fn way(&self, v6: bool) -> &Way {
        if v6 { &self.view.v6 } else { &self.view.v4 }
    }

    /// Reads all events, of which it is enough to know that there are any.
    fn drain(&mut self) -> io::Result<()> {
        loop {
            let mut scratch = [0_u8; 16];
            match self.events.recv(&mut &mut scratch[..], 0) {
                Ok(_) => self.stale = true,
                // There were more than the socket holds.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.stale = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The network as it is. What changes meanwhile makes an event, and so another look.
    fn look(&mut self) -> io::Result<View> {
        let mut links = self.questions.links()?;
        links.truncate(MOST);
        let mut addresses = Vec::new();
        self.questions.addresses(|message| {
            if addresses.len() < MOST {
                addresses.extend(Address::read(&message, &links));
            }
        })?;
        let v4 = self.look_for_way(AddressFamily::Inet, &links, &addresses)?;
        let v6 = self.look_for_way(AddressFamily::Inet6, &links, &addresses)?;
        let mut addresses: Vec<_> = addresses.iter().map(|a| a.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let links = links.into_iter().map(|link| (link.name, link.index));
        Ok(View {
            addresses,
            links: links.collect(),
            v4,
            v6,
        })
    }

    fn look_for_way(
        &mut self,
        family: AddressFamily,
        links: &[Link],
        addresses: &[Address],
    ) -> io::Result<Way> {
        let of_family =
            |address: &&Address| address.address.is_ipv6() == (family == AddressFamily::Inet6);
        let only = self.only;
        let counts = |index: u32| only.is_none_or(|only| index == only);
        let of_family = |address: &&Address| of_family(address) && counts(address.index);
        let mut is_there = addresses.iter().filter(of_family).any(|a| a.leads_out);
        let mut best: Option<Route> = None;
        self.questions.routes(family, |message| {
            if let Some(route) = Route::read(&message, links)
                && counts(route.index)
            {
                is_there = true;
                let is_better = best.as_ref().is_none_or(|b| route.metric < b.metric);
                if route.is_default && is_better {
                    best = Some(route);
                }
            }
        })?;
        let mut way = Way {
            is_there,
            ..Way::default()
        };
        if let Some(route) = best {
            let there = |a: &&Address| match route.source {
                Some(source) => a.address == source,
                None => a.index == route.index && a.leads_out,
            };
            let address = addresses.iter().filter(of_family).find(there);
            way.uplink = address.map(|address| Uplink {
                address: address.address,
                prefix: address.prefix,
                gateway: route.gateway,
            });
            way.mtu = route.mtu;
        } else if let Some(only) = only {
            let address = addresses.iter().filter(of_family).find(|a| a.leads_out);
            way.uplink = address.map(|address| Uplink {
                address: address.address,
                prefix: address.prefix,
                gateway: None,
            });
            let link = links.iter().find(|link| link.index == only);
            way.mtu = link.and_then(|link| link.mtu);
        }
        Ok(way)
    }
}

/// Others than the pod itself are behind it.
fn leads_out(link: &Link) -> bool {
    link.is_up && !link.is_loopback
}

struct Address {
    index: u32,
    address: IpAddr,
    prefix: u8,
    /// Others than the pod itself can be reached from it, link-local ones aside.
    leads_out: bool,
}

impl Address {
    fn read(message: &AddressMessage, links: &[Link]) -> Option<Self> {
        let header = &message.header;
        let unusable = AddressHeaderFlags::Tentative
            | AddressHeaderFlags::Dadfailed
            | AddressHeaderFlags::Deprecated;
        let link = links.iter().find(|link| link.index == header.index);
        Some(Self {
            index: header.index,
            address: own_address(message)?,
            prefix: header.prefix_len,
            leads_out: header.scope == AddressScope::Universe
                && !header.flags.intersects(unusable)
                && link.is_some_and(leads_out),
        })
    }
}

/// A route that leads out of the pod, and not only to link-local addresses.
#[derive(Default)]
struct Route {
    is_default: bool,
    index: u32,
    metric: u32,
    mtu: Option<u32>,
    gateway: Option<IpAddr>,
    /// The address that packets by it come from, where that is said.
    source: Option<IpAddr>,
}

impl Route {
    fn read(message: &RouteMessage, links: &[Link]) -> Option<Self> {
        const LOCAL: u8 = 255;
        let header = &message.header;
        if header.kind != RouteType::Unicast || header.table == LOCAL {
            return None;
        }
        let mut route = Self {
            is_default: header.destination_prefix_length == 0
                && header.table == RouteHeader::RT_TABLE_MAIN,
            ..Self::default()
        };
        // Of several ways at once, the first stands for all.
        let hop = message.attributes.iter().find_map(|a| match a {
            RouteAttribute::MultiPath(hops) => hops.first(),
            _ => None,
        });
        route.index = hop.map_or(0, |hop| hop.interface_index);
        let of_hop = hop.into_iter().flat_map(|hop| &hop.attributes);
        for attribute in message.attributes.iter().chain(of_hop) {
            match attribute {
                RouteAttribute::Oif(index) => route.index = *index,
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Gateway(address) => route.gateway = ip(address),
                RouteAttribute::PrefSource(address) => route.source = ip(address),
                RouteAttribute::Metrics(metrics) => {
                    route.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                RouteAttribute::Destination(address) if stays_on_link(ip(address)?) => {
                    return None;
                }
                _ => {}
            }
        }
        let link = links.iter().find(|link| link.index == route.index)?;
        route.mtu = route.mtu.into_iter().chain(link.mtu).min();
        leads_out(link).then_some(route)
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn stays_on_link(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    link_local || address.is_multicast()
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;

    use super::*;

    const INSIDE: &str = "IN_A_NETWORK_OF_ITS_OWN";

    /// Runs `test`, which is called `name`, in a network namespace that has nothing but a
    /// loopback that is down.
    fn in_an_empty_pod(name: &str, test: fn()) {
        if env::var_os(INSIDE).is_some() {
            return test();
        }
        let output = Command::new("unshare")
            .arg("-rn")
            .arg(env::current_exe().unwrap())
            .args(["--exact", &format!("pod::tests::{name}"), "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
    }

    fn sh(script: &str) {
        let output = Command::new("sh").args(["-ec", script]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {text}");
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    const ETH0: &str = "
        ip link set lo up
        ip link add eth0 mtu 1480 type veth peer name node
        ip link set node up
        ip link set eth0 up
        ip addr add 10.244.0.7/32 dev eth0";

    #[test]
    fn loopback_is_the_machine_s_own_and_a_stranger_s_address_is_not() {
        let pod = Pod::open().unwrap();
        assert!(pod.addresses().contains(&address("127.0.0.1")));
        for own in [
            "127.0.0.1",
            "127.0.0.6",
            "0.0.0.0",
            "::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(pod.is_own(address(own)), "{own}");
        }
        for other in ["192.0.2.1", "2001:db8::1"] {
            assert!(!pod.is_own(address(other)), "{other}");
        }
    }

    #[test]
    fn a_way_out_by_ipv4_comes_and_goes() {
        in_an_empty_pod("a_way_out_by_ipv4_comes_and_goes", || {
            let mut pod = Pod::open().unwrap();
            assert!(!pod.has_route(false) && pod.addresses().is_empty());
            assert!(!pod.refresh().unwrap(), "nothing has happened");

            sh(ETH0);
            assert!(pod.refresh().unwrap());
            assert!(pod.has_route(false) && !pod.has_route(true));
            assert!(pod.is_own(address("10.244.0.7")));
            assert_eq!((pod.uplink(false), pod.mtu()), (None, None));

            // as Calico does, and as Cilium does with the MTU
            sh("ip route add 169.254.1.1 dev eth0
                ip route add default via 169.254.1.1 dev eth0 mtu 1430 metric 5");
            assert!(pod.refresh().unwrap());
            let uplink = Uplink {
                address: address("10.244.0.7"),
                prefix: 32,
                gateway: Some(address("169.254.1.1")),
            };
            assert_eq!((pod.uplink(false), pod.mtu()), (Some(uplink), Some(1430)));

            // another, preferred
            sh("ip addr add 10.9.0.7/24 dev node
                ip route add default via 10.9.0.1 dev node metric 1");
            assert!(pod.refresh().unwrap());
            let uplink = pod.uplink(false).unwrap();
            assert_eq!((uplink.address, uplink.prefix), (address("10.9.0.7"), 24));
            assert_eq!(pod.mtu(), Some(1500));

            sh("ip link set eth0 down; ip link set node down");
            assert!(pod.refresh().unwrap());
            assert!(!pod.has_route(false));
            assert_eq!((pod.uplink(false), pod.mtu()), (None, None));
        });
    }

    #[test]
    fn a_way_out_by_ipv6_is_more_than_a_link_s_own_addresses() {
        in_an_empty_pod(
            "a_way_out_by_ipv6_is_more_than_a_link_s_own_addresses",
            || {
                sh(ETH0);
                let mut pod = Pod::open().unwrap();
                assert!(!pod.has_route(true));
                sh("ip addr add fd00:244::7/64 dev eth0 nodad
                    ip route add default via fe80::9 dev eth0");
                assert!(pod.refresh().unwrap());
                assert!(pod.has_route(true));
                let uplink = Uplink {
                    address: address("fd00:244::7"),
                    prefix: 64,
                    gateway: Some(address("fe80::9")),
                };
                assert_eq!((pod.uplink(true), pod.uplink(false)), (Some(uplink), None));
                assert_eq!(pod.mtu(), Some(1480));
            },
        );
    }

    #[test]
    fn one_interface_s_way_out_can_be_all_that_counts() {
        in_an_empty_pod("one_interface_s_way_out_can_be_all_that_counts", || {
            sh(ETH0);
            sh("ip addr add 10.9.0.7/24 dev node
                ip route add default via 10.9.0.1 dev node");
            let pod = Pod::open_by("eth0").unwrap();
            let mut uplink = Uplink {
                address: address("10.244.0.7"),
                prefix: 32,
                gateway: None,
            };
            assert_eq!((pod.uplink(false), pod.mtu()), (Some(uplink), Some(1480)));
            assert!(pod.has_route(false) && !pod.has_route(true));
            let pod = Pod::open_by("node").unwrap();
            uplink = Uplink {
                address: address("10.9.0.7"),
                prefix: 24,
                gateway: Some(address("10.9.0.1")),
            };
            assert_eq!((pod.uplink(false), pod.mtu()), (Some(uplink), Some(1500)));
            let error = Pod::open_by("none").err().unwrap();
            assert_eq!(error.kind(), ErrorKind::NotFound);
        });
    }

    #[test]
    fn no_change_is_missed_where_there_are_more_than_the_socket_holds() {
        in_an_empty_pod(
            "no_change_is_missed_where_there_are_more_than_the_socket_holds",
            || {
                sh(ETH0);
                let mut pod = Pod::open().unwrap();
                pod.events.set_rx_buf_sz(1_i32).unwrap();
                sh("for i in $(seq 250); do ip addr add 10.9.0.$i/24 dev eth0; done");
                assert!(pod.refresh().unwrap());
                for last in 1..=250 {
                    assert!(pod.is_own(address(&format!("10.9.0.{last}"))));
                }
            },
        );
    }
}
