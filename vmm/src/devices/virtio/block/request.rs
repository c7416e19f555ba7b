//! One request (virtio 1.2, section 5.2.6): its header, its data and where its status goes.

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, VolatileSlice};

use super::counters::Counters;
use super::disk::{Disk, SECTOR};
use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::buffers::{self, Slices};
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

/// Where the outcome of a request goes.
struct Answer<'m> {
    status: VolatileSlice<'m>,
    /// Bytes of the data's buffers that the device may write.
    room: usize,
}

impl Answer<'_> {
    /// Writes the status, and returns how many bytes were written to the chain.
    fn give(&self, outcome: Result<usize, Failure>, counters: &Counters) -> u32 {
        let (status, written) = match outcome {
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
        let _ = self.status.write_obj(status as u8, 0);
        // The status lies behind all of the data's room, whether or not that was filled.
        match written {
            0 => 1,
            _ => self.room as u32 + 1,
        }
    }
}

/// A request that has not been carried out yet.
pub struct Request<'m> {
    /// What is asked for.
    pub ask: Ask,
    /// What is to be filled or read for it.
    pub data: Slices<'m>,
    answer: Answer<'m>,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// To fill the data from there.
    Read(u64),
    /// To write them there.
    Write(u64),
    /// To put what was written on stable storage.
    Flush,
    /// To tell the serial number.
    Id,
    /// To let go of the ranges that the data name.
    Discard,
    /// To make them zeros.
    WriteZeroes,
}

/// Carries out the request in `chain` and returns how many bytes were written to it. A chain
/// without room for a status is an error.
pub fn execute(
    chain: Chain<'_>,
    disk: &mut dyn Disk,
    serial: &[u8; SERIAL],
    counters: &Counters,
) -> Result<u32, BadChain> {
    Ok(match begin(chain.memory(), &chain, disk, counters)? {
        Ok(request) => request.execute(disk, serial, counters),
        Err(written) => written,
    })
}

/// Begins the request in `chain`, whose memory that is: reads it, and sees that what is asked for can be.
/// If it cannot it is over, and so many bytes were written to its chain.
pub fn begin<'m>(
    memory: &'m GuestMemory,
    chain: &Chain<'_>,
    disk: &dyn Disk,
    counters: &Counters,
) -> Result<Result<Request<'m>, u32>, BadChain> {
    let (from, mut to) = buffers::gather_in(memory, chain)?;
    let status = take_last(&mut to).ok_or(BadChain)?;
    let room = buffers::len(&to);
    let answer = Answer { status, room };
    Ok(match parse(from, to, disk, counters) {
        Ok((ask, data)) => Ok(Request { ask, data, answer }),
        Err(failure) => Err(answer.give(Err(failure), counters)),
    })
}

impl Request<'_> {
    /// Carries it out; how many bytes were written to its chain.
    pub fn execute(
        mut self,
        disk: &mut dyn Disk,
        serial: &[u8; SERIAL],
        counters: &Counters,
    ) -> u32 {
        let outcome = match self.ask {
            Ask::Read(_) | Ask::Write(_) | Ask::Flush => {
                return self.end(self.carry_on(disk, 0), counters);
            }
            Ask::Id => Ok(tell(serial, &self.data)),
            Ask::Discard => ranges(&mut self.data, disk, true, counters),
            Ask::WriteZeroes => ranges(&mut self.data, disk, false, counters),
        };
        self.answer.give(outcome, counters)
    }

    /// Reads, writes or flushes, but for the first `done` bytes.
    pub fn carry_on(&self, disk: &mut dyn Disk, mut done: usize) -> io::Result<()> {
        let (Ask::Read(mut at) | Ask::Write(mut at)) = self.ask else {
            return disk.flush();
        };
        for slice in &self.data {
            let skip = done.min(slice.len());
            done -= skip;
            let rest = slice.offset(skip).map_err(io::Error::other)?;
            let from = at + skip as u64;
            at += slice.len() as u64;
            match self.ask {
                _ if rest.is_empty() => {}
                Ask::Read(_) => disk.read(&rest, from)?,
                _ => disk.write(&rest, from)?,
            }
        }
        Ok(())
    }

    /// Ends one that read, wrote or flushed; how many bytes were written to its chain.
    pub fn end(&self, outcome: io::Result<()>, counters: &Counters) -> u32 {
        let len = buffers::len(&self.data);
        let outcome = outcome.map(|()| match self.ask {
            Ask::Read(_) => {
                counters.read_bytes.add_many(len as u64);
                len
            }
            Ask::Write(_) => {
                counters.written_bytes.add_many(len as u64);
                0
            }
            _ => 0,
        });
        self.answer.give(outcome.map_err(Failure::Io), counters)
    }
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

/// Reads the header: what is asked for, and the buffers that it is asked with.
fn parse<'m>(
    mut from: Slices<'m>,
    to: Slices<'m>,
    disk: &dyn Disk,
    counters: &Counters,
) -> Result<(Ask, Slices<'m>), Failure> {
    let [k0, k1, k2, k3, _, _, _, _, sector @ ..] =
        buffers::take::<HEADER>(&mut from).ok_or(Failure::Malformed)?;
    let sector = u64::from_le_bytes(sector);
    match u32::from_le_bytes([k0, k1, k2, k3]) {
        VIRTIO_BLK_T_IN => {
            counters.reads.add();
            Ok((Ask::Read(place(disk, sector, &to)?), to))
        }
        VIRTIO_BLK_T_OUT => {
            counters.writes.add();
            writable(disk)?;
            Ok((Ask::Write(place(disk, sector, &from)?), from))
        }
        VIRTIO_BLK_T_FLUSH => {
            counters.flushes.add();
            Ok((Ask::Flush, Vec::new()))
        }
        VIRTIO_BLK_T_GET_ID => Ok((Ask::Id, to)),
        VIRTIO_BLK_T_DISCARD => Ok((Ask::Discard, from)),
        VIRTIO_BLK_T_WRITE_ZEROES => Ok((Ask::WriteZeroes, from)),
        _ => Err(Failure::Unsupported),
    }
}

/// Writes the serial number; how much of it there was room for.
fn tell(serial: &[u8; SERIAL], to: &[VolatileSlice<'_>]) -> usize {
    let mut rest = &serial[..];
    for slice in to {
        rest = rest
            .get(slice.write(rest, 0).unwrap_or(0)..)
            .unwrap_or_default();
    }
    SERIAL - rest.len()
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
