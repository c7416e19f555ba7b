//! Two guests of a few instructions. The first says that KVM runs a guest at all. The second runs,
//! in ring 0 of long mode, what every stock Linux kernel runs early and what a KVM without
//! hardware virtualization below it stops at: cmpxchg16b, xsave and xrstor, int3 and its return.

use std::arch::global_asm;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Guests report their steps at this port (the one that Bochs and QEMU call the debug console).
const PORT: u16 = 0xe9;
const CODE: u64 = 0x1000;
const GDT: u64 = 0x2000;
const IDT: u64 = 0x3000;
const PML4: u64 = 0x4000;
const PDPT: u64 = 0x5000;
const PD: u64 = 0x6000;
const STACK_TOP: u64 = 0xf000;
const MEMORY: usize = 0x10000;
/// More exits than any probe has.
const MAX_EXITS: usize = 32;

// 0x8000 is the XSAVE area, 0x9000 the operand of cmpxchg16b. Position independent throughout.
global_asm!(
    r#"
    .pushsection .rodata.peapod_probe, "a"
    .globl peapod_probe_real, peapod_probe_real_end
    .code16
peapod_probe_real:
    mov al, 1
    out 0xe9, al
    hlt
peapod_probe_real_end:

    .globl peapod_probe_long, peapod_probe_long_int3, peapod_probe_long_end
    .code64
peapod_probe_long:
    mov al, 1
    out 0xe9, al

    xor eax, eax
    xor edx, edx
    mov ebx, 1
    mov ecx, 2
    mov edi, 0x9000
    lock cmpxchg16b [rdi]
    jnz 2f
    mov al, 2
    out 0xe9, al

    xor ecx, ecx
    xor edx, edx
    mov eax, 3
    xsetbv
    mov edi, 0x8000
    xsave [rdi]
    mov eax, 3
    xrstor [rdi]
    mov al, 3
    out 0xe9, al

    int3
    mov al, 5
    out 0xe9, al
2:  hlt
peapod_probe_long_int3:
    mov al, 4
    out 0xe9, al
    iretq
peapod_probe_long_end:
    .popsection
    "#
);

unsafe extern "C" {
    static peapod_probe_real: u8;
    static peapod_probe_real_end: u8;
    static peapod_probe_long: u8;
    static peapod_probe_long_int3: u8;
    static peapod_probe_long_end: u8;
}

/// The bytes between two labels.
fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: called with two labels of the one assembly block above, in their order, so the range
    // is one initialised, immutable object that lives as long as the program.
    unsafe { std::slice::from_raw_parts(start, end.offset_from(start).unsigned_abs()) }
}

/// Runs three instructions in real mode.
pub(super) fn real_mode(kvm: &Kvm) -> Result<(), String> {
    let code = between(
        &raw const peapod_probe_real,
        &raw const peapod_probe_real_end,
    );
    let mut guest = Guest::new(kvm, code)?;
    guest.registers(|sregs| {
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
    })?;
    guest.run(&["the first instruction"])
}

/// Runs the instructions that tell a real KVM from an emulated one.
pub(super) fn long_mode(kvm: &Kvm) -> Result<(), String> {
    let start = &raw const peapod_probe_long;
    let code = between(start, &raw const peapod_probe_long_end);
    let int3 = CODE + between(start, &raw const peapod_probe_long_int3).len() as u64;
    let mut guest = Guest::new(kvm, code)?;
    guest.tables(int3)?;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|e| failed("get CPUID", e))?;
    guest
        .vcpu
        .set_cpuid2(&cpuid)
        .map_err(|e| failed("set CPUID", e))?;
    guest.registers(|sregs| {
        let code = kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector: 8,
            type_: 11,
            present: 1,
            dpl: 0,
            db: 0,
            s: 1,
            l: 1,
            g: 1,
            avl: 0,
            unusable: 0,
            padding: 0,
        };
        let data = kvm_segment {
            selector: 16,
            type_: 3,
            db: 1,
            l: 0,
            ..code
        };
        sregs.cs = code;
        [sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss] = [data; 5];
        // Entry to long mode wants a busy 64-bit TSS (Intel SDM 3C, 27.3.1.2).
        sregs.tr = kvm_segment {
            selector: 0,
            type_: 11,
            s: 0,
            l: 0,
            g: 0,
            limit: 0x67,
            ..code
        };
        (sregs.gdt.base, sregs.gdt.limit) = (GDT, 23);
        (sregs.idt.base, sregs.idt.limit) = (IDT, 0xfff);
        sregs.cr3 = PML4;
        // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE; PE, MP, ET, NE, WP, PG; LME, LMA.
        sregs.cr4 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18;
        sregs.cr0 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
        sregs.efer = 1 << 8 | 1 << 10;
    })?;
    guest.run(&[
        "the first instruction",
        "cmpxchg16b",
        "xsave and xrstor",
        "int3",
        "iretq",
    ])
}

fn failed(what: &str, e: impl std::fmt::Display) -> String {
    format!("cannot {what}: {e}")
}

/// One vCPU and 64 KiB. The order of the fields is the order in which they go: memory last.
struct Guest {
    vcpu: VcpuFd,
    _vm: kvm_ioctls::VmFd,
    memory: GuestMemoryMmap,
}

impl Guest {
    fn new(kvm: &Kvm, code: &[u8]) -> Result<Self, String> {
        let vm = kvm.create_vm().map_err(|e| failed("make a VM", e))?;
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])
            .map_err(|e| failed("map memory", e))?;
        let host = memory
            .get_host_address(GuestAddress(0))
            .map_err(|e| failed("map memory", e))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: host as u64,
        };
        // SAFETY: the region is MEMORY bytes of mapped memory, which `Guest` keeps mapped until
        // after the vCPU and the VM are closed.
        unsafe { vm.set_user_memory_region(region) }.map_err(|e| failed("give it memory", e))?;
        let vcpu = vm.create_vcpu(0).map_err(|e| failed("make a vCPU", e))?;
        let guest = Self {
            vcpu,
            _vm: vm,
            memory,
        };
        guest.write(CODE, code)?;
        Ok(guest)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), String> {
        self.memory
            .write_slice(bytes, GuestAddress(at))
            .map_err(|e| failed("write its memory", e))
    }

    /// Page tables that map the first 2 MiB as they are, a flat GDT, and vector 3.
    fn tables(&self, int3: u64) -> Result<(), String> {
        // Present and writable; the last level is a 2 MiB page.
        self.write(PML4, &(PDPT | 3).to_le_bytes())?;
        self.write(PDPT, &(PD | 3).to_le_bytes())?;
        self.write(PD, &0x83u64.to_le_bytes())?;
        self.write(GDT + 8, &0x00af_9b00_0000_ffffu64.to_le_bytes())?;
        self.write(GDT + 16, &0x00cf_9300_0000_ffffu64.to_le_bytes())?;
        // A present 64-bit interrupt gate, selector 8 (Intel SDM 3A, 6.14.1).
        let gate = (int3 & 0xffff) | 8 << 16 | 0x8e00 << 32 | (int3 & 0xffff_0000) << 32;
        self.write(IDT + 3 * 16, &gate.to_le_bytes())
    }

    fn registers(&mut self, set: impl FnOnce(&mut kvm_bindings::kvm_sregs)) -> Result<(), String> {
        let mut sregs = self
            .vcpu
            .get_sregs()
            .map_err(|e| failed("read its registers", e))?;
        set(&mut sregs);
        self.vcpu
            .set_sregs(&sregs)
            .map_err(|e| failed("set its registers", e))?;
        let regs = kvm_bindings::kvm_regs {
            rip: CODE,
            rsp: STACK_TOP,
            rflags: 2,
            ..Default::default()
        };
        self.vcpu
            .set_regs(&regs)
            .map_err(|e| failed("set its registers", e))
    }

    /// Runs until hlt; `steps` are what the guest reports by number, from 1.
    fn run(&mut self, steps: &[&str]) -> Result<(), String> {
        let mut done = 0;
        for _ in 0..MAX_EXITS {
            let next = steps.get(done).copied().unwrap_or("hlt");
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(PORT, [step])) if usize::from(*step) == done + 1 => done += 1,
                Ok(VcpuExit::Hlt) if done == steps.len() => return Ok(()),
                Ok(VcpuExit::Hlt) => return Err(format!("{next} has the wrong result")),
                Ok(VcpuExit::Shutdown) => return Err(format!("{next} ends in a triple fault")),
                Ok(VcpuExit::InternalError) => return Err(format!("KVM cannot run {next}")),
                Ok(other) => return Err(format!("at {next}: {other:?}")),
                Err(e) if e.errno() == libc::EINTR => {}
                Err(e) => return Err(format!("at {next}: {e}")),
            }
        }
        Err("the guest comes to no end".to_owned())
    }
}
