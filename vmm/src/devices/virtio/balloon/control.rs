//! The balloon as other threads see it: how large it shall be and is, and how the guest fares.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Stats;
use super::pages::PAGE;
use crate::devices::virtio::Interrupt;

/// `struct virtio_balloon_config` (section 5.5.4).
const CONFIG: usize = 16;
/// How long a guest may take to tell how it fares, before what it told last is shown.
const PATIENCE: Duration = Duration::from_millis(200);

/// What the device's thread, the vCPUs and whoever asks have in common.
pub struct Shared {
    memory: u64,
    /// Pages that the balloon shall have, and has.
    target: AtomicU32,
    actual: AtomicU32,
    poison: AtomicU32,
    /// Signalled when new figures are wanted.
    pub asked: EventFd,
    guest: Mutex<Guest>,
    news: Condvar,
}

/// The guest's driver.
#[derive(Default)]
struct Guest {
    /// Tells it that the balloon's target changed; `None` where there is no driver.
    interrupt: Option<Interrupt>,
    stats: Option<Stats>,
    /// How many times it has told.
    told: u64,
}

impl Shared {
    pub fn new(memory: u64) -> io::Result<Self> {
        Ok(Self {
            memory,
            target: AtomicU32::default(),
            actual: AtomicU32::default(),
            poison: AtomicU32::default(),
            asked: EventFd::new(EFD_NONBLOCK)?,
            guest: Mutex::default(),
            news: Condvar::new(),
        })
    }

    fn guest(&self) -> MutexGuard<'_, Guest> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn config(&self) -> [u8; CONFIG] {
        let words = [
            self.target.load(Ordering::Acquire),
            self.actual.load(Ordering::Acquire),
            0,
            self.poison(),
        ];
        let mut config = [0; CONFIG];
        let bytes = words.into_iter().flat_map(u32::to_le_bytes);
        config
            .iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = from);
        config
    }

    /// As it was when the configuration was this.
    pub fn set_config(&self, config: [u8; CONFIG]) {
        let word = |at| config.iter().skip(at).take(4).rev();
        let word = |at| word(at).fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        self.target.store(word(0), Ordering::Release);
        self.set_actual(word(4));
        self.set_poison(word(12));
    }

    pub fn set_actual(&self, pages: u32) {
        self.actual.store(pages, Ordering::Release);
    }

    pub fn set_poison(&self, value: u32) {
        self.poison.store(value, Ordering::Release);
    }

    pub fn poison(&self) -> u32 {
        self.poison.load(Ordering::Acquire)
    }

    pub fn attach(&self, interrupt: Interrupt) {
        self.guest().interrupt = Some(interrupt);
    }

    /// The driver is gone, and a new one has an empty balloon; the target stays.
    pub fn detach(&self) {
        self.set_actual(0);
        self.set_poison(0);
        *self.guest() = Guest::default();
    }

    /// The guest told how it fares.
    pub fn told(&self, stats: Stats) {
        let mut guest = self.guest();
        guest.stats = Some(stats);
        guest.told = guest.told.wrapping_add(1);
        self.news.notify_all();
    }

    fn bytes(&self, pages: u32) -> u64 {
        // A guest may say that its balloon is larger than its memory.
        self.memory.saturating_sub(u64::from(pages) * PAGE as u64)
    }
}

/// A guest's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// What the manifest gives it.
    pub size: u64,
    /// What it was asked to make do with.
    pub target: u64,
    /// What it has beside its balloon.
    pub actual: u64,
    /// What its driver told; nothing where there is none.
    pub guest: Option<Stats>,
}

/// Why a balloon cannot be of that size.
#[derive(Debug, thiserror::Error)]
#[error("{0} bytes: a guest of {1} bytes can be left with {least} up to all of them", least = LEAST)]
pub struct SizeError(u64, u64);

/// The least that a guest is left with: below that no kernel lives.
const LEAST: u64 = 64 << 20;

/// A handle on a balloon, for any thread.
#[derive(Clone)]
pub struct Control(Arc<Shared>);

impl Control {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Asks the guest to make do with `bytes`. It does so as it can, in its own time.
    pub fn set_target(&self, bytes: u64) -> Result<(), SizeError> {
        let (shared, size) = (&self.0, self.0.memory);
        let balloon = size.checked_sub(bytes).filter(|_| bytes >= LEAST);
        let pages = balloon.and_then(|bytes| u32::try_from(bytes / PAGE as u64).ok());
        let pages = pages.ok_or(SizeError(bytes, size))?;
        shared.target.store(pages, Ordering::Release);
        if let Some(interrupt) = &shared.guest().interrupt {
            // An eventfd's write fails only when its counter is full: it is raised then.
            let _ = interrupt.trigger();
        }
        Ok(())
    }

    /// How it is. With `ask` the guest is asked first, and has a moment to answer.
    pub fn figures(&self, ask: bool) -> Figures {
        let shared = &self.0;
        let mut guest = shared.guest();
        if ask && guest.stats.is_some() {
            let before = guest.told;
            // As in `set_target`.
            let _ = shared.asked.write(1);
            let waited = shared.news.wait_timeout_while(guest, PATIENCE, |guest| {
                guest.stats.is_some() && guest.told == before
            });
            guest = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Figures {
            size: shared.memory,
            target: shared.bytes(shared.target.load(Ordering::Acquire)),
            actual: shared.bytes(shared.actual.load(Ordering::Acquire)),
            guest: guest.stats,
        }
    }
}
