//! The ports that belong to the board: sleep control, reset, the power management timer and the
//! keyboard controller's reset line.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::bus::BusDevice;
use super::saved::{self, Unfit};
use crate::boot::acpi::{RESET_VALUE, S5_TYPE};
use crate::power::{Outcome, Power};

/// Ticks of the power management timer a second (ACPI 6.5, section 4.8.2.1).
const PM_TIMER_HZ: u128 = 3_579_545;
/// Sleep control: the enable bit; the type lies in bits 2 to 4.
const SLEEP_ENABLE: u8 = 1 << 5;
/// The keyboard controller's command that pulses the reset line.
const PULSE_RESET: u8 = 0xfe;

/// ACPI's sleep control register.
pub struct SleepControl(pub Power);

impl BusDevice for SleepControl {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        if let [value] = data
            && value & SLEEP_ENABLE != 0
            && value >> 2 & 7 == S5_TYPE
        {
            self.0.end(Outcome::PowerOff);
        }
    }
}

/// ACPI's reset register.
pub struct Reset(pub Power);

impl BusDevice for Reset {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        if data == [RESET_VALUE] {
            self.0.end(Outcome::Reset);
        }
    }
}

/// The keyboard controller's command port: there is no keyboard, but its reset line is what
/// Linux falls back to.
pub struct KeyboardController(pub Power);

impl BusDevice for KeyboardController {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        // Neither buffer is full.
        data.fill(0);
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        if data == [PULSE_RESET] {
            self.0.end(Outcome::Reset);
        }
    }
}

/// ACPI's power management timer, 32 bits.
pub struct PmTimer(pub Instant);

impl BusDevice for PmTimer {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let ticks = self.0.elapsed().as_nanos() * PM_TIMER_HZ / 1_000_000_000;
        let bytes = (ticks as u32).to_le_bytes();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(from.saturating_add(i)).copied().unwrap_or(0);
        }
    }

    fn write(&mut self, _: u64, _: &[u8]) {}

    fn save(&self) -> Value {
        saved::write(&self.0.elapsed())
    }

    fn restore(&mut self, saved: &Value) -> Result<(), Unfit> {
        let elapsed: Duration = saved::read(saved)?;
        // It counts on from there; a host that has not been up for so long has it count less.
        let now = Instant::now();
        self.0 = now.checked_sub(elapsed).unwrap_or(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::Duty;

    #[test]
    fn only_sleep_type_5_with_the_enable_bit_powers_off() {
        let power = Power::default();
        let mut port = SleepControl(power.clone());
        for data in [
            &[5 << 2][..],
            &[SLEEP_ENABLE],
            &[SLEEP_ENABLE | 3 << 2],
            &[0x34, 0],
        ] {
            port.write(0, data);
            assert!(!power.is_off(), "{data:?}");
        }
        port.write(0, &[SLEEP_ENABLE | 5 << 2]);
        assert_eq!(power.duty(), Duty::End(Outcome::PowerOff));
    }

    #[test]
    fn the_timer_counts_and_may_be_read_in_parts() {
        let mut timer = PmTimer(Instant::now() - std::time::Duration::from_secs(1));
        let mut whole = [0; 4];
        timer.read(0, &mut whole);
        assert!(u32::from_le_bytes(whole) >= 3_579_545);
        timer.read(3, &mut whole);
        assert_eq!(whole[1..], [0; 3]);
    }
}
