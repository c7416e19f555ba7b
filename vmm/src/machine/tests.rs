//! Guests of a few instructions, which run on any /dev/kvm.

use std::fs;
use std::path::Path;
use std::sync::mpsc;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::boot::kernel::Unpacked;
use crate::power::Crash;
use crate::topology::Topology;

/// Where the tiny kernels are loaded and entered.
const LOAD: u32 = 0x10_0000;
const MEMORY: u64 = 64 << 20;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const PVH: u32 = 18;

/// An ELF image of one segment at [`LOAD`] that is `code`, with a note of that type: [`PVH`] enters
/// it.
fn elf(code: &[u8], note_type: u32) -> Vec<u8> {
    let mut note = Vec::new();
    // Its name's size, and that of what it says.
    for word in [4u32, 8, note_type] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(u64::from(LOAD).to_le_bytes());
    let headers = 64 + 2 * 56;
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    image.extend(2u16.to_le_bytes());
    image.extend(62u16.to_le_bytes());
    image.extend(1u32.to_le_bytes());
    for word in [u64::from(LOAD), 64, 0] {
        image.extend(word.to_le_bytes());
    }
    image.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 64, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    let note_at = headers as u64;
    let code_at = note_at + note.len() as u64;
    for (kind, at, len) in [(4u32, note_at, note.len()), (1, code_at, code.len())] {
        image.extend(kind.to_le_bytes());
        image.extend(7u32.to_le_bytes());
        for word in [
            at,
            u64::from(LOAD),
            u64::from(LOAD),
            len as u64,
            len as u64,
            4,
        ] {
            image.extend(word.to_le_bytes());
        }
    }
    image.extend(note);
    image.extend(code);
    image
}

#[derive(Clone)]
struct Console(mpsc::Sender<u8>);

impl Write for Console {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        data.iter()
            .for_each(|byte| self.0.send(*byte).unwrap_or(()));
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `code` on `vcpus` vCPUs; how it ended, and what it wrote to the serial port.
fn run(code: &[u8], vcpus: u8, power: &Power) -> (Outcome, Vec<u8>) {
    let memory = memory::map(MEMORY, memory::Origin::Host).unwrap();
    begin(
        &elf(code, PVH),
        vcpus,
        power,
        memory,
        (Start::Kernel, Errands::default()),
    )
}

/// The same of a whole image, in that memory, and from that start.
fn begin(
    image: &[u8],
    vcpus: u8,
    power: &Power,
    memory: GuestMemoryMmap,
    (start, errands): (Start<'_>, Errands),
) -> (Outcome, Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kernel");
    fs::write(&path, image).unwrap();
    let kernel = Kernel::open(&path, Path::new("/nonexistent"), Unpacked::Here).unwrap();
    let config = Config {
        generation: [0; 16],
        topology: Topology {
            sockets: vcpus,
            ..Topology::ONE
        },
        memory: MEMORY,
        kernel,
        initramfs: None,
        cmdline: String::new(),
        identity: Identity::default(),
    };
    let (sender, receiver) = mpsc::channel();
    let kvm = Arc::new(Kvm::new().expect("these tests need /dev/kvm"));
    let machine = Machine::new(
        kvm,
        memory,
        power.clone(),
        Console(sender),
        Box::new(io::empty()),
    )
    .unwrap();
    let outcome = machine.run(&config, start, &errands).unwrap();
    (outcome, receiver.into_iter().collect())
}

/// mov dx, port; mov al, value; out dx, al
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

const SPIN: [u8; 2] = [0xeb, 0xfe];

#[test]
fn a_guest_writes_to_the_serial_port_and_powers_off() {
    let code = [
        out(0x3f8, b'h'),
        out(0x3f8, b'i'),
        out(0x600, 0x34),
        SPIN.to_vec(),
    ]
    .concat();
    let (outcome, console) = run(&code, 1, &Power::default());
    assert_eq!((outcome, &console[..]), (Outcome::PowerOff, &b"hi"[..]));
}

/// In 64-bit mode: writes 0xff, a byte of the header's magic, how many pieces of memory there are,
/// and powers off.
fn tells_the_boot_parameters() -> Vec<u8> {
    // mov dx, 0x3f8; out dx, al
    let say = [0x66, 0xba, 0xf8, 0x03, 0xee];
    [
        // xor eax, eax; dec rax; shr rax, 32, which leaves -3 where these are 32 bits
        &[0x31, 0xc0, 0x48, 0xff, 0xc8, 0x48, 0xc1, 0xe8, 0x20][..],
        &say,
        // mov al, [rsi + 0x202]
        &[0x8a, 0x86, 0x02, 0x02, 0, 0],
        &say,
        // mov al, [rsi + 0x1e8]
        &[0x8a, 0x86, 0xe8, 0x01, 0, 0],
        &say,
        &out(0x600, 0x34),
        &SPIN,
    ]
    .concat()
}

#[test]
fn a_kernel_without_a_pvh_entry_is_entered_by_linux_s_64_bit_protocol() {
    let code = tells_the_boot_parameters();
    let mut bz_image = vec![0; 1024 + 0x200];
    bz_image[0x1f1] = 1;
    bz_image[0x201] = 0x6a;
    bz_image[0x202..0x206].copy_from_slice(b"HdrS");
    bz_image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    // Loaded high, by the 64-bit entry, at a MiB, where it needs no more; its payload is of no kind
    // that anybody knows.
    (bz_image[0x211], bz_image[0x236]) = (1, 1);
    bz_image[0x24c] = 8;
    bz_image[0x25a] = 0x10;
    bz_image[0x261] = 0x10;
    bz_image.extend(&code);
    for image in [elf(&code, 1), bz_image] {
        let memory = memory::map(MEMORY, memory::Origin::Host).unwrap();
        let start = (Start::Kernel, Errands::default());
        let (outcome, said) = begin(&image, 1, &Power::default(), memory, start);
        assert_eq!(
            (outcome, &said[..]),
            (Outcome::PowerOff, &[0xff, b'H', 4][..])
        );
    }
}

#[test]
fn both_ways_of_resetting_are_seen() {
    for (port, value) in [(acpi::RESET_PORT, acpi::RESET_VALUE), (0x64, 0xfe)] {
        let code = [out(port, value), SPIN.to_vec()].concat();
        assert_eq!(run(&code, 1, &Power::default()).0, Outcome::Reset);
    }
}

#[test]
fn a_jump_to_the_bios_in_real_mode_resets() {
    let code = [
        // lgdt [0x100030]; jmp 0x8:0x100010
        &[0x0f, 0x01, 0x15, 0x30, 0, 0x10, 0][..],
        &[0xea, 0x10, 0, 0x10, 0, 8, 0],
        &[0x90; 2],
        // in a 16-bit segment: mov eax, cr0; and al, 0xfe; mov cr0, eax; jmp f000:fff0
        &[0x0f, 0x20, 0xc0, 0x24, 0xfe, 0x0f, 0x22, 0xc0],
        &[0xea, 0xf0, 0xff, 0, 0xf0],
        &[0x90; 19],
        // the table: its limit and address, then an empty and a 16-bit code descriptor
        &[0x0f, 0, 0x38, 0, 0x10, 0, 0, 0],
        &[0; 8],
        &[0xff, 0xff, 0, 0, 0, 0x9a, 0x8f, 0],
    ]
    .concat();
    assert_eq!(run(&code, 1, &Power::default()).0, Outcome::Reset);
}

#[test]
fn a_triple_fault_is_a_crash_with_registers() {
    // lidt [0] with nothing there would do; ud2 without an IDT is enough
    let (outcome, _) = run(&[0x0f, 0x0b], 1, &Power::default());
    let Outcome::Crash(Crash {
        vcpu: 0,
        reason,
        registers,
    }) = outcome
    else {
        panic!("{outcome:?}");
    };
    assert!(
        !reason.is_empty() && registers.contains("rip=0x100000"),
        "{reason} {registers}"
    );
}

#[test]
fn a_guest_that_spins_is_stopped_from_outside_and_so_are_its_idle_vcpus() {
    let power = Power::default();
    let stopper = power.clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        stopper.end(Outcome::Stopped);
    });
    assert_eq!(run(&SPIN, 4, &power).0, Outcome::Stopped);
    thread.join().unwrap();
}

#[test]
fn a_machine_that_ended_leaves_no_descriptor_open() {
    let code = out(acpi::RESET_PORT, acpi::RESET_VALUE);
    // Other tests run beside this one, so only a growth that goes on is a leak.
    let count = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = count();
    for _ in 0..50 {
        run(&code, 2, &Power::default());
    }
    assert!(
        count() < before + 50,
        "{before} descriptors became {}",
        count()
    );
}

#[test]
fn a_machine_that_stood_still_goes_on_elsewhere_with_its_registers_and_its_serial_port() {
    // mov bl, 'k'; then as long as the byte at 0x3000 is 0: cmp byte [0x3000], 0; je
    let code = [
        &[0xb3, b'k'][..],
        &[0x80, 0x3d, 0, 0x30, 0, 0, 0],
        &[0x74, 0xf7],
        // mov dx, 0x3f8; mov al, bl; out dx, al
        &[0x66, 0xba, 0xf8, 0x03, 0x88, 0xd8, 0xee],
        &out(acpi::RESET_PORT, acpi::RESET_VALUE),
        &SPIN,
    ]
    .concat();
    // The scratch register keeps what it was given.
    let code = [&out(0x3ff, 0x5a)[..], &code].concat();
    let (power, errands) = (Power::default(), Errands::default());
    let (give, given) = mpsc::channel();
    let ended = power.clone();
    let asker = std::thread::spawn({
        let (power, errands) = (power.clone(), errands.clone());
        move || {
            std::thread::sleep(std::time::Duration::from_millis(100));
            let errand = move |still: &Still<'_>| {
                give.send(still.save().unwrap()).unwrap();
                ended.end(Outcome::Stopped);
            };
            errands.ask(&power, Box::new(errand));
        }
    });
    let memory = memory::map(MEMORY, memory::Origin::Host).unwrap();
    let start = (Start::Kernel, errands);
    let (outcome, said) = begin(&elf(&code, PVH), 2, &power, memory.clone(), start);
    asker.join().unwrap();
    assert_eq!((outcome, said), (Outcome::Stopped, Vec::new()));
    let json = serde_json::to_string(&given.recv().unwrap()).unwrap();
    let state: State = serde_json::from_str(&json).unwrap();
    assert!(json.contains("\"scratch\":90"), "{json}");
    memory.write_obj(1u8, GuestAddress(0x3000)).unwrap();
    let start = (Start::Restored(&state), Errands::default());
    let (outcome, said) = begin(&elf(&code, PVH), 2, &Power::default(), memory, start);
    assert_eq!((outcome, &said[..]), (Outcome::Reset, &b"k"[..]));
}
