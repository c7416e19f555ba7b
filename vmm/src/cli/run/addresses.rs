//! Which addresses the guest has: those of its binding to the pod's network, unless the command line
//! says otherwise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netdev::addresses::{self, Base, Networks, Style, View};
use netdev::config::{Forward, Network};
use netdev::pod::Pod;

use crate::vmi::{Binding, Cidrs, Interface};

/// What a command line may say of them.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Network options")]
#[group(id = "guest-addresses")]
pub struct Options {
    /// Whose addresses the guest and its gateway have [default: as the manifest binds its interface]
    #[arg(long, value_enum)]
    pub addresses: Option<Style>,
    /// Which, where they are others.
    #[command(flatten)]
    pub own: addresses::Options,
}

impl Options {
    /// Whether the guest of that binding may have an IPv4 address, and an IPv6 one.
    pub fn families(&self, binding: Option<Binding>) -> (bool, bool) {
        let style = binding.map(|binding| self.style(binding));
        let v6 = style.is_some_and(|style| style != Style::Slirp) || self.own.address6.is_some();
        (!self.own.ipv6_only, !self.own.ipv4_only && v6)
    }

    fn style(&self, binding: Binding) -> Style {
        self.addresses.unwrap_or(match binding {
            Binding::Masquerade => Style::Masquerade,
            Binding::Slirp => Style::Slirp,
            Binding::Passt => Style::Passt,
        })
    }

    /// The addresses of a guest with that interface in `pod`.
    pub fn choose(
        &self,
        interface: &Interface,
        forwards: &[Forward],
        pod: &Pod,
    ) -> Result<Networks, String> {
        let wishes = self.own.wishes()?;
        let mut view = View::of(pod);
        // A guest that believes in a way that the pod has not would wait for it. Where the pod has
        // none at all, its own ports are still to be reached.
        let called = forwards.iter().any(|forward| forward.bind.is_ipv4());
        view.routed_v4 |= called || !view.routed_v6;
        let (v4, v6) = masquerade(&interface.cidrs);
        let mut base = match self.style(interface.binding) {
            Style::Masquerade => Base {
                networks: (Some(v4), Some(v6)),
                is_own: false,
            },
            style => style.base(&view),
        };
        if base.is_own {
            // A family by which the pod reaches nobody has no address to give.
            base.networks = (base.networks.0.or(Some(v4)), base.networks.1.or(Some(v6)));
        }
        addresses::choose(&base, &wishes, &view)
    }

    /// The words by which a VM that has the pod's own addresses has them elsewhere too.
    pub fn words(&self, interface: &Interface, (v4, v6): Networks) -> Vec<String> {
        if self.style(interface.binding) != Style::Passt {
            return Vec::new();
        }
        let own = &self.own;
        let v4 = v4.into_iter().flat_map(|v4| {
            let given = (
                own.address.is_some(),
                own.prefix.is_some(),
                own.gateway.is_some(),
            );
            said("", given, v4.guest, v4.prefix, v4.gateway)
        });
        let v6 = v6.into_iter().flat_map(|v6| {
            let given = (
                own.address6.is_some(),
                own.prefix6.is_some(),
                own.gateway6.is_some(),
            );
            said("6", given, v6.guest, v6.prefix, v6.gateway)
        });
        v4.chain(v6).collect()
    }
}

/// The options of one family that were not given.
fn said(
    family: &str,
    (address, prefix, gateway): (bool, bool, bool),
    guest: impl Into<IpAddr>,
    bits: u8,
    via: impl Into<IpAddr>,
) -> Vec<String> {
    let guest = (!address).then(|| format!("--address{family}={}", guest.into()));
    let bits = (!address && !prefix).then(|| format!("--prefix{family}={bits}"));
    let via = (!gateway).then(|| format!("--gateway{family}={}", via.into()));
    guest.into_iter().chain(bits).chain(via).collect()
}

/// KubeVirt's numbers in those networks: the first address is the gateway's, the second the guest's.
fn masquerade(cidrs: &Cidrs) -> (Network<Ipv4Addr>, Network<Ipv6Addr>) {
    let ((v4, prefix4), (v6, prefix6)) = (cidrs.v4, cidrs.v6);
    let mask4 = u32::MAX.checked_shl(32 - u32::from(prefix4)).unwrap_or(0);
    let mask6 = u128::MAX.checked_shl(128 - u32::from(prefix6)).unwrap_or(0);
    let (base4, base6) = (u32::from(v4) & mask4, u128::from(v6) & mask6);
    let v4 = Network {
        guest: (base4 + 2).into(),
        gateway: (base4 + 1).into(),
        dns: None,
        prefix: prefix4,
    };
    let v6 = Network {
        guest: (base6 + 2).into(),
        gateway: (base6 + 1).into(),
        dns: None,
        prefix: prefix6,
    };
    (v4, v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_has_the_second_address_of_its_network_behind_the_first() {
        let (v4, v6) = masquerade(&Cidrs::default());
        assert_eq!(v4, Network::<Ipv4Addr>::MASQUERADE);
        assert_eq!(v6, Network::<Ipv6Addr>::MASQUERADE);
        let own = Cidrs {
            v4: (Ipv4Addr::new(10, 11, 12, 13), 16),
            v6: ("fd20::77".parse().unwrap(), 64),
        };
        let (v4, v6) = masquerade(&own);
        assert_eq!(
            (v4.gateway, v4.guest),
            ([10, 11, 0, 1].into(), [10, 11, 0, 2].into())
        );
        assert_eq!(v6.guest, "fd20::2".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn a_guest_with_the_pod_s_addresses_keeps_them_elsewhere() {
        let interface = Interface {
            name: "default".to_owned(),
            binding: Binding::Passt,
            cidrs: Cidrs::default(),
            mac: None,
            ports: Vec::new(),
        };
        let networks = (
            Some(Network {
                guest: Ipv4Addr::new(10, 244, 0, 7),
                gateway: Ipv4Addr::new(169, 254, 1, 1),
                dns: None,
                prefix: 32,
            }),
            None,
        );
        let mut options = Options::default();
        let words = options.words(&interface, networks);
        let all = [
            "--address=10.244.0.7",
            "--prefix=32",
            "--gateway=169.254.1.1",
        ];
        assert_eq!(words, all);
        options.own.address = Some("10.244.0.7/32".parse().unwrap());
        assert_eq!(options.words(&interface, networks), all[2..]);
        options.addresses = Some(Style::Masquerade);
        assert_eq!(options.words(&interface, networks), [""; 0]);
    }
}
