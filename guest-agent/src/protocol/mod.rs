//! The protocol between the agent in a guest and the VMM, over vsock: docs/agent-protocol.md.
//!
//! The agent connects to [`PORT`] of the host from a privileged port, which only root in the guest
//! can bind. Both sides then send frames. Either side passes over what it does not know, so that
//! an older agent and a newer VMM, or the reverse, agree on what both know.

mod frame;
mod guest;
mod message;

pub use frame::{Frame, FrameError, Kind, MAX_PAYLOAD, read, write};
pub use guest::{Address, Filesystem, GuestInfo, Interface, Memory, Os, Timezone, Traffic, User};
pub use message::{Event, Exec, Outcome, Reply, Request, Role, Size, StageState, stream};

/// The host's vsock port that the agent connects to.
pub const PORT: u32 = 20_549;
/// The guest's vsock port on which the agent serves sessions: one that only root can bind, so that
/// nobody else is taken for it.
pub const SESSIONS: u32 = 549;
/// The host's vsock port at which a VMM hands out the seed's files that it has no disk for.
pub const SEED: u32 = 20_550;
/// A source port below this is bound by root only (linux/net/vmw_vsock/af_vsock.c,
/// `LAST_RESERVED_PORT`).
pub const PRIVILEGED_PORTS: u32 = 1024;
/// The version that this side speaks. It grows when a message changes its meaning, which none
/// ever should.
pub const VERSION: u32 = 1;
