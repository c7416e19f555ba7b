//! Who has file systems go on that the agent cannot any more: a process of its own, which waits for
//! the agent's end while they stand still. It reads only, so it does not wait for them itself.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::filesystems::Mount;
use super::freeze;
use crate::children;
use crate::signals::Signals;

/// How the program is asked to be one; its seconds and places follow.
pub const GUARD: &str = "guard";
/// So much longer than the agent, which is first where it can.
const MARGIN: Duration = Duration::from_secs(2);
/// Said by the agent that has had them go on itself.
const DONE: u8 = b'.';

/// A guard that waits, until this is dropped. An agent that ends otherwise drops nothing.
#[derive(Debug)]
pub struct Guard(PipeWriter);

impl Guard {
    /// Posts one, for so many seconds at most. `mounts` go on in their order.
    pub fn post(mounts: &[&Mount], seconds: u32) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg(GUARD)
            .arg(seconds.to_string())
            .args(mounts.iter().map(|mount| &mount.place))
            .current_dir("/")
            .stdin(reader);
        children::spawn(&mut command)?;
        Ok(Self(writer))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // One that is gone has nothing to be told.
        let _ = self.0.write_all(&[DONE]);
    }
}

/// Runs as the guard: the seconds and the places are `words`.
pub fn run(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    // Who ends every agent by its name does not mean its guard.
    Signals::block(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]);
    let seconds = words
        .next()
        .and_then(|word| word.to_str()?.parse::<u32>().ok());
    let Some(seconds) = seconds else {
        return ExitCode::from(2);
    };
    let agent = io::stdin();
    let limit = (Duration::from_secs(seconds.into()) + MARGIN)
        .try_into()
        .ok();
    let heard = poll(&mut [PollFd::new(&agent, PollFlags::IN)], limit.as_ref());
    let mut word = [0; 1];
    // Silence until the time is over is no better than the end.
    let left = heard != Ok(1) || !matches!(rustix::io::read(&agent, &mut word), Ok(1));
    if left {
        let places = words.filter_map(|place| File::open(Path::new(&place)).ok());
        places.for_each(|at| drop(freeze::start(&at)));
    }
    ExitCode::SUCCESS
}
