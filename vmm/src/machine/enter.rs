//! How a vCPU stands before a kernel's first instruction.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment};
use kvm_ioctls::{Error, VcpuFd};
use vm_memory::GuestAddress;

use crate::boot::{linux, pvh};

/// Protection enabled, and the one bit that always is.
const CR0_PE_ET: u64 = 0x11;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// Long mode, enabled and active.
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// The bit of the flags that always is; interrupts are off.
const RFLAGS: u64 = 2;
const CODE: u8 = 0xb;
const DATA: u8 = 0x3;

/// PVH (docs/misc/pvh.pandoc): 32-bit flat protected mode, no paging, the start info's address in
/// `ebx`.
pub fn pvh(fd: &VcpuFd, entry: GuestAddress) -> Result<(), Error> {
    let mut sregs = fd.get_sregs()?;
    sregs.cs = flat(CODE, 0x8);
    let data = flat(DATA, 0x10);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task();
    sregs.cr0 = CR0_PE_ET;
    sregs.cr4 = 0;
    fd.set_sregs(&sregs)?;
    fd.set_regs(&kvm_regs {
        rflags: RFLAGS,
        rip: entry.0,
        rbx: pvh::START_INFO.0,
        ..Default::default()
    })
}

/// Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst): long mode, memory mapped to
/// itself, the boot parameters' address in `rsi`.
pub fn linux64(fd: &VcpuFd, entry: GuestAddress) -> Result<(), Error> {
    let mut sregs = fd.get_sregs()?;
    sregs.cs = kvm_segment {
        l: 1,
        db: 0,
        ..flat(CODE, linux::CODE)
    };
    let data = flat(DATA, linux::DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task();
    sregs.gdt = kvm_dtable {
        base: linux::GDT.0,
        limit: size_of_val(&linux::SEGMENTS) as u16 - 1,
        ..Default::default()
    };
    sregs.cr3 = linux::PAGE_TABLES.0;
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PE_ET | CR0_PG;
    sregs.efer = EFER_LME_LMA;
    fd.set_sregs(&sregs)?;
    fd.set_regs(&kvm_regs {
        rflags: RFLAGS,
        rip: entry.0,
        rsi: linux::ZERO_PAGE.0,
        ..Default::default()
    })
}

fn flat(type_: u8, selector: u16) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    }
}

fn task() -> kvm_segment {
    kvm_segment {
        limit: 0x67,
        selector: 0x20,
        type_: CODE,
        present: 1,
        ..Default::default()
    }
}
