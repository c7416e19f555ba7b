//! The serial port, a 16550 by vm-superio.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::bus::BusDevice;

/// COM1's ports.
pub const COM1: u64 = 0x3f8;
/// How many ports a 16550 has.
pub const LEN: u64 = 8;
/// COM1's interrupt line.
pub const IRQ: u32 = 4;
/// The port that a byte is read from (linux/include/uapi/linux/serial_reg.h, `UART_RX`).
const RECEIVE: u64 = 0;

/// An interrupt line that KVM raises when the eventfd is written.
pub struct Line(pub EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Where what is typed comes from.
pub trait Keyboard: Send {
    /// The next bytes, at most so many; none where nothing is typed.
    fn take(&mut self, most: usize) -> Vec<u8>;
}

/// Nobody types.
impl Keyboard for io::Empty {
    fn take(&mut self, _: usize) -> Vec<u8> {
        Vec::new()
    }
}

/// A port that has room for more of what is typed.
pub trait Refill: Send {
    /// Takes from the keyboard what there is room for.
    fn refill(&mut self);
}

/// A port that somebody types at.
pub type SharedSerial = Arc<Mutex<dyn Refill>>;

/// The serial port; what the guest writes goes to `W`.
pub struct SerialPort<W: Write + Send> {
    port: Serial<Line, NoEvents, W>,
    keyboard: Box<dyn Keyboard>,
}

impl<W: Write + Send> SerialPort<W> {
    /// A port whose interrupt is `line`.
    pub fn new(line: Line, output: W, keyboard: Box<dyn Keyboard>) -> Self {
        Self {
            port: Serial::new(line, output),
            keyboard,
        }
    }
}

impl<W: Write + Send> Refill for SerialPort<W> {
    fn refill(&mut self) {
        let bytes = match self.port.fifo_capacity() {
            0 => return,
            room => self.keyboard.take(room),
        };
        if !bytes.is_empty() {
            // There is room. A port in loopback hears nobody, as a real one.
            let _ = self.port.enqueue_raw_bytes(&bytes);
        }
    }
}

impl<W: Write + Send> BusDevice for SerialPort<W> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(port)) = (data, u8::try_from(offset)) {
            *byte = self.port.read(port);
            if offset == RECEIVE {
                self.refill();
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            // The output may be gone (a closed pipe); the guest must not notice.
            let _ = self.port.write(offset, *byte);
        }
    }
}
