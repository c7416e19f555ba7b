//! Child processes, where this process may be the one that reaps everybody's.
//!
//! As process 1 it waits for any process that ends, so nobody else may wait for one of its own:
//! who starts a child here is told of its end by [`Child::wait`].

use std::collections::HashMap;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::process::{WaitOptions, wait};

type Waiting = HashMap<i32, Sender<ExitStatus>>;

fn waiting() -> &'static Mutex<Waiting> {
    static WAITING: OnceLock<Mutex<Waiting>> = OnceLock::new();
    WAITING.get_or_init(Mutex::default)
}

/// A running child.
#[derive(Debug)]
pub struct Child {
    /// Its process id.
    pub pid: i32,
    ended: Receiver<ExitStatus>,
}

impl Child {
    /// Waits until it has ended.
    pub fn wait(self) -> ExitStatus {
        // The sender goes only after it has sent.
        self.ended.recv().unwrap_or_default()
    }
}

/// Starts a child.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    // Held until the child is known, so that its end is not reaped before that.
    let mut waiting = waiting().lock().unwrap_or_else(PoisonError::into_inner);
    let pid = command.spawn()?.id().cast_signed();
    let (sender, ended) = channel();
    waiting.insert(pid, sender);
    Ok(Child { pid, ended })
}

/// Reaps every process that has ended; called at each SIGCHLD. Whether there are children still.
pub fn reap() -> bool {
    loop {
        let mut waiting = waiting().lock().unwrap_or_else(PoisonError::into_inner);
        let (pid, status) = match wait(WaitOptions::NOHANG) {
            Ok(Some(ended)) => ended,
            Ok(None) => return true,
            Err(_) => return false,
        };
        if let Some(sender) = waiting.remove(&pid.as_raw_nonzero().get()) {
            // Who started it may have lost interest.
            let _ = sender.send(ExitStatus::from_raw(status.as_raw()));
        }
    }
}

/// From now on the children of all tests are reaped, as process 1 does it.
#[cfg(test)]
pub fn reap_always() {
    use std::{sync::Once, thread, time::Duration};
    static REAPER: Once = Once::new();
    REAPER.call_once(|| {
        thread::spawn(|| {
            loop {
                reap();
                thread::sleep(Duration::from_millis(5));
            }
        });
    });
}

/// Runs a program to its end, for a test: another may have [`reap_always`] take the end of a child that
/// is waited for by itself.
#[cfg(test)]
pub fn run(command: &mut Command) -> ExitStatus {
    reap_always();
    let child = spawn(command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.wait()
}

/// How a child ended, for a person; `None` where it succeeded.
pub fn failure(status: ExitStatus) -> Option<String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("exit status {code}")),
        (None, Some(signal)) => Some(format!("killed by signal {signal}")),
        (None, None) => Some("ended in an unknown way".to_owned()),
    }
}
