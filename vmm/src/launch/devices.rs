//! The devices of a machine, and where each is on its PCI bus.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use netdev::control::Control;
use netdev::engine::Engine;
use netdev::pod::Pod;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Error, Stopper, sockets};
use crate::agent::Agent;
use crate::agent::qga::{self, Qga};
use crate::console::{Console as Screen, Port};
use crate::devices::pci::Address;
use crate::devices::pci::branch::{self, Bridge};
use crate::devices::pci::bridge::HostBridge;
use crate::devices::pci::root::Root;
use crate::devices::pvpanic::PvPanic;
use crate::devices::terminal::Refill;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::{self, Balloon};
use crate::devices::virtio::block::Block;
use crate::devices::virtio::block::counters::Counters;
use crate::devices::virtio::block::limit::Limiter;
use crate::devices::virtio::console::{Console, Terminal};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::transport::{BAR_LEN, PciTransport, SharedVirtio};
use crate::devices::virtio::trouble::Complaints;
use crate::devices::watchdog::{Fired, Watchdog};
use crate::machine::{Machine, memory};
use crate::plan::Plan;
use crate::snapshot::layer::Layer;
use crate::vmi::{self, WatchdogAction};
use crate::{disks, power};

// Fixed slots, so that a device keeps its name in the guest.
const NET_SLOT: u8 = 1;
const VSOCK_SLOT: u8 = 2;
const RNG_SLOT: u8 = 3;
const FIRST_DISK_SLOT: u8 = 4;
const CONSOLE_SLOT: u8 = 28;
const WATCHDOG_SLOT: u8 = 29;
const BALLOON_SLOT: u8 = 30;
const PANIC_SLOT: u8 = 31;
/// What data under way in the guest's connections may take where no option says: most of what
/// [`vmi::Machine::overhead`] charges a pod for connections.
const BUFFERS: usize = 24 << 20;
const CONFIG_PORTS: (u64, u64) = (0xcf8, 8);

const _: () = assert!(32 * BAR_LEN <= branch::WINDOW);
const _: () = assert!(vmi::MAX_DISKS + FIRST_DISK_SLOT as usize <= CONSOLE_SLOT as usize);

/// A device in its slot. It belongs to the process: a guest's reset makes the machine anew round it.
pub struct Plugged {
    slot: u8,
    device: SharedVirtio,
    /// What it has to say of its driver.
    pub complaints: Arc<Complaints>,
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

/// What the guest is given, and handles on what is led from outside.
pub struct Parts {
    /// Its network, if it has one.
    pub network: Option<Control>,
    /// QEMU's agent, where Peapod's does not go in.
    pub qga: Option<Qga>,
    /// Its balloon, if it has one.
    pub balloon: Option<balloon::Control>,
    /// What is done with its disks, by name.
    pub disks: Vec<(String, Arc<Counters>)>,
    /// What is written to those that go with the VM, by name.
    pub layers: Vec<(String, Layer)>,
    /// All that virtio has.
    pub devices: Vec<Plugged>,
}

/// Opens and binds what a machine's devices need.
pub fn parts(plan: &Plan, agent: Agent, screen: &Screen, cmdline: &str) -> Result<Parts, Error> {
    let mut devices = Vec::new();
    let mut network = None;
    if let Some(interface) = &plan.machine.interface {
        let pod = Pod::open().map_err(Error::Network)?;
        let mac = plan.mac(interface);
        let (hostname, forwards) = (plan.machine.hostname.clone(), plan.forwards.clone());
        let mut config = plan
            .network
            .config(&pod, plan.addresses, hostname, forwards);
        if plan.network.buffers.is_none() {
            config.memory = BUFFERS;
        }
        let mtu = config.mtu;
        let mut engine = Engine::new(config)?;
        engine.poll_beside(plan.machine.topology.vcpus() as usize);
        network = Some(engine.control());
        let net = Net::new(engine, mac, mtu);
        devices.push(Plugged::new(NET_SLOT, ("net", ""), net));
    }
    let terminal = wants_hvc0(plan, cmdline).then(|| terminal(screen));
    let terminal = terminal.transpose().map_err(Error::Device)?;
    let pair = (!plan.has_agent).then(UnixStream::pair).transpose();
    let (ours, port) = pair.map_err(Error::Device)?.unzip();
    let mut qga = None;
    if terminal.is_some() || port.is_some() {
        let port = port.map(|port| (qga::PORT, port));
        let console = Console::new(terminal, port).map_err(Error::Device)?;
        let client = |ours| Qga::new(ours, console.open(), agent.changes().clone());
        qga = ours.map(client).transpose().map_err(Error::Device)?;
        devices.push(Plugged::new(CONSOLE_SLOT, ("console", ""), console));
    }
    let vsock = sockets::vsock(agent, plan.seed.clone(), &plan.state_dir)
        .map_err(|error| Error::Vsock(plan.state_dir.clone(), error))?;
    devices.push(Plugged::new(VSOCK_SLOT, ("vsock", ""), vsock));
    devices.push(Plugged::new(RNG_SLOT, ("rng", ""), Rng::default()));
    let (mut counted, mut layers) = (Vec::new(), Vec::new());
    let queues = match plan.machine.block_multi_queue {
        true => u16::try_from(plan.machine.topology.vcpus()).unwrap_or(u16::MAX),
        false => 1,
    };
    for (slot, disk) in (FIRST_DISK_SLOT..).zip(&plan.disks) {
        let serial = disk.serial.clone().unwrap_or_default();
        let open = disks::open(
            disk,
            &plan.backing_dirs,
            &plan.state_dir,
            plan.restored.as_ref(),
        )?;
        layers.extend(open.layer().map(|layer| (disk.name.clone(), layer)));
        let name = ("block", disk.name.as_str());
        let limiter = Limiter::new(disk.limits).map_err(Error::Device)?;
        let block = Block::new(open, &serial, limiter).with_queues(queues);
        let block = match disk.threads {
            true => block.with_threads(),
            false => block,
        };
        counted.push((disk.name.clone(), block.counters()));
        devices.push(Plugged::new(slot, name, block));
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
        qga,
        balloon: control,
        disks: counted,
        layers,
        devices,
    })
}

/// Whether the guest gets a console `hvc0`: where its kernel is to write there, or it was asked for. Any
/// other would have a second login prompt of a distribution's beside the serial port's.
fn wants_hvc0(plan: &Plan, cmdline: &str) -> bool {
    let is_hvc0 = |word: &str| {
        let console = word.strip_prefix("console=");
        console.and_then(|console| console.split(',').next()) == Some("hvc0")
    };
    plan.hvc0 || cmdline.split_whitespace().any(is_hvc0)
}

/// Our end of `hvc0`.
fn terminal(screen: &Screen) -> io::Result<Terminal> {
    let typed = EventFd::new(EFD_NONBLOCK)?;
    let bell = Arc::new(Mutex::new(Bell(typed.try_clone()?)));
    screen.attach(Port::Virtio, bell);
    Ok(Terminal {
        screen: Box::new(screen.screen(Port::Virtio, io::stdout())),
        keyboard: screen.keyboard(Port::Virtio),
        typed,
    })
}

/// Tells the console's thread that something was typed.
struct Bell(EventFd);

impl Refill for Bell {
    fn refill(&mut self) {
        // One that is full has rung.
        let _ = self.0.write(1);
    }
}

/// A slot of the first bus.
fn at(device: u8) -> Address {
    Address {
        bus: 0,
        device,
        function: 0,
    }
}

/// Puts a watchdog on a new machine's PCI bus.
pub fn plug_watchdog(
    root: &Root,
    machine: &Machine,
    action: WatchdogAction,
    stopper: Stopper,
    fired: Fired,
) -> io::Result<()> {
    let bar = memory::BAR_START + u64::from(WATCHDOG_SLOT) * BAR_LEN;
    let power = machine.power();
    let watchdog = Watchdog::new(machine.power(), fired, bar, move || {
        tracing::warn!("the guest did not feed its watchdog in time");
        match action {
            WatchdogAction::Reset => power.end(power::Outcome::Reset),
            WatchdogAction::PowerOff => power.end(power::Outcome::GaveUp(
                "it did not feed its watchdog in time".to_owned(),
            )),
            WatchdogAction::Shutdown => stopper.stop(None),
        }
    })?;
    root.insert(at(WATCHDOG_SLOT), Arc::new(Mutex::new(watchdog)));
    Ok(())
}

/// Puts the devices on a new machine's PCI bus.
pub fn plug(machine: &mut Machine, devices: &[Plugged]) -> Result<Root, Error> {
    let root = Root::default();
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
    let (high, len) = memory::high_bars(machine.memory());
    let front = Arc::new(Mutex::new(root.memory(high)));
    machine.mmio().insert(high, len, front)?;
    let ecam = Arc::new(Mutex::new(root.ecam()));
    machine
        .mmio()
        .insert(memory::ECAM_START, memory::ECAM_LEN, ecam)?;
    Ok(root)
}
