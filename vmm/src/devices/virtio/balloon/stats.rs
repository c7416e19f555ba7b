//! What the guest says of its memory (virtio 1.2, section 5.5.6.3).

use serde::{Deserialize, Serialize};

use super::buffers::{Slices, take};

/// Bytes of one figure: a tag and a value.
const FIGURE: usize = 10;
/// The most figures that are read; a guest has some twenty.
const MAX_FIGURES: usize = 64;

/// A guest's figures, as far as it told them; bytes where nothing else is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// That it has, less what its kernel keeps for itself.
    pub total: Option<u64>,
    /// That hold nothing.
    pub free: Option<u64>,
    /// That programs could have without swapping.
    pub available: Option<u64>,
    /// That hold copies of files.
    pub caches: Option<u64>,
    /// That were read from swap.
    pub swapped_in: Option<u64>,
    /// That were written to it.
    pub swapped_out: Option<u64>,
    /// Page faults that waited for a disk.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
}

impl Stats {
    /// Reads what the driver wrote; figures that nobody knows are left out.
    pub fn read(mut from: Slices<'_>) -> Self {
        let mut stats = Self::default();
        for _ in 0..MAX_FIGURES {
            let Some([low, high, value @ ..]) = take::<FIGURE>(&mut from) else {
                break;
            };
            let figure = match u16::from_le_bytes([low, high]) {
                0 => &mut stats.swapped_in,
                1 => &mut stats.swapped_out,
                2 => &mut stats.major_faults,
                3 => &mut stats.minor_faults,
                4 => &mut stats.free,
                5 => &mut stats.total,
                6 => &mut stats.available,
                7 => &mut stats.caches,
                _ => continue,
            };
            *figure = Some(u64::from_le_bytes(value));
        }
        stats
    }
}
