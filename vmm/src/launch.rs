//! A plan into a running machine, and its end into an outcome.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use netdev::config::Network;
use netdev::control::Control;
use netdev::engine::Engine;
use netdev::forward::ForwardError;
use netdev::pod::Pod;
use netdev::socket::Listener;
use netdev::wire::Mac;

use crate::agent::{Agent, Follower};
use crate::api::{self, Api};
use crate::boot::smbios::{Chassis, Identity};
use crate::console::Console;
use crate::devices::bus::WindowError;
use crate::devices::pci::Address;
use crate::devices::pci::branch::{self, Bridge};
use crate::devices::pci::bridge::HostBridge;
use crate::devices::pci::root::Root;
use crate::devices::pvpanic::PvPanic;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::{self, Balloon};
use crate::devices::virtio::block::Block;
use crate::devices::virtio::block::disk::DiskError;
use crate::devices::virtio::net::Net;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::transport::{BAR_LEN, PciTransport, SharedVirtio};
use crate::devices::virtio::trouble::Complaints;
use crate::machine::{Config, Machine, MachineError, memory};
use crate::plan::{Outcome, Plan};
use crate::power::{self, Power};
use crate::resident::Resident;
use crate::running::Running;
use crate::vmi::{self, Binding, RebootPolicy};
use crate::{disks, host, sandbox};

mod sockets;
mod stop;

pub use stop::Stopper;

// Fixed slots, so that a device keeps its name in the guest.
const NET_SLOT: u8 = 1;
const VSOCK_SLOT: u8 = 2;
const RNG_SLOT: u8 = 3;
const FIRST_DISK_SLOT: u8 = 4;
const BALLOON_SLOT: u8 = 30;
const PANIC_SLOT: u8 = 31;
/// Lines of the console that are shown when the guest's kernel has panicked.
const LAST_LINES: usize = 60;
const CONFIG_PORTS: (u64, u64) = (0xcf8, 8);

/// Why a machine could not be started or kept running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A port.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] host::KvmError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Two devices at one address.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// A device could not be plugged in.
    #[error("cannot plug in a device: {0}")]
    Device(io::Error),
    /// Our own memory cannot be looked at.
    #[error("cannot read /proc/self/statm: {0}")]
    Resident(io::Error),
    /// The pod's network cannot be looked at.
    #[error("cannot read the pod's addresses and routes: {0}")]
    Network(io::Error),
    /// The guest's sockets.
    #[error("cannot make the guest's sockets in {0}: {1}")]
    Vsock(PathBuf, io::Error),
    /// No thread for the agent.
    #[error("cannot listen to the guest's agent: {0}")]
    Agent(io::Error),
    /// The API's socket.
    #[error("cannot make the API's socket: {0}")]
    Socket(String),
    /// The address of the probes.
    #[error("cannot listen for probes at {0}: {1}")]
    Probes(SocketAddr, io::Error),
    /// A file for others.
    #[error("cannot make {0}: {1}")]
    Offer(PathBuf, io::Error),
    /// No sandbox.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// No threads for the API.
    #[error("cannot serve the API: {0}")]
    Api(io::Error),
    /// Signals could not be caught.
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
}

impl Error {
    /// Whether it is the input's fault, and nothing was started.
    pub fn is_bad_input(&self) -> bool {
        matches!(
            self,
            Self::Disk(_) | Self::Forward(_) | Self::Kvm(_) | Self::Probes(..)
        )
    }
}

/// A device in its slot. It belongs to the process: a guest's reset makes the machine anew round it.
struct Plugged {
    slot: u8,
    device: SharedVirtio,
    complaints: Arc<Complaints>,
}

impl Plugged {
    fn new(
        slot: u8,
        (kind, name): (&'static str, &str),
        device: impl VirtioDevice + 'static,
    ) -> Self {
        Self {
            slot,
            device: Arc::new(Mutex::new(device)),
            complaints: Complaints::new(kind, name),
        }
    }
}

type Devices = Vec<Plugged>;

/// Starts the machine and stays with it until it has ended for good.
pub fn launch(plan: Plan) -> Result<Outcome, Error> {
    let result = start(&plan);
    if let Err(error) = sockets::remove(&plan.state_dir) {
        tracing::warn!("cannot tidy {}: {error}", plan.state_dir.display());
    }
    result
}

fn start(plan: &Plan) -> Result<Outcome, Error> {
    netdev::process::raise_descriptor_limit();
    stop::block_signals().map_err(Error::Signals)?;
    let (agent, streams) = Agent::new();
    let config = Config {
        vcpus: plan.machine.vcpus,
        memory: plan.machine.memory,
        kernel: plan.kernel.clone(),
        initramfs: plan.initramfs.clone(),
        cmdline: cmdline(plan),
        identity: identity(plan),
    };
    let Parts {
        network,
        balloon,
        devices,
    } = parts(plan, agent.clone())?;
    let resident = Resident::open().map_err(Error::Resident)?;
    tracing::info!("booting {}", plan.boots);
    for forward in &plan.forwards {
        tracing::info!(
            "{} is the guest's port {}",
            forward.bind,
            forward.guest_port
        );
    }
    if let (Some(network), []) = (&network, &plan.forwards[..]) {
        tracing::info!("no port is declared: those that the guest's agent reports are published");
        agent.publish_by(Follower::new(network.clone(), plan.addresses.clone()));
    }
    let socket = Listener::bind(&plan.state_dir.join(api::SOCKET), true).map_err(Error::Socket)?;
    let probes = plan.probes.map(|at| {
        let listener = TcpListener::bind(at);
        listener.map_err(|error| Error::Probes(at, error))
    });
    let probes = probes.transpose()?;
    let console = &plan.offered.console;
    let console = console.as_deref().map(|path| Listener::bind(path, true));
    let console = console.transpose().map_err(Error::Socket)?;
    if let Some(path) = &plan.offered.readiness {
        File::create(path).map_err(|error| Error::Offer(path.clone(), error))?;
    }
    let kvm = Arc::new(host::open_kvm()?);
    enter_sandbox(plan)?;
    agent.listen_to(streams).map_err(Error::Agent)?;
    let stopper = stop::Stopper::start(agent.clone()).map_err(Error::Signals)?;
    let running = Arc::new(Running {
        name: plan.machine.name.clone(),
        namespace: plan.machine.namespace.clone(),
        uuid: plan.machine.uuid.clone(),
        boots: plan.boots.clone(),
        vcpus: plan.machine.vcpus,
        memory: plan.machine.memory,
        started: Instant::now(),
        agent: agent.clone(),
        stopper: stopper.clone(),
        console: Console::default(),
        network,
        balloon,
        resident,
        complaints: devices.iter().map(|d| d.complaints.clone()).collect(),
        exits: Arc::default(),
        power: Mutex::default(),
    });
    let console = console.as_ref().map(Listener::get);
    let _api = Api::start(running.clone(), socket.get(), probes, console).map_err(Error::Api)?;
    loop {
        let power = Power::default();
        agent.watch(power.clone());
        stopper.watch(power.clone(), plan.machine.termination_grace);
        running.watch(power.clone());
        let mut machine = Machine::new(
            kvm.clone(),
            config.memory,
            power,
            running.console.screen(io::stdout()),
            running.console.keyboard(),
        )?;
        running.console.attach(machine.serial());
        machine.count_exits(running.exits.clone());
        let root = plug(&mut machine, &devices)?;
        let outcome = machine.run(&config)?;
        root.reset();
        let restart = plan.machine.reboot_policy == RebootPolicy::Reboot;
        return Ok(match outcome {
            power::Outcome::PowerOff => Outcome::PoweredOff,
            power::Outcome::Reset if restart && !stopper.is_stopping() => {
                tracing::info!("the guest reboots");
                continue;
            }
            // It was asked to stop and chose to restart: it has stopped.
            power::Outcome::Reset if stopper.is_stopping() => Outcome::PoweredOff,
            power::Outcome::Reset => Outcome::Rebooted,
            power::Outcome::Crash(crash) => Outcome::Crashed(crash.to_string()),
            power::Outcome::Panic => Outcome::Panicked(running.console.last_lines(LAST_LINES)),
            power::Outcome::GaveUp(reason) => Outcome::Crashed(reason),
            power::Outcome::Stopped => Outcome::Forced,
        });
    }
}

/// Confines the process, unless told not to. All that a machine needs is open by now, also when
/// it starts anew.
fn enter_sandbox(plan: &Plan) -> Result<(), Error> {
    if !plan.sandbox {
        tracing::warn!("no sandbox: a guest that breaks out of KVM or a device has what you have");
        return Ok(());
    }
    let write = [&plan.state_dir].into_iter().chain(&plan.writable);
    let files = sandbox::Files {
        write: write.cloned().collect(),
        tidied: plan.entry.as_ref().map(|entry| entry.home().to_owned()),
    };
    let strength = sandbox::enter(&files)?;
    tracing::debug!("sandbox: {strength}");
    Ok(())
}

/// The kernel's command line: its own, where it is the disk's; else the serial console, and the
/// root that the manifest's boot order names.
fn cmdline(plan: &Plan) -> String {
    let root = plan.machine.root_disk().unwrap_or(0);
    let letter = char::from(b'a' + u8::try_from(root).unwrap_or(0).min(25));
    let mut line = match &plan.cmdline {
        Some(own) => own.clone(),
        None => format!("console=ttyS0 quiet panic=-1 root=/dev/vd{letter} rootfstype=ext4 rw"),
    };
    if let Some(append) = &plan.append {
        line.push(' ');
        line.push_str(append);
    }
    line
}

/// What the guest is given, and handles on what is led from outside.
struct Parts {
    network: Option<Control>,
    balloon: Option<balloon::Control>,
    devices: Devices,
}

fn parts(plan: &Plan, agent: Agent) -> Result<Parts, Error> {
    let mut devices: Devices = Vec::new();
    let mut network = None;
    if let Some(interface) = &plan.machine.interface {
        let pod = Pod::open().map_err(Error::Network)?;
        let mac = interface
            .mac
            .unwrap_or_else(|| derived_mac(&plan.machine.uuid));
        // A guest that believes in a way that the pod has not would wait for it. Where the pod has
        // none at all, its own ports are still to be reached.
        let only_v6 = pod.has_route(true) && !pod.has_route(false);
        let needs_v4 = !only_v6 || plan.forwards.iter().any(|f| f.bind.is_ipv4());
        let v4 = match interface.binding {
            Binding::Masquerade => needs_v4.then_some(Network::<Ipv4Addr>::MASQUERADE),
            Binding::Slirp => Some(Network::<Ipv4Addr>::SLIRP),
        };
        let v6 = (interface.binding == Binding::Masquerade && pod.has_route(true))
            .then_some(Network::<Ipv6Addr>::MASQUERADE);
        let (hostname, forwards) = (plan.machine.hostname.clone(), plan.forwards.clone());
        let config = plan.network.config(&pod, (v4, v6), hostname, forwards);
        let mtu = config.mtu;
        let engine = Engine::new(config)?;
        network = Some(engine.control());
        let net = Net::new(engine, mac, mtu);
        devices.push(Plugged::new(NET_SLOT, ("net", ""), net));
    }
    let vsock = sockets::vsock(agent, &plan.state_dir)
        .map_err(|error| Error::Vsock(plan.state_dir.clone(), error))?;
    devices.push(Plugged::new(VSOCK_SLOT, ("vsock", ""), vsock));
    devices.push(Plugged::new(RNG_SLOT, ("rng", ""), Rng::default()));
    for (slot, disk) in (FIRST_DISK_SLOT..).zip(&plan.disks) {
        let serial = disk.serial.clone().unwrap_or_default();
        let open = disks::open(disk, &plan.backing_dirs, &plan.state_dir)?;
        let name = ("block", disk.name.as_str());
        devices.push(Plugged::new(slot, name, Block::new(open, &serial)));
    }
    let balloon = plan
        .machine
        .balloon
        .then(|| Balloon::new(plan.machine.memory));
    let balloon = balloon.transpose().map_err(Error::Device)?;
    let control = balloon.as_ref().map(Balloon::control);
    devices.extend(balloon.map(|balloon| Plugged::new(BALLOON_SLOT, ("balloon", ""), balloon)));
    Ok(Parts {
        network,
        balloon: control,
        devices,
    })
}

/// Who the guest is told that its machine is.
fn identity(plan: &Plan) -> Identity {
    let chassis = &plan.machine.chassis;
    let digits: String = plan.machine.uuid.split('-').collect();
    let uuid = u128::from_str_radix(&digits, 16).unwrap_or_default();
    Identity {
        uuid: uuid.to_be_bytes(),
        serial: plan.machine.serial.clone().unwrap_or_default(),
        chassis: Chassis {
            manufacturer: chassis.manufacturer.clone(),
            version: chassis.version.clone(),
            serial: chassis.serial.clone(),
            asset: chassis.asset.clone(),
            sku: chassis.sku.clone(),
        },
        oem_strings: plan.oem_strings.clone(),
    }
}

/// A MAC address that a VM keeps: locally administered, from its identifier.
fn derived_mac(uuid: &str) -> Mac {
    use sha2::{Digest, Sha256};
    let mut mac = [2, 0, 0, 0, 0, 0];
    mac.iter_mut()
        .skip(1)
        .zip(Sha256::digest(uuid))
        .for_each(|(byte, new)| *byte = new);
    mac
}

/// Puts the devices on a new machine's PCI bus.
fn plug(machine: &mut Machine, devices: &Devices) -> Result<Root, Error> {
    let root = Root::default();
    let at = |device| Address {
        bus: 0,
        device,
        function: 0,
    };
    root.insert(at(0), Arc::new(Mutex::new(HostBridge::default())));
    // Behind all that is on bus 0.
    let branch = memory::BAR_START + branch::WINDOW;
    for plugged in devices {
        let (address, bar) = match plugged.slot {
            NET_SLOT => {
                root.insert(at(NET_SLOT), Arc::new(Mutex::new(Bridge::new(branch))));
                let card = Address {
                    bus: branch::BUS,
                    ..at(0)
                };
                (card, branch)
            }
            slot => (at(slot), memory::BAR_START + u64::from(slot) * BAR_LEN),
        };
        let memory = machine.memory().clone();
        let device = (plugged.device.clone(), plugged.complaints.clone());
        let transport = PciTransport::new(device, machine.host(), memory, address, bar)
            .map_err(Error::Device)?;
        root.insert(address, Arc::new(Mutex::new(transport)));
    }
    let bar = memory::BAR_START + u64::from(PANIC_SLOT) * BAR_LEN;
    let panic = PvPanic::new(machine.power(), bar);
    root.insert(at(PANIC_SLOT), Arc::new(Mutex::new(panic)));
    let bars = memory::ECAM_START - memory::BAR_START;
    machine.ports().insert(
        CONFIG_PORTS.0,
        CONFIG_PORTS.1,
        Arc::new(Mutex::new(root.ports())),
    )?;
    let front = Arc::new(Mutex::new(root.memory(memory::BAR_START)));
    machine.mmio().insert(memory::BAR_START, bars, front)?;
    let ecam = Arc::new(Mutex::new(root.ecam()));
    machine
        .mmio()
        .insert(memory::ECAM_START, memory::ECAM_LEN, ecam)?;
    Ok(root)
}

const _: () = assert!(32 * BAR_LEN <= branch::WINDOW);
const _: () = assert!(vmi::MAX_DISKS + FIRST_DISK_SLOT as usize <= BALLOON_SLOT as usize);
