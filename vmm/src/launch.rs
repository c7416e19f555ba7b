//! A plan into a running machine, and its end into an outcome.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Instant, SystemTime};

use netdev::forward::ForwardError;
use netdev::socket::Listener;

use crate::agent::program::Programs;
use crate::agent::{Agent, Follower};
use crate::api::door::Door;
use crate::api::{self, Api};
use crate::boot::smbios::{Chassis, Identity};
use crate::console::{Console, Port};
use crate::devices::bus::WindowError;
use crate::devices::virtio::block::disk::DiskError;
use crate::devices::virtio::vsock;
use crate::devices::watchdog::Fired;
use crate::domain::Domain;
use crate::machine::still::Errands;
use crate::machine::{Config, Machine, MachineError, Start, memory};
use crate::plan::{Outcome, Plan};
use crate::power::{self, Power};
use crate::program::Program;
use crate::resident::Resident;
use crate::running::{Running, Source};
use crate::spans::{self, Times};
use crate::vmi::RebootPolicy;
use crate::{host, sandbox};

mod devices;
mod sockets;
mod stop;

use devices::Parts;
pub use stop::{Stopper, block_signals, signals};

/// Lines of the console that are shown when the guest's kernel has panicked.
const LAST_LINES: usize = 60;

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
    /// No random number.
    #[error("cannot read /dev/urandom: {0}")]
    Generation(io::Error),
    /// Our own memory cannot be looked at.
    #[error("cannot look at our own memory in /proc/self: {0}")]
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

/// Starts the machine and stays with it until it has ended for good.
/// A door that is open already lets virt-handler ask about it.
pub fn launch(plan: Plan, mut door: Option<Door>) -> Result<Outcome, Error> {
    let result = start(&plan, door.as_mut());
    if let Some(door) = door {
        door.close(result.as_ref().map_err(ToString::to_string));
    }
    if let Err(error) = sockets::remove(&plan.state_dir) {
        tracing::warn!("cannot tidy {}: {error}", plan.state_dir.display());
    }
    result
}

fn start(plan: &Plan, door: Option<&mut Door>) -> Result<Outcome, Error> {
    let launched = SystemTime::now();
    netdev::process::make_room_for_descriptors();
    netdev::process::give_large_buffers_back();
    block_signals().map_err(Error::Signals)?;
    let (agent, streams) = Agent::new();
    let config = Config {
        topology: plan.machine.topology,
        memory: plan.machine.memory,
        kernel: plan.kernel.clone(),
        initramfs: plan.initramfs.clone(),
        cmdline: cmdline(plan),
        identity: identity(plan),
        generation: host::random().map_err(Error::Generation)?,
    };
    let screen = Console::default();
    let Parts {
        network,
        qga,
        balloon,
        disks,
        layers,
        devices,
    } = devices::parts(plan, agent.clone(), &screen, &config.cmdline)?;
    // Whatever it begins with, a guest that reboots has its kernel loaded.
    let mut restored = plan.restored.as_ref();
    let resident = Resident::open().map_err(Error::Resident)?;
    let program = Program::find();
    if restored.is_some() {
        agent.is_a_copy(host::random().map_err(Error::Generation)?);
        tracing::info!("restoring {}", plan.boots);
    } else {
        tracing::info!("booting {}", plan.boots);
    }
    for forward in &plan.forwards {
        tracing::info!(
            "{} is the guest's port {}",
            forward.bind,
            forward.guest_port
        );
    }
    if let Some(network) = &network {
        let mut addresses = Vec::new();
        if plan.forwards.is_empty() {
            let published = match plan.has_agent {
                true => "those that the guest's agent reports are published",
                false => {
                    "none is published, unless an agent of Peapod's that the disk has reports some"
                }
            };
            tracing::info!("no port is declared: {published}");
            addresses.clone_from(&plan.listen_at);
        }
        agent.follow_by(Follower::new(network.clone(), addresses));
    }
    let socket = Listener::bind(&plan.state_dir.join(api::SOCKET), true).map_err(Error::Socket)?;
    let probes = plan.probes.map(|at| {
        let listener = TcpListener::bind(at);
        listener.map_err(|error| Error::Probes(at, error))
    });
    let probes = probes.transpose()?;
    let console = &plan.offered.console;
    let console = console.as_deref().map(offer_console).transpose()?;
    let (console, log) = console.unzip();
    if let Some(path) = &plan.offered.readiness {
        File::create(path).map_err(|error| Error::Offer(path.clone(), error))?;
    }
    let kvm = Arc::new(host::open_kvm()?);
    enter_sandbox(plan)?;
    agent.listen_to(streams).map_err(Error::Agent)?;
    if let Some(qga) = &qga {
        qga.watch().map_err(Error::Agent)?;
    }
    let stopper = stop::Stopper::start(agent.clone(), qga.clone()).map_err(Error::Signals)?;
    let running = Arc::new(Running {
        name: plan.machine.name.clone(),
        namespace: plan.machine.namespace.clone(),
        uuid: plan.machine.uuid.clone(),
        boots: plan.boots.clone(),
        vcpus: plan.machine.topology.vcpus(),
        memory: plan.machine.memory,
        started: Instant::now(),
        times: Times {
            begun: plan.begun,
            launched,
            entered: OnceLock::new(),
        },
        has_agent: plan.has_agent,
        agent: agent.clone(),
        qga: qga.clone(),
        stopper: stopper.clone(),
        console: screen,
        network,
        balloon,
        disks,
        resident,
        complaints: devices.iter().map(|d| d.complaints.clone()).collect(),
        exits: Arc::default(),
        power: Mutex::default(),
        source: Source {
            line: plan.line.clone(),
            layers,
            kept: plan.kept(),
        },
        errands: Errands::default(),
    });
    let console = console.as_ref().map(Listener::get).zip(log);
    let fired = Fired::default();
    let api = Api::start(running.clone(), socket.get(), probes, console).map_err(Error::Api)?;
    api.spawn(program.let_go_after_the_boot(running.clone()));
    // A copy of a guest has not booted.
    if restored.is_none() {
        match spans::Asked::from_environment() {
            Ok(Some(asked)) => api.spawn(spans::export(asked, running.clone())),
            Ok(None) => {}
            Err(why) => tracing::warn!("{why}"),
        }
    }
    if let Some(door) = door {
        let domain = Domain::of(plan, door.uid());
        let asked = Programs::at(plan.state_dir.join(vsock::SOCKET)).or(qga);
        let served = door.serve(running.clone(), domain, asked);
        served.map_err(Error::Api)?;
    }
    loop {
        let power = Power::default();
        agent.watch(power.clone());
        stopper.watch(power.clone(), plan.machine.termination_grace);
        running.watch(power.clone());
        let restored = restored.take();
        let origin = match (restored, plan.machine.huge_pages) {
            (Some(from), _) => memory::Origin::Snapshot(&from.memory),
            (None, Some(pages)) => memory::Origin::HugePages(pages.bytes()),
            (None, None) => memory::Origin::Host,
        };
        let memory = memory::map(config.memory, origin).map_err(MachineError::from)?;
        let mut machine = Machine::new(
            kvm.clone(),
            memory,
            power,
            running.console.screen(Port::Serial, io::stdout()),
            running.console.keyboard(Port::Serial),
        )?;
        running.console.attach(Port::Serial, machine.serial());
        machine.count_exits(running.exits.clone());
        let root = devices::plug(&mut machine, &devices)?;
        if let Some(action) = plan.machine.watchdog {
            let (stopper, fired) = (stopper.clone(), fired.clone());
            devices::plug_watchdog(&root, &machine, action, stopper, fired)
                .map_err(Error::Device)?;
        }
        let start = match restored {
            Some(from) => Start::Restored(&from.snapshot.machine),
            None => Start::Kernel,
        };
        running.times.entered.get_or_init(SystemTime::now);
        let outcome = machine.run(&config, start, &running.errands)?;
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

/// Listens for who wants the console, and makes the file beside it with what the guest writes.
fn offer_console(path: &Path) -> Result<(Listener, File), Error> {
    let listener = Listener::bind(path, true).map_err(Error::Socket)?;
    let mut log = path.to_owned().into_os_string();
    log.push("-log");
    let log = PathBuf::from(log);
    let file = File::create(&log).map_err(|error| Error::Offer(log, error))?;
    Ok((listener, file))
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

/// The kernel's command line: its own, where it is the disk's; else the serial console, the root that
/// the manifest's boot order names, and no tests of the kernel's own ciphers, which take a good part of
/// a short boot.
fn cmdline(plan: &Plan) -> String {
    let root = plan.machine.root_disk().unwrap_or(0);
    let letter = char::from(b'a' + u8::try_from(root).unwrap_or(0).min(25));
    let mut line = match &plan.cmdline {
        Some(own) => own.clone(),
        None => format!(
            "console=ttyS0 quiet panic=-1 cryptomgr.notests root=/dev/vd{letter} rootfstype=ext4 rw"
        ),
    };
    if plan.seed.is_some() {
        line.push_str(" ds=nocloud;s=vsock:");
    }
    if let Some(append) = &plan.append {
        line.push(' ');
        line.push_str(append);
    }
    line
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
