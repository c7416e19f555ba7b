//! A PC's clock and its few bytes of memory, behind an index and a data port (Motorola's MC146818A).
//! Firmware asks it for the time; nothing else of it is there: no alarm, no interrupt, and a time
//! that a guest sets is lost, for the host has it.

use guest_agent::calendar::Time;
use serde_json::Value;

use super::bus::BusDevice;
use super::saved::{self, Unfit};
use crate::calendar::now;

/// Its two ports.
pub const PORTS: (u64, u64) = (0x70, 2);

const SIZE: usize = 128;
// Registers.
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
/// A PC's, by ACPI's FADT.
const CENTURY: u8 = 0x32;

/// Status A: an update is under way, which takes no time here.
const UPDATING: u8 = 1 << 7;
/// Status A: a 32,768 Hz base, and no interrupt of it.
const BASE: u8 = 0x26;
/// Status B: 24 hours a day.
const FULL_DAY: u8 = 1 << 1;
/// Status B: numbers are binary, not decimal digits.
const BINARY: u8 = 1 << 2;
/// Status D: the battery is good.
const VALID: u8 = 1 << 7;

/// The clock.
pub struct Cmos {
    index: u8,
    bytes: [u8; SIZE],
}

impl Default for Cmos {
    fn default() -> Self {
        let mut cmos = Self {
            index: 0,
            bytes: [0; SIZE],
        };
        cmos.put(STATUS_A, BASE);
        cmos.put(STATUS_B, FULL_DAY);
        cmos
    }
}

impl Cmos {
    fn byte(&self, register: u8) -> u8 {
        let byte = self.bytes.get(usize::from(register));
        byte.copied().unwrap_or(0)
    }

    fn put(&mut self, register: u8, value: u8) {
        if let Some(byte) = self.bytes.get_mut(usize::from(register)) {
            *byte = value;
        }
    }

    fn register(&self, time: &Time) -> u8 {
        let number = match self.index {
            SECONDS => time.second,
            MINUTES => time.minute,
            HOURS => time.hour,
            WEEKDAY => time.weekday,
            DAY => time.day,
            MONTH => time.month,
            YEAR => time.year % 100,
            CENTURY => time.year / 100,
            STATUS_A => return self.byte(STATUS_A) & !UPDATING,
            STATUS_B => return self.byte(STATUS_B) | FULL_DAY,
            STATUS_C => return 0,
            STATUS_D => return VALID,
            other => return self.byte(other),
        };
        let number = (number % 100) as u8;
        match self.byte(STATUS_B) & BINARY {
            0 => number + number / 10 * 6,
            _ => number,
        }
    }
}

impl BusDevice for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let ([byte], 1) = (data, offset) {
            *byte = self.register(&Time::of(now()));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            // The uppermost bit masks NMIs, of which there are none.
            (0, [index, ..]) => self.index = index & 0x7f,
            (1, [value]) => self.put(self.index, *value),
            _ => {}
        }
    }

    fn save(&self) -> Value {
        saved::write(&(self.index, &self.bytes[..]))
    }

    fn restore(&mut self, saved: &Value) -> Result<(), Unfit> {
        let (index, bytes): (u8, Vec<u8>) = saved::read(saved)?;
        let bytes = <[u8; SIZE]>::try_from(bytes);
        self.bytes = bytes.map_err(|_| Unfit::new("it has another size"))?;
        self.index = index & 0x7f;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cmos: &mut Cmos, register: u8) -> u8 {
        cmos.write(0, &[register]);
        let mut byte = [0xff];
        cmos.read(1, &mut byte);
        byte[0]
    }

    #[test]
    fn the_time_is_the_host_s_in_digits_or_in_binary() {
        let mut cmos = Cmos {
            index: YEAR,
            ..Default::default()
        };
        let time = Time::of(1_795_910_400);
        assert_eq!(cmos.register(&time), 0x26);
        cmos.put(STATUS_B, BINARY);
        assert_eq!(cmos.register(&time), 26);
        assert!(read(&mut cmos, CENTURY) >= 20);
        assert!(read(&mut cmos, SECONDS) < 60);
    }

    #[test]
    fn it_is_valid_and_never_in_an_update_whatever_is_written() {
        let mut cmos = Cmos::default();
        for register in [STATUS_A, STATUS_B, STATUS_C, STATUS_D] {
            cmos.write(0, &[register | 0x80]);
            cmos.write(1, &[0xf0]);
        }
        let status = [STATUS_A, STATUS_B, STATUS_C, STATUS_D].map(|r| read(&mut cmos, r));
        assert_eq!(status, [0x70, 0xf2, 0, VALID]);
    }

    #[test]
    fn what_is_written_to_its_memory_is_there_and_in_a_snapshot() {
        let mut cmos = Cmos::default();
        cmos.write(0, &[0x0f]);
        cmos.write(1, &[5]);
        let mut other = Cmos::default();
        other.restore(&cmos.save()).unwrap();
        assert_eq!(read(&mut other, 0x0f), 5);
        assert!(other.restore(&saved::write(&(1, [0; 3]))).is_err());
    }
}
