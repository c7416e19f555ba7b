//! What the end-to-end tests share: a VM as a child process whose console and log can be waited
//! for, a manifest to start it from, and commands run inside its guest; network namespaces, and
//! what runs inside them.
//!
//! The tests with guests run in the lab (`ci/lab`), on a standard KVM.

// A test fails by panicking.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

pub mod bench;
mod boot;
mod container;
pub mod cost;
mod flows;
mod group;
mod guest;
pub mod handler;
pub mod harness;
pub mod kubelet;
mod manifest;
pub mod mesh;
pub mod networks;
mod resent;
mod scratch;
pub mod sides;
pub mod space;
mod vm;

use std::thread::sleep;
use std::time::{Duration, Instant};

pub use boot::{Boot, ExtraDisk, FIRST_LINE};
pub use container::{Container, Place, entry_point, unpack_tar};
pub use flows::Flows;
pub use group::Group;
pub use guest::Guest;
pub use manifest::Manifest;
pub use resent::Resent;
pub use scratch::Scratch;
pub use vm::{Vm, image, overlay, overlay_of, peapod, peapod_net};

/// Longer than anything takes that is not stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Tries until there is something, which has to be soon.
#[track_caller]
pub fn until<T>(failure: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(success) = attempt() {
            return success;
        }
        assert!(start.elapsed() < PATIENCE, "{failure}");
        sleep(Duration::from_millis(10));
    }
}

/// How often something is repeated: `usual`, or `long` under `make soak`.
pub fn soak(usual: u32, long: u32) -> u32 {
    if std::env::var_os("PEAPOD_SOAK").is_some() {
        long
    } else {
        usual
    }
}
