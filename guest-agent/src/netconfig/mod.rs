//! The network's configuration, written for whatever the root brings its network up by, as
//! cloud-init does it: netplan, systemd-networkd, NetworkManager or ifupdown.
//!
//! A program of its own runs this before any of them, `peapod-agent network`; what went wrong there
//! is left for the service to tell.

mod interfaces;
mod keyfile;
mod live;
mod model;
mod netplan;
mod networkd;
mod v1;
mod v2;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use crate::children;
use crate::init::ahead;
use crate::labels;
use crate::os::{CloudInit, Os};
use crate::seed;
use crate::signals::Signals;
use crate::userdata::report::Report;
use crate::userdata::{self, command, config, files};
use crate::yaml::{self, Node};
use model::{Config, Dhcp, Link};

/// What goes into the head of every file.
const HEAD: &str = "# Written by peapod-agent for an instance's first boot, from its network-config.\n\
    # network: {config: disabled} in /etc/cloud/cloud.cfg.d keeps it from that.\n";
/// Of which instance the rest of /var/lib/cloud is.
const INSTANCE: &str = "/var/lib/cloud/data/instance-id";
/// netplan's own program.
const GENERATORS: [&str; 3] = [
    "/usr/libexec/netplan/generate",
    "/usr/lib/netplan/generate",
    "/lib/netplan/generate",
];
const CARDS: &str = "/sys/class/net";
/// How long a card may take to appear and to be named.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// A file to be: its path and its text.
pub type File = (PathBuf, String);

/// What brings the network up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Renderer {
    Interfaces,
    Netplan,
    NetworkManager,
    Networkd,
}

impl Renderer {
    /// cloud-init's order, by its names.
    const ALL: [(&str, Self); 4] = [
        ("eni", Self::Interfaces),
        ("netplan", Self::Netplan),
        ("network-manager", Self::NetworkManager),
        ("networkd", Self::Networkd),
    ];

    fn is_here(self) -> bool {
        let file = |path: &str| Path::new(path).exists();
        match self {
            Self::Interfaces => {
                file("/etc/network/interfaces")
                    && ["ifquery", "ifup", "ifdown"]
                        .iter()
                        .all(|p| command::exists(p))
            }
            Self::Netplan => command::exists("netplan"),
            Self::NetworkManager => {
                command::exists("nmcli")
                    && file("/etc/NetworkManager/NetworkManager.conf")
                    && file("/etc/systemd/system/multi-user.target.wants/NetworkManager.service")
            }
            Self::Networkd => {
                file("/usr/lib/systemd/systemd-networkd") || file("/lib/systemd/systemd-networkd")
            }
        }
    }

    /// The first that is here of those that the disk's configuration names, else of all.
    fn choose(base: &Node) -> Option<Self> {
        let named = base.at(&["system_info", "network", "renderers"]);
        let names = named.map(Node::scalars).unwrap_or_default();
        let by_name = |name: &String| Self::ALL.iter().find(|(known, _)| known == name);
        let mut wanted: Vec<Self> = names.iter().filter_map(by_name).map(|(_, r)| *r).collect();
        if wanted.is_empty() {
            wanted = Self::ALL.iter().map(|(_, renderer)| *renderer).collect();
        }
        wanted.into_iter().find(|renderer| renderer.is_here())
    }

    /// The files for it. `written` is what `config` was read from: netplan takes its own version as
    /// it is.
    fn render(self, config: &Config, written: &Node, cloud_init: CloudInit) -> Vec<File> {
        match self {
            Self::Interfaces => interfaces::render(config),
            Self::Netplan => netplan::render(config, written),
            Self::NetworkManager => keyfile::render(config, cloud_init),
            Self::Networkd => networkd::render(config),
        }
    }

    /// What lets it know of them before it starts.
    fn announce(self) -> Result<(), String> {
        match self {
            Self::Netplan => {
                // Without its wrapper in Python, which takes longer than all else here.
                let mut places = GENERATORS.iter().copied();
                let found = places.find(|path| Path::new(path).exists());
                match found {
                    Some(generator) => command::Program::new(&[generator]).run(),
                    None => command::Program::new(&["netplan", "generate"]).run(),
                }
            }
            // It is this boot's, whether or not it was meant to be every boot's.
            Self::Networkd => {
                let words = [
                    "systemctl",
                    "--no-block",
                    "start",
                    "systemd-networkd.service",
                ];
                command::Program::new(&words).run()
            }
            Self::Interfaces | Self::NetworkManager => Ok(()),
        }
    }
}

/// `peapod-agent network`: in time for whatever brings up the network.
pub fn run() -> ExitCode {
    let signals = Signals::block(&[libc::SIGCHLD]);
    thread::spawn(move || {
        loop {
            signals.wait();
            let _ = children::reap();
        }
    });
    let failures = apply();
    if failures.is_empty() {
        return ExitCode::SUCCESS;
    }
    let text: String = failures.iter().map(|why| format!("{why}\n")).collect();
    eprint!("{text}");
    if let Err(error) = files::write(Path::new(userdata::EARLIER), text.as_bytes(), 0o600) {
        eprintln!("{}: {error}", userdata::EARLIER);
    }
    ExitCode::FAILURE
}

/// `peapod-agent render FILE RENDERER FOLDER`: what would be written for a network-config, below a
/// folder.
pub fn render_into(file: &str, renderer: &str, folder: &Path) -> Result<(), String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let cloud_init = Os::of_this_root().cloud_init;
    let (files, warnings) = render(file, &text, renderer, cloud_init)?;
    warnings.iter().for_each(|why| eprintln!("{why}"));
    write(&files, folder)
}

/// The files for a renderer, by cloud-init's name, that `text` asks for, which is `file`'s; and what
/// of it is left out. They are as that release of cloud-init writes them.
pub fn render(
    file: &str,
    text: &str,
    renderer: &str,
    cloud_init: CloudInit,
) -> Result<(Vec<File>, Vec<String>), String> {
    let known = Renderer::ALL.iter().find(|(name, _)| *name == renderer);
    let (_, renderer) = known.ok_or_else(|| format!("{renderer}: no such renderer"))?;
    let written = yaml::read(file, text)?;
    let config = parse(&written)?;
    Ok((
        renderer.render(&config, &written, cloud_init),
        config.warnings,
    ))
}

/// Does itself what is asked for, at every boot, where the root has nobody who would: what process 1
/// does. What went wrong.
pub fn bring_up(base: &Node, seed: &seed::Seed) -> Vec<String> {
    let Some(Asked::For(written)) = asked(base, Some(seed)) else {
        return Vec::new();
    };
    match written.and_then(|written| parse(&written)) {
        Ok(config) => live::bring_up(config),
        Err(why) => vec![why],
    }
}

/// Writes it where this boot is an instance's first. What went wrong.
fn apply() -> Vec<String> {
    let report = Report::default();
    let base = config::of_disk(&report);
    let seed = match seed::find(&base) {
        Ok(Some(seed)) => Some(seed),
        // As cloud-init, which is not even started then.
        Ok(None) => return Vec::new(),
        // One that only the network leads to is found later; what was written for it before stays.
        Err(_) if Path::new(INSTANCE).exists() => return Vec::new(),
        Err(_) => None,
    };
    let renderer = Renderer::choose(&base);
    let Some(written) = wanted(&base, seed.as_ref(), renderer) else {
        return Vec::new();
    };
    let parsed = written.and_then(|written| Ok((parse(&written)?, written)));
    let (config, written) = match parsed {
        Ok(parsed) => parsed,
        Err(why) => return vec![why],
    };
    let Some(renderer) = renderer else {
        return vec![
            "this root has neither netplan nor systemd-networkd, NetworkManager or ifupdown".into(),
        ];
    };
    let mut failures = config.warnings.clone();
    let files = renderer.render(&config, &written, Os::of_this_root().cloud_init);
    let outcome = write(&files, Path::new("/")).and_then(|()| renderer.announce());
    failures.extend(outcome.err());
    if config.links.iter().any(|link| link.set_name.is_some()) {
        failures.extend(rename_cards().err());
    }
    failures
}

/// What is to be configured, unless it has been or nobody wants it: what the disk's own
/// configuration says, else the seed, else DHCP.
fn wanted(
    base: &Node,
    seed: Option<&seed::Seed>,
    renderer: Option<Renderer>,
) -> Option<Result<Node, String>> {
    if !is_new(seed) {
        return None;
    }
    match asked(base, seed)? {
        Asked::For(written) => Some(written),
        // A card that this program has configured itself needs nothing, and a root that brings up
        // none has not asked for it.
        Asked::Nothing if !ahead::led_here() || renderer.is_none() => None,
        // ifupdown would wait for a DHCPv6 server that there may not be.
        Asked::Nothing => {
            let v6 = renderer != Some(Renderer::Interfaces);
            first_card().map(|name| Ok(dhcp_on(&name, v6)))
        }
    }
}

/// What is asked for.
enum Asked {
    /// A configuration, as it was written.
    For(Result<Node, String>),
    /// Nobody says anything.
    Nothing,
}

/// By the disk's own configuration, else the seed; `None` where the disk wants none.
fn asked(base: &Node, seed: Option<&seed::Seed>) -> Option<Asked> {
    if let Some(own) = base.get("network") {
        let disabled = own.get("config").and_then(Node::text) == Some("disabled");
        return (!disabled).then(|| Asked::For(Ok(own.clone())));
    }
    let Some(bytes) = seed.and_then(|seed| seed.network_config.as_deref()) else {
        return Some(Asked::Nothing);
    };
    let written = yaml::read("network-config", &String::from_utf8_lossy(bytes));
    Some(Asked::For(
        written.map(|node| node.get("network").cloned().unwrap_or(node)),
    ))
}

fn is_new(seed: Option<&seed::Seed>) -> bool {
    let id = seed.map(|seed| &*seed.instance_id);
    let known = fs::read_to_string(INSTANCE).unwrap_or_default();
    id.is_none_or(|id| known.trim() != id)
}

/// The first network card by name, once udev has given it one.
fn first_card() -> Option<String> {
    if !has_controller() {
        return None;
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let cards = fs::read_dir(CARDS).into_iter().flatten().flatten();
        let mut cards: Vec<PathBuf> = cards
            .map(|c| c.path())
            .filter(|path| is_card(path))
            .collect();
        cards.sort();
        let named = cards.iter().all(|card| has_been_named(card));
        match (cards.first(), named) {
            (Some(card), true) => return Some(card.file_name()?.to_str()?.to_owned()),
            (card, _) if Instant::now() >= end => {
                return card.and_then(|card| Some(card.file_name()?.to_str()?.to_owned()));
            }
            _ => thread::sleep(PAUSE),
        }
    }
}

/// Whether there is anything that a driver would make a card of: nobody waits for one otherwise.
fn has_controller() -> bool {
    let devices = fs::read_dir("/sys/bus/pci/devices")
        .into_iter()
        .flatten()
        .flatten();
    let class = |path: PathBuf| fs::read_to_string(path.join("class")).unwrap_or_default();
    // PCI's base class of network controllers
    let mut classes = devices.map(|device| class(device.path()));
    classes.any(|class| class.starts_with("0x02"))
}

fn is_card(path: &Path) -> bool {
    let kind = fs::read_to_string(path.join("type")).unwrap_or_default();
    // ARPHRD_ETHER (linux/if_arp.h)
    path.join("device").exists() && kind.trim() == "1"
}

/// Whether udev is done with a card: it then knows it by its number.
fn has_been_named(card: &Path) -> bool {
    let number = fs::read_to_string(card.join("ifindex")).unwrap_or_default();
    Path::new(&format!("/run/udev/data/n{}", number.trim())).exists()
}

/// In version 2.
fn dhcp_on(card: &str, v6: bool) -> Node {
    let text = format!(
        "version: 2\nethernets: {{{}: {{dhcp4: true, dhcp6: {v6}}}}}\n",
        serde_json::Value::from(card)
    );
    yaml::read("network-config", &text).unwrap_or_default()
}

fn parse(written: &Node) -> Result<Config, String> {
    let written = written.get("network").unwrap_or(written);
    let version = written.get("version").and_then(Node::scalar);
    match (version.as_deref(), written.get("config")) {
        (Some("2"), _) => v2::parse(written),
        (Some("1") | None, Some(list)) => v1::parse(list),
        (Some("1"), None) => Err(written.wrong("config", "missing")),
        (Some(version), _) => {
            Err(written.wrong("version", format!("{version} is neither 1 nor 2")))
        }
        (None, None) => Err(written.wrong("version", "missing: it is 1 or 2")),
    }
}

fn write(rendered: &[File], below: &Path) -> Result<(), String> {
    for (path, text) in rendered {
        let path = below.join(path.strip_prefix("/").unwrap_or(path));
        let written: io::Result<()> = files::write(&path, text.as_bytes(), mode(&path));
        written.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    labels::put_right()
}

/// What may hold a secret is root's; systemd-networkd is not root.
fn mode(path: &Path) -> u32 {
    match path.starts_with("/etc/systemd") || path.components().any(|c| c.as_os_str() == "systemd")
    {
        true => 0o644,
        false => 0o600,
    }
}

/// Cards that are there already get their names now: systemd.link(5) is for those that come.
fn rename_cards() -> Result<(), String> {
    for card in fs::read_dir(CARDS).into_iter().flatten().flatten() {
        let card = card.path();
        if card.join("device").exists() {
            let card = card.to_string_lossy();
            command::Program::new(&["udevadm", "test-builtin", "net_setup_link", &card]).run()?;
        }
    }
    Ok(())
}

/// A `.link` file for a card that is to have another name.
fn link_file(link: &Link) -> Option<File> {
    let name = link.set_name.as_deref()?;
    let mut text = format!("{HEAD}[Match]\n");
    if let Some(mac) = &link.matching.mac {
        text += &format!("MACAddress={mac}\n");
    }
    if let Some(driver) = &link.matching.driver {
        text += &format!("Driver={driver}\n");
    }
    if let Some(pattern) = &link.matching.name {
        text += &format!("OriginalName={pattern}\n");
    }
    // A card is matched by something, or any would be.
    if text.ends_with("[Match]\n") {
        return None;
    }
    text += &format!("\n[Link]\nName={name}\n");
    if link.wakeonlan {
        text += "WakeOnLan=magic\n";
    }
    let path = format!("/etc/systemd/network/10-cloud-init-{name}.link");
    Some((path.into(), text))
}

/// A word that may stand in any of the files.
fn word(node: &Node, text: &str) -> Result<String, String> {
    let may = |c: char| c.is_alphanumeric() || "-_.:/+@%*?!,".contains(c);
    match !text.is_empty() && text.len() <= 255 && text.chars().all(may) {
        true => Ok(text.to_owned()),
        false => Err(node.wrong(
            "",
            format!("{text:?} cannot stand in a network's configuration"),
        )),
    }
}

/// A link's name, which is a part of files' names too.
fn name(node: &Node, text: &str) -> Result<String, String> {
    let may = |c: char| c.is_ascii_alphanumeric() || "-_.:@+".contains(c);
    let odd = text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.chars().all(may);
    match odd {
        false => Ok(text.to_owned()),
        true => Err(node.wrong("", format!("{text:?} is no name of a link"))),
    }
}

/// A pattern of names, or a driver's.
fn pattern(node: &Node, text: &str) -> Result<String, String> {
    word(node, text)
}

/// A card's address, in small letters and with colons.
fn mac(node: &Node, text: &str) -> Result<String, String> {
    let bytes: Vec<&str> = text.trim().split([':', '-']).collect();
    let is_byte = |b: &&str| b.len() == 2 && b.chars().all(|c| c.is_ascii_hexdigit());
    match bytes.len() == 6 && bytes.iter().all(is_byte) {
        true => Ok(bytes.join(":").to_lowercase()),
        false => Err(node.wrong("", format!("{text:?} is no address of a card"))),
    }
}

/// A DHCP client's setting as yes or no.
fn says_no(dhcp: &Dhcp, key: &str) -> bool {
    matches!(dhcp.get(key), Some("false" | "no" | "off"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that is rendered, by file name.
    fn rendered(text: &str, renderer: &str) -> Result<String, String> {
        let (files, warnings) = render("net", text, renderer, CloudInit::V22)?;
        let files = files.into_iter().map(|(path, text)| {
            let text = text.strip_prefix(HEAD).unwrap().to_owned();
            format!("{}:\n{text}", path.file_name().unwrap().to_string_lossy())
        });
        Ok(files.chain(warnings).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line_and_what_is_odd_is_left_out() {
        for (text, why) in [
            ("version: 3", "net:1: version: 3 is neither 1 nor 2"),
            ("{}", "net:1: version: missing: it is 1 or 2"),
            (
                "version: 2\nethernets:\n  a: {addresses: [10.0.0.1/99]}",
                "net:3: addresses: \"99\" is no prefix of 10.0.0.1",
            ),
            (
                "version: 2\nethernets:\n  \"../a\": {dhcp4: true}",
                "net:3: \"../a\" is no name of a link",
            ),
            (
                "version: 2\nethernets:\n  a:\n    nameservers: {search: [\"a\\nb\"]}",
                "net:4: \"a\\nb\" cannot stand in a network's configuration",
            ),
            (
                "version: 1\nconfig:\n- {type: physical, name: a, mac_address: zz}",
                "net:3: \"zz\" is no address of a card",
            ),
        ] {
            assert_eq!(rendered(text, "networkd").unwrap_err(), why, "{text}");
        }
        let odd = "version: 2\nwifis: {}\nethernets: {a: {dhcp4: true, emit-lldp: true}}";
        let said = rendered(odd, "networkd").unwrap();
        assert!(said.contains("net:3: a: emit-lldp: not known"), "{said}");
        assert!(said.contains("net:2: wifis: not known"), "{said}");
    }

    #[test]
    fn a_bond_below_a_bridge_is_whole_in_every_renderers_words() {
        let text = "version: 2\nethernets: {a: {}, b: {}}\n\
            bonds: {bond0: {interfaces: [a, b], parameters: {mode: 802.3ad, mii-monitor-interval: 100}}}\n\
            bridges: {br0: {interfaces: [bond0], parameters: {stp: false}, dhcp4: true}}\n";
        let networkd = rendered(text, "networkd").unwrap();
        assert!(
            networkd.contains("[Bond]\nMode=802.3ad\nMIIMonitorSec=100ms\n"),
            "{networkd}"
        );
        assert!(
            networkd.contains("Name=a\n\n[Network]\nDHCP=no\nBond=bond0\n"),
            "{networkd}"
        );
        assert!(
            networkd.contains("Name=bond0\n\n[Network]\nDHCP=no\nBridge=br0\n"),
            "{networkd}"
        );
        let eni = rendered(text, "eni").unwrap();
        assert!(
            eni.contains("iface a inet manual\n    bond-master bond0\n"),
            "{eni}"
        );
        assert!(
            eni.contains("iface br0 inet dhcp\n    bridge_ports bond0\n    bridge_stp off\n"),
            "{eni}"
        );
        let keyfile = rendered(text, "network-manager").unwrap();
        assert_eq!(
            keyfile.matches("slave-type=bond\nmaster=").count(),
            2,
            "{keyfile}"
        );
        assert_eq!(
            keyfile.matches("slave-type=bridge\nmaster=").count(),
            1,
            "{keyfile}"
        );
    }
}
