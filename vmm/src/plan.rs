//! What a run is going to be: a machine with every path found, every file looked at and every
//! port chosen. Made before anything starts, so that bad input starts nothing.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::boot::kernel::Kernel;
use crate::vmi::{Machine, Protocol};

/// Everything that `launch` needs.
#[derive(Debug)]
pub struct Plan {
    /// What the manifest asks for.
    pub machine: Machine,
    /// The kernel, unpacked.
    pub kernel: Kernel,
    /// The initramfs with the agent in it.
    pub initramfs: PathBuf,
    /// Words added to the kernel's command line.
    pub append: Option<String>,
    /// In the order of `machine.disks`.
    pub disks: Vec<PlannedDisk>,
    /// What listens on the host.
    pub forwards: Vec<Forward>,
    /// Where sockets and the guest's scratch space go; exists.
    pub state_dir: PathBuf,
    /// Keeps every other VM out of the state directory while it is open.
    pub state_lock: File,
    /// The state directory was made for this run and goes with it.
    pub remove_state_dir: bool,
}

impl Plan {
    /// Removes what was made for this plan alone.
    pub fn discard(self) -> io::Result<()> {
        if self.remove_state_dir {
            std::fs::remove_dir_all(&self.state_dir)?;
        }
        Ok(())
    }
}

/// A disk and what holds its bytes.
#[derive(Debug)]
pub struct PlannedDisk {
    /// The manifest's name for it.
    pub name: String,
    /// What holds its bytes.
    pub backing: Backing,
    /// The guest may not write.
    pub readonly: bool,
    /// Serial number the guest reads.
    pub serial: Option<String>,
}

/// What holds a disk's bytes.
pub enum Backing {
    /// A file or block device of the host, written in place.
    File(PathBuf),
    /// A shared, read-only base: what the guest writes is kept apart and dies with the machine.
    Base(PathBuf),
    /// A small read-only image in memory.
    Memory(Vec<u8>),
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Base(path) => f.debug_tuple("Base").field(path).finish(),
            // A seed holds passwords; they have no business in a log.
            Self::Memory(bytes) => write!(f, "Memory({} bytes)", bytes.len()),
        }
    }
}

/// A listening socket of the host and the guest's port behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the host listens.
    pub bind: SocketAddr,
    /// Where the guest listens.
    pub guest_port: u16,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bind, self.protocol)
    }
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off, of itself or on SIGTERM.
    PoweredOff,
    /// The guest rebooted and `rebootPolicy` is Terminate.
    Rebooted,
    /// The grace period was over before the guest was off.
    Forced,
    /// The guest crashed: a triple fault, an instruction KVM cannot run.
    Crashed(String),
}

/// Where each port of the manifest is published: as `publish` says, else on 127.0.0.1 under its
/// own number.
pub fn forwards(machine: &Machine, publish: &[Forward]) -> Vec<Forward> {
    if !publish.is_empty() {
        return publish.to_vec();
    }
    let ports = machine.interface.iter().flat_map(|i| &i.ports);
    ports
        .map(|p| Forward {
            protocol: p.protocol,
            bind: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), p.port),
            guest_port: p.port,
        })
        .collect()
}

/// Reads podman's spelling, `[IP:]HOSTPORT:GUESTPORT[/tcp|udp]`; an IPv6 address is in brackets.
/// Without an address it is 127.0.0.1.
pub fn parse_publish(text: &str) -> Result<Forward, String> {
    let usage = || "expected [IP:]HOSTPORT:GUESTPORT[/tcp|udp]".to_owned();
    let (rest, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((rest, "tcp")) => (rest, Protocol::Tcp),
        Some((rest, "udp")) => (rest, Protocol::Udp),
        Some((_, other)) => return Err(format!("`{other}` is neither tcp nor udp")),
    };
    let (rest, guest) = rest.rsplit_once(':').ok_or_else(usage)?;
    let (ip, host) = match rest.rsplit_once(':') {
        None => (Ipv4Addr::LOCALHOST.into(), rest),
        Some((ip, host)) => {
            let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
            let parsed: Result<IpAddr, _> = bare.unwrap_or(ip).parse();
            let ip = parsed.map_err(|_| format!("`{ip}` is not an IP address"))?;
            if ip.is_ipv6() && bare.is_none() {
                return Err("an IPv6 address is written in brackets".to_owned());
            }
            (ip, host)
        }
    };
    let port = |text: &str| {
        let number = text.parse().ok().filter(|p| *p != 0);
        number.ok_or_else(|| format!("`{text}` is not a port (1 to 65535)"))
    };
    Ok(Forward {
        protocol,
        bind: SocketAddr::new(ip, port(host)?),
        guest_port: port(guest)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publish_is_spelled_as_podman_spells_it() {
        let show = |text| {
            parse_publish(text)
                .map(|f| format!("{f} {}", f.guest_port))
                .unwrap_or_else(|e| e)
        };
        for (text, want) in [
            ("8080:80", "127.0.0.1:8080/tcp 80"),
            ("0.0.0.0:8080:80/udp", "0.0.0.0:8080/udp 80"),
            ("[::1]:8080:80/tcp", "[::1]:8080/tcp 80"),
            ("80", "expected [IP:]HOSTPORT:GUESTPORT[/tcp|udp]"),
            ("0:80", "`0` is not a port (1 to 65535)"),
            ("80:65536", "`65536` is not a port (1 to 65535)"),
            ("80:80/sctp", "`sctp` is neither tcp nor udp"),
            ("host:80:80", "`host` is not an IP address"),
            ("::1:80:80", "an IPv6 address is written in brackets"),
        ] {
            assert_eq!(show(text), want, "{text}");
        }
    }

    #[test]
    fn a_seed_is_never_printed() {
        let text = format!("{:?}", Backing::Memory(b"password".to_vec()));
        assert_eq!(text, "Memory(8 bytes)");
    }
}
