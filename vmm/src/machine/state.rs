//! A machine's state beside its memory, for a snapshot: plain data.

use std::collections::BTreeMap;

use kvm_bindings::{CpuId, KVM_STATE_NESTED_GUEST_MODE};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES, Msrs,
    kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, KvmNestedStateBuffer, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::MachineError;
use crate::devices::saved::Unfit;

const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// MSRs that are read or set by one call.
const MSRS: usize = 128;
/// CR4: the guest is a VMX host.
const CR4_VMXE: u64 = 1 << 13;
const CHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];
/// Leaves of CPUID whose ECX and EDX, of the second EBX too, say what the processor can, and the
/// bits that the guest's kernel switches (OSXSAVE, OSPKE).
const FEATURES: [(u32, u32); 3] = [(1, 1 << 27), (7, 1 << 4), (0x8000_0001, 0)];

/// All that a machine is beside its memory.
#[derive(Serialize, Deserialize)]
pub struct State {
    /// Its processors.
    pub vcpus: Vec<VcpuState>,
    chips: Vec<kvm_irqchip>,
    /// Nanoseconds of the guest's clock.
    clock: u64,
    /// What the devices at its ports hold, by their first port.
    pub ports: BTreeMap<u64, Value>,
    /// What the devices in its memory space hold, by their first address.
    pub windows: BTreeMap<u64, Value>,
}

impl State {
    /// Reads a machine's state. None of its vCPUs runs.
    pub fn save(kvm: &Kvm, vm: &VmFd, vcpus: &[VcpuFd]) -> Result<Self, MachineError> {
        let failed = |what| move |error| MachineError::Kvm(what, error);
        let list = kvm.get_msr_index_list();
        let list = list.map_err(failed("list the processor's registers"))?;
        let nested = kvm.check_extension(Cap::NestedState);
        let states = vcpus
            .iter()
            .map(|vcpu| VcpuState::save(vcpu, list.as_slice(), nested));
        let chip = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip)
                .map_err(failed("read an interrupt controller"))?;
            Ok::<_, MachineError>(chip)
        };
        Ok(Self {
            vcpus: states.collect::<Result<_, _>>()?,
            chips: CHIPS.into_iter().map(chip).collect::<Result<_, _>>()?,
            clock: vm.get_clock().map_err(failed("read the clock"))?.clock,
            ports: BTreeMap::new(),
            windows: BTreeMap::new(),
        })
    }

    /// Brings a machine's interrupt controllers, clock and vCPUs, which are new, to this state.
    pub fn restore(&self, vm: &VmFd, vcpus: &[&VcpuFd]) -> Result<(), MachineError> {
        let failed = |what| move |error| MachineError::Kvm(what, error);
        if vcpus.len() != self.vcpus.len() {
            let why = format!(
                "it has {} vCPUs, and then had {}",
                vcpus.len(),
                self.vcpus.len()
            );
            return Err(Unfit::new(why).into());
        }
        for chip in &self.chips {
            vm.set_irqchip(chip)
                .map_err(failed("set an interrupt controller"))?;
        }
        let clock = kvm_clock_data {
            clock: self.clock,
            ..Default::default()
        };
        vm.set_clock(&clock).map_err(failed("set the clock"))?;
        let both = vcpus.iter().zip(&self.vcpus);
        for (vcpu, state) in both {
            state.suits(vcpu)?;
            state.restore(vcpu).map_err(failed("set a vCPU's state"))?;
        }
        Ok(())
    }
}

/// What a vCPU holds.
#[derive(Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    running: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl VcpuState {
    fn save(vcpu: &VcpuFd, msrs: &[u32], nested: bool) -> Result<Self, MachineError> {
        let sregs = vcpu
            .get_sregs()
            .map_err(|error| MachineError::Kvm("read a vCPU's state", error))?;
        let mut inner = KvmNestedStateBuffer::empty();
        let in_guest = nested
            && vcpu.nested_state(&mut inner).is_ok()
            && u32::from(inner.flags) & KVM_STATE_NESTED_GUEST_MODE != 0;
        if in_guest || sregs.cr4 & CR4_VMXE != 0 {
            return Err(Unfit::new("the guest runs VMs itself, and these can't be saved").into());
        }
        Self::read(vcpu, sregs, msrs)
            .map_err(|error| MachineError::Kvm("read a vCPU's state", error))
    }

    fn read(vcpu: &VcpuFd, sregs: kvm_sregs, msrs: &[u32]) -> Result<Self, kvm_ioctls::Error> {
        Ok(Self {
            cpuid: vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES)?.as_slice().to_vec(),
            // Where it can't be told it can't be changed either.
            tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
            running: vcpu.get_mp_state()?,
            regs: vcpu.get_regs()?,
            sregs,
            xsave: vcpu.get_xsave()?,
            xcrs: vcpu.get_xcrs()?,
            debug: vcpu.get_debug_regs()?,
            lapic: vcpu.get_lapic()?,
            msrs: read_msrs(vcpu, msrs)?,
            events: vcpu.get_vcpu_events()?,
        })
    }

    /// Whether the processor can what the guest has seen that it can.
    fn suits(&self, vcpu: &VcpuFd) -> Result<(), MachineError> {
        let now = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES);
        let now = now.map_err(|error| MachineError::Kvm("read a vCPU's state", error))?;
        for (leaf, switched) in FEATURES {
            let find = |entries: &[kvm_cpuid_entry2]| {
                let found = entries.iter().find(|e| (e.function, e.index) == (leaf, 0));
                found.map_or([0; 3], |e| {
                    let named = if leaf == 7 { e.ebx } else { 0 };
                    [named, e.ecx & !switched, e.edx]
                })
            };
            let (had, has) = (find(&self.cpuid), find(now.as_slice()));
            let lost = had.iter().zip(&has).any(|(had, has)| had & !has != 0);
            if lost {
                let why = "this host's processor lacks features that the guest has seen";
                return Err(Unfit::new(why).into());
            }
        }
        Ok(())
    }

    fn restore(&self, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        let invalid = |_| kvm_ioctls::Error::new(libc::EINVAL);
        vcpu.set_cpuid2(&CpuId::from_entries(&self.cpuid).map_err(invalid)?)?;
        if self.tsc_khz != 0 && vcpu.get_tsc_khz() != Ok(self.tsc_khz) {
            vcpu.set_tsc_khz(self.tsc_khz)?;
        }
        vcpu.set_mp_state(self.running)?;
        vcpu.set_regs(&self.regs)?;
        vcpu.set_sregs(&self.sregs)?;
        // SAFETY: the state is 4 KiB, of KVM_GET_XSAVE; the features that need more are never
        // switched on in this process (prctl's ARCH_REQ_XCOMP_GUEST_PERM).
        unsafe { vcpu.set_xsave(&self.xsave) }?;
        vcpu.set_xcrs(&self.xcrs)?;
        vcpu.set_debug_regs(&self.debug)?;
        vcpu.set_lapic(&self.lapic)?;
        set_msrs(vcpu, &self.msrs)?;
        vcpu.set_vcpu_events(&self.events)?;
        // As after any pause; a guest without KVM's clock has nothing to be told.
        let _ = vcpu.kvmclock_ctrl();
        Ok(())
    }
}

/// Those that can be read, in the order in which they are to be set: time first, its alarm last.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, kvm_ioctls::Error> {
    let mut found = Vec::new();
    let mut rest: Vec<_> = indices
        .iter()
        .map(|index| kvm_msr_entry {
            index: *index,
            ..Default::default()
        })
        .collect();
    rest.sort_by_key(|entry| match entry.index {
        MSR_TSC => 0,
        MSR_TSC_DEADLINE => 2,
        _ => 1,
    });
    let mut rest = &rest[..];
    while !rest.is_empty() {
        let mut some = wrapped(rest)?;
        let read = vcpu.get_msrs(&mut some)?;
        found.extend(some.as_slice().iter().take(read));
        rest = behind(rest, read);
    }
    Ok(found)
}

/// Sets them; of one that can't be set it is said, unless it is so already.
fn set_msrs(vcpu: &VcpuFd, all: &[kvm_msr_entry]) -> Result<(), kvm_ioctls::Error> {
    let mut rest = all;
    while !rest.is_empty() {
        let set = vcpu.set_msrs(&wrapped(rest)?)?;
        if let Some(refused) = rest.get(set).filter(|_| set < MSRS) {
            let mut is = wrapped(std::slice::from_ref(refused))?;
            let known = vcpu.get_msrs(&mut is) == Ok(1) && is.as_slice() == [*refused];
            if !known {
                tracing::debug!("MSR {:#x} can't be restored", refused.index);
            }
        }
        rest = behind(rest, set);
    }
    Ok(())
}

fn wrapped(entries: &[kvm_msr_entry]) -> Result<Msrs, kvm_ioctls::Error> {
    let some = entries.get(..MSRS).unwrap_or(entries);
    Msrs::from_entries(some).map_err(|_| kvm_ioctls::Error::new(libc::EINVAL))
}

/// What is left after KVM has done `count` of them: it stops at the first that it can't do.
fn behind(entries: &[kvm_msr_entry], count: usize) -> &[kvm_msr_entry] {
    let done = if count < MSRS { count + 1 } else { count };
    entries.get(done..).unwrap_or_default()
}
