//! What the guest is and has, and what is done to it as a whole: for the VMM by the agent's own
//! protocol, for another's by QEMU's guest agent's.

pub mod clock;
pub mod entropy;
pub mod filesystems;
pub mod freeze;
pub mod guard;
pub mod interfaces;
pub mod machine;
pub mod users;

use crate::accounts::{Accounts, hash};
use crate::protocol::{GuestInfo, Reply, Request};
use crate::{sshd, uptime_ms};

/// How long file systems stand still where nobody says when they go on, as KubeVirt has it.
const FROZEN_SECONDS: u32 = 300;
/// Said where a change would wait until they go on.
const FROZEN: &str = "the file systems are frozen";

/// The answer to a request about the guest; `None` where it is not one.
pub fn answer(request: &Request) -> Option<Reply> {
    let accounts = Accounts::of_this_root();
    let done = |result: Result<(), String>| result.map(|()| Reply::Ok);
    let result = match request {
        Request::GuestInfo => Ok(Reply::GuestInfo(Box::new(info()))),
        Request::SetClock { unix_ns } => done(clock::step(*unix_ns)),
        Request::Reseed { seed } => done(entropy::reseed(seed)),
        Request::Freeze { seconds } => {
            freeze::freeze(seconds.unwrap_or(FROZEN_SECONDS)).map(Reply::Frozen)
        }
        Request::Thaw => Ok(Reply::Thawed(freeze::thaw())),
        Request::SetPassword {
            user,
            password,
            hashed,
        } => done(set_password(user, password, *hashed)),
        Request::AuthorizedKeys { user } => sshd::keys(&accounts, user).map(Reply::AuthorizedKeys),
        Request::AddAuthorizedKeys { user, keys } => {
            done(writable().and_then(|()| sshd::add(&accounts, user, keys, None)))
        }
        Request::RemoveAuthorizedKeys { user, keys } => {
            done(writable().and_then(|()| sshd::remove(&accounts, user, keys)))
        }
        _ => return None,
    };
    Some(result.unwrap_or_else(Reply::Error))
}

/// Everything that is told at once. What cannot be found out is empty.
pub fn info() -> GuestInfo {
    GuestInfo {
        hostname: machine::hostname(),
        os: machine::os(),
        timezone: machine::timezone(),
        uptime_ms: uptime_ms(),
        load: machine::load(),
        vcpus: machine::vcpus(),
        memory: machine::memory(),
        filesystems: filesystems::all(),
        frozen: freeze::is_frozen(),
        users: users::all(),
        interfaces: interfaces::all().unwrap_or_default(),
    }
}

/// Sets a user's password, or its hash of crypt(5).
pub fn set_password(user: &str, password: &str, hashed: bool) -> Result<(), String> {
    writable()?;
    let hash = match hashed {
        true => password.to_owned(),
        false => hash(password)?,
    };
    Accounts::of_this_root().set_hash(user, &hash)
}

/// An error where a file that is written would wait.
pub fn writable() -> Result<(), String> {
    match freeze::is_frozen() {
        true => Err(FROZEN.to_owned()),
        false => Ok(()),
    }
}
