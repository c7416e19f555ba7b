//! The in-process user-mode network.

pub mod access;
pub mod addresses;
pub mod config;
pub mod control;
pub mod counters;
pub mod engine;
pub mod flow;
pub mod forward;
pub mod gate;
mod gather;
pub mod link;
pub mod netlink;
pub mod netns;
pub mod options;
pub mod pace;
pub mod pod;
pub mod process;
pub mod prometheus;
pub mod publish;
pub mod requests;
pub mod resolver;
mod service;
pub mod socket;
mod sys;
pub mod vhost_user;
pub mod virtqueue;
pub mod wire;

pub use sys::trim_heap;
