//! A driver's way through the registers, an honest one's and a hostile one's.

use std::io;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::GuestAddress;

use super::*;
use crate::devices::pci::{Address, PciFunction};
use crate::devices::virtio::testing::FakeHost;
use crate::devices::virtio::trouble::Complaints;
use crate::devices::virtio::{Activation, GuestMemory, VirtioDevice};

/// A device that counts.
#[derive(Default)]
struct Counting {
    activations: Arc<Mutex<Vec<(u64, usize)>>>,
    resets: usize,
}

impl VirtioDevice for Counting {
    fn id(&self) -> u16 {
        4
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 16]
    }
    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let live = activation.queues.iter().flatten().count();
        self.activations
            .lock()
            .unwrap()
            .push((activation.features, live));
        Ok(())
    }
    fn reset(&mut self) {
        self.resets += 1;
    }
}

type Activations = Arc<Mutex<Vec<(u64, usize)>>>;

fn transport() -> (PciTransport, Arc<FakeHost>, Activations) {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let host = Arc::new(FakeHost::default());
    let device = Counting::default();
    let activations = device.activations.clone();
    let at = Address {
        bus: 0,
        device: 3,
        function: 0,
    };
    let device: SharedVirtio = Arc::new(Mutex::new(device));
    let device = (device, Complaints::new("test", ""));
    let transport = PciTransport::new(device, host.clone(), memory, at, 0xc000_0000).unwrap();
    (transport, host, activations)
}

fn read(transport: &mut PciTransport, offset: u64) -> u32 {
    let mut data = [0; 4];
    transport.bar_read(0, offset, &mut data);
    u32::from_le_bytes(data)
}

fn negotiate(transport: &mut PciTransport, features: u64) -> u8 {
    transport.bar_write(0, 20, &[0]);
    for half in [0u32, 1] {
        transport.bar_write(0, 8, &half.to_le_bytes());
        transport.bar_write(0, 12, &((features >> (32 * half)) as u32).to_le_bytes());
    }
    transport.bar_write(0, 20, &[3]);
    transport.bar_write(0, 20, &[3 | 8]);
    read(transport, 20) as u8
}

fn set_up_queue(transport: &mut PciTransport, index: u16, base: u64) {
    transport.bar_write(0, 22, &index.to_le_bytes());
    transport.bar_write(0, 24, &16u16.to_le_bytes());
    for (offset, at) in [(32, base), (40, base + 0x1000), (48, base + 0x2000)] {
        transport.bar_write(0, offset, &(at as u32).to_le_bytes());
        transport.bar_write(0, offset + 4, &((at >> 32) as u32).to_le_bytes());
    }
    transport.bar_write(0, 28, &1u16.to_le_bytes());
}

#[test]
fn a_driver_that_follows_the_steps_starts_the_device() {
    let (mut transport, _, activations) = transport();
    let features = 1 << VIRTIO_F_VERSION_1;
    assert_eq!(negotiate(&mut transport, features), 11);
    set_up_queue(&mut transport, 0, 0x1000);
    transport.bar_write(0, 20, &[15]);
    assert_eq!(*activations.lock().unwrap(), [(features, 1)]);
    assert_eq!(read(&mut transport, 20) as u8, 15);
    transport.bar_write(0, 20, &[0]);
    assert_eq!(read(&mut transport, 20) as u8, 0);
}

#[test]
fn a_feature_that_was_not_offered_is_refused() {
    let (mut transport, ..) = transport();
    assert_eq!(
        negotiate(&mut transport, 1 << VIRTIO_F_VERSION_1 | 2) & 8,
        0
    );
}

#[test]
fn a_queue_outside_memory_asks_for_a_reset() {
    let (mut transport, _, activations) = transport();
    negotiate(&mut transport, 1 << VIRTIO_F_VERSION_1);
    set_up_queue(&mut transport, 0, 0x7_0000_0000);
    transport.bar_write(0, 20, &[15]);
    assert_eq!(read(&mut transport, 20) as u8 & 64, 64);
    assert!(activations.lock().unwrap().is_empty());
}

#[test]
fn a_doorbell_that_is_rung_often_is_an_ioeventfd_and_follows_the_bar() {
    let (mut transport, host, _) = transport();
    let at = || host.doorbells.lock().unwrap().clone();
    transport.config_write(4, &[6]);
    let ring = |transport: &mut PciTransport, queue: u64| {
        transport.bar_write(0, 0x3000 + 4 * queue, &[0; 2]);
    };
    for _ in 0..31 {
        ring(&mut transport, 1);
        ring(&mut transport, 7);
        assert!(at().is_empty());
    }
    ring(&mut transport, 1);
    assert_eq!(at(), [0xc000_3004]);
    // What still comes by an exit is of no harm.
    ring(&mut transport, 1);
    assert_eq!(at(), [0xc000_3004]);
    transport.config_write(0x10, &0xd000_0000u32.to_le_bytes());
    assert!(at().is_empty());
    ring(&mut transport, 0);
    assert!(at().is_empty());
    ring(&mut transport, 1);
    assert_eq!(at(), [0xd000_3004]);
    transport.config_write(4, &[0]);
    ring(&mut transport, 1);
    assert!(at().is_empty());
}

#[test]
fn a_vector_is_routed_only_while_msix_is_on_and_it_is_not_masked() {
    let (mut transport, host, _) = transport();
    let capability = 0x40;
    let table = 0x4000 + 16;
    for (offset, word) in [(0, 0xfee0_1000u32), (8, 0x41), (12, 0)] {
        transport.bar_write(0, table + offset, &word.to_le_bytes());
    }
    assert_eq!(host.routes.lock().unwrap()[1], None);
    transport.config_write(capability + 2, &[2, 0x80]);
    let message = host.routes.lock().unwrap()[1].unwrap();
    assert_eq!(
        (message.address_low, message.data, message.requester),
        (0xfee0_1000, 0x41, 0x18)
    );
    transport.bar_write(0, table + 12, &[1, 0, 0, 0]);
    assert_eq!(host.routes.lock().unwrap()[1], None);
    // a vector past the table's end reads back as none
    transport.bar_write(0, 16, &9u16.to_le_bytes());
    assert_eq!(read(&mut transport, 16) as u16, 0xffff);
}

#[test]
fn the_device_s_configuration_is_read_through_its_structure_and_through_pci_cfg() {
    let (mut transport, ..) = transport();
    assert_eq!(read(&mut transport, 0x2000 + 7), 0x0707_0707);
    let mut at = 0x40;
    let mut byte = [0];
    loop {
        transport.config_read(at + 3, &mut byte);
        if byte[0] == 5 {
            break;
        }
        transport.config_read(at + 1, &mut byte);
        at = u16::from(byte[0]);
    }
    transport.config_write(at + 8, &0x2009u32.to_le_bytes());
    transport.config_write(at + 12, &1u32.to_le_bytes());
    transport.config_read(at + 16, &mut byte);
    assert_eq!(byte, [9]);
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics(
        accesses in prop::collection::vec(
            (any::<bool>(), 0u16..0x110, 0u64..0x8100, prop::collection::vec(any::<u8>(), 1..9)),
            0..64,
        )
    ) {
        let (mut transport, ..) = transport();
        for (config, at, offset, data) in accesses {
            let mut out = data.clone();
            if config {
                transport.config_write(at, &data);
                transport.config_read(at, &mut out);
            } else {
                transport.bar_write(0, offset, &data);
                transport.bar_read(0, offset, &mut out);
            }
        }
    }
}
