//! `peapod-net`: the network without the VM, for another network namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use clap::Parser;
use ipnet::IpNet;
use netdev::config::{Config, Forward, Network, Policy, Transport};
use netdev::engine::Engine;
use netdev::link::limited::LEAST_RATE;
use netdev::netns::{self, Target};
use netdev::resolver::Resolver;

/// Gives a network namespace a network made of ordinary sockets of this one.
#[derive(Debug, Parser)]
#[command(version, name = "peapod-net")]
struct Args {
    /// The namespace: a file, or a process in it
    #[arg(long, value_name = "PATH|PID")]
    netns: Target,
    /// The interface to make there
    #[arg(long, value_name = "NAME", default_value = "eth0")]
    interface: String,
    /// The interface's MTU
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(1280..))]
    mtu: u16,
    /// Give the interface its addresses and routes, as DHCP would
    #[arg(long)]
    config_net: bool,
    /// Publish a port of the guest on every address, or on one; may be repeated
    #[arg(short, long, value_name = "[IP:]HOSTPORT:GUESTPORT[/tcp|udp]", value_parser = publish)]
    publish: Vec<Vec<Forward>>,
    /// Listen on published ports at all times, not only while the guest does
    #[arg(long)]
    eager: bool,
    /// The most flows at once
    #[arg(long, default_value_t = 65_536)]
    max_flows: usize,
    /// The most flows that the guest may begin in a second
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    new_flows: Option<u32>,
    /// Let the guest go to this network, and to none that is not allowed; may be repeated
    #[arg(long, value_name = "CIDR", value_parser = network)]
    allow: Vec<IpNet>,
    /// Don't let the guest go to this network, whatever is allowed; may be repeated
    #[arg(long, value_name = "CIDR", value_parser = network)]
    deny: Vec<IpNet>,
    /// The most bytes a second to the guest
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(LEAST_RATE..))]
    rate_in: Option<u64>,
    /// The most bytes a second from the guest
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(LEAST_RATE..))]
    rate_out: Option<u64>,
    /// Run as a user or group whose flows bypass Istio's proxy
    #[arg(long)]
    allow_proxy_uid: bool,
}

/// The user and the group of Istio's proxy, whose connections are not redirected to it.
const PROXY: u32 = 1337;

fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let network = text.parse().or(address).ok();
    network.ok_or_else(|| format!("`{text}` is not a network such as 10.0.0.0/8 or 2001:db8::/32"))
}

fn publish(text: &str) -> Result<Vec<Forward>, String> {
    let expected = "expected [IP:]HOSTPORT:GUESTPORT[/tcp|udp]";
    let (ports, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let transport = match protocol {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        other => return Err(format!("`{other}` is neither tcp nor udp")),
    };
    let port = |text: &str| match text.parse() {
        Ok(0) | Err(_) => Err(format!("`{text}` is not a port (1 to 65535)")),
        Ok(port) => Ok(port),
    };
    let (rest, guest) = ports.rsplit_once(':').ok_or(expected)?;
    let guest_port = port(guest)?;
    let (addresses, host): (Vec<IpAddr>, _) = match rest.rsplit_once(':') {
        None => (
            vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            rest,
        ),
        Some((ip, host)) => {
            let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
            let parsed = bare.unwrap_or(ip).parse();
            (
                vec![parsed.map_err(|_| format!("`{ip}` is not an IP address"))?],
                host,
            )
        }
    };
    let host = port(host)?;
    let forward = |address| Forward {
        transport,
        bind: SocketAddr::new(address, host),
        guest_port,
    };
    Ok(addresses.into_iter().map(forward).collect())
}

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peapod-net: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    if [user.as_raw(), group.as_raw()].contains(&PROXY) && !args.allow_proxy_uid {
        return Err(
            "user or group 1337 is Istio's proxy, which this guest's connections would \
                    bypass; run as another, or add --allow-proxy-uid"
                .into(),
        );
    }
    let config = Config {
        v4: Some(Network::<Ipv4Addr>::MASQUERADE),
        v6: Some(Network::<Ipv6Addr>::MASQUERADE),
        mtu: args.mtu,
        hostname: String::new(),
        resolver: Resolver::of_the_pod(),
        forwards: args.publish.iter().flatten().copied().collect(),
        eager: args.eager,
        open_loopback: Vec::new(),
        max_flows: args.max_flows,
        policy: Policy {
            allow: args.allow.clone(),
            deny: args.deny.clone(),
            new_flows: args.new_flows,
            rate_in: args.rate_in,
            rate_out: args.rate_out,
        },
    };
    netdev::process::raise_descriptor_limit();
    let stop = netdev::process::stop_signals()?;
    let mut engine = Engine::new(config.clone())?;
    let mut tap = netns::tap(&args.netns, &args.interface, &config, args.config_net)?;
    println!("ready");
    engine.run(&mut tap, stop.as_raw_fd())?;
    Ok(())
}
