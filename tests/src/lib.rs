//! What the end-to-end tests share: a VM as a child process whose console and log can be waited
//! for, a manifest to start it from, and commands run inside its guest.
//!
//! The tests run in the lab (`ci/lab`), on a standard KVM.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a test fails by panicking

mod guest;
mod manifest;
mod vm;

pub use guest::Guest;
pub use manifest::Manifest;
pub use vm::{Vm, image, peapod};
