//! A vCPU: its first state and the loop that runs it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_fpu, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use netdev::counters::Counter;

use super::{cpuid, enter};
use crate::boot::kernel::Entry;
use crate::devices::bus::Bus;
use crate::power::{Crash, Outcome, Power};
use crate::topology::Topology;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// The two address spaces that an exit may go to.
#[derive(Default)]
pub struct Buses {
    /// Ports.
    pub pio: Bus,
    /// Memory.
    pub mmio: Bus,
    /// How often each was gone to.
    pub exits: Arc<Exits>,
}

/// What took vCPUs out of the guest and as far as us; most of what a guest does KVM answers itself.
#[derive(Debug, Default)]
pub struct Exits {
    /// A port.
    pub pio: Counter,
    /// Memory with a device behind it.
    pub mmio: Counter,
    /// A signal of ours.
    pub kicked: Counter,
}

/// A vCPU before it runs.
pub struct Vcpu {
    id: u8,
    fd: VcpuFd,
}

impl Vcpu {
    /// Makes a vCPU of that number and APIC id, which waits to be started.
    pub fn new(
        kvm: &Kvm,
        vm: &VmFd,
        (id, apic_id): (u8, u8),
        topology: &Topology,
    ) -> Result<Self, kvm_ioctls::Error> {
        let fd = vm.create_vcpu(apic_id.into())?;
        let mut cpuid: CpuId = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        cpuid::for_vcpu(&mut cpuid, apic_id, topology);
        fd.set_cpuid2(&cpuid)?;
        let msr = |index, data| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let msrs = [
            msr(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
            msr(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
        ];
        // An AMD host has no MISC_ENABLE: KVM then stops there, and it is not missed.
        for entry in msrs {
            if let Ok(msrs) = Msrs::from_entries(&[entry]) {
                fd.set_msrs(&msrs)?;
            }
        }
        fd.set_fpu(&kvm_fpu {
            fcw: 0x37f,
            mxcsr: 0x1f80,
            ..Default::default()
        })?;
        Ok(Self { id, fd })
    }

    /// Has it start at `entry`. It is the first one, and the others wait for it.
    pub fn enter(&self, entry: &Entry) -> Result<(), kvm_ioctls::Error> {
        match entry {
            Entry::Pvh(address) => enter::pvh(&self.fd, *address),
            Entry::Linux64(address, _) => enter::linux64(&self.fd, *address),
        }
    }

    /// KVM's vCPU.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// A way to it while it stands still on its own thread.
    pub fn handle(&self) -> io::Result<Handle> {
        // SAFETY: the descriptor is the vCPU's, which is there until this returns.
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) };
        Ok(Handle(fd.try_clone_to_owned()?))
    }

    /// Runs the vCPU until the machine is off. Called on a thread of its own, which a signal
    /// takes out of the guest.
    pub fn run(mut self, buses: &Arc<Buses>, power: &Power) {
        loop {
            // What the guest read last is not in its registers before KVM_RUN is called again, which
            // then returns at once.
            let halted = power.is_halted();
            self.fd.set_kvm_immediate_exit(halted.into());
            let reason = match self.fd.run() {
                Ok(VcpuExit::IoIn(port, data)) => {
                    buses.exits.pio.add();
                    buses.pio.read(u64::from(port), data);
                    continue;
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    buses.exits.pio.add();
                    buses.pio.write(u64::from(port), data);
                    continue;
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    buses.exits.mmio.add();
                    buses.mmio.read(address, data);
                    continue;
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    buses.exits.mmio.add();
                    buses.mmio.write(address, data);
                    continue;
                }
                Ok(VcpuExit::Shutdown) => "triple fault".to_owned(),
                Ok(VcpuExit::FailEntry(reason, _)) => {
                    format!("KVM could not enter the guest ({reason:#x})")
                }
                Ok(VcpuExit::InternalError) => {
                    "KVM met an instruction that it can't run".to_owned()
                }
                Ok(other) => format!("an exit that nobody asked for: {other:?}"),
                Err(error) if halted && error.errno() == libc::EINTR => {
                    // The guest's clock tells its watchdogs that they were not looking; a guest
                    // without KVM's clock has no such thing, which is no failure.
                    let _ = self.fd.kvmclock_ctrl();
                    if !power.park() {
                        return;
                    }
                    continue;
                }
                Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {
                    buses.exits.kicked.add();
                    continue;
                }
                Err(error) => format!("KVM_RUN: {error}"),
            };
            power.end(Outcome::Crash(Crash {
                vcpu: self.id,
                reason,
                registers: self.registers(),
            }));
        }
    }

    fn registers(&self) -> String {
        let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) else {
            return "its registers can't be read".to_owned();
        };
        format!(
            "rip={:#x} rsp={:#x} rax={:#x} rflags={:#x} cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} cs={:#x}",
            regs.rip,
            regs.rsp,
            regs.rax,
            regs.rflags,
            sregs.cr0,
            sregs.cr2,
            sregs.cr3,
            sregs.cr4,
            sregs.cs.selector
        )
    }
}

/// A way to a vCPU, for whoever keeps it.
pub struct Handle(OwnedFd);

impl Handle {
    /// KVM's vCPU again; `vm` is the one that it is of.
    pub fn open(&self, vm: &VmFd) -> io::Result<VcpuFd> {
        let fd = self.0.try_clone()?.into_raw_fd();
        // SAFETY: the descriptor is a vCPU's of this VM and nobody else's; it is given away.
        Ok(unsafe { vm.create_vcpu_from_rawfd(fd) }?)
    }
}
