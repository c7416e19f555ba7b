//! Which addresses the guest and its gateway have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use clap::ValueEnum;

use crate::config::{GATEWAY_LINK_LOCAL, Network};
use crate::pod::{Pod, Uplink};

/// Whose addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Style {
    /// KubeVirt's: 10.0.2.2 behind 10.0.2.1, fd10:0:2::2 behind fd10:0:2::1
    Masquerade,
    /// QEMU's: 10.0.2.15 behind 10.0.2.2, with a nameserver at 10.0.2.3
    Slirp,
    /// This namespace's own, behind its own gateway
    Passt,
}

/// The gateway of a guest whose pod has none, as passt chooses it.
const NO_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 2);

/// An address, and perhaps how many bits of it are its network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefixed<A> {
    /// The address.
    pub address: A,
    /// The bits.
    pub prefix: Option<u8>,
}

impl<A: FromStr + Into<IpAddr> + Copy> FromStr for Prefixed<A> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let no_address = |_| format!("`{address}` is not an address of that family");
        let address: A = address.parse().map_err(no_address)?;
        let most = if address.into().is_ipv6() { 128 } else { 32 };
        let bits = |prefix: &str| match prefix.parse() {
            Ok(bits) if (1..=most).contains(&bits) => Ok(bits),
            _ => Err(format!("`{prefix}` is not a number of bits (1 to {most})")),
        };
        let prefix = prefix.map(bits).transpose()?;
        Ok(Self { address, prefix })
    }
}

/// What is wanted of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish<A> {
    /// The guest's address.
    pub address: Option<A>,
    /// Bits of its network.
    pub prefix: Option<u8>,
    /// Its gateway.
    pub gateway: Option<A>,
}

impl<A> Default for Wish<A> {
    fn default() -> Self {
        Self {
            address: None,
            prefix: None,
            gateway: None,
        }
    }
}

impl<A: Copy> Wish<A> {
    fn is_empty(&self) -> bool {
        self.address.is_none() && self.prefix.is_none() && self.gateway.is_none()
    }
}

/// What is wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wishes {
    /// IPv4.
    pub v4: Wish<Ipv4Addr>,
    /// IPv6.
    pub v6: Wish<Ipv6Addr>,
    /// No IPv6, whatever routes there are.
    pub only_v4: bool,
    /// No IPv4.
    pub only_v6: bool,
}

/// What a command line may wish.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Network options")]
#[group(id = "own-addresses")]
pub struct Options {
    /// The guest's IPv4 address
    #[arg(long, value_name = "IP[/BITS]")]
    pub address: Option<Prefixed<Ipv4Addr>>,
    /// Bits of its network
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(1..=32))]
    pub prefix: Option<u8>,
    /// Its gateway [default: the first other address of its network]
    #[arg(long, value_name = "IP")]
    pub gateway: Option<Ipv4Addr>,
    /// The guest's IPv6 address
    #[arg(long, value_name = "IP[/BITS]")]
    pub address6: Option<Prefixed<Ipv6Addr>>,
    /// Bits of its network
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(1..=128))]
    pub prefix6: Option<u8>,
    /// Its gateway [default: the first other address of its network]
    #[arg(long, value_name = "IP")]
    pub gateway6: Option<Ipv6Addr>,
    /// Give the guest IPv4 only [default: what there is a route for here]
    #[arg(short = '4', long, conflicts_with_all = ["ipv6_only", "address6", "prefix6", "gateway6"])]
    pub ipv4_only: bool,
    /// Give the guest IPv6 only
    #[arg(short = '6', long, conflicts_with_all = ["address", "prefix", "gateway"])]
    pub ipv6_only: bool,
}

impl Options {
    /// What is wished.
    pub fn wishes(&self) -> Result<Wishes, String> {
        Ok(Wishes {
            v4: wish(self.address, self.prefix, self.gateway, "prefix")?,
            v6: wish(self.address6, self.prefix6, self.gateway6, "prefix6")?,
            only_v4: self.ipv4_only,
            only_v6: self.ipv6_only,
        })
    }
}

fn wish<A: Copy>(
    address: Option<Prefixed<A>>,
    prefix: Option<u8>,
    gateway: Option<A>,
    option: &str,
) -> Result<Wish<A>, String> {
    let own = address.and_then(|address| address.prefix);
    if own.is_some() && prefix.is_some() {
        return Err(format!(
            "--{option}: the address has a number of bits already"
        ));
    }
    Ok(Wish {
        address: address.map(|address| address.address),
        prefix: own.or(prefix),
        gateway,
    })
}

/// What the pod has.
#[derive(Debug, Clone, Copy, Default)]
pub struct View {
    /// Where IPv4 leaves it.
    pub v4: Option<Uplink>,
    /// Where IPv6 does.
    pub v6: Option<Uplink>,
    /// Whether it reaches anybody by IPv4.
    pub routed_v4: bool,
    /// Whether it does by IPv6.
    pub routed_v6: bool,
}

impl View {
    /// What `pod` has.
    pub fn of(pod: &Pod) -> Self {
        Self {
            v4: pod.uplink(false),
            v6: pod.uplink(true),
            routed_v4: pod.has_route(false),
            routed_v6: pod.has_route(true),
        }
    }
}

/// The addresses of each family that the guest is given.
pub type Networks = (Option<Network<Ipv4Addr>>, Option<Network<Ipv6Addr>>);

/// What the guest is given where nothing else is wished.
#[derive(Debug, Clone, Copy)]
pub struct Base {
    /// The addresses.
    pub networks: Networks,
    /// Whether they are the pod's own.
    pub is_own: bool,
}

impl Style {
    /// Its addresses, in a pod that has these.
    pub fn base(self, view: &View) -> Base {
        let networks = match self {
            Self::Masquerade => (
                Some(Network::<Ipv4Addr>::MASQUERADE),
                Some(Network::<Ipv6Addr>::MASQUERADE),
            ),
            Self::Slirp => (Some(Network::<Ipv4Addr>::SLIRP), None),
            Self::Passt => (own_v4(view), own_v6(view)),
        };
        Base {
            networks,
            is_own: self == Self::Passt,
        }
    }
}

/// The addresses of each family, of those that the guest is given: one that was asked for, and else
/// those that the pod has a route for; both, where it has none at all.
pub fn choose(base: &Base, wishes: &Wishes, view: &View) -> Result<Networks, String> {
    let ((base4, base6), own) = (base.networks, base.is_own);
    let asked4 = wishes.only_v4 || !wishes.v4.is_empty();
    let asked6 = wishes.only_v6 || !wishes.v6.is_empty();
    let none = !view.routed_v4 && !view.routed_v6;
    let v4 = settle(
        &wishes.v4,
        (base4, own),
        Network::<Ipv4Addr>::contains,
        |a| Some(u32::from(a).checked_add(1)?.into()),
        |network| u32::from(network.guest) & u32::from(network.mask()),
    )?;
    let v6 = settle(
        &wishes.v6,
        (base6, own),
        Network::<Ipv6Addr>::contains,
        |a| Some(u128::from(a).checked_add(1)?.into()),
        |network| {
            let host = 128_u32.saturating_sub(network.prefix.into());
            u128::from(network.guest) & u128::MAX.checked_shl(host).unwrap_or(0)
        },
    )?;
    let v4 = v4.filter(|_| !wishes.only_v6 && (asked4 || view.routed_v4 || none));
    let v6 = v6.filter(|_| !wishes.only_v4 && (asked6 || view.routed_v6 || none));
    if v4.is_none() && v6.is_none() {
        return Err(match own {
            true => {
                "there is no default route here to take an address from; give --address \
                     and --gateway"
            }
            false => "the guest would have no address; give --address or --address6",
        }
        .to_owned());
    }
    Ok((v4, v6))
}

fn own_v4(view: &View) -> Option<Network<Ipv4Addr>> {
    let uplink = view.v4?;
    let (IpAddr::V4(guest), gateway) = (uplink.address, uplink.gateway) else {
        return None;
    };
    Some(Network {
        guest,
        gateway: match gateway {
            Some(IpAddr::V4(gateway)) => gateway,
            _ => NO_GATEWAY,
        },
        dns: None,
        prefix: uplink.prefix,
    })
}

fn own_v6(view: &View) -> Option<Network<Ipv6Addr>> {
    let uplink = view.v6?;
    let (IpAddr::V6(guest), gateway) = (uplink.address, uplink.gateway) else {
        return None;
    };
    Some(Network {
        guest,
        gateway: match gateway {
            Some(IpAddr::V6(gateway)) => gateway,
            _ => GATEWAY_LINK_LOCAL,
        },
        dns: None,
        prefix: uplink.prefix,
    })
}

/// The network of one family: what is wanted of it, and the rest from `base`, whose gateway stays in
/// any case if it is the pod's `own`.
fn settle<A, N>(
    wish: &Wish<A>,
    (base, own): (Option<Network<A>>, bool),
    contains: fn(&Network<A>, A) -> bool,
    next: fn(A) -> Option<A>,
    first: fn(&Network<A>) -> N,
) -> Result<Option<Network<A>>, String>
where
    A: Copy + PartialEq + Into<IpAddr> + From<N>,
{
    if wish.is_empty() {
        return Ok(base);
    }
    let Some(guest) = wish.address.or(base.map(|base| base.guest)) else {
        return Err("a gateway or a prefix needs an address of the guest's".to_owned());
    };
    let ip: IpAddr = guest.into();
    // Of an address in a network that is known, that one's.
    let known = base.filter(|base| contains(base, guest));
    let usual = if ip.is_ipv6() { 64 } else { 24 };
    let prefix = wish.prefix.or(known.map(|base| base.prefix));
    let mut network = Network {
        guest,
        gateway: guest,
        dns: None,
        prefix: prefix.unwrap_or(usual),
    };
    let stays = |gateway| gateway != guest && (own || contains(&network, gateway));
    let kept = base.filter(|base| stays(base.gateway));
    // The network's own address is nobody's: the first is behind it.
    let numbered = || {
        let first = next(A::from(first(&network)))?;
        let other = if first == guest { next(first)? } else { first };
        contains(&network, other).then_some(other)
    };
    let gateway = wish.gateway.or(kept.map(|base| base.gateway));
    network.gateway = gateway
        .or_else(numbered)
        .ok_or_else(|| format!("{ip} is alone in its network; say who its gateway is"))?;
    network.dns = base
        .and_then(|base| base.dns)
        .filter(|dns| contains(&network, *dns) && *dns != guest && *dns != network.gateway);
    for (whose, address) in [("the guest's", guest), ("the gateway's", network.gateway)] {
        let address: IpAddr = address.into();
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err(format!("{address} cannot be {whose} address"));
        }
    }
    if network.gateway == guest {
        return Err(format!(
            "{ip} cannot be the guest's address and its gateway's"
        ));
    }
    Ok(Some(network))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink(address: &str, prefix: u8, gateway: Option<&str>) -> Option<Uplink> {
        Some(Uplink {
            address: address.parse().unwrap(),
            prefix,
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        })
    }

    fn both() -> View {
        View {
            v4: uplink("10.244.0.7", 32, Some("169.254.1.1")),
            v6: uplink("fd00:244::7", 64, Some("fe80::9")),
            routed_v4: true,
            routed_v6: true,
        }
    }

    fn shown(style: Style, wishes: &Wishes, view: &View) -> (String, String) {
        let (v4, v6) = choose(&style.base(view), wishes, view).unwrap();
        let v4 = v4.map(|n| format!("{}/{} {} {:?}", n.guest, n.prefix, n.gateway, n.dns));
        let v6 = v6.map(|n| format!("{}/{} {} {:?}", n.guest, n.prefix, n.gateway, n.dns));
        (v4.unwrap_or_default(), v6.unwrap_or_default())
    }

    #[test]
    fn each_style_has_its_addresses() {
        for (style, v4, v6) in [
            (
                Style::Masquerade,
                "10.0.2.2/24 10.0.2.1 None",
                "fd10:0:2::2/120 fd10:0:2::1 None",
            ),
            (Style::Slirp, "10.0.2.15/24 10.0.2.2 Some(10.0.2.3)", ""),
            (
                Style::Passt,
                "10.244.0.7/32 169.254.1.1 None",
                "fd00:244::7/64 fe80::9 None",
            ),
        ] {
            assert_eq!(
                shown(style, &Wishes::default(), &both()),
                (v4.into(), v6.into())
            );
        }
        let view = View {
            v4: uplink("10.244.0.7", 24, None),
            v6: uplink("fd00:244::7", 64, None),
            ..both()
        };
        assert_eq!(
            shown(Style::Passt, &Wishes::default(), &view),
            (
                "10.244.0.7/24 169.254.2.2 None".into(),
                "fd00:244::7/64 fe80::1 None".into()
            )
        );
    }

    #[test]
    fn a_family_without_a_route_is_given_only_if_it_is_asked_for() {
        let mut view = View {
            routed_v6: false,
            v6: None,
            ..both()
        };
        let mut wishes = Wishes::default();
        let families = |wishes: &Wishes, view: &View| {
            let (v4, v6) = choose(&Style::Masquerade.base(view), wishes, view).unwrap();
            (v4.is_some(), v6.is_some())
        };
        assert_eq!(families(&wishes, &view), (true, false));
        wishes.only_v6 = true;
        assert_eq!(families(&wishes, &view), (false, true));
        wishes.only_v6 = false;
        wishes.v6.address = Some("2001:db8::5".parse().unwrap());
        assert_eq!(families(&wishes, &view), (true, true));
        wishes.only_v4 = true;
        assert_eq!(families(&wishes, &view), (true, false));
        wishes.only_v4 = false;
        wishes.v6.address = None;
        // Where there is no way out at all, it does not matter which of them is not there.
        view.routed_v4 = false;
        assert_eq!(families(&wishes, &view), (true, true));
        view.v4 = None;
        let error = choose(&Style::Passt.base(&view), &wishes, &view).unwrap_err();
        assert!(error.contains("no default route"), "{error}");
    }

    #[test]
    fn what_is_asked_for_is_taken_and_the_rest_follows() {
        let ask = |address: Option<&str>, prefix, gateway: Option<&str>| {
            let parse = |text: &str| text.parse().unwrap();
            let wishes = Wishes {
                v4: Wish {
                    address: address.map(parse),
                    prefix,
                    gateway: gateway.map(parse),
                },
                ..Wishes::default()
            };
            let style = Style::Masquerade;
            choose(&style.base(&both()), &wishes, &both()).map(|_| shown(style, &wishes, &both()).0)
        };
        for (address, prefix, gateway, want) in [
            (Some("10.0.2.7"), None, None, "10.0.2.7/24 10.0.2.1 None"),
            (Some("10.0.2.1"), None, None, "10.0.2.1/24 10.0.2.2 None"),
            (
                Some("192.168.7.9"),
                None,
                None,
                "192.168.7.9/24 192.168.7.1 None",
            ),
            (
                Some("192.168.7.9"),
                Some(29),
                None,
                "192.168.7.9/29 192.168.7.10 None",
            ),
            (
                Some("192.168.7.9"),
                Some(32),
                Some("10.9.9.9"),
                "192.168.7.9/32 10.9.9.9 None",
            ),
            (
                None,
                None,
                Some("10.0.2.254"),
                "10.0.2.2/24 10.0.2.254 None",
            ),
            (None, Some(16), None, "10.0.2.2/16 10.0.2.1 None"),
        ] {
            assert_eq!(ask(address, prefix, gateway).unwrap(), want);
        }
        let mut own = Wishes::default();
        own.v4.address = Some("192.168.7.9".parse().unwrap());
        let (v4, _) = shown(Style::Passt, &own, &both());
        assert_eq!(v4, "192.168.7.9/24 169.254.1.1 None");
        for (address, prefix, gateway, wrong) in [
            (Some("192.168.7.9"), Some(32), None, "alone in its network"),
            (
                Some("10.0.2.1"),
                None,
                Some("10.0.2.1"),
                "and its gateway's",
            ),
            (
                Some("127.0.0.1"),
                None,
                None,
                "127.0.0.1 cannot be the guest's",
            ),
            (
                None,
                None,
                Some("224.0.0.1"),
                "224.0.0.1 cannot be the gateway's",
            ),
        ] {
            let error = ask(address, prefix, gateway).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
        let mut wishes = Wishes::default();
        wishes.v6.address = Some("fd00::5".parse().unwrap());
        wishes.v4.address = Some("10.0.2.99".parse().unwrap());
        assert_eq!(
            shown(Style::Slirp, &wishes, &both()),
            (
                "10.0.2.99/24 10.0.2.2 Some(10.0.2.3)".into(),
                "fd00::5/64 fd00::1 None".into()
            )
        );
    }

    #[test]
    fn an_address_may_bring_its_prefix() {
        let parsed: Prefixed<Ipv4Addr> = "10.0.0.1/8".parse().unwrap();
        assert_eq!(parsed.prefix, Some(8));
        for wrong in ["10.0.0.1/33", "10.0.0.1/0", "fd00::1", "10.0.0.1/", "x"] {
            assert!(wrong.parse::<Prefixed<Ipv4Addr>>().is_err(), "{wrong}");
        }
        assert!("fd00::1/128".parse::<Prefixed<Ipv6Addr>>().is_ok());
    }
}
