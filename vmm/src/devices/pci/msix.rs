//! MSI-X (PCI Local Bus 3.0, section 6.8.2): the capability, the table and the pending bits.

use std::io;
use std::sync::Arc;

use super::Address;
use super::config::{CapabilityError, ConfigSpace};
use crate::devices::host::{Host, MsiMessage, MsiVector};

/// Capability id.
const ID: u8 = 0x11;
/// Message control: MSI-X is on.
const ENABLE: u8 = 1 << 7;
/// Message control: every vector is masked.
const FUNCTION_MASK: u8 = 1 << 6;
/// Bytes of a table entry.
const ENTRY: usize = 16;
/// Vector control: this vector is masked.
const MASKED: u8 = 1;
const CONTROL: usize = 12;

/// The table of one function. It lies in BAR 0.
pub struct Msix {
    vectors: Arc<Vec<Arc<dyn MsiVector>>>,
    table: Vec<u8>,
    requester: u16,
    capability: usize,
}

impl Msix {
    /// Makes `count` vectors and adds the capability to `space`, with the table and the pending
    /// bits at these offsets of BAR 0.
    pub fn new(
        host: &dyn Host,
        space: &mut ConfigSpace,
        count: u16,
        address: Address,
        (table, pending): (u32, u32),
    ) -> io::Result<Self> {
        let vectors = (0..count)
            .map(|_| host.msi_vector())
            .collect::<io::Result<Vec<_>>>()?;
        let mut body = count.saturating_sub(1).to_le_bytes().to_vec();
        body.extend(table.to_le_bytes());
        body.extend(pending.to_le_bytes());
        let capability = space
            .add_capability(ID, &body, &[0, ENABLE | FUNCTION_MASK])
            .map_err(|error: CapabilityError| io::Error::other(error))?;
        Ok(Self {
            vectors: Arc::new(vectors),
            table: blank(count),
            requester: u16::from(address.device) << 3 | u16::from(address.function),
            capability: usize::from(capability),
        })
    }

    /// The vectors, for the device behind the function.
    pub fn vectors(&self) -> Arc<Vec<Arc<dyn MsiVector>>> {
        self.vectors.clone()
    }

    /// Reads the table.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.table.get(from.saturating_add(i)).copied().unwrap_or(0);
        }
    }

    /// Writes the table, and opens or masks the vector that was written.
    pub fn write(&mut self, offset: u64, data: &[u8], space: &ConfigSpace) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (i, new) in data.iter().enumerate() {
            if let Some(byte) = self.table.get_mut(from.saturating_add(i)) {
                *byte = *new;
            }
        }
        self.route(from / ENTRY, space)
    }

    /// The capability or the command register may have changed: routes every vector anew.
    pub fn update(&self, space: &ConfigSpace) -> io::Result<()> {
        (0..self.vectors.len()).try_for_each(|index| self.route(index, space))
    }

    /// What the guest has written to the table.
    pub fn table(&self) -> &[u8] {
        &self.table
    }

    /// Takes such a table, and routes every vector as it says.
    pub fn restore(&mut self, table: Vec<u8>, space: &ConfigSpace) -> io::Result<()> {
        if table.len() != self.table.len() {
            return Err(io::Error::other("its table has another number of vectors"));
        }
        self.table = table;
        self.update(space)
    }

    /// Back to the state after power-on: everything masked.
    pub fn reset(&mut self, space: &ConfigSpace) -> io::Result<()> {
        self.table = blank(u16::try_from(self.vectors.len()).unwrap_or(u16::MAX));
        self.update(space)
    }

    fn route(&self, index: usize, space: &ConfigSpace) -> io::Result<()> {
        let (Some(vector), Some(entry)) = (
            self.vectors.get(index),
            self.table.get(index * ENTRY..(index + 1) * ENTRY),
        ) else {
            return Ok(());
        };
        let word = |at: usize| {
            (0..4).fold(0u32, |value, i| {
                value | u32::from(entry.get(at + i).copied().unwrap_or(0)) << (8 * i)
            })
        };
        let control = space.get(self.capability + 3);
        let open = control & (ENABLE | FUNCTION_MASK) == ENABLE
            && entry
                .get(CONTROL)
                .is_some_and(|control| control & MASKED == 0);
        vector.route(open.then(|| MsiMessage {
            address_low: word(0),
            address_high: word(4),
            data: word(8),
            requester: self.requester,
        }))
    }
}

fn blank(count: u16) -> Vec<u8> {
    let mut table = vec![0; usize::from(count) * ENTRY];
    table
        .iter_mut()
        .skip(CONTROL)
        .step_by(ENTRY)
        .for_each(|control| *control = MASKED);
    table
}
