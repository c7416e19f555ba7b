//! What a user may tell of a network, wherever it is: the same words for a VM's and for
//! `peapod-net`'s.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::Args;
use ipnet::IpNet;

use crate::config::{Config, Forward, Network, Policy};
use crate::link::limited::LEAST_RATE;
use crate::pod::Pod;
use crate::resolver::Resolver;

/// The user and the group of Istio's proxy, whose connections are not redirected to it.
const PROXY: u32 = 1337;
/// For data under way, in bytes, where nobody says.
pub const MEMORY: usize = 128 << 20;
/// Ethernet's, where the pod does not say.
const MTU: u16 = 1500;
/// IPv6's least, which no guest has to be told (RFC 8200, section 5).
const LEAST_MTU: u16 = 1280;

/// A network's options.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Network options")]
#[group(id = "network-options")]
pub struct Options {
    /// The guest's MTU [default: that of the way out of here, or 1500]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1280..))]
    pub mtu: Option<u16>,
    /// Listen on published ports at all times, not only while the guest does
    #[arg(long)]
    pub eager: bool,
    /// A nameserver [default: those of /etc/resolv.conf]; may be repeated
    #[arg(long, value_name = "IP")]
    pub dns: Vec<IpAddr>,
    /// A search domain [default: those of /etc/resolv.conf]; may be repeated
    #[arg(long, value_name = "DOMAIN")]
    pub search: Vec<String>,
    /// Let the guest reach this port of the loopback here, at its gateway; may be repeated
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub open_loopback: Vec<u16>,
    /// The most flows at once
    #[arg(long, value_name = "COUNT", default_value_t = 65_536)]
    pub max_flows: usize,
    /// MiB that data under way may take at this end [default: 128, or 24 for a VM's network]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u16).range(1..))]
    pub buffers: Option<u16>,
    /// The most flows that the guest may begin in a second
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub new_flows: Option<u32>,
    /// Let the guest go to this network, and to none that is not allowed; may be repeated
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub allow: Vec<IpNet>,
    /// Don't let the guest go to this network, whatever is allowed; may be repeated
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub deny: Vec<IpNet>,
    /// The most bytes a second to the guest
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(LEAST_RATE..))]
    pub rate_in: Option<u64>,
    /// The most bytes a second from the guest
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(LEAST_RATE..))]
    pub rate_out: Option<u64>,
    /// Run as user or group 1337, whose connections bypass Istio's proxy
    #[arg(long)]
    pub allow_proxy_uid: bool,
}

impl Options {
    /// The configuration of a network whose way out is `pod`, for a guest with these addresses, of
    /// this name.
    pub fn config(
        &self,
        pod: &Pod,
        (v4, v6): (Option<Network<Ipv4Addr>>, Option<Network<Ipv6Addr>>),
        hostname: String,
        forwards: Vec<Forward>,
    ) -> Config {
        Config {
            v4,
            v6,
            mtu: self.mtu.unwrap_or_else(|| mtu(pod)),
            hostname,
            resolver: self.resolver(),
            forwards,
            eager: self.eager,
            open_loopback: self.open_loopback.clone(),
            max_flows: self.max_flows,
            memory: self.buffers.map_or(MEMORY, |mib| usize::from(mib) << 20),
            policy: self.policy(),
        }
    }

    /// The nameservers and domains that were given, else those of the pod.
    fn resolver(&self) -> Resolver {
        let mut resolver = Resolver::of_the_pod();
        if !self.dns.is_empty() {
            resolver.set_nameservers(&self.dns);
        }
        if !self.search.is_empty() {
            resolver.set_search(self.search.clone());
        }
        resolver
    }

    /// Where the guest may go, and how fast.
    fn policy(&self) -> Policy {
        Policy {
            allow: self.allow.clone(),
            deny: self.deny.clone(),
            new_flows: self.new_flows,
            rate_in: self.rate_in,
            rate_out: self.rate_out,
        }
    }

    /// An error for whom Istio takes for its proxy, unless that is wanted.
    pub fn refuse_proxy(&self) -> Result<(), String> {
        if self.allow_proxy_uid {
            return Ok(());
        }
        refuse_proxy()
    }
}

/// The MTU that the pod's way out has.
pub fn mtu(pod: &Pod) -> u16 {
    let mtu = pod
        .mtu()
        .map_or(MTU, |mtu| mtu.try_into().unwrap_or(u16::MAX));
    mtu.max(LEAST_MTU)
}

/// An error for whom Istio takes for its proxy.
pub fn refuse_proxy() -> Result<(), String> {
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    if [user, group].contains(&PROXY) {
        return Err(
            "user or group 1337 is Istio's proxy, which the guest's connections would bypass; run \
             as another, or add --allow-proxy-uid"
                .to_owned(),
        );
    }
    Ok(())
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let network = text.parse().or(address).ok();
    network.ok_or_else(|| format!("`{text}` is not a network such as 10.0.0.0/8 or 2001:db8::/32"))
}
