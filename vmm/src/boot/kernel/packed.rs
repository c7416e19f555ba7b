//! What a bzImage holds: its setup header, and the kernel that is packed in it.
//!
//! Sources: Documentation/arch/x86/boot.rst (setup header), scripts/Makefile.lib (packers).

use std::io::{Cursor, Read};

use linux_loader::loader::bootparam::{XLF_KERNEL_64, setup_header};
use vm_memory::ByteValued;

use super::{ELF_MAGIC, MAX_KERNEL};
use crate::boot::linux::MAGIC;

/// scripts/Makefile.lib has at most 128 MiB for xz; the decoder takes a little more.
const MAX_DICTIONARY_KIB: u32 = 160 << 10;
/// Where the setup header begins.
const HEADER: usize = 0x1f1;
/// The byte that says how far behind it the header ends.
const LENGTH: usize = 0x201;
/// What is read of a file to know its header.
pub const PREFIX: u64 = 0x300;
/// The version that has `xloadflags`, and with it says that there is a 64-bit entry.
const WITH_64_BIT: u16 = 0x20c;

/// Why there is no ELF image in a bzImage, or none that is found.
#[derive(Debug)]
pub enum Packed {
    /// It is no bzImage.
    No,
    /// It is cut short, or what it holds is not what it says.
    Damaged(String),
    /// In a way that is not read here, which is called so.
    By(&'static str),
}

/// The setup header of a bzImage that begins so.
pub fn header(image: &[u8]) -> Option<setup_header> {
    let mut header = setup_header::default();
    let end = LENGTH + 1 + usize::from(*image.get(LENGTH)?);
    let fields = image.get(HEADER..end.min(image.len()))?;
    for (known, field) in header.as_mut_slice().iter_mut().zip(fields) {
        *known = *field;
    }
    (header.header == MAGIC).then_some(header)
}

/// Whether a kernel with that header can be entered in 64-bit mode, and unpacks itself then.
pub fn has_64_bit_entry(header: &setup_header) -> bool {
    header.version >= WITH_64_BIT && header.xloadflags & XLF_KERNEL_64 != 0
}

/// Where the file goes on behind the code for real mode.
fn setup_len(header: &setup_header) -> usize {
    let sectors = match header.setup_sects {
        0 => 4,
        sectors => usize::from(sectors),
    };
    (sectors + 1) * 512
}

/// The ELF image that a bzImage's payload unpacks to.
pub fn unpack(image: &[u8]) -> Result<Vec<u8>, Packed> {
    let header = header(image).ok_or(Packed::No)?;
    let payload = payload(image, &header)?;
    let read = |reader: &mut dyn Read| {
        let mut elf = Vec::new();
        // A packed kernel ends with its length, which the unpacker may take for one more block:
        // what came before it is whole when the ELF image is.
        let result = reader.take(MAX_KERNEL).read_to_end(&mut elf);
        match result {
            Err(error) if !elf.starts_with(ELF_MAGIC) => Err(Packed::Damaged(error.to_string())),
            _ => Ok(elf),
        }
    };
    let elf = match payload {
        [0x1f, 0x8b, ..] => read(&mut flate2::read::GzDecoder::new(Cursor::new(payload)))?,
        [0x02, 0x21, 0x4c, 0x18, ..] => {
            // The last four bytes are the unpacked length (arch/x86/boot/compressed/mkpiggy.c).
            let whole = payload.len().saturating_sub(4);
            let frame = payload.get(..whole).unwrap_or_default();
            read(&mut lz4_flex::frame::FrameDecoder::new(Cursor::new(frame)))?
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(Cursor::new(payload));
            read(&mut decoder.map_err(|e| Packed::Damaged(e.to_string()))?)?
        }
        [0xfd, b'7', b'z', b'X', ..] => {
            let payload = Cursor::new(payload);
            read(&mut lzma_rust2::XzReader::new_mem_limit(
                payload,
                false,
                MAX_DICTIONARY_KIB,
            ))?
        }
        [0x5d, 0x00, 0x00, ..] => return Err(Packed::By("lzma")),
        [b'B', b'Z', b'h', ..] => return Err(Packed::By("bzip2")),
        [0x89, b'L', b'Z', b'O', ..] => return Err(Packed::By("lzo")),
        _ => return Err(Packed::By("something unknown")),
    };
    if !elf.starts_with(ELF_MAGIC) {
        return Err(Packed::Damaged("its payload is no ELF image".to_owned()));
    }
    Ok(elf)
}

/// The packed kernel.
fn payload<'a>(image: &'a [u8], header: &setup_header) -> Result<&'a [u8], Packed> {
    let (offset, len) = (
        header.payload_offset as usize,
        header.payload_length as usize,
    );
    let start = setup_len(header).saturating_add(offset);
    image
        .get(start..start.saturating_add(len))
        .ok_or_else(|| Packed::Damaged("its payload goes past its end".to_owned()))
}
