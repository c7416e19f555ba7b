//! One request (virtio 1.2, section 5.2.6): its header, its data and where its status goes.

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, VolatileMemoryError, VolatileSlice};

use super::counters::Counters;
use super::disk::{Disk, SECTOR};
use crate::devices::virtio::buffers;
use crate::devices::virtio::queue::{BadChain, Chain};

const HEADER: usize = 16;
/// A range to discard or zero: first sector, sectors, flags.
const RANGE: usize = 16;
/// The most ranges that one request may have; told to the driver.
pub const MAX_RANGES: u32 = 16;
/// The most sectors that one range may have; told to the driver.
pub const MAX_RANGE_SECTORS: u32 = 1 << 22;
const FLAG_UNMAP: u32 = 1;
/// The longest serial number (section 5.2.6.1).
pub const SERIAL: usize = 20;

/// Why a request failed; its status byte.
enum Failure {
    Io(io::Error),
    Unsupported,
    /// The driver's mistake: lengths, places or directions that make no sense.
    Malformed,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<VolatileMemoryError> for Failure {
    fn from(_: VolatileMemoryError) -> Self {
        Self::Malformed
    }
}

/// Carries out the request in `chain` and returns how many bytes were written to it. A chain
/// without room for a status is an error.
pub fn execute(
    chain: Chain<'_>,
    disk: &mut dyn Disk,
    serial: &[u8; SERIAL],
    counters: &Counters,
) -> Result<u32, BadChain> {
    let (from, mut to) = buffers::gather(&chain)?;
    let status_byte = take_last(&mut to).ok_or(BadChain)?;
    let room = buffers::len(&to);
    let (status, written) = match carry_out(from, &to, disk, serial, counters) {
        Ok(written) => (VIRTIO_BLK_S_OK, written),
        Err(Failure::Io(error)) => {
            tracing::debug!("block: {error}");
            (VIRTIO_BLK_S_IOERR, 0)
        }
        Err(Failure::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        Err(Failure::Malformed) => (VIRTIO_BLK_S_IOERR, 0),
    };
    if status != VIRTIO_BLK_S_OK {
        counters.errors.add();
    }
    // The slice has one byte, checked when it was cut.
    let _ = status_byte.write_obj(status as u8, 0);
    // The status lies behind all of the data's room, whether or not that was filled.
    Ok(if written > 0 { room as u32 + 1 } else { 1 })
}

/// Cuts the last byte off the buffers.
fn take_last<'a>(slices: &mut Vec<VolatileSlice<'a>>) -> Option<VolatileSlice<'a>> {
    while let Some(last) = slices.pop() {
        if let Some(before) = last.len().checked_sub(1) {
            let byte = last.subslice(before, 1).ok()?;
            if before > 0 {
                slices.push(last.subslice(0, before).ok()?);
            }
            return Some(byte);
        }
    }
    None
}

fn carry_out(
    mut from: Vec<VolatileSlice<'_>>,
    to: &[VolatileSlice<'_>],
    disk: &mut dyn Disk,
    serial: &[u8; SERIAL],
    counters: &Counters,
) -> Result<usize, Failure> {
    let [k0, k1, k2, k3, _, _, _, _, sector @ ..] =
        buffers::take::<HEADER>(&mut from).ok_or(Failure::Malformed)?;
    let sector = u64::from_le_bytes(sector);
    match u32::from_le_bytes([k0, k1, k2, k3]) {
        VIRTIO_BLK_T_IN => {
            counters.reads.add();
            let mut at = place(disk, sector, to)?;
            for slice in to {
                disk.read(slice, at)?;
                at += slice.len() as u64;
            }
            let len = buffers::len(to);
            counters.read_bytes.add_many(len as u64);
            Ok(len)
        }
        VIRTIO_BLK_T_OUT => {
            counters.writes.add();
            writable(disk)?;
            let mut at = place(disk, sector, &from)?;
            for slice in &from {
                disk.write(slice, at)?;
                at += slice.len() as u64;
            }
            counters.written_bytes.add_many(buffers::len(&from) as u64);
            Ok(0)
        }
        VIRTIO_BLK_T_FLUSH => {
            counters.flushes.add();
            disk.flush()?;
            Ok(0)
        }
        VIRTIO_BLK_T_GET_ID => {
            let mut rest = &serial[..];
            for slice in to {
                rest = rest
                    .get(slice.write(rest, 0).unwrap_or(0)..)
                    .unwrap_or_default();
            }
            Ok(SERIAL - rest.len())
        }
        VIRTIO_BLK_T_DISCARD => ranges(&mut from, disk, true, counters),
        VIRTIO_BLK_T_WRITE_ZEROES => ranges(&mut from, disk, false, counters),
        _ => Err(Failure::Unsupported),
    }
}

fn writable(disk: &dyn Disk) -> Result<(), Failure> {
    if disk.is_read_only() {
        Err(Failure::Malformed)
    } else {
        Ok(())
    }
}

/// Where on the disk the buffers go, in bytes, once it is sure that they fit.
fn place(disk: &dyn Disk, sector: u64, slices: &[VolatileSlice<'_>]) -> Result<u64, Failure> {
    let len = slices.iter().map(|slice| slice.len() as u64).sum::<u64>();
    if !len.is_multiple_of(SECTOR) {
        return Err(Failure::Malformed);
    }
    check(disk, sector, len)
}

fn check(disk: &dyn Disk, sector: u64, len: u64) -> Result<u64, Failure> {
    let at = sector.checked_mul(SECTOR).ok_or(Failure::Malformed)?;
    let end = at.checked_add(len).ok_or(Failure::Malformed)?;
    if end <= disk.size() {
        Ok(at)
    } else {
        Err(Failure::Malformed)
    }
}

fn ranges(
    from: &mut Vec<VolatileSlice<'_>>,
    disk: &mut dyn Disk,
    discard: bool,
    counters: &Counters,
) -> Result<usize, Failure> {
    counters.discards.add();
    writable(disk)?;
    let mut count = 0;
    while !from.is_empty() {
        count += 1;
        let [sector @ .., n0, n1, n2, n3, f0, f1, f2, f3] =
            buffers::take::<RANGE>(from).ok_or(Failure::Malformed)?;
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        if count > MAX_RANGES || sectors > MAX_RANGE_SECTORS {
            return Err(Failure::Malformed);
        }
        // Section 5.2.6.2: a discard has no flags, a write-zeroes has one.
        if flags & !(if discard { 0 } else { FLAG_UNMAP }) != 0 {
            return Err(Failure::Unsupported);
        }
        let len = u64::from(sectors) * SECTOR;
        let at = check(disk, u64::from_le_bytes(sector), len)?;
        if len > 0 {
            disk.zero(at, len, discard || flags & FLAG_UNMAP != 0)?;
            counters.discarded_bytes.add_many(len);
        }
    }
    Ok(0)
}
