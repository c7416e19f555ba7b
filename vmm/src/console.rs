//! The guest's console from outside: the last MiB of what it wrote, for whoever comes late, and what
//! somebody types. It may be at two ports, the serial one and a virtio console: what it writes at
//! either is here, and what is typed goes to where it wrote last.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::devices::terminal::{Keyboard, SharedPort};

/// What is kept of the guest's output.
const KEPT: usize = 1 << 20;
/// What is shown of a line.
const LINE_SHOWN: usize = 300;
/// What may be typed ahead of the guest.
const TYPED_AHEAD: usize = 4096;

/// Where a guest has its console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// `ttyS0`
    Serial,
    /// `hvc0`
    Virtio,
}

/// A VM's console, which outlives the guest's resets. A clone is another handle.
#[derive(Clone, Default)]
pub struct Console(Arc<Shared>);

#[derive(Default)]
struct Shared {
    output: Mutex<Output>,
    typed: Mutex<VecDeque<u8>>,
    /// By [`Port`].
    ports: Mutex<[Option<SharedPort>; 2]>,
    /// The port that the guest wrote at last.
    speaks: AtomicUsize,
}

#[derive(Default)]
struct Output {
    kept: VecDeque<u8>,
    /// All that was ever written, in bytes.
    written: u64,
    waiting: Vec<Waker>,
}

impl Console {
    /// A machine has that port from now on, and it is where the guest is taken to be.
    pub fn attach(&self, which: Port, port: SharedPort) {
        if let Some(place) = lock(&self.0.ports).get_mut(which as usize) {
            *place = Some(port);
        }
        self.0.speaks.store(which as usize, Ordering::Relaxed);
    }

    /// Where the guest's output at a port goes: here, and to `copy`.
    pub fn screen<W: Write>(&self, which: Port, copy: W) -> Screen<W> {
        Screen {
            console: self.clone(),
            which,
            copy,
        }
    }

    /// What the guest reads at a port.
    pub fn keyboard(&self, which: Port) -> Box<dyn Keyboard> {
        Box::new(Typed(self.clone(), which))
    }

    /// Types; what the guest does not take in time is cut off. Returns how much was taken.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        let taken = {
            let mut typed = lock(&self.0.typed);
            let taken = bytes.len().min(TYPED_AHEAD.saturating_sub(typed.len()));
            typed.extend(bytes.iter().take(taken));
            taken
        };
        let speaks = self.0.speaks.load(Ordering::Relaxed);
        let port = lock(&self.0.ports).get(speaks).cloned().flatten();
        if let Some(port) = port {
            lock(&port).refill();
        }
        taken
    }

    /// What is kept now.
    pub fn kept(&self) -> Vec<u8> {
        lock(&self.0.output).kept.iter().copied().collect()
    }

    /// The last `count` lines that have something in them, without what a terminal would obey.
    pub fn last_lines(&self, count: usize) -> String {
        let kept = self.kept();
        let text = String::from_utf8_lossy(&kept);
        let lines: Vec<_> = text
            .lines()
            .rev()
            .filter(|l| !l.trim().is_empty())
            .take(count)
            .collect();
        let shown = lines.iter().rev().map(|line| {
            let shown = line
                .trim_end()
                .chars()
                .take(LINE_SHOWN)
                .filter(|c| !c.is_control());
            shown.collect::<String>()
        });
        shown.collect::<Vec<_>>().join("\n")
    }

    /// Everything that is kept, then everything that comes; or, `late`, only that.
    pub fn reader(&self, late: bool) -> Reader {
        let output = lock(&self.0.output);
        let at = if late {
            output.written
        } else {
            output.oldest()
        };
        Reader {
            console: self.clone(),
            at,
        }
    }
}

impl Output {
    fn oldest(&self) -> u64 {
        self.written.saturating_sub(self.kept.len() as u64)
    }

    fn write(&mut self, bytes: &[u8]) {
        let last = bytes.len().saturating_sub(KEPT);
        let room = KEPT - (bytes.len() - last);
        self.kept.drain(..self.kept.len().saturating_sub(room));
        self.kept.extend(bytes.iter().skip(last));
        self.written += bytes.len() as u64;
        self.waiting.drain(..).for_each(Waker::wake);
    }
}

/// Where the guest's output goes.
pub struct Screen<W> {
    console: Console,
    which: Port,
    copy: W,
}

impl<W: Write> Write for Screen<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let shared = &self.console.0;
        shared.speaks.store(self.which as usize, Ordering::Relaxed);
        lock(&shared.output).write(bytes);
        // It may be gone, as a closed pipe is; the console is not.
        let _ = self.copy.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.copy.flush();
        Ok(())
    }
}

struct Typed(Console, Port);

impl Keyboard for Typed {
    fn take(&mut self, most: usize) -> Vec<u8> {
        let Self(Console(shared), which) = self;
        if shared.speaks.load(Ordering::Relaxed) != *which as usize {
            return Vec::new();
        }
        let mut typed = lock(&shared.typed);
        let count = most.min(typed.len());
        typed.drain(..count).collect()
    }
}

/// Reads the output from somewhere on. One that is too slow misses what is no longer kept.
pub struct Reader {
    console: Console,
    at: u64,
}

impl Reader {
    /// What has come since the last time, at least a byte.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Vec<u8>> {
        let mut output = lock(&self.console.0.output);
        let from = self.at.max(output.oldest());
        let missed = usize::try_from(output.written - from).unwrap_or(KEPT);
        if missed == 0 {
            // One whose task is gone stays until the guest writes; there are only so many tasks.
            if !output.waiting.iter().any(|w| w.will_wake(context.waker())) {
                output.waiting.push(context.waker().clone());
            }
            return Poll::Pending;
        }
        self.at = output.written;
        let start = output.kept.len().saturating_sub(missed);
        Poll::Ready(output.kept.range(start..).copied().collect())
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(reader: &mut Reader) -> Option<Vec<u8>> {
        match reader.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(bytes) => Some(bytes),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_late_reader_sees_the_boot_and_a_slow_one_what_is_kept() {
        let console = Console::default();
        let mut screen = console.screen(Port::Serial, io::sink());
        screen.write_all(b"boot\n").unwrap();
        let (mut all, mut new) = (console.reader(false), console.reader(true));
        assert_eq!(poll(&mut all).unwrap(), b"boot\n");
        assert_eq!(poll(&mut new), None);
        screen.write_all(b"more").unwrap();
        assert_eq!(poll(&mut all).unwrap(), b"more");
        assert_eq!(poll(&mut new).unwrap(), b"more");
        assert_eq!(poll(&mut new), None);
        for _ in 0..3 {
            screen.write_all(&[b'x'; KEPT / 2]).unwrap();
        }
        screen.write_all(b"end").unwrap();
        let seen = poll(&mut all).unwrap();
        assert_eq!(seen.len(), KEPT);
        assert!(seen.ends_with(b"xend"));
        screen.write_all(&vec![b'y'; 2 * KEPT]).unwrap();
        assert_eq!(console.kept(), vec![b'y'; KEPT]);
    }

    #[test]
    fn what_is_typed_ahead_is_bounded_and_comes_in_its_order() {
        let console = Console::default();
        assert_eq!(console.type_in(b"ab"), 2);
        assert_eq!(console.type_in(&[b'c'; TYPED_AHEAD]), TYPED_AHEAD - 2);
        let mut keyboard = console.keyboard(Port::Serial);
        assert_eq!(keyboard.take(3), b"abc");
        assert_eq!(keyboard.take(TYPED_AHEAD).len(), TYPED_AHEAD - 3);
        assert!(keyboard.take(1).is_empty());
    }

    #[test]
    fn what_is_typed_goes_to_where_the_guest_wrote_last() {
        struct Bell(Arc<AtomicUsize>);
        impl crate::devices::terminal::Refill for Bell {
            fn refill(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let console = Console::default();
        let bells = [Port::Virtio, Port::Serial].map(|which| {
            let rung = Arc::<AtomicUsize>::default();
            console.attach(which, Arc::new(Mutex::new(Bell(rung.clone()))));
            rung
        });
        let rung = || bells.each_ref().map(|rung| rung.load(Ordering::Relaxed));
        let mut keyboards = [Port::Virtio, Port::Serial].map(|which| console.keyboard(which));
        // The boot is at the serial port.
        console.type_in(b"a");
        assert_eq!(rung(), [0, 1]);
        console
            .screen(Port::Virtio, io::sink())
            .write_all(b"login: ")
            .unwrap();
        console.type_in(b"b");
        assert_eq!(rung(), [1, 1]);
        assert!(keyboards[1].take(9).is_empty());
        assert_eq!(keyboards[0].take(9), b"ab");
        assert_eq!(console.kept(), b"login: ");
    }
}
