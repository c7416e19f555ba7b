//! A VMM that was started, Peapod or a peer, by what its guest says on the console.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// What every guest of a [`crate::Boot`] says first.
pub const FIRST_LINE: &str = "peapod-agent: userspace";

/// A VMM that runs; killed when it is dropped.
#[derive(Debug)]
pub struct Booted {
    child: Child,
    begin: Instant,
    /// When each line of the console came, and the line.
    lines: Receiver<(Duration, String)>,
}

impl Booted {
    /// Starts one, whose console is its standard output.
    pub fn start(mut command: Command) -> Self {
        let begin = Instant::now();
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start the VMM");
        let console = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in console.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                // Nobody may be interested any more; it is read all the same.
                let _ = sender.send((begin.elapsed(), line));
            }
        });
        Self {
            child,
            begin,
            lines,
        }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How long ago it was started.
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Waits for a line that has `text`: seconds from the start to it, and what follows in it.
    pub fn wait(&self, text: &str, limit: Duration) -> (f64, String) {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let (when, line) = self.lines.recv_timeout(left).expect(text);
            if let Some((_, rest)) = line.split_once(text) {
                return (when.as_secs_f64(), rest.to_owned());
            }
        }
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
