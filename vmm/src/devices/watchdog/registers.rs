//! The registers: plain data, and what a write asks of the timer.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Fired;

/// Configuration: its end does nothing.
const NO_OUTPUT: u8 = 1 << 5;
/// Configuration: a microsecond a count, not a millisecond.
const FAST: u8 = 1 << 2;
/// The bits of the configuration that a guest may write; the lowest two, of interrupts, do nothing.
pub const CONFIG_WRITABLE: u8 = NO_OUTPUT | FAST | 3;
/// Lock register: as it is until the next reset.
const LOCKED: u8 = 1;
/// Lock register: the timer runs.
const ENABLED: u8 = 1 << 1;
/// Lock register: its end begins it anew.
const FREE: u8 = 1 << 2;
/// The bits of the lock register that a guest may write.
pub const LOCK_WRITABLE: u8 = LOCKED | ENABLED | FREE;

/// What each of the two stages counts down from.
const TIMERS: [u64; 2] = [0, 4];
const PRELOAD: u32 = 0xf_ffff;
/// Feeds the watchdog.
const RELOAD: u64 = 0xc;
const FEED: u32 = 1 << 8;
const FORGET: u32 = 1 << 9;
/// What is read there when it has ended the machine before.
const FIRED: u32 = 1 << 9 | 1 << 12;
/// What has to be written there, one after the other, before each other write.
const KEYS: [u32; 2] = [0x80, 0x86];
/// A PCI bus's clock.
const CLOCK: u64 = 33_000_000;

/// What the timer is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Go on.
    Nothing,
    /// Start from the beginning.
    Run(Time),
    /// Stand still.
    Stop,
}

/// How long the guest may take, and whether it has as long again after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    /// Until it has to be fed.
    pub limit: Duration,
    /// Its end begins it anew.
    pub again: bool,
    /// Its end does something.
    pub acts: bool,
}

/// The registers.
pub struct Registers {
    config: u8,
    lock: u8,
    preloads: [u32; 2],
    /// How many of the keys have been written.
    unlocked: usize,
    fired: Fired,
}

impl Registers {
    /// As after power-on.
    pub fn new(fired: Fired) -> Self {
        Self {
            config: 0,
            lock: 0,
            preloads: [PRELOAD; 2],
            unlocked: 0,
            fired,
        }
    }

    /// Back to that.
    pub fn reset(&mut self) {
        *self = Self::new(self.fired.clone());
    }

    /// What the guest has written to both stages.
    pub fn preloads(&self) -> [u32; 2] {
        self.preloads
    }

    /// As they were when the guest had written all this.
    pub fn restore(&mut self, preloads: [u32; 2], config: u8, lock: u8) -> Wish {
        self.reset();
        self.preloads = preloads.map(|preload| preload & PRELOAD);
        self.configure(config, lock)
    }

    /// The guest wrote configuration space, and this is what is there now.
    pub fn configure(&mut self, config: u8, lock: u8) -> Wish {
        self.config = config;
        if self.lock & LOCKED != 0 || lock == self.lock {
            return Wish::Nothing;
        }
        self.lock = lock;
        if lock & ENABLED != 0 {
            Wish::Run(self.time())
        } else {
            Wish::Stop
        }
    }

    /// What the lock register holds.
    pub fn lock(&self) -> u8 {
        self.lock
    }

    /// Reads.
    pub fn read(&self, offset: u64) -> u32 {
        if offset == RELOAD && self.fired.load(Ordering::Acquire) {
            return FIRED;
        }
        0
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, value: u32) -> Wish {
        if self.unlocked < KEYS.len() {
            let fits = offset == RELOAD && KEYS.get(self.unlocked) == Some(&value);
            self.unlocked = if fits { self.unlocked + 1 } else { 0 };
            return Wish::Nothing;
        }
        self.unlocked = 0;
        let timers = TIMERS.iter().zip(&mut self.preloads);
        for (at, preload) in timers {
            if offset == *at {
                *preload = value & PRELOAD;
            }
        }
        if offset != RELOAD {
            return Wish::Nothing;
        }
        if value & FORGET != 0 {
            self.fired.store(false, Ordering::Release);
        }
        if value & FEED != 0 && self.lock & ENABLED != 0 {
            Wish::Run(self.time())
        } else {
            Wish::Nothing
        }
    }

    /// Both stages: the end of the first would only interrupt the guest.
    fn time(&self) -> Time {
        let counts: u64 = self.preloads.iter().copied().map(u64::from).sum();
        let ticks = counts << if self.config & FAST != 0 { 5 } else { 15 };
        // 36 bits, so that nothing is lost.
        let nanoseconds = ticks * 1000 / (CLOCK / 1_000_000);
        Time {
            limit: Duration::from_nanos(nanoseconds),
            again: self.lock & FREE != 0,
            acts: self.config & NO_OUTPUT == 0,
        }
    }
}
