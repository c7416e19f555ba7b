//! What a manifest asks for, as plain data.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::kubernetes::ForPod;
use crate::topology::Topology;

/// A machine as its manifest describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`, `default` where absent.
    pub namespace: String,
    /// `firmware.uuid`, or one made of namespace and name; lower case, hyphenated.
    pub uuid: String,
    /// `domain.cpu`'s sockets, cores and threads.
    pub topology: Topology,
    /// The guest's memory in bytes, a multiple of 4096.
    pub memory: u64,
    /// `memory.hugepages.pageSize`, of which the memory is a multiple.
    pub huge_pages: Option<HugePages>,
    /// In the order of the manifest: the guest sees vda, vdb, ...
    pub disks: Vec<Disk>,
    /// The one interface on the pod's network; `None` only by `autoattachPodInterface: false`.
    pub interface: Option<Interface>,
    /// The guest's host name: `spec.hostname` or the name.
    pub hostname: String,
    /// `spec.subdomain`: the guest is `<hostname>.<subdomain>.<namespace>.svc.<cluster domain>`.
    pub subdomain: Option<String>,
    /// How long a clean stop may take before force is used; KubeVirt's default is 30 s.
    pub termination_grace: Duration,
    /// What a guest's reboot does.
    pub reboot_policy: RebootPolicy,
    /// `firmware.serial`, the machine's serial number.
    pub serial: Option<String>,
    /// `domain.chassis`.
    pub chassis: Chassis,
    /// `firmware.kernelBoot`.
    pub kernel_boot: Option<KernelBoot>,
    /// `firmware.bootloader.efi`: UEFI starts the root disk's own boot loader.
    pub efi: bool,
    /// `devices.rng` was given. (Peapod's machine always has one.)
    pub rng: bool,
    /// `autoattachMemBalloon`: unless told otherwise there is one.
    pub balloon: bool,
    /// `devices.blockMultiQueue`: a disk has a queue for each vCPU.
    pub block_multi_queue: bool,
    /// `devices.watchdog`: what happens to a guest that does not feed it.
    pub watchdog: Option<WatchdogAction>,
    /// What the machine has nothing to do with.
    pub for_pod: ForPod,
}

/// The huge pages that a guest's memory is made of, of those that the host has set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// 2 MiB each.
    Of2Mi,
    /// 1 GiB each.
    Of1Gi,
}

impl HugePages {
    /// The one of that size.
    pub fn of(bytes: u64) -> Option<Self> {
        [Self::Of2Mi, Self::Of1Gi]
            .into_iter()
            .find(|pages| pages.bytes() == bytes)
    }

    /// The size of one.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Of2Mi => 2 << 20,
            Self::Of1Gi => 1 << 30,
        }
    }

    /// As Kubernetes calls a resource of them.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Of2Mi => "hugepages-2Mi",
            Self::Of1Gi => "hugepages-1Gi",
        }
    }
}

impl Source {
    /// Whether nobody would read what a guest writes to it.
    pub fn is_readonly(&self) -> bool {
        matches!(self, Self::Seed { .. } | Self::Keys { .. })
    }
}

impl Machine {
    /// What the machine costs beyond its guest's memory at most, in bytes: our code and heap, page
    /// tables for the guest, the host's and KVM's, and a thousand connections with data under way
    /// (docs/pod.md).
    pub fn overhead(&self) -> u64 {
        const MIB: u64 = 1 << 20;
        // With what is in buffers of theirs: launch::devices::BUFFERS.
        const CONNECTIONS: u64 = 1000 * (40 << 10);
        20 * MIB + u64::from(self.topology.vcpus()) * MIB + self.memory / 256 + CONNECTIONS
    }

    /// Whose token a disk carries.
    pub fn service_account(&self) -> Option<&str> {
        self.disks.iter().find_map(|disk| match &disk.source {
            Source::Keys {
                of: Keyed::ServiceAccount,
                name,
                ..
            } => Some(&**name),
            _ => None,
        })
    }

    /// The public keys that seeds carry.
    pub fn ssh_keys(&self) -> impl Iterator<Item = &SshKeys> {
        self.disks.iter().flat_map(|disk| match &disk.source {
            Source::Seed { keys, .. } => &keys[..],
            _ => &[],
        })
    }

    /// The ports that the manifest declares.
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.interface.iter().flat_map(|interface| &interface.ports)
    }

    /// Index of the disk to boot from: the lowest `bootOrder`, else the first that is neither made by
    /// us nor empty.
    pub fn root_disk(&self) -> Option<usize> {
        let candidates = || {
            let all = self.disks.iter().enumerate();
            let bootable = |source: &Source| {
                !matches!(
                    source,
                    Source::Seed { .. } | Source::Keys { .. } | Source::EmptyDisk { .. }
                )
            };
            all.filter(move |(_, d)| bootable(&d.source))
        };
        candidates()
            .filter_map(|(i, d)| d.boot_order.map(|order| (order, i)))
            .min()
            .map(|(_, i)| i)
            .or_else(|| candidates().next().map(|(i, _)| i))
    }
}

/// The case that the guest is told its machine is in; empty texts are not told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chassis {
    /// `manufacturer`.
    pub manufacturer: String,
    /// `version`.
    pub version: String,
    /// `serial`.
    pub serial: String,
    /// `asset`.
    pub asset: String,
    /// `sku`.
    pub sku: String,
}

/// A kernel in a container image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelBoot {
    /// Reference of the container image.
    pub image: String,
    /// The kernel's path in it.
    pub kernel: String,
    /// The initramfs's.
    pub initrd: Option<String>,
    /// The kernel's command line.
    pub arguments: String,
}

/// One virtio-blk disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its name, which is its volume's too unless it has a `volumeName`.
    pub name: String,
    /// What is on it.
    pub source: Source,
    /// The guest may not write.
    pub readonly: bool,
    /// Serial number the guest reads (VIRTIO 1.2, 5.2.6.1: at most 20 bytes).
    pub serial: Option<String>,
    /// `bootOrder`, from 1.
    pub boot_order: Option<u32>,
    /// `io: threads`: its files are asked by threads, though io_uring may be there.
    pub threads: bool,
}

/// Where a disk's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file of the host, written in place.
    HostDisk {
        /// As the manifest has it.
        path: PathBuf,
        /// Whether it may be created.
        kind: HostDiskType,
        /// Size in bytes where it is to be created.
        capacity: Option<u64>,
    },
    /// A disk image in a container image; the guest's writes die with the machine.
    ContainerDisk {
        /// The volume's name, and its index among the manifest's volumes.
        volume: (String, usize),
        /// Reference of the container image.
        image: String,
        /// Path of the disk in it; the only file below /disk where absent.
        path: Option<String>,
    },
    /// An empty disk, which dies with the machine.
    EmptyDisk {
        /// Its size in bytes.
        capacity: u64,
    },
    /// The disk image in a volume that a PersistentVolumeClaim stands for.
    Claim {
        /// The volume's name, after which KubeVirt names its place.
        volume: String,
        /// `claimName`.
        claim: String,
        /// The guest's writes die with the machine.
        ephemeral: bool,
    },
    /// The keys of a ConfigMap, a Secret or the like as files, on a disk made by us.
    Keys {
        /// The volume's name, after which KubeVirt names its place.
        volume: String,
        /// Of which of them.
        of: Keyed,
        /// Its name.
        name: String,
        /// Whether the disk is empty where there is none.
        optional: bool,
        /// The file system's label.
        label: String,
        /// Of a downward API, which fields: as a pod's volume has them.
        fields: serde_json::Value,
        /// What is in it, where it is in the manifest's own file.
        files: Option<BTreeMap<String, Vec<u8>>>,
    },
    /// A seed of cloud-init's, made by us.
    Seed {
        /// In which of its forms.
        form: SeedForm,
        /// `user-data`, decoded.
        user_data: Vec<u8>,
        /// `network-config`, decoded.
        network_data: Option<Vec<u8>>,
        /// Of `accessCredentials`.
        keys: Vec<SshKeys>,
    },
}

/// Public keys of SSH, for the guest's default user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshKeys {
    /// The Secret that they are in.
    pub secret: String,
    /// What is in it, where it is in the manifest's own file.
    pub files: Option<BTreeMap<String, Vec<u8>>>,
}

/// What has keys that a guest finds as files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyed {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
    /// The token of the pod's service account, with what belongs to it.
    ServiceAccount,
    /// Fields of the pod.
    DownwardApi,
}

impl std::fmt::Display for Keyed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::ServiceAccount => "service account",
            Self::DownwardApi => "downward API",
        })
    }
}

/// Where cloud-init looks for what on a seed's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeedForm {
    /// `cloudInitNoCloud`.
    NoCloud,
    /// `cloudInitConfigDrive`, OpenStack's.
    ConfigDrive,
}

/// `hostDisk.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostDiskType {
    /// The file must exist.
    Disk,
    /// A sparse file of the capacity is made where none exists.
    DiskOrCreate,
}

/// The guest's interface on the pod's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name and its network's.
    pub name: String,
    /// Which numbers the guest gets.
    pub binding: Binding,
    /// The network that it is in.
    pub cidrs: Cidrs,
    /// MAC address, where the manifest gives one.
    pub mac: Option<[u8; 6]>,
    /// What is forwarded into the guest.
    pub ports: Vec<Port>,
}

/// The guest's network: its first address is the gateway, its second the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidrs {
    /// `pod.vmNetworkCIDR`: its address and the bits of its prefix.
    pub v4: (Ipv4Addr, u8),
    /// `pod.vmIPv6NetworkCIDR`.
    pub v6: (Ipv6Addr, u8),
}

impl Default for Cidrs {
    fn default() -> Self {
        Self {
            v4: (Ipv4Addr::new(10, 0, 2, 0), 24),
            v6: (Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 0), 120),
        }
    }
}

/// How the interface is bound to the pod's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// KubeVirt's numbers: 10.0.2.2/24 behind 10.0.2.1, unless the network says otherwise.
    Masquerade,
    /// 10.0.2.15/24 behind 10.0.2.2, QEMU's numbers.
    Slirp,
    /// The pod's own, behind its own gateway.
    Passt,
}

/// A port of the guest that the pod answers on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name, where given.
    pub name: Option<String>,
    /// 1 to 65535.
    pub port: u16,
    /// TCP unless said otherwise.
    pub protocol: Protocol,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// `domain.rebootPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebootPolicy {
    /// The machine is reset in place and boots again (KubeVirt's default).
    Reboot,
    /// The machine ends.
    Terminate,
}

/// `watchdog.i6300esb.action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchdogAction {
    /// The machine is reset.
    Reset,
    /// The machine is switched off.
    PowerOff,
    /// The guest is asked to power off, and switched off when its grace period is over.
    Shutdown,
}
