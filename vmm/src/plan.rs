//! What a run is going to be: a machine with every path found, every file looked at and every
//! port chosen. Made before anything starts, so that bad input starts nothing.

use std::fmt;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::SystemTime;

use netdev::addresses::Networks;
use netdev::config::{Forward, Transport};
use netdev::options::Options;
use netdev::publish::Publish;
use netdev::wire::Mac;
use sha2::{Digest, Sha256};

use crate::agent::seed::Seed;
use crate::boot::initramfs::Initramfs;
use crate::boot::kernel::Kernel;
use crate::devices::virtio::block::limit::Limits;
use crate::registry::Entry;
use crate::snapshot::Line;
use crate::snapshot::directory::Restored;
use crate::vmi::{Interface, Machine, Protocol};

/// Everything that `launch` needs.
#[derive(Debug)]
pub struct Plan {
    /// When it was begun.
    pub begun: SystemTime,
    /// What the manifest asks for.
    pub machine: Machine,
    /// The kernel, unpacked.
    pub kernel: Kernel,
    /// The initramfs: the one with the agent in it, or the disk's own.
    pub initramfs: Option<Initramfs>,
    /// What is booted, for a person.
    pub boots: String,
    /// Whether Peapod's agent goes in with it.
    pub has_agent: bool,
    /// The command line of a kernel that is the root disk's own, as its boot loader would start it,
    /// or the manifest's.
    pub cmdline: Option<String>,
    /// Words added to the kernel's command line.
    pub append: Option<String>,
    /// Whether it has a virtio console, `hvc0`, though nothing on that line says so.
    pub hvc0: bool,
    /// What SMBIOS tells the guest besides.
    pub oem_strings: Vec<String>,
    /// In the order of `machine.disks`.
    pub disks: Vec<PlannedDisk>,
    /// The seed, where the guest's agent asks for it over vsock and there is no disk with it.
    pub seed: Option<Seed>,
    /// Where the backing files of qcow2 images may lie.
    pub backing_dirs: Vec<PathBuf>,
    /// What listens on the host.
    pub forwards: Vec<Forward>,
    /// Where ports listen of which nobody has said where.
    pub listen_at: Vec<IpAddr>,
    /// The guest's addresses.
    pub addresses: Networks,
    /// A socket for the serial console, and a file that is made when the VM is about to run.
    pub offered: Offered,
    /// What the guest's network may do, and how.
    pub network: Options,
    /// Where a kubelet's probes are answered.
    pub probes: Option<SocketAddr>,
    /// Where sockets and the guest's scratch space go; exists.
    pub state_dir: PathBuf,
    /// Whether the process is confined.
    pub sandbox: bool,
    /// Directories that it may write to besides.
    pub writable: Vec<PathBuf>,
    /// Keeps every other VM out of the state directory while it is open.
    pub state_lock: File,
    /// By which it can be started again from a snapshot; `None` where it can't.
    pub line: Option<Line>,
    /// What it begins with, where that is not its kernel.
    pub restored: Option<Restored>,
    /// By which the VM is found while the plan lives; a state directory that is the entry goes
    /// with it.
    pub entry: Option<Entry>,
}

impl Plan {
    /// The names of the disks that stay when the VM is gone, and that the guest may write.
    pub fn kept(&self) -> Vec<String> {
        let kept = self.disks.iter().filter(|disk| disk.is_kept());
        kept.map(|disk| disk.name.clone()).collect()
    }

    /// The MAC address of the guest's card: the manifest's, or one that a VM keeps, locally
    /// administered, from its identifier.
    pub fn mac(&self, interface: &Interface) -> Mac {
        interface.mac.unwrap_or_else(|| {
            let mut mac = [2, 0, 0, 0, 0, 0];
            mac.iter_mut()
                .skip(1)
                .zip(Sha256::digest(&self.machine.uuid))
                .for_each(|(byte, new)| *byte = new);
            mac
        })
    }
}

/// What is made for others to find, where somebody has said so.
#[derive(Debug, Default)]
pub struct Offered {
    /// A unix socket on which the serial console is. Beside it, `-log` behind its name, is a file with
    /// what the guest writes.
    pub console: Option<PathBuf>,
    /// A file that is there once all has been checked and opened.
    pub readiness: Option<PathBuf>,
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
    /// How much of it a second.
    pub limits: Limits,
    /// Its files are asked by threads, though io_uring may be there.
    pub threads: bool,
}

impl PlannedDisk {
    /// Whether what the guest writes there is there when its VM is gone.
    pub fn is_kept(&self) -> bool {
        matches!(self.backing, Backing::File(..)) && !self.readonly
    }

    /// Whether what the guest writes there is no longer than its VM.
    pub fn goes_with_the_vm(&self) -> bool {
        let passing = match self.backing {
            Backing::Base(..) | Backing::ContainerDisk(..) => true,
            Backing::Empty(_) => return true,
            Backing::File(..) | Backing::Memory(_) => false,
        };
        passing && !self.readonly
    }
}

/// How a file holds a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// QEMU's image format.
    Qcow2,
}

/// What holds a disk's bytes.
pub enum Backing {
    /// A file or block device of the host, written in place.
    File(PathBuf, Format),
    /// A shared, read-only base: what the guest writes is kept apart and dies with the machine.
    Base(PathBuf, Format),
    /// The same of a container image, whose disk has all that belongs to it.
    ContainerDisk(PathBuf, Format),
    /// So many bytes of nothing, which die with the machine.
    Empty(u64),
    /// A small read-only image in memory.
    Memory(Vec<u8>),
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, format) => write!(f, "File({path:?}, {format:?})"),
            Self::Base(path, format) => write!(f, "Base({path:?}, {format:?})"),
            Self::ContainerDisk(path, format) => write!(f, "ContainerDisk({path:?}, {format:?})"),
            Self::Empty(size) => write!(f, "Empty({size})"),
            // A seed holds passwords; they have no business in a log.
            Self::Memory(bytes) => write!(f, "Memory({} bytes)", bytes.len()),
        }
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
    /// The guest's kernel panicked; the last lines of its console.
    Panicked(String),
    /// The guest crashed: a triple fault, an instruction KVM cannot run.
    Crashed(String),
}

impl Outcome {
    /// Whether a person has to be told.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Crashed(_) | Self::Panicked(_))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Rebooted => f.write_str("the guest rebooted, and its rebootPolicy is Terminate"),
            Self::Forced => f.write_str("ended by force: the guest was not off in time"),
            Self::Crashed(why) => write!(f, "the guest crashed: {why}"),
            Self::Panicked(last) => {
                write!(
                    f,
                    "the guest's kernel panicked; last on its console:\n{last}"
                )
            }
        }
    }
}

/// Where each port of the manifest is published: as `publish` says, else under its own number; at
/// `addresses` where none is said.
pub fn forwards(machine: &Machine, publish: &[Publish], addresses: &[IpAddr]) -> Vec<Forward> {
    let declared = machine.ports().map(|p| Publish {
        transport: match p.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
        },
        address: None,
        host: p.port..=p.port,
        guest: p.port,
    });
    let all: Vec<_> = if publish.is_empty() {
        declared.collect()
    } else {
        publish.to_vec()
    };
    let each = all.iter().flat_map(|p| {
        let at = |address: &IpAddr| Publish {
            address: Some(*address),
            ..p.clone()
        };
        match p.address {
            Some(_) => vec![p.clone()],
            None => addresses.iter().map(at).collect(),
        }
    });
    each.flat_map(|p| p.forwards(true, true)).collect()
}

/// As podman has it, a port is published for all the world only where somebody says so; but the
/// world of a laptop is more than a pod's.
pub fn on_loopback(publish: Publish) -> Publish {
    let address = publish.address.or(Some(Ipv4Addr::LOCALHOST.into()));
    Publish { address, ..publish }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_never_printed() {
        let text = format!("{:?}", Backing::Memory(b"password".to_vec()));
        assert_eq!(text, "Memory(8 bytes)");
    }
}
