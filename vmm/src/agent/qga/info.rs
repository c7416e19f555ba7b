//! What the guest is and has, as QEMU's agent tells it: a question for each part of it.

use guest_agent::protocol::{
    Address, Filesystem, GuestInfo, Interface, Os, Timezone, Traffic, User,
};
use serde_json::Value;

use super::{ANSWER, Qga};
use crate::agent::session::Error;
use crate::agent::shown;

/// More of a kind are not told of.
const MOST: usize = 64;

impl Qga {
    /// What the guest is and has. A part that its agent was told to keep to itself is empty.
    pub fn info(&self) -> Result<GuestInfo, Error> {
        let ask = |command: &str| match self.ask(command, Value::Null, ANSWER) {
            Err(Error::Refused(why)) => {
                tracing::debug!("QEMU's guest agent: {command}: {why}");
                Ok(Value::Null)
            }
            asked => asked,
        };
        let zone = ask("guest-get-timezone")?;
        Ok(GuestInfo {
            os: os(&ask("guest-get-osinfo")?),
            hostname: text(&ask("guest-get-host-name")?, "host-name"),
            timezone: Timezone {
                name: text(&zone, "zone"),
                offset_seconds: zone.get("offset").and_then(Value::as_i64).unwrap_or(0),
            },
            filesystems: all(&ask("guest-get-fsinfo")?, filesystem),
            frozen: ask("guest-fsfreeze-status")?.as_str() == Some("frozen"),
            users: all(&ask("guest-get-users")?, user),
            interfaces: all(&ask("guest-network-get-interfaces")?, interface),
            ..GuestInfo::default()
        })
    }
}

fn all<T>(list: &Value, one: impl Fn(&Value) -> T) -> Vec<T> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().take(MOST).map(one).collect()
}

fn text(of: &Value, name: &str) -> String {
    shown(of.get(name).and_then(Value::as_str).unwrap_or_default())
}

fn number(of: &Value, name: &str) -> u64 {
    of.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn os(said: &Value) -> Os {
    Os {
        id: text(said, "id"),
        name: text(said, "name"),
        pretty_name: text(said, "pretty-name"),
        version: text(said, "version"),
        version_id: text(said, "version-id"),
        kernel_release: text(said, "kernel-release"),
        kernel_version: text(said, "kernel-version"),
        machine: text(said, "machine"),
    }
}

fn filesystem(said: &Value) -> Filesystem {
    let (total, used) = (number(said, "total-bytes"), number(said, "used-bytes"));
    Filesystem {
        device: text(said, "name"),
        mountpoint: text(said, "mountpoint"),
        kind: text(said, "type"),
        total,
        used,
        available: total.saturating_sub(used),
        read_only: false,
    }
}

fn user(said: &Value) -> User {
    let seconds = said.get("login-time").and_then(Value::as_f64);
    User {
        name: text(said, "user"),
        // What is no time becomes the first there is.
        since_ms: (seconds.unwrap_or(0.0) * 1000.0) as u64,
        ..User::default()
    }
}

fn interface(said: &Value) -> Interface {
    let addresses = said.get("ip-addresses").cloned().unwrap_or_default();
    let addresses = all(&addresses, |address| {
        let ip = text(address, "ip-address").parse().ok()?;
        let prefix = u8::try_from(number(address, "prefix")).ok()?;
        Some(Address { ip, prefix })
    });
    let traffic = |way: &str| {
        let count = |what: &str| {
            let statistics = said.get("statistics").unwrap_or(&Value::Null);
            number(statistics, &format!("{way}-{what}"))
        };
        Traffic {
            bytes: count("bytes"),
            packets: count("packets"),
            errors: count("errs"),
            dropped: count("dropped"),
        }
    };
    let addresses: Vec<_> = addresses.into_iter().flatten().collect();
    Interface {
        name: text(said, "name"),
        mac: text(said, "hardware-address"),
        up: !addresses.is_empty(),
        addresses,
        received: traffic("rx"),
        sent: traffic("tx"),
    }
}
