//! The in-process user-mode network.

pub mod access;
pub mod config;
pub mod counters;
pub mod engine;
pub mod flow;
pub mod forward;
pub mod link;
pub mod resolver;
mod service;
pub mod wire;
