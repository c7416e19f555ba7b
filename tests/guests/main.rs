//! Tests that boot real guests. Run them by `make test`, which brings the lab up.
//!
//! Guests whose boot is not under test share one VM for the whole run (`shared`).

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod agent;
mod binaries;
mod compute;
mod details;
mod disks;
mod exec;
mod handler;
mod kernels;
mod kubelet;
mod life;
mod lifecycle;
mod memory;
mod network;
mod podman;
mod qga;
mod refused;
mod selinux;
mod shared;
mod snapshot;
mod soak;
mod spans;
mod systemd;
mod vhost_user;
mod watchdog;

use std::process::Child;
use std::time::Duration;

/// How long a guest may take to boot. In the lab a second is worth a tenth of one.
const BOOT: Duration = Duration::from_secs(180);

/// How long a booted guest may take for something small.
const SOON: Duration = Duration::from_secs(60);

/// A process that is killed in the end.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
