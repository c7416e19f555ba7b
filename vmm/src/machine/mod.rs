//! The machine: KVM, memory, vCPUs, interrupts, and the loop of its life.

pub mod cpuid;
mod enter;
pub mod interrupts;
pub mod memory;
pub mod state;
pub mod still;
mod threads;
pub mod vcpu;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::boot::acpi::{self, Platform};
use crate::boot::bios;
use crate::boot::initramfs::{Initramfs, InitramfsError};
use crate::boot::kernel::{Entry, Kernel, KernelError};
use crate::boot::smbios::{self, Identity, SmbiosError};
use crate::boot::start::{StartError, StartWith};
use crate::boot::{linux, pvh};
use crate::devices::bus::{Bus, SharedDevice, WindowError};
use crate::devices::cmos::{self, Cmos};
use crate::devices::host::Host;
use crate::devices::platform::{KeyboardController, PmTimer, Reset, SleepControl};
use crate::devices::saved::Unfit;
use crate::devices::serial::{self, Line, SerialPort};
use crate::devices::terminal::{Keyboard, SharedPort};
use crate::power::{Outcome, Power};
use crate::topology::Topology;
use interrupts::KvmHost;
use state::State;
use still::{Errands, Still};
use vcpu::{Buses, Exits, Vcpu};

/// Where KVM keeps a task state segment on Intel, below the firmware's place.
const TSS: usize = 0xfffb_d000;
const KEYBOARD_COMMAND: u64 = 0x64;

/// What a machine is made of.
#[derive(Debug)]
pub struct Config {
    /// Its vCPUs.
    pub topology: Topology,
    /// Bytes of memory.
    pub memory: u64,
    /// The kernel.
    pub kernel: Kernel,
    /// The initramfs.
    pub initramfs: Option<Initramfs>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Who it is.
    pub identity: Identity,
    /// Which start of it this is; the same when the guest reboots.
    pub generation: [u8; 16],
}

/// Why a machine cannot be made or run.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM refused.
    #[error("KVM can't {0}: {1}")]
    Kvm(&'static str, kvm_ioctls::Error),
    /// An eventfd or thread could not be had.
    #[error("cannot {0}: {1}")]
    Io(&'static str, io::Error),
    /// The guest's memory.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initramfs.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// What the kernel starts from.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The tables.
    #[error(transparent)]
    Acpi(#[from] acpi::AcpiError),
    /// Who the machine is.
    #[error(transparent)]
    Smbios(#[from] SmbiosError),
    /// Two devices at one address.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// A snapshot is of another machine.
    #[error("the machine can't be saved or restored: {0}")]
    Unfit(#[from] Unfit),
}

/// What a machine begins with.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// Its kernel.
    Kernel,
    /// What another one was when it stood still; the memory is that one's already.
    Restored(&'a State),
}

/// A machine that has not started: devices are added, then it runs once. A guest's reset ends
/// that run; the caller makes the machine anew, with the same disks, sockets and listeners.
pub struct Machine {
    kvm: Arc<Kvm>,
    vm: Arc<VmFd>,
    memory: GuestMemoryMmap,
    host: Arc<KvmHost>,
    buses: Buses,
    power: Power,
    serial: SharedPort,
    /// Tells the guest that its machine's generation is another.
    changed: EventFd,
}

impl Machine {
    /// A machine with that memory, interrupt controllers and the board's own ports. The serial port
    /// writes to `screen`, and what `keyboard` has is read there.
    pub fn new(
        kvm: Arc<Kvm>,
        memory: GuestMemoryMmap,
        power: Power,
        screen: impl Write + Send + 'static,
        keyboard: Box<dyn Keyboard>,
    ) -> Result<Self, MachineError> {
        let failed = |what| move |error| MachineError::Kvm(what, error);
        let vm = Arc::new(kvm.create_vm().map_err(failed("make a VM"))?);
        vm.set_tss_address(TSS).map_err(failed("place the TSS"))?;
        vm.create_irq_chip()
            .map_err(failed("make the interrupt controllers"))?;
        for (slot, region) in (0..).zip(memory.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the mapping is `memory`'s. Machine drops its vCPUs and the VM before the
            // memory, or every holder of the memory keeps it mapped.
            unsafe { vm.set_user_memory_region(region) }
                .map_err(failed("take the guest's memory"))?;
        }
        let host = KvmHost::new(vm.clone()).map_err(|e| MachineError::Io("route interrupts", e))?;
        let line =
            EventFd::new(EFD_NONBLOCK).map_err(|e| MachineError::Io("make an eventfd", e))?;
        vm.register_irqfd(&line, serial::IRQ)
            .map_err(failed("attach the serial port's interrupt"))?;
        let button =
            EventFd::new(EFD_NONBLOCK).map_err(|e| MachineError::Io("make an eventfd", e))?;
        vm.register_irqfd(&button, acpi::EVENT_IRQ)
            .map_err(failed("attach the power button"))?;
        power.attach_button(button);
        let changed =
            EventFd::new(EFD_NONBLOCK).map_err(|e| MachineError::Io("make an eventfd", e))?;
        vm.register_irqfd(&changed, acpi::GENERATION_IRQ)
            .map_err(failed("attach the machine's generation"))?;
        let serial = shared(SerialPort::new(Line(line), screen, keyboard));
        let mut machine = Self {
            kvm,
            vm,
            memory,
            host: Arc::new(host),
            buses: Buses::default(),
            power,
            serial: serial.clone(),
            changed,
        };
        machine.add_board(serial)?;
        Ok(machine)
    }

    fn add_board(&mut self, serial: SharedDevice) -> Result<(), MachineError> {
        let power = &self.power;
        let ports: [(u64, u64, SharedDevice); 6] = [
            (serial::COM1, serial::LEN, serial),
            (cmos::PORTS.0, cmos::PORTS.1, shared(Cmos::default())),
            (
                u64::from(acpi::SLEEP_CONTROL_PORT),
                1,
                shared(SleepControl(power.clone())),
            ),
            (
                u64::from(acpi::PM_TIMER_PORT),
                4,
                shared(PmTimer(Instant::now())),
            ),
            (u64::from(acpi::RESET_PORT), 1, shared(Reset(power.clone()))),
            (
                KEYBOARD_COMMAND,
                1,
                shared(KeyboardController(power.clone())),
            ),
        ];
        for (base, len, device) in ports {
            self.buses.pio.insert(base, len, device)?;
        }
        Ok(())
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The machine's power switch.
    pub fn power(&self) -> Power {
        self.power.clone()
    }

    /// The port that somebody may type at.
    pub fn serial(&self) -> SharedPort {
        self.serial.clone()
    }

    /// Counts the exits of its vCPUs there.
    pub fn count_exits(&mut self, exits: Arc<Exits>) {
        self.buses.exits = exits;
    }

    /// What devices may ask of the machine.
    pub fn host(&self) -> Arc<KvmHost> {
        self.host.clone()
    }

    /// The port space, to add devices to.
    pub fn ports(&mut self) -> &mut Bus {
        &mut self.buses.pio
    }

    /// The memory space, to add devices to.
    pub fn mmio(&mut self) -> &mut Bus {
        &mut self.buses.mmio
    }

    /// Loads the kernel, or what a machine was that stood still, and runs the guest until it or
    /// somebody else ends it; does `errands` meanwhile. Every vCPU thread has ended when this
    /// returns.
    pub fn run(
        mut self,
        config: &Config,
        start: Start<'_>,
        errands: &Errands,
    ) -> Result<Outcome, MachineError> {
        let failed = |what| move |error| MachineError::Kvm(what, error);
        let mut vcpus = Vec::new();
        for (id, apic_id) in (0..).zip(config.topology.apic_ids()) {
            let vcpu = Vcpu::new(&self.kvm, &self.vm, (id, apic_id), &config.topology);
            vcpus.push(vcpu.map_err(failed("make a vCPU"))?);
        }
        match start {
            Start::Restored(state) => self.restore(state, &vcpus, config.generation)?,
            Start::Kernel => {
                let entry = self.load(config)?;
                // The others wait for it.
                if let Some(first) = vcpus.first() {
                    first.enter(&entry).map_err(failed("make a vCPU"))?;
                }
            }
        }
        let handles = vcpus
            .iter()
            .map(Vcpu::handle)
            .collect::<Result<Vec<_>, _>>();
        let handles = handles.map_err(|error| MachineError::Io("keep a vCPU", error))?;
        let buses = Arc::new(std::mem::take(&mut self.buses));
        let gate = self.host.gate();
        let outcome = threads::run(vcpus, &buses, &self.power, || {
            let _shut = gate.shut();
            errands.carry_out(&Still {
                machine: &self,
                vcpus: &handles,
                buses: &buses,
            });
        });
        errands.give_up();
        outcome.map_err(|error| MachineError::Io("start a vCPU thread", error))
    }

    /// Takes the state of a machine whose memory this one has.
    fn restore(
        &self,
        state: &State,
        vcpus: &[Vcpu],
        generation: [u8; 16],
    ) -> Result<(), MachineError> {
        let fds: Vec<_> = vcpus.iter().map(Vcpu::fd).collect();
        state.restore(&self.vm, &fds)?;
        let restored = self.host.all_routes_at_once(|| {
            self.buses.pio.restore(&state.ports)?;
            self.buses.mmio.restore(&state.windows)
        });
        restored.map_err(|error| MachineError::Io("route interrupts", error))??;
        acpi::write_generation(&self.memory, generation)?;
        // The counter cannot be full: this is its only write.
        let _ = self.changed.write(1);
        Ok(())
    }

    fn load(&self, config: &Config) -> Result<Entry, MachineError> {
        let loaded = config.kernel.load(&self.memory)?;
        let ram: Vec<_> = self
            .memory
            .iter()
            .map(|region| (region.start_addr().0, region.len()))
            .collect();
        let low_end = ram.first().map_or(0, |(base, len)| base + len);
        let initramfs = match &config.initramfs {
            Some(initramfs) => {
                let end = low_end.min(loaded.initramfs_end);
                Some(initramfs.load(&self.memory, loaded.end, end)?)
            }
            None => None,
        };
        let ecam = (memory::ECAM_START, memory::ECAM_LEN);
        let start = StartWith {
            cmdline: &config.cmdline,
            initramfs,
            ram: &ram,
            ecam,
        };
        match &loaded.entry {
            Entry::Pvh(_) => pvh::write(&self.memory, &start)?,
            Entry::Linux64(_, header) => linux::write(&self.memory, &start, header.as_ref())?,
        }
        smbios::write(&self.memory, &config.identity)?;
        bios::write(&self.memory).map_err(StartError::from)?;
        let bars = (memory::BAR_START as u32, memory::ECAM_START as u32);
        acpi::write(
            &self.memory,
            &Platform {
                topology: config.topology,
                bars,
                ecam: ecam.0,
                last_bus: memory::LAST_BUS,
                generation: config.generation,
            },
        )?;
        Ok(loaded.entry)
    }
}

fn shared<D>(device: D) -> Arc<Mutex<D>> {
    Arc::new(Mutex::new(device))
}

#[cfg(test)]
mod tests;
