//! Threads that ask a disk's files, each for one thing at a time, where there is no io_uring.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::aio::{Call, Kind};
use crate::sandbox;

/// How many there are. More do not help a disk that is one file, whose writes wait for each other.
const THREADS: usize = 8;

/// The threads of a disk. Dropped, they are stopped and waited for.
#[derive(Default)]
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// What was asked for since the last [`Pool::reap`].
    asked: Vec<Job>,
    /// How much was asked for and is not told of yet.
    under_way: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to do, or nothing ever more.
    work: Condvar,
    /// Something is done.
    done: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    results: Vec<(u64, i32)>,
    over: bool,
}

/// A call on its way to the thread that makes it.
struct Job(Call);

// SAFETY: what the call points to is there and left alone until it is told of, whichever thread makes it
// (`Pool::ask`'s caller promises so), and no thread but the one that has the job looks at it.
unsafe impl Send for Job {}

impl Pool {
    /// Starts the threads, unless they are there.
    pub fn start(&mut self) -> io::Result<()> {
        while self.threads.len() < THREADS {
            let shared = self.shared.clone();
            let work = move || shared.work();
            self.threads
                .push(sandbox::spawn(sandbox::Kind::Block, work)?);
        }
        Ok(())
    }

    /// Asks for `call` with the next [`Pool::reap`]; there is always room.
    ///
    /// # Safety
    ///
    /// As for [`super::aio::Aio::ask`].
    pub unsafe fn ask(&mut self, call: &Call) -> bool {
        self.asked.push(Job(*call));
        self.under_way += 1;
        true
    }

    /// Begins what was asked for, waits until one of all is done, or so long, and calls `done` with the
    /// slot and the result of each that is.
    pub fn reap(&mut self, patience: Duration, mut done: impl FnMut(u64, i32)) {
        if self.under_way == 0 {
            return;
        }
        // A request that comes alone is over sooner here than by another thread, and so is all where there
        // is none.
        if self.threads.is_empty() || (self.under_way == 1 && self.asked.len() == 1) {
            for job in self.asked.drain(..) {
                self.under_way -= 1;
                done(job.0.slot, job.make());
            }
            return;
        }
        let mut state = self.shared.state();
        let count = self.asked.len();
        state.jobs.extend(self.asked.drain(..));
        match count {
            0 => {}
            1 => self.shared.work.notify_one(),
            _ => self.shared.work.notify_all(),
        }
        let nothing = |state: &mut State| state.results.is_empty();
        let waited = self
            .shared
            .done
            .wait_timeout_while(state, patience, nothing);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let results = std::mem::take(&mut state.results);
        drop(state);
        self.under_way -= results.len();
        results
            .into_iter()
            .for_each(|(slot, result)| done(slot, result));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state().over = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes calls until there are none ever more.
    fn work(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                let result = job.make();
                state = self.state();
                state.results.push((job.0.slot, result));
                self.done.notify_one();
            } else if state.over {
                return;
            } else {
                let woken = self.work.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Job {
    /// Makes the call: how many bytes went, or an error's number below zero.
    fn make(&self) -> i32 {
        let Call {
            kind,
            file,
            table,
            count,
            at,
            ..
        } = self.0;
        let (count, at) = (count as libc::c_int, at as libc::off_t);
        // SAFETY: the table and its buffers are there until this is told of, and the file is open.
        let result = unsafe {
            match kind {
                Kind::Read => libc::preadv(file, table, count, at),
                Kind::Write => libc::pwritev(file, table, count, at),
                Kind::Flush => libc::fdatasync(file) as isize,
            }
        };
        match result {
            // No request has 2 GiB.
            0.. => i32::try_from(result).unwrap_or(i32::MAX),
            _ => -io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_is_asked_for_is_told_of_once_with_what_came_of_it() {
        let file = tempfile::tempfile().unwrap();
        let mut pages: Vec<Vec<u8>> = (0..64).map(|n| vec![n; 4096]).collect();
        let tables: Vec<libc::iovec> = pages
            .iter_mut()
            .map(|page| libc::iovec {
                iov_base: page.as_mut_ptr().cast(),
                iov_len: page.len(),
            })
            .collect();
        for started in [false, true] {
            let mut pool = Pool::default();
            if started {
                pool.start().unwrap();
            }
            for (slot, table) in (0..).zip(&tables) {
                let call = Call {
                    kind: Kind::Write,
                    file: file.as_raw_fd(),
                    table,
                    count: 1,
                    at: slot * 4096,
                    slot,
                };
                // SAFETY: the table and the page live longer than the pool, which is waited for below.
                assert!(unsafe { pool.ask(&call) });
            }
            let lost = Call {
                kind: Kind::Flush,
                file: -1,
                table: std::ptr::null(),
                count: 0,
                at: 0,
                slot: 64,
            };
            // SAFETY: it has no buffers.
            assert!(unsafe { pool.ask(&lost) });
            let mut told = vec![None; 65];
            while pool.under_way > 0 {
                pool.reap(LONG, |slot, result| {
                    assert_eq!(told[slot as usize].replace(result), None);
                });
            }
            assert_eq!(told.pop(), Some(Some(-libc::EBADF)));
            assert!(told.iter().all(|result| *result == Some(4096)));
            let mut byte = [0];
            file.read_exact_at(&mut byte, 63 * 4096).unwrap();
            assert_eq!(byte, [63]);
        }
    }
}
