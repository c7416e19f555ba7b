//! In passt's place: the options that libvirt and KubeVirt give passt (its passt(1)), for a VMM that
//! speaks vhost-user. What is not listed here is refused by its name.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Mutex;

use clap::Parser;
use netdev::addresses::{self, Prefixed, Style, View, Wish, Wishes};
use netdev::config::{Config, Policy, Transport};
use netdev::engine::Engine;
use netdev::options;
use netdev::pod::Pod;
use netdev::process;
use netdev::resolver::Resolver;

use crate::Failure;
use crate::run;
use netdev::publish::{Publish, range};
use netdev::socket::Listener;

/// passt's options, as far as they are taken.
#[derive(Debug, Parser)]
#[command(name = "passt", version, about = "peapod-net, in passt's place")]
pub struct Args {
    /// Path of the socket that the VMM connects to
    #[arg(short, long, alias = "socket-path", value_name = "PATH")]
    socket: PathBuf,
    /// Speak vhost-user, which is all that this one speaks
    #[arg(long, required = true)]
    vhost_user: bool,
    /// End when the first VMM goes away
    #[arg(short = '1', long)]
    one_off: bool,
    /// Write the process' number to this file
    #[arg(short = 'P', long, value_name = "FILE")]
    pid: Option<PathBuf>,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Log to this file
    #[arg(short, long, value_name = "PATH")]
    log_file: Option<PathBuf>,
    /// Taken, and not needed: the guest's address is learned from its frames
    #[arg(short = 'M', long, value_name = "MAC", value_parser = mac)]
    mac_addr: Option<String>,
    /// The interface that the guest has the addresses of
    #[arg(short, long, value_name = "NAME")]
    interface: Option<String>,
    /// The guest's address instead; once for each family
    #[arg(short, long, value_name = "IP[/BITS]")]
    address: Vec<Prefixed<IpAddr>>,
    /// Its gateway; once for each family
    #[arg(short, long, value_name = "IP")]
    gateway: Vec<IpAddr>,
    /// The mask of its IPv4 network
    #[arg(short, long, value_name = "MASK", value_parser = netmask)]
    netmask: Option<u8>,
    /// The guest's MTU; 0 is the interface's
    #[arg(short, long, value_name = "BYTES")]
    mtu: Option<u16>,
    /// TCP ports that are the guest's; may be repeated
    #[arg(short, long, value_name = "SPEC")]
    tcp_ports: Vec<Spec>,
    /// UDP ports that are the guest's; may be repeated
    #[arg(short, long, value_name = "SPEC")]
    udp_ports: Vec<Spec>,
    /// A nameserver for the guest; may be repeated
    #[arg(short = 'D', long, value_name = "IP")]
    dns: Vec<IpAddr>,
    /// Search domains for the guest; may be repeated
    #[arg(short = 'S', long, value_name = "DOMAINS")]
    search: Vec<String>,
    /// The guest's host name
    #[arg(short = 'H', long, value_name = "NAME")]
    hostname: Option<String>,
    /// The same with its domain, where there is no other
    #[arg(long, value_name = "NAME")]
    fqdn: Option<String>,
    /// IPv4 only
    #[arg(short = '4', long, conflicts_with = "ipv6_only")]
    ipv4_only: bool,
    /// IPv6 only
    #[arg(short = '6', long)]
    ipv6_only: bool,
    /// The gateway is not the loopback here; it never is
    #[arg(long)]
    no_map_gw: bool,
    /// Taken: nothing is printed that is not wrong
    #[arg(short, long)]
    quiet: bool,
}

/// Ports in passt's words: `none`, or `[ADDRESS/]RANGES`, which are `FIRST[-LAST][:FIRST[-LAST]]`
/// with the guest's behind the colon, `~FIRST[-LAST]` for what is left out, or `all`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Spec {
    address: Option<IpAddr>,
    /// Ports here, and the guest's for the first of each.
    ranges: Vec<(RangeInclusive<u16>, u16)>,
    /// Every port was asked for.
    all: bool,
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut spec = Self {
            address: None,
            ranges: Vec::new(),
            all: false,
        };
        if text == "none" {
            return Ok(spec);
        }
        let mut ports = text;
        if let Some((address, rest)) = text.split_once('/')
            && !address.contains([',', '~'])
            && address.parse::<u16>().is_err()
            && !is_target(address)
        {
            if address.contains('%') {
                return Err(format!(
                    "`{address}`: a port cannot be bound to an interface; give an address of it"
                ));
            }
            let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
            let parsed = bare.unwrap_or(address).parse();
            spec.address = Some(parsed.map_err(|_| format!("`{address}` is not an IP address"))?);
            ports = rest;
        }
        let (mut included, mut excluded) = (Vec::new(), Vec::new());
        for entry in ports.split(',') {
            if let Some(entry) = entry.strip_prefix('~') {
                excluded.push(range(entry)?);
            } else if entry == "all" {
                spec.all = true;
            } else if entry == "auto" {
                return Err("`auto`: passt itself does not know it either".to_owned());
            } else {
                included.push(include(entry)?);
            }
        }
        // Only what is left out is said: it is all the others.
        spec.all |= included.is_empty();
        for (host, guest) in included {
            let mut first = None;
            let left_out = |port: u16| excluded.iter().any(|range| range.contains(&port));
            for port in host.clone() {
                match (left_out(port), first) {
                    (false, None) => first = Some(port),
                    (true, Some(from)) => {
                        spec.ranges
                            .push((from..=port - 1, guest + (from - host.start())));
                        first = None;
                    }
                    _ => {}
                }
            }
            if let Some(from) = first {
                let rest = from..=*host.end();
                spec.ranges.push((rest, guest + (from - host.start())));
            }
        }
        Ok(spec)
    }
}

/// Whether what stands before a slash ends in `:TOADDRESS`, of ports that go to an address.
fn is_target(text: &str) -> bool {
    let (ports, target) = text.split_once(':').unwrap_or_default();
    range(ports).is_ok() && !target.is_empty() && text.parse::<IpAddr>().is_err()
}

fn include(entry: &str) -> Result<(RangeInclusive<u16>, u16), String> {
    let (host, guest) = entry.split_once(':').unwrap_or((entry, entry));
    if guest.contains(['/', '.', ':', '[']) {
        return Err(format!(
            "`{entry}`: all ports are the guest's, which has one address"
        ));
    }
    let (host, guest) = (range(host)?, range(guest)?);
    if host.len() != guest.len() {
        return Err(format!(
            "`{entry}`: {} ports cannot be {} of the guest's",
            host.len(),
            guest.len()
        ));
    }
    Ok((host, *guest.start()))
}

fn mac(text: &str) -> Result<String, String> {
    let mut bytes = text.split(':');
    let is_byte = |byte: &str| byte.len() == 2 && u8::from_str_radix(byte, 16).is_ok();
    if bytes.clone().count() == 6 && bytes.all(is_byte) {
        return Ok(text.to_owned());
    }
    Err(format!("`{text}` is not a MAC address"))
}

/// Bits of a network, as their number or as a mask.
fn netmask(text: &str) -> Result<u8, String> {
    let bits = match text.parse::<Ipv4Addr>() {
        Ok(mask) => {
            let mask = u32::from(mask);
            let bits = mask.leading_ones();
            (mask.checked_shl(bits).unwrap_or(0) == 0).then_some(bits as u8)
        }
        Err(_) => text.parse().ok(),
    };
    bits.filter(|bits| (1..=32).contains(bits))
        .ok_or_else(|| format!("`{text}` is not a network's mask"))
}

/// Is a network for a VMM, in the background unless told otherwise.
pub fn run(args: &Args) -> Result<(), Failure> {
    options::refuse_proxy().map_err(Failure::Input)?;
    let log = args.log_file.as_ref().map(|path| {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.map_err(|error| Failure::input(format!("{}: {error}", path.display())))
    });
    match log.transpose()? {
        Some(file) => run::start_log(Mutex::new(file)),
        None => run::start_log(io::stderr),
    }
    let config = config(args)?;
    process::make_room_for_descriptors();
    process::give_large_buffers_back();
    let mut engine = Engine::new(config).map_err(Failure::input)?;
    engine.poll_beside(1);
    let listener = Listener::bind(&args.socket, false).map_err(Failure::Input)?;
    let pid = args.pid.as_ref().map(|path| {
        let file = File::create(path);
        file.map_err(|error| Failure::input(format!("{}: {error}", path.display())))
    });
    let pid = pid.transpose()?;
    if args.foreground {
        write_pid(pid, std::process::id())?;
    } else if let Some(child) = process::go_to_background().map_err(Failure::runtime)? {
        // The socket and the ports are the child's.
        std::mem::forget(listener);
        return write_pid(pid, child);
    }
    let stop = process::stop_signals().map_err(Failure::runtime)?;
    let served = run::serve(listener.get(), engine, &stop, args.one_off);
    if let Err(Failure::Input(reason) | Failure::Runtime(reason)) = &served {
        // In the background there is no other place.
        tracing::error!("{reason}");
    }
    served
}

fn write_pid(file: Option<File>, pid: u32) -> Result<(), Failure> {
    let Some(mut file) = file else {
        return Ok(());
    };
    file.write_all(format!("{pid}\n").as_bytes())
        .map_err(Failure::runtime)
}

fn config(args: &Args) -> Result<Config, Failure> {
    let pod = match &args.interface {
        Some(name) => Pod::open_by(name),
        None => Pod::open(),
    };
    let pod = pod.map_err(|error| match (&args.interface, error.kind()) {
        (Some(name), io::ErrorKind::NotFound) => {
            Failure::input(format!("there is no interface `{name}`"))
        }
        _ => Failure::runtime(format!("netlink: {error}")),
    })?;
    let wishes = wishes(args).map_err(Failure::Input)?;
    let view = View::of(&pod);
    let networks = addresses::choose(&Style::Passt.base(&view), &wishes, &view);
    let networks = networks.map_err(Failure::Input)?;
    let (v4, v6) = networks;
    let mut resolver = Resolver::of_the_pod();
    if !args.dns.is_empty() {
        resolver.set_nameservers(&args.dns);
    }
    if !args.search.is_empty() {
        let domains = args.search.iter().flat_map(|list| list.split([' ', ',']));
        let domains = domains.filter(|domain| !domain.is_empty());
        resolver.set_search(domains.map(str::to_owned).collect());
    }
    let mtu = match args.mtu {
        None | Some(0) => options::mtu(&pod),
        Some(mtu) if mtu >= 1280 => mtu,
        Some(mtu) => return Err(Failure::input(format!("--mtu {mtu}: less than 1280"))),
    };
    Ok(Config {
        v4,
        v6,
        mtu,
        hostname: args
            .hostname
            .clone()
            .or_else(|| args.fqdn.clone())
            .unwrap_or_default(),
        resolver,
        forwards: run::forwards(&publish(args), networks)?,
        eager: false,
        open_loopback: Vec::new(),
        max_flows: 65_536,
        memory: options::MEMORY,
        policy: Policy::default(),
    })
}

fn wishes(args: &Args) -> Result<Wishes, String> {
    let mut wishes = Wishes {
        only_v4: args.ipv4_only,
        only_v6: args.ipv6_only,
        ..Wishes::default()
    };
    let once = |first: bool, what: &str| match first {
        true => Ok(()),
        false => Err(format!("{what} is given twice for one family")),
    };
    for given in &args.address {
        match given.address {
            IpAddr::V4(address) => {
                once(wishes.v4.address.replace(address).is_none(), "--address")?;
                wishes.v4.prefix = given.prefix;
            }
            IpAddr::V6(address) => {
                once(wishes.v6.address.replace(address).is_none(), "--address")?;
                wishes.v6.prefix = given.prefix;
            }
        }
    }
    for gateway in &args.gateway {
        match gateway {
            IpAddr::V4(gateway) => {
                once(wishes.v4.gateway.replace(*gateway).is_none(), "--gateway")?;
            }
            IpAddr::V6(gateway) => {
                once(wishes.v6.gateway.replace(*gateway).is_none(), "--gateway")?;
            }
        }
    }
    if let Some(bits) = args.netmask
        && wishes.v4.prefix.replace(bits).is_some()
    {
        return Err("--netmask: the address has a number of bits already".to_owned());
    }
    // A family that is not to be given is not asked for.
    if args.ipv4_only && wishes.v6 != Wish::<Ipv6Addr>::default() {
        return Err("--ipv4-only, but an IPv6 address is given".to_owned());
    }
    if args.ipv6_only && wishes.v4 != Wish::<Ipv4Addr>::default() {
        return Err("--ipv6-only, but an IPv4 address is given".to_owned());
    }
    Ok(wishes)
}

fn publish(args: &Args) -> Vec<Publish> {
    let tcp = args.tcp_ports.iter().map(|spec| (Transport::Tcp, spec));
    let udp = args.udp_ports.iter().map(|spec| (Transport::Udp, spec));
    let mut all = Vec::new();
    for (transport, spec) in tcp.chain(udp) {
        if spec.all {
            tracing::warn!(
                "no {transport} port is forwarded for `all`: each would take a socket; name those \
                 that the guest serves"
            );
        }
        all.extend(spec.ranges.iter().map(|(host, guest)| Publish {
            transport,
            address: spec.address,
            host: host.clone(),
            guest: *guest,
        }));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Option<String>, Vec<String>, bool) {
        let spec: Spec = text.parse().unwrap();
        let range = |(host, guest): &(RangeInclusive<u16>, u16)| {
            format!("{}-{}:{guest}", host.start(), host.end())
        };
        (
            spec.address.map(|address| address.to_string()),
            spec.ranges.iter().map(range).collect(),
            spec.all,
        )
    }

    #[test]
    fn ports_are_read_as_passt_reads_them() {
        for (text, address, ranges, all) in [
            ("none", None, &[][..], false),
            ("22", None, &["22-22:22"], false),
            ("22:23", None, &["22-22:23"], false),
            ("22,25", None, &["22-22:22", "25-25:25"], false),
            ("22-80:32-90", None, &["22-80:32"], false),
            ("192.0.2.1/22", Some("192.0.2.1"), &["22-22:22"], false),
            ("::1/22:23", Some("::1"), &["22-22:23"], false),
            ("[::1]/22", Some("::1"), &["22-22:22"], false),
            (
                "2000-5000,~3000-3010",
                None,
                &["2000-2999:2000", "3011-5000:3011"],
                false,
            ),
            (
                "192.0.2.1/20-30:120-130,~25",
                Some("192.0.2.1"),
                &["20-24:120", "26-30:126"],
                false,
            ),
            ("20-30,~20,~30", None, &["21-29:21"], false),
            ("1-65535,~2-65535", None, &["1-1:1"], false),
            ("20-30,~1-100", None, &[], false),
            ("all", None, &[], true),
            ("~15000-15090", None, &[], true),
            ("0.0.0.0/all", Some("0.0.0.0"), &[], true),
        ] {
            let ranges: Vec<_> = ranges.iter().map(|range| (*range).to_owned()).collect();
            let address = address.map(str::to_owned);
            assert_eq!(parse(text), (address, ranges, all), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for (text, wrong) in [
            ("192.0.2.1%eth0/22", "bound to an interface"),
            ("%eth0/22", "bound to an interface"),
            ("5000:192.0.2.5/6000", "which has one address"),
            ("0.0.0.0/5000:192.0.2.5/6000", "which has one address"),
            ("22:192.0.2.5", "which has one address"),
            ("auto", "`auto`"),
            ("22-", "is not a port"),
            ("x/22", "is not an IP address"),
            ("22-24:22", "3 ports cannot be 1"),
            ("", "is not a port"),
        ] {
            let error = text.parse::<Spec>().unwrap_err();
            assert!(error.contains(wrong), "{text}: {error}");
        }
    }

    #[test]
    fn a_mask_is_bits_or_an_address() {
        assert_eq!(netmask("24"), Ok(24));
        assert_eq!(netmask("255.255.252.0"), Ok(22));
        assert_eq!(netmask("255.255.255.255"), Ok(32));
        for wrong in ["0", "33", "255.0.255.0", "0.0.0.0", "x"] {
            assert!(netmask(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_libvirt_gives_is_taken_and_every_other_option_is_refused_by_name() {
        let line = "--one-off --socket /run/x.socket --pid /run/x.pid --vhost-user \
                    --mac-addr 52:54:00:12:34:56 --mtu 1400 --interface eth0 --log-file /tmp/x \
                    --address 10.0.2.15 --netmask 24 --address fd00::5 --gateway 10.0.2.2 \
                    --tcp-ports 192.0.2.1/8080:80,~22 --udp-ports 53";
        let words = || ["passt"].into_iter().chain(line.split_whitespace());
        let args = Args::try_parse_from(words()).unwrap();
        let wishes = wishes(&args).unwrap();
        assert_eq!(wishes.v4.prefix, Some(24));
        assert_eq!(wishes.v6.address, Some("fd00::5".parse().unwrap()));
        for option in ["--pcap=x", "--stats=1", "--repair-path=x", "--no-tcp"] {
            let error = Args::try_parse_from(words().chain([option])).unwrap_err();
            let name = option.split('=').next().unwrap();
            assert!(error.to_string().contains(name), "{error}");
        }
        let error = Args::try_parse_from(["passt", "--socket", "x"]).unwrap_err();
        assert!(error.to_string().contains("--vhost-user"), "{error}");
    }
}
