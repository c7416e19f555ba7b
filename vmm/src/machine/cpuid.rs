//! What a vCPU says of itself: the host's CPUID as far as KVM supports it, with the guest's own
//! topology.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1, ECX: the timer that a guest without a PIT is run by.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: EBX's count of logical processors is valid.
const HTT: u32 = 1 << 28;

/// Makes `supported`, as KVM gave it, into what vCPU `id` of `vcpus` answers: one package, one
/// thread a core (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E).
pub fn for_vcpu(supported: &mut CpuId, id: u8, vcpus: u8) {
    let (id, count) = (u32::from(id), u32::from(vcpus));
    let bits = count.next_power_of_two().trailing_zeros();
    for entry in supported.as_mut_slice() {
        match (entry.function, entry.index) {
            (0x1, _) => {
                entry.ebx = entry.ebx & 0xffff | count << 16 | id << 24;
                entry.ecx |= TSC_DEADLINE | HYPERVISOR;
                entry.edx = if count > 1 {
                    entry.edx | HTT
                } else {
                    entry.edx & !HTT
                };
            }
            // Cores in the package, less one; threads that share a cache, less one.
            (0x4, index) if entry.eax & 0x1f != 0 => {
                let sharing = if index < 3 { 0 } else { count - 1 };
                entry.eax = entry.eax & 0x3fff | (count - 1) << 26 | sharing << 14;
            }
            (0xb | 0x1f, index) => topology(entry, index, id, count, bits),
            (0x8000_0008, _) => entry.ecx = (count - 1) | bits << 12,
            (0x8000_001e, _) => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
            _ => {}
        }
    }
}

fn topology(entry: &mut kvm_cpuid_entry2, index: u32, id: u32, count: u32, bits: u32) {
    let (shift, processors, level) = match index {
        0 => (0, 1, 1 << 8),
        1 => (bits, count, 2 << 8),
        _ => (0, 0, 0),
    };
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (shift, processors, index | level, id);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vcpu_has_its_apic_id_in_every_leaf_that_has_one() {
        let leaf = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        };
        let leaves = [leaf(1, 0), leaf(0xb, 0), leaf(0xb, 1), leaf(0x8000_001e, 0)];
        let mut cpuid = CpuId::from_entries(&leaves).unwrap();
        for_vcpu(&mut cpuid, 5, 6);
        let [one, thread, core, amd] = cpuid.as_slice() else {
            panic!()
        };
        assert_eq!(one.ebx, 5 << 24 | 6 << 16);
        assert_eq!((thread.edx, core.edx, amd.eax), (5, 5, 5));
        // six cores need three bits of the APIC id
        assert_eq!((core.eax, core.ebx), (3, 6));
    }
}
