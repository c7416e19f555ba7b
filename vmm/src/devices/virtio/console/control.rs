//! Messages about ports (virtio 1.2, section 5.3.6.2).

/// The length of one, without the name that may follow.
pub const MESSAGE: usize = 8;

/// What a message is about.
pub mod event {
    /// The driver is there.
    pub const DEVICE_READY: u16 = 0;
    /// There is such a port.
    pub const DEVICE_ADD: u16 = 1;
    /// The driver has it.
    pub const PORT_READY: u16 = 3;
    /// It is a console.
    pub const CONSOLE_PORT: u16 = 4;
    /// Somebody has opened it at the other end, or closed it.
    pub const PORT_OPEN: u16 = 6;
    /// Its name follows.
    pub const PORT_NAME: u16 = 7;
}

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// The port's number.
    pub port: u32,
    /// Of [`event`].
    pub event: u16,
    /// By the event.
    pub value: u16,
}

impl Message {
    /// As it lies in a buffer.
    pub fn from_bytes([a, b, c, d, e, f, g, h]: [u8; MESSAGE]) -> Self {
        Self {
            port: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }

    /// The same bytes.
    pub fn bytes(self) -> [u8; MESSAGE] {
        let [a, b, c, d] = self.port.to_le_bytes();
        let ([e, f], [g, h]) = (self.event.to_le_bytes(), self.value.to_le_bytes());
        [a, b, c, d, e, f, g, h]
    }
}
