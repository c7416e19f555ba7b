//! The network before a guest whose TCP somebody else wrote (smoltcp), in virtual time: what the
//! wire does to frames and when is drawn from a seed, and a transfer of minutes takes none.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod closing;
mod datagrams;
mod incoming;
#[path = "../hostile/lender.rs"]
mod lender;
mod limits;
mod stalls;
mod streams;
mod talk;
mod watch;
mod wire;
mod world;
