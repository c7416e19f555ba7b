//! The programs of virt-launcher's image that a pod which KubeVirt made calls, beside the launcher
//! itself: each by the name under which it is called.

pub mod container_disk;
pub mod copy;
pub mod probe;
pub mod tail;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::launch;

/// Waits for a signal to stop, which process 1 of a container would not hear of otherwise.
pub struct Stop(OwnedFd);

impl Stop {
    /// From now on signals are waited for.
    pub fn start() -> io::Result<Self> {
        launch::block_signals()?;
        launch::signals().map(Self)
    }

    /// Waits so long, or until `other` can be read; whether a signal came.
    pub fn came(&self, other: Option<&OwnedFd>, within: Duration) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(&self.0, PollFlags::IN)];
        fds.extend(other.map(|fd| PollFd::new(fd, PollFlags::IN)));
        let time = Timespec {
            tv_sec: within.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: within.subsec_nanos().into(),
        };
        poll(&mut fds, Some(&time))?;
        Ok(fds.first().is_some_and(|fd| !fd.revents().is_empty()))
    }
}
