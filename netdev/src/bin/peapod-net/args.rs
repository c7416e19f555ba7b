//! What `peapod-net` is told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use ipnet::IpNet;
use netdev::link::limited::LEAST_RATE;
use netdev::netns::Target;

use crate::addresses::{Prefixed, Style};
use crate::publish::Publish;

/// Gives another network namespace, or another VMM's guest, a network made of ordinary sockets of
/// this one.
#[derive(Debug, Parser)]
#[command(version, name = "peapod-net", args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What else than to be a network.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The network.
    #[command(flatten)]
    pub network: Network,
}

/// What else than to be a network.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask or change a network that runs with --control
    Control(Control),
}

/// What to ask of a network that runs.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = false)]
pub struct Control {
    /// The network's --control
    pub socket: PathBuf,
    /// Print the network's answer as it is, in JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What.
    #[command(subcommand)]
    pub question: Question,
}

/// What to ask of a network that runs.
#[derive(Debug, Subcommand)]
pub enum Question {
    /// List the published ports
    Forwards,
    /// Publish one more port, or a range
    Add {
        /// As for --publish
        #[arg(value_name = SPEC)]
        publish: Publish,
    },
    /// Publish a port no longer; its connections go on
    Remove {
        /// As for --publish
        #[arg(value_name = SPEC)]
        publish: Publish,
    },
    /// List the connections and other flows there are now
    Flows {
        /// So many of them at most
        #[arg(long, value_name = "COUNT")]
        most: Option<usize>,
    },
    /// Show every counter
    Counters,
    /// Show every counter as Prometheus reads it
    Metrics,
    /// Write every frame to a file
    #[command(subcommand, arg_required_else_help = false)]
    Capture(Capture),
}

/// What to do about a capture.
#[derive(Debug, Subcommand)]
pub enum Capture {
    /// Begin; the file is pcapng, and must not be there yet
    Start {
        /// The file, which the network makes
        file: PathBuf,
        /// The most bytes of each frame
        #[arg(long, value_name = "BYTES")]
        snaplen: Option<u32>,
        /// The most bytes of the file [default: 1 GiB]
        #[arg(long, value_name = "BYTES")]
        max_bytes: Option<u64>,
    },
    /// End
    Stop,
    /// Say how far it is
    Status,
}

const SPEC: &str = "[IP:]HOSTPORT:GUESTPORT[/tcp|udp]";

/// A network.
#[derive(Debug, clap::Args)]
pub struct Network {
    /// Whom it is for.
    #[command(flatten)]
    pub side: Side,
    /// The interface to make in the namespace [default: eth0]
    #[arg(long, value_name = "NAME", conflicts_with = "vhost_user")]
    pub interface: Option<String>,
    /// Give that interface its addresses and routes, as DHCP would
    #[arg(long, conflicts_with = "vhost_user")]
    pub config_net: bool,
    /// The guest's MTU [default: that of this namespace's default route, or 1500]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1280..))]
    pub mtu: Option<u16>,
    /// Publish a port of the guest, or a range, on every address, or on one; may be repeated
    #[arg(short, long, value_name = SPEC)]
    pub publish: Vec<Publish>,
    /// Listen on published ports at all times, not only while the guest does
    #[arg(long)]
    pub eager: bool,
    /// Whose addresses the guest and its gateway have
    #[arg(long, value_enum, default_value_t = Style::Masquerade)]
    pub addresses: Style,
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
    /// Give the guest IPv4 only [default: what this namespace has a route for]
    #[arg(short = '4', long, conflicts_with_all = ["ipv6_only", "address6", "prefix6", "gateway6"])]
    pub ipv4_only: bool,
    /// Give the guest IPv6 only
    #[arg(short = '6', long, conflicts_with_all = ["address", "prefix", "gateway"])]
    pub ipv6_only: bool,
    /// A nameserver [default: those of /etc/resolv.conf]; may be repeated
    #[arg(long, value_name = "IP")]
    pub dns: Vec<IpAddr>,
    /// A search domain [default: those of /etc/resolv.conf]; may be repeated
    #[arg(long, value_name = "DOMAIN")]
    pub search: Vec<String>,
    /// The guest's host name
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Let the guest reach this port of the loopback here, at its gateway; may be repeated
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub open_loopback: Vec<u16>,
    /// The most flows at once
    #[arg(long, value_name = "COUNT", default_value_t = 65_536)]
    pub max_flows: usize,
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
    /// Answer `peapod-net control` at this socket
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
    /// Run as user or group 1337, whose connections bypass Istio's proxy
    #[arg(long)]
    pub allow_proxy_uid: bool,
}

/// Whom a network is for.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Side {
    /// A network namespace: its file, or a process in it
    #[arg(long, value_name = "PATH|PID")]
    pub netns: Option<Target>,
    /// VMMs that connect to this vhost-user socket, one after another
    #[arg(long, value_name = "SOCKET")]
    pub vhost_user: Option<PathBuf>,
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let network = text.parse().or(address).ok();
    network.ok_or_else(|| format!("`{text}` is not a network such as 10.0.0.0/8 or 2001:db8::/32"))
}
