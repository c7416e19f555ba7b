//! SMBIOS (DSP0134 3.2): what the guest is told of the machine that it is: /sys/class/dmi.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where the entry point lies, among the addresses that a guest without EFI looks through
/// (section 5.2.2); the structures lie behind it.
const ENTRY: GuestAddress = GuestAddress(0xf_0000);
const TABLE: u64 = 0xf_0020;
const TABLE_END: u64 = 0xf_f000;
const ENTRY_LEN: usize = 24;
const VERSION: [u8; 3] = [3, 2, 0];
/// Type 0, characteristics: these are not told of.
const NO_CHARACTERISTICS: u64 = 1 << 3;
/// Type 0, second extension byte: this is a virtual machine.
const VIRTUAL: u8 = 1 << 4;
/// Type 1, wake-up type: the power switch.
const POWER_SWITCH: u8 = 6;
/// Type 3: a case of another kind, whose states are safe and whose security is none.
const CHASSIS_KIND_STATES: [u8; 5] = [1, 3, 3, 3, 3];

/// Who the machine is. A text that is empty is not told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The UUID's bytes, in the order in which it is written.
    pub uuid: [u8; 16],
    /// Its serial number.
    pub serial: String,
    /// The case that it is in.
    pub chassis: Chassis,
    /// Free texts (type 11), among which systemd finds its credentials.
    pub oem_strings: Vec<String>,
}

/// A case (type 3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chassis {
    /// Who made it.
    pub manufacturer: String,
    /// Its version.
    pub version: String,
    /// Its serial number.
    pub serial: String,
    /// Its asset tag.
    pub asset: String,
    /// Its SKU number.
    pub sku: String,
}

/// Why the structures could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SmbiosError {
    /// All the texts together.
    #[error("SMBIOS: {0} bytes of serial numbers and other texts, and there is room for {room}", room = TABLE_END - TABLE)]
    Room(usize),
    /// The guest's memory.
    #[error("SMBIOS does not fit in guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Writes the entry point and the structures.
pub fn write(memory: &GuestMemoryMmap, identity: &Identity) -> Result<(), SmbiosError> {
    let table = table(identity);
    if table.len() as u64 > TABLE_END - TABLE {
        return Err(SmbiosError::Room(table.len()));
    }
    memory.write_slice(&table, GuestAddress(TABLE))?;
    Ok(memory.write_slice(&entry(table.len() as u32), ENTRY)?)
}

/// The 64-bit entry point (section 5.2.2).
fn entry(len: u32) -> [u8; ENTRY_LEN] {
    let mut entry = Vec::with_capacity(ENTRY_LEN);
    entry.extend(b"_SM3_");
    entry.extend([0, ENTRY_LEN as u8]);
    entry.extend(VERSION);
    entry.extend([1, 0]);
    entry.extend(len.to_le_bytes());
    entry.extend(TABLE.to_le_bytes());
    let sum = entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    let mut whole = [0; ENTRY_LEN];
    for (i, (to, byte)) in whole.iter_mut().zip(entry).enumerate() {
        *to = if i == 5 { sum.wrapping_neg() } else { byte };
    }
    whole
}

fn table(identity: &Identity) -> Vec<u8> {
    let mut table = Table::default();
    // The firmware: what is told is who we are.
    let mut bios = Texts::default();
    let mut body = vec![bios.add("Peapod"), bios.add(env!("CARGO_PKG_VERSION"))];
    body.extend([0, 0, bios.add("01/01/2026"), 0]);
    body.extend(NO_CHARACTERISTICS.to_le_bytes());
    body.extend([0, VIRTUAL, 0xff, 0xff, 0xff, 0xff]);
    table.add(0, &body, bios);

    // As KubeVirt calls its machines, whose guests may look for that.
    let mut system = Texts::default();
    let mut body = vec![system.add("KubeVirt"), system.add("None"), 0];
    body.push(system.add(&identity.serial));
    body.extend(mixed_endian(identity.uuid));
    body.extend([POWER_SWITCH, 0, system.add("KubeVirt")]);
    table.add(1, &body, system);

    let chassis = &identity.chassis;
    let mut texts = Texts::default();
    let [kind, states @ ..] = CHASSIS_KIND_STATES;
    let mut body = vec![texts.add(&chassis.manufacturer), kind];
    body.extend([&chassis.version, &chassis.serial, &chassis.asset].map(|text| texts.add(text)));
    body.extend(states);
    // OEM's word, height, power cords, no elements of no length.
    body.extend([0; 8]);
    body.push(texts.add(&chassis.sku));
    table.add(3, &body, texts);

    if !identity.oem_strings.is_empty() {
        let mut texts = Texts::default();
        let count = identity
            .oem_strings
            .iter()
            .map(|text| texts.add(text))
            .max();
        table.add(11, &[count.unwrap_or(0)], texts);
    }
    table.add(127, &[], Texts::default());
    table.bytes
}

/// Since version 2.6 the first three fields have their lowest byte first (section 7.2.1).
fn mixed_endian(uuid: [u8; 16]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = uuid;
    let mut mixed = [d, c, b, a, f, e, h, g, 0, 0, 0, 0, 0, 0, 0, 0];
    mixed
        .iter_mut()
        .skip(8)
        .zip(rest)
        .for_each(|(to, byte)| *to = byte);
    mixed
}

#[derive(Default)]
struct Table {
    bytes: Vec<u8>,
    handle: u16,
}

impl Table {
    /// Appends a structure (section 6.1.2): its header, `body`, its texts.
    fn add(&mut self, kind: u8, body: &[u8], texts: Texts) {
        self.bytes.extend([kind, body.len() as u8 + 4]);
        self.bytes.extend(self.handle.to_le_bytes());
        self.handle += 1;
        self.bytes.extend(body);
        self.bytes.extend(&texts.bytes);
        if texts.bytes.is_empty() {
            self.bytes.push(0);
        }
        self.bytes.push(0);
    }
}

/// The texts of a structure, of which its body has the numbers (section 6.1.3).
#[derive(Default)]
struct Texts {
    bytes: Vec<u8>,
    count: u8,
}

impl Texts {
    /// The number of a text; 0 where there is none. It ends at its first NUL, and there are at
    /// most 255.
    fn add(&mut self, text: &str) -> u8 {
        let text = text.split('\0').next().unwrap_or_default();
        if text.is_empty() || self.count == u8::MAX {
            return 0;
        }
        self.bytes.extend(text.bytes());
        self.bytes.push(0);
        self.count += 1;
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(identity: &Identity) -> (Vec<u8>, Vec<u8>) {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write(&memory, identity).unwrap();
        let mut entry = vec![0; ENTRY_LEN];
        memory.read_slice(&mut entry, ENTRY).unwrap();
        let len = u32::from_le_bytes(entry[12..16].try_into().unwrap()) as usize;
        let at = u64::from_le_bytes(entry[16..24].try_into().unwrap());
        let mut table = vec![0; len];
        memory.read_slice(&mut table, GuestAddress(at)).unwrap();
        (entry, table)
    }

    /// Type, body behind the header, and texts of each structure.
    fn structures(mut table: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
        let mut all = Vec::new();
        while let [kind, len, ..] = *table {
            let (formatted, rest) = table.split_at(usize::from(len));
            let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap();
            let texts = rest[..end].split(|byte| *byte == 0);
            let texts = texts.map(|text| String::from_utf8(text.to_vec()).unwrap());
            all.push((kind, formatted[4..].to_vec(), texts.collect()));
            table = &rest[end + 2..];
        }
        all
    }

    #[test]
    fn the_entry_point_sums_to_zero_and_leads_to_every_structure() {
        let mut identity = Identity {
            uuid: *b"0123456789abcdef",
            serial: "s-1".to_owned(),
            ..Identity::default()
        };
        identity.chassis.asset = "rack 7".to_owned();
        identity.oem_strings = vec!["one".to_owned(), "two".to_owned()];
        let (entry, table) = written(&identity);
        assert_eq!(&entry[..5], b"_SM3_");
        assert_eq!(
            entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        let all = structures(&table);
        let kinds: Vec<_> = all.iter().map(|(kind, ..)| *kind).collect();
        assert_eq!(kinds, [0, 1, 3, 11, 127]);
        let (_, body, texts) = &all[1];
        assert_eq!(texts, &["KubeVirt", "None", "s-1", "KubeVirt"]);
        assert_eq!(&body[4..20], b"3210547689abcdef");
        // Lengths of sections 7.1, 7.2 and 7.4.
        assert_eq!(
            [&all[0], &all[1], &all[2]].map(|s| s.1.len() + 4),
            [0x18, 0x1b, 0x16]
        );
        assert_eq!(all[2].2, ["rack 7"]);
        assert_eq!(
            (&all[3].1[..], &all[3].2[..]),
            (&[2][..], &["one".to_owned(), "two".to_owned()][..])
        );
    }

    #[test]
    fn too_much_text_is_refused_and_a_nul_ends_one() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let mut identity = Identity {
            serial: "a\0b".to_owned(),
            ..Identity::default()
        };
        assert_eq!(structures(&written(&identity).1)[1].2[2], "a");
        identity.oem_strings = vec!["x".repeat(0xf000)];
        let error = write(&memory, &identity).unwrap_err().to_string();
        assert!(error.contains("bytes of serial numbers"), "{error}");
    }
}
