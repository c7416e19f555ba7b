//! The serial port, a 16550 by vm-superio.

use std::io::{self, Write};

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

/// An interrupt line that KVM raises when the eventfd is written.
pub struct Line(pub EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The serial port; what the guest writes goes to `W`.
pub struct SerialPort<W: Write + Send>(Serial<Line, NoEvents, W>);

impl<W: Write + Send> SerialPort<W> {
    /// A port whose interrupt is `line`.
    pub fn new(line: Line, output: W) -> Self {
        Self(Serial::new(line, output))
    }
}

impl<W: Write + Send> BusDevice for SerialPort<W> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.0.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            // The output may be gone (a closed pipe); the guest must not notice.
            let _ = self.0.write(offset, *byte);
        }
    }
}
