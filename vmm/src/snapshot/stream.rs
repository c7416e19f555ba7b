//! A snapshot on its way: pieces of files, each with where it belongs. What has none is zeros.

use std::sync::mpsc::Sender;

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::layer::{CLUSTER, Layer};

/// The most bytes of a piece.
pub const BLOCK: usize = CLUSTER as usize;
/// Bytes in front of a piece: file, length, place; little-endian.
pub const HEADER: usize = 16;
/// What is looked through before others get their turn.
const TURN: usize = 256;

/// Which file a piece is of.
pub mod file {
    /// [`super::super::Snapshot`] as JSON.
    pub const STATE: u32 = 0;
    /// The guest's memory, its pieces one behind the other.
    pub const MEMORY: u32 = 1;
    /// The first disk's layer.
    pub const DISKS: u32 = 2;
    /// There is no more.
    pub const END: u32 = u32::MAX;
}

/// What comes next of a stream.
pub enum Next {
    /// A piece with its header.
    Piece(Vec<u8>),
    /// Something, if asked again.
    Later,
    /// Nothing more.
    End,
}

/// A VM that stands still, as a stream.
pub struct Stream {
    state: Vec<u8>,
    memory: GuestMemoryMmap,
    layers: Vec<Layer>,
    /// The file that is being read, and where.
    file: u32,
    at: u64,
    /// As long as this is there the VM stands still.
    _held: Sender<()>,
}

impl Stream {
    /// The stream of a VM that stands still until `held` is dropped.
    pub fn new(
        state: Vec<u8>,
        memory: GuestMemoryMmap,
        layers: Vec<Layer>,
        held: Sender<()>,
    ) -> Self {
        Self {
            state,
            memory,
            layers,
            file: file::STATE,
            at: 0,
            _held: held,
        }
    }

    /// What comes next. Looks through so much at once.
    pub fn pull(&mut self) -> std::io::Result<Next> {
        for _ in 0..TURN {
            if self.file == file::END {
                return Ok(Next::End);
            }
            let Some((at, bytes)) = self.read()? else {
                self.at = 0;
                self.file += 1;
                if (self.file as usize) < file::DISKS as usize + self.layers.len() {
                    continue;
                }
                self.file = file::END;
                return Ok(Next::Piece(piece(file::END, 0, &[])));
            };
            self.at = at + BLOCK as u64;
            if bytes.iter().any(|byte| *byte != 0) {
                return Ok(Next::Piece(piece(self.file, at, &bytes)));
            }
        }
        Ok(Next::Later)
    }

    /// The next block of the file from where it is read, and where that is.
    fn read(&self) -> std::io::Result<Option<(u64, Vec<u8>)>> {
        match self.file {
            file::STATE => Ok(self.of_state()),
            file::MEMORY => self.of_memory(),
            disk => {
                let index = (disk - file::DISKS) as usize;
                let Some(layer) = self.layers.get(index) else {
                    return Ok(None);
                };
                let Some(at) = layer.next(self.at) else {
                    return Ok(None);
                };
                // What is in no source is as good as zeros: nobody will ask for it.
                Ok(Some((at, layer.read(at)?.unwrap_or_default())))
            }
        }
    }

    fn of_state(&self) -> Option<(u64, Vec<u8>)> {
        let rest = self.state.get(usize::try_from(self.at).ok()?..)?;
        let block = rest.get(..BLOCK).unwrap_or(rest);
        (!block.is_empty()).then(|| (self.at, block.to_vec()))
    }

    fn of_memory(&self) -> std::io::Result<Option<(u64, Vec<u8>)>> {
        let mut start = 0;
        for region in self.memory.iter() {
            let within = self.at - start;
            if within < region.len() {
                let len = (region.len() - within).min(BLOCK as u64);
                let mut bytes = vec![0; len as usize];
                let at = vm_memory::MemoryRegionAddress(within);
                let read = region.read_slice(&mut bytes, at);
                read.map_err(std::io::Error::other)?;
                return Ok(Some((self.at, bytes)));
            }
            start += region.len();
        }
        Ok(None)
    }
}

fn piece(file: u32, at: u64, bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut piece = Vec::with_capacity(HEADER + bytes.len());
    piece.extend(file.to_le_bytes());
    piece.extend(len.to_le_bytes());
    piece.extend(at.to_le_bytes());
    piece.extend(bytes);
    piece
}

/// A piece as it is read: its file, its place, its bytes.
pub struct Piece<'a> {
    /// See [`file`].
    pub file: u32,
    /// Where it belongs.
    pub at: u64,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// The first piece of `bytes`, and what is behind it; `None` where it is not whole yet. An error
/// where it is none.
pub fn first(bytes: &[u8]) -> Result<Option<(Piece<'_>, &[u8])>, &'static str> {
    let header = || {
        let (file, rest) = bytes.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (at, rest) = rest.split_first_chunk()?;
        let len = u32::from_le_bytes(*len) as usize;
        Some((
            u32::from_le_bytes(*file),
            len,
            u64::from_le_bytes(*at),
            rest,
        ))
    };
    let Some((file, len, at, rest)) = header() else {
        return Ok(None);
    };
    if len > BLOCK || at.checked_add(len as u64).is_none() {
        return Err("what the VM sends is no snapshot");
    }
    let Some((bytes, rest)) = rest.split_at_checked(len) else {
        return Ok(None);
    };
    Ok(Some((Piece { file, at, bytes }, rest)))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use proptest::prelude::*;
    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn a_stream_has_what_is_not_zeros_and_an_end() {
        let ranges = [(GuestAddress(0), 2 * BLOCK), (GuestAddress(1 << 20), BLOCK)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        memory
            .write_slice(b"low", GuestAddress(BLOCK as u64))
            .unwrap();
        memory.write_slice(b"high", GuestAddress(1 << 20)).unwrap();
        let (held, until) = channel();
        let mut stream = Stream::new(b"{}".to_vec(), memory, Vec::new(), held);
        let mut all = Vec::new();
        loop {
            match stream.pull().unwrap() {
                Next::Piece(piece) => all.extend(piece),
                Next::Later => {}
                Next::End => break,
            }
        }
        assert!(until.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty));
        let (mut rest, mut seen) = (&all[..], Vec::new());
        while let Some((piece, behind)) = first(rest).unwrap() {
            seen.push((piece.file, piece.at, piece.bytes.len()));
            rest = behind;
        }
        let block = BLOCK as u64;
        assert_eq!(
            seen,
            [
                (file::STATE, 0, 2),
                (file::MEMORY, block, BLOCK),
                (file::MEMORY, 2 * block, BLOCK),
                (file::END, 0, 0),
            ]
        );
        assert!(first(&[0; 5]).unwrap().is_none());
        assert!(first(&[0xff; 16]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_are_more_than_they_are(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some((piece, behind))) = first(&bytes) {
                prop_assert_eq!(HEADER + piece.bytes.len() + behind.len(), bytes.len());
            }
        }
    }
}
