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
mod guest;
mod manifest;
pub mod sides;
pub mod space;
mod vm;

pub use boot::Boot;
pub use guest::Guest;
pub use manifest::Manifest;
pub use vm::{Vm, image, peapod, peapod_net};

/// How often something is repeated: `usual`, or `long` under `make soak`.
pub fn soak(usual: u32, long: u32) -> u32 {
    if std::env::var_os("PEAPOD_SOAK").is_some() {
        long
    } else {
        usual
    }
}
