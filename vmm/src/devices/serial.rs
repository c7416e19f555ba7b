//! The serial port, a 16550 by vm-superio.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::bus::BusDevice;
use super::saved::{self, Unfit};
use super::terminal::{Keyboard, Refill};

/// COM1's ports.
pub const COM1: u64 = 0x3f8;
/// How many ports a 16550 has.
pub const LEN: u64 = 8;
/// COM1's interrupt line.
pub const IRQ: u32 = 4;
/// The port that a byte is read from (linux/include/uapi/linux/serial_reg.h, `UART_RX`).
const RECEIVE: u64 = 0;
// The other ports, those that the guest writes (same header), and the bit of the line control that
// puts the divisor at the first two.
const INTERRUPTS: u8 = 1;
const LINE: u8 = 3;
const MODEM: u8 = 4;
const SCRATCH: u8 = 7;
const DIVISOR: u8 = 1 << 7;

/// What the guest has written, and what it has not read yet.
#[derive(Serialize, Deserialize)]
struct Saved {
    divisor: [u8; 2],
    interrupts: u8,
    line: u8,
    modem: u8,
    scratch: u8,
    unread: Vec<u8>,
}

/// An interrupt line that KVM raises when the eventfd is written.
pub struct Line(pub EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

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

    fn save(&self) -> Value {
        let state = self.port.state();
        saved::write(&Saved {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupts: state.interrupt_enable,
            line: state.line_control,
            modem: state.modem_control,
            scratch: state.scratch,
            unread: state.in_buffer,
        })
    }

    /// As the guest did, so that the interrupts are raised that it waits for.
    fn restore(&mut self, saved: &Value) -> Result<(), Unfit> {
        let saved: Saved = saved::read(saved)?;
        let [low, high] = saved.divisor;
        for (port, value) in [
            (LINE, DIVISOR),
            (0, low),
            (1, high),
            (LINE, saved.line & !DIVISOR),
            (SCRATCH, saved.scratch),
            (INTERRUPTS, saved.interrupts),
        ] {
            self.port.write(port, value).map_err(Unfit::new)?;
        }
        let taken = self.port.enqueue_raw_bytes(&saved.unread);
        taken.map_err(Unfit::new)?;
        for (port, value) in [(MODEM, saved.modem), (LINE, saved.line)] {
            self.port.write(port, value).map_err(Unfit::new)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn port() -> SerialPort<Vec<u8>> {
        let line = Line(EventFd::new(EFD_NONBLOCK).unwrap());
        SerialPort::new(line, Vec::new(), Box::new(io::empty()))
    }

    fn read(port: &mut SerialPort<Vec<u8>>, at: u64) -> u8 {
        let mut byte = [0];
        port.read(at, &mut byte);
        byte[0]
    }

    #[test]
    fn a_restored_port_is_set_as_the_guest_has_set_it_and_has_what_was_typed() {
        let mut first = port();
        for (at, value) in [
            (3, 0x80),
            (0, 1),
            (1, 2),
            (3, 0x03),
            (1, 1),
            (4, 0x0b),
            (7, 0x5a),
        ] {
            first.write(at, &[value]);
        }
        first.port.enqueue_raw_bytes(b"typed").unwrap();
        let mut second = port();
        second.restore(&first.save()).unwrap();
        assert_eq!(second.port.state(), first.port.state());
        let typed: Vec<_> = (0..5).map(|_| read(&mut second, 0)).collect();
        assert_eq!(typed, b"typed");
        // Somebody waits for an interrupt.
        assert!(second.port.interrupt_evt().0.read().is_ok());
        assert!(port().restore(&Value::Null).is_err());
    }
}
