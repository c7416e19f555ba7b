//! What a vCPU says of itself: the host's CPUID as far as KVM supports it, with the guest's own
//! topology.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::topology::Topology;

/// Leaf 1, ECX: the timer that a guest without a PIT is run by.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: EBX's count of logical processors is valid.
const HTT: u32 = 1 << 28;
/// Leaf 0xb, ECX: what a level is of.
const NONE: u32 = 0;
const THREAD: u32 = 1;
const CORE: u32 = 2;
/// The index of the cache that a socket's cores share; those below are a core's.
const LAST_LEVEL: u32 = 3;

/// Makes `supported`, as KVM gave it, into what the vCPU with that APIC id answers (Intel SDM volume
/// 2, CPUID; AMD APM volume 3, appendix E).
pub fn for_vcpu(supported: &mut CpuId, id: u8, topology: &Topology) {
    let id = u32::from(id);
    let (threads, in_socket) = (topology.threads.into(), u32::from(topology.in_socket()));
    let (thread_bits, socket_shift) = (topology.thread_bits(), topology.socket_shift());
    // Intel's leaves have as many as there could be by the bits.
    let (of_core, of_socket) = (1 << thread_bits, 1 << socket_shift);
    for entry in supported.as_mut_slice() {
        match (entry.function, entry.index) {
            (0x1, _) => {
                entry.ebx = entry.ebx & 0xffff | of_socket << 16 | id << 24;
                entry.ecx |= TSC_DEADLINE | HYPERVISOR;
                entry.edx = if in_socket > 1 {
                    entry.edx | HTT
                } else {
                    entry.edx & !HTT
                };
            }
            // Cores of the socket, less one; threads that share a cache, less one.
            (0x4, index) if entry.eax & 0x1f != 0 => {
                let sharing = if index < LAST_LEVEL {
                    of_core
                } else {
                    of_socket
                } - 1;
                let cores = (of_socket / of_core) - 1;
                entry.eax = entry.eax & 0x3fff | cores << 26 | sharing << 14;
            }
            (0xb | 0x1f, 0) => level(entry, id, thread_bits, threads, THREAD),
            (0xb | 0x1f, 1) => level(entry, id, socket_shift, in_socket, CORE),
            (0xb | 0x1f, _) => level(entry, id, 0, 0, NONE),
            (0x8000_0008, _) => entry.ecx = (in_socket - 1) | socket_shift << 12,
            (0x8000_001d, index) if entry.eax & 0x1f != 0 => {
                let sharing = if index < LAST_LEVEL {
                    threads
                } else {
                    in_socket
                } - 1;
                entry.eax = entry.eax & 0x3fff | sharing << 14;
            }
            (0x8000_001e, _) => {
                let core = id >> thread_bits & 0xff;
                (entry.eax, entry.ebx, entry.ecx) = (id, core | (threads - 1) << 8, 0);
            }
            _ => {}
        }
    }
}

/// Leaves 0xb and 0x1f: how far the APIC id is to be shifted for what is above a level, and the
/// threads that are in it.
fn level(entry: &mut kvm_cpuid_entry2, id: u32, shift: u32, threads: u32, kind: u32) {
    let kind = kind << 8 | entry.index;
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (shift, threads, kind, id);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        }
    }

    /// What these leaves answer.
    fn answers<const N: usize>(
        id: u8,
        (sockets, cores, threads): (u8, u8, u8),
        mut leaves: [kvm_cpuid_entry2; N],
    ) -> [kvm_cpuid_entry2; N] {
        let topology = Topology {
            sockets,
            cores,
            threads,
        };
        let mut cpuid = CpuId::from_entries(&leaves).unwrap();
        for_vcpu(&mut cpuid, id, &topology);
        leaves.copy_from_slice(cpuid.as_slice());
        leaves
    }

    #[test]
    fn each_vcpu_has_its_apic_id_in_every_leaf_that_has_one() {
        let leaves = [leaf(1, 0), leaf(0xb, 0), leaf(0xb, 1), leaf(0x8000_001e, 0)];
        let [one, thread, core, amd] = answers(5, (1, 6, 1), leaves);
        assert_eq!(one.ebx, 5 << 24 | 8 << 16);
        assert_eq!((thread.edx, core.edx, amd.eax), (5, 5, 5));
        // six cores need three bits of the APIC id
        assert_eq!((core.eax, core.ebx), (3, 6));
    }

    #[test]
    fn both_vendors_leaves_tell_of_sockets_cores_and_threads() {
        // Two sockets of three cores of two threads; the second socket's last.
        let (of, id) = ((2, 3, 2), 8 | 2 << 1 | 1);
        let leaves = [leaf(0xb, 0), leaf(0xb, 1), leaf(0xb, 2)];
        let [thread, core, none] = answers(id, of, leaves);
        let level = |entry: kvm_cpuid_entry2| (entry.eax, entry.ebx, entry.ecx >> 8);
        assert_eq!(
            [level(thread), level(core), level(none)],
            [(1, 2, THREAD), (3, 6, CORE), (0, 0, NONE)]
        );
        let cache = |function, index| kvm_cpuid_entry2 {
            eax: 1,
            ..leaf(function, index)
        };
        let leaves = [cache(4, 0), cache(4, 3), cache(0x8000_001d, 3)];
        let [first, last, amd] = answers(id, of, leaves);
        let shared = |entry: kvm_cpuid_entry2| (entry.eax >> 14 & 0xfff, entry.eax >> 26);
        assert_eq!([shared(first), shared(last)], [(1, 3), (7, 3)]);
        assert_eq!(shared(amd), (5, 0));
        let [size, core] = answers(id, of, [leaf(0x8000_0008, 0), leaf(0x8000_001e, 0)]);
        assert_eq!(size.ecx, 5 | 3 << 12);
        assert_eq!((core.eax, core.ebx), (u32::from(id), 1 << 8 | 6));
    }
}
