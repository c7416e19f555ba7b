//! ACPI tables of a hardware-reduced machine (ACPI 6.5): how the guest finds its processors,
//! interrupt controllers and PCI bus, and how it powers off.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, Device, EISAName, Equal, IO, If, Interrupt, Method,
    Name, Notify, ONE, Package, Path, ResourceTemplate, ZERO,
};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::{GenericAddress, Sdt};
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::topology::Topology;

/// Where the tables start: the RSDP here, the others behind it, in the BIOS's area.
pub const RSDP: GuestAddress = GuestAddress(0xe_0000);
const TABLES_END: u64 = 0xe_f000;
/// Where the machine's generation is (Microsoft's "Virtual Machine Generation ID"): 16 bytes in
/// memory that is reserved.
const GENERATION: GuestAddress = GuestAddress(TABLES_END);
const OEM: [u8; 6] = *b"PEAPOD";
const TABLE: [u8; 8] = *b"PEAPODVM";

/// Sleep control register: the guest writes its sleep type and the enable bit (section 4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// Power management timer, 3.579545 MHz, 32 bits (section 4.8.3.3).
pub const PM_TIMER_PORT: u16 = 0x608;
/// Reset register: a write of [`RESET_VALUE`] resets the machine (section 4.8.3.6).
pub const RESET_PORT: u16 = 0x3c0;
/// What the guest writes to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 1;
/// The interrupts that tell of an event of the machine's: somebody pressed the power button.
pub const EVENT_IRQ: u32 = 9;
/// The machine's generation is another.
pub const GENERATION_IRQ: u32 = 10;
/// What a driver is notified of: the button was pressed (section 4.8.3.1.1.2), the generation has
/// changed.
const HAPPENED: u8 = 0x80;
/// The sleep type of S5, soft off.
pub const S5_TYPE: u8 = 5;
/// The I/O APIC's registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs' registers.
const LAPIC: u32 = 0xfee0_0000;

// Offsets in the FADT (section 5.2.9).
const FADT_LEN: u32 = 276;
const FADT_PM_TMR_BLK: usize = 76;
const FADT_PM_TMR_LEN: usize = 91;
const FADT_BOOT_ARCH: usize = 109;
const FADT_FLAGS: usize = 112;
const FADT_RESET_REG: usize = 116;
const FADT_RESET_VALUE: usize = 128;
const FADT_MINOR: usize = 131;
const FADT_X_DSDT: usize = 140;
const FADT_X_PM_TMR_BLK: usize = 208;
const FADT_SLEEP_CONTROL: usize = 244;
const FADT_SLEEP_STATUS: usize = 256;
/// WBINVD works, TMR_VAL_EXT, RESET_REG_SUP, HW_REDUCED_ACPI; no fixed power or sleep button.
const FADT_FLAG_BITS: u32 = 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 10 | 1 << 20;

/// No VGA, and no clock of CMOS's: a guest that looks for one waits seconds for its answer.
const FADT_BOOT_ARCH_BITS: u16 = 1 << 2 | 1 << 5;

/// What the tables tell of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Platform {
    /// The processors.
    pub topology: Topology,
    /// Start and end of the addresses where PCI functions' memory lies, below 4 GiB.
    pub bars: (u32, u32),
    /// PCI configuration space.
    pub ecam: u64,
    /// The last of its buses.
    pub last_bus: u8,
    /// Which start of the machine this is: no two that could be copies of one another have the
    /// same.
    pub generation: [u8; 16],
}

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
#[error("the ACPI tables do not fit in guest memory")]
pub struct AcpiError;

/// Writes the tables; the RSDP lies at [`RSDP`].
pub fn write(memory: &GuestMemoryMmap, platform: &Platform) -> Result<(), AcpiError> {
    let mut next = RSDP.0 + 64;
    let mut put = |table: &dyn Aml| -> Result<u64, AcpiError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = next;
        next += (bytes.len() as u64).next_multiple_of(64);
        if next > TABLES_END {
            return Err(AcpiError);
        }
        memory
            .write_slice(&bytes, GuestAddress(at))
            .map_err(|_| AcpiError)?;
        Ok(at)
    };
    let dsdt = put(&dsdt(platform))?;
    write_generation(memory, platform.generation)?;
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(put(&fadt(dsdt))?);
    xsdt.add_entry(put(&madt(platform))?);
    let mut mcfg = MCFG::new(OEM, TABLE, 1);
    mcfg.add_ecam(platform.ecam, 0, 0, platform.last_bus);
    xsdt.add_entry(put(&mcfg)?);
    let xsdt = put(&xsdt)?;
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    memory.write_slice(&rsdp, RSDP).map_err(|_| AcpiError)
}

/// Writes which start of the machine this is.
pub fn write_generation(memory: &GuestMemoryMmap, generation: [u8; 16]) -> Result<(), AcpiError> {
    memory
        .write_slice(&generation, GENERATION)
        .map_err(|_| AcpiError)
}

fn fadt(dsdt: u64) -> Sdt {
    let mut fadt = Sdt::new(*b"FACP", FADT_LEN, 6, OEM, TABLE, 1);
    fadt.write_u32(FADT_PM_TMR_BLK, u32::from(PM_TIMER_PORT));
    fadt.write_u8(FADT_PM_TMR_LEN, 4);
    fadt.write_u16(FADT_BOOT_ARCH, FADT_BOOT_ARCH_BITS);
    fadt.write_u32(FADT_FLAGS, FADT_FLAG_BITS);
    fadt.write(
        FADT_RESET_REG,
        GenericAddress::io_port_address::<u8>(RESET_PORT),
    );
    fadt.write_u8(FADT_RESET_VALUE, RESET_VALUE);
    fadt.write_u8(FADT_MINOR, 5);
    fadt.write_u64(FADT_X_DSDT, dsdt);
    fadt.write(
        FADT_X_PM_TMR_BLK,
        GenericAddress::io_port_address::<u32>(PM_TIMER_PORT),
    );
    let sleep = GenericAddress::io_port_address::<u8>(SLEEP_CONTROL_PORT);
    fadt.write(FADT_SLEEP_CONTROL, sleep);
    fadt.write(FADT_SLEEP_STATUS, sleep);
    fadt.update_checksum();
    fadt
}

fn madt(platform: &Platform) -> MADT {
    let mut madt = MADT::new(OEM, TABLE, 1, LocalInterruptController::Address(LAPIC));
    for (n, id) in (0..).zip(platform.topology.apic_ids()) {
        madt.add_structure(ProcessorLocalApic::new(n, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC, 0));
    madt
}

fn dsdt(platform: &Platform) -> Sdt {
    let mut aml = Vec::new();
    let s5 = [&S5_TYPE as &dyn Aml, &ZERO];
    Name::new("_S5_".into(), &Package::new(s5.to_vec())).to_aml_bytes(&mut aml);
    let (start, end) = platform.bars;
    // Interrupts are messages only, so there is no _PRT.
    Device::new(
        Path::new("_SB_.PCI0"),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CCA".into(), &ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0u16, u16::from(platform.last_bus)),
                    &IO::new(0xcf8, 0xcf8, 1, 8),
                    &AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        start,
                        end - 1,
                        None,
                    ),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut aml);
    Device::new(
        Path::new("_SB_.COM1"),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Interrupt::new(true, true, false, false, 4),
                    &IO::new(0x3f8, 0x3f8, 0, 8),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut aml);
    let button = Path::new("\\_SB_.PWRB");
    let counter = Path::new("\\_SB_.VGEN");
    Device::new(
        Path::new("_SB_.PWRB"),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
            &Name::new("_UID".into(), &ZERO),
        ],
    )
    .to_aml_bytes(&mut aml);
    // The generic event device (section 5.6.9), which hardware-reduced machines have in place of an
    // interrupt of the chipset's.
    Device::new(
        Path::new("_SB_.GED_"),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Interrupt::new(true, true, false, false, EVENT_IRQ),
                    &Interrupt::new(true, true, false, false, GENERATION_IRQ),
                ]),
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &If::new(
                        &Equal::new(&Arg(0), &EVENT_IRQ),
                        vec![&Notify::new(&button, &HAPPENED)],
                    ),
                    &If::new(
                        &Equal::new(&Arg(0), &GENERATION_IRQ),
                        vec![&Notify::new(&counter, &HAPPENED)],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(&mut aml);
    let place = [&GENERATION.0 as &dyn Aml, &ZERO];
    Device::new(
        Path::new("_SB_.VGEN"),
        vec![
            &Name::new("_HID".into(), &"PPODVGEN"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("_UID".into(), &ZERO),
            // The lower and the upper half of the address.
            &Name::new("ADDR".into(), &Package::new(place.to_vec())),
        ],
    )
    .to_aml_bytes(&mut aml);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, 1);
    dsdt.append_slice(&aml);
    dsdt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_sums_to_zero_and_is_reached_from_the_rsdp() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let platform = Platform {
            topology: Topology {
                sockets: 64,
                ..Topology::ONE
            },
            bars: (0xc000_0000, 0xe800_0000),
            ecam: 0xe800_0000,
            last_bus: 1,
            generation: [7; 16],
        };
        write(&memory, &platform).unwrap();
        let read = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        };
        let table = |at: u64| {
            let len = u32::from_le_bytes(read(at + 4, 4).try_into().unwrap()) as usize;
            let bytes = read(at, len);
            assert_eq!(
                bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)),
                0,
                "{at:#x}"
            );
            bytes
        };
        let address = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let rsdp = read(RSDP.0, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        let xsdt = table(address(&rsdp[24..32]));
        let names: Vec<_> = xsdt[36..]
            .chunks(8)
            .map(|at| table(address(at))[..4].to_vec())
            .collect();
        assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);
        let fadt = table(address(&xsdt[36..44]));
        let dsdt = table(address(&fadt[140..148]));
        assert_eq!(&dsdt[..4], b"DSDT");
        assert_eq!(read(GENERATION.0, 16), [7; 16]);
        let generation = b"VM_Gen_Counter\0";
        assert!(
            dsdt.windows(generation.len())
                .any(|part| part == generation)
        );
    }
}
