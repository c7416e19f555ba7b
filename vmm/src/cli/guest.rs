//! The subcommands about what is in a guest, by its agent: each a call of the VM's API.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use axum::http::Method;
use guest_agent::protocol::GuestInfo;
use netdev::requests::show::table;
use serde::Deserialize;
use serde_json::{Value, json};

use super::vms::{Asked, Error, Vm, pretty, print};

const GUEST: &str = "/v1/guest";
const KEYS: &str = "/v1/guest/keys";
/// A longer password, or file of keys, is not one.
const MAX_INPUT: u64 = 256 << 10;
const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

/// Tells what a guest is and has.
pub fn info(asked: &Asked) -> Result<(), Error> {
    let told = asked.vm.call_agent(|client| client.get(GUEST))?;
    if asked.json {
        return print(&pretty(&told));
    }
    // A VMM of another version may tell more or less.
    print(&show(&GuestInfo::deserialize(told).unwrap_or_default()))
}

/// As people read it.
fn show(info: &GuestInfo) -> String {
    let [one, five, fifteen] = info.load;
    let memory = &info.memory;
    let used = memory.total.saturating_sub(memory.available);
    let frozen = if info.frozen { "frozen" } else { "not frozen" };
    let facts = [
        ("hostname", info.hostname.clone()),
        ("system", info.os.pretty_name.clone()),
        ("kernel", info.os.kernel_release.clone()),
        ("time zone", info.timezone.name.clone()),
        ("up", format!("{} s", info.uptime_ms / 1000)),
        (
            "load",
            format!("{one} {five} {fifteen} on {} vCPUs", info.vcpus),
        ),
        (
            "memory",
            format!("{} of {} in use", size(used), size(memory.total)),
        ),
        ("file systems", frozen.to_owned()),
    ];
    let mut shown: String = facts
        .iter()
        .map(|(name, value)| format!("{name:<14}{value}\n"))
        .collect();
    let filesystems = info.filesystems.iter().map(|one| {
        json!({
            "mountpoint": one.mountpoint, "device": one.device, "kind": one.kind,
            "total": size(one.total), "used": size(one.used), "available": size(one.available),
        })
    });
    let interfaces = info.interfaces.iter().map(|link| {
        let addresses = link.addresses.iter();
        let addresses = addresses.map(|address| format!("{}/{}", address.ip, address.prefix));
        json!({
            "name": link.name, "mac": link.mac, "up": link.up,
            "addresses": addresses.collect::<Vec<_>>().join(" "),
        })
    });
    let users = info
        .users
        .iter()
        .map(|user| json!({ "name": user.name, "terminal": user.terminal, "host": user.host }));
    for (rows, columns) in [
        (
            filesystems.collect::<Vec<_>>(),
            &[
                ("MOUNTPOINT", "mountpoint"),
                ("DEVICE", "device"),
                ("KIND", "kind"),
                ("SIZE", "total"),
                ("USED", "used"),
                ("AVAILABLE", "available"),
            ][..],
        ),
        (
            interfaces.collect(),
            &[
                ("INTERFACE", "name"),
                ("MAC", "mac"),
                ("UP", "up"),
                ("ADDRESSES", "addresses"),
            ],
        ),
        (
            users.collect(),
            &[("USER", "name"), ("TERMINAL", "terminal"), ("FROM", "host")],
        ),
    ] {
        if !rows.is_empty() {
            shown += &format!("\n{}", table(&rows, columns));
        }
    }
    shown
}

/// Bytes, in the largest unit of which there are ten.
fn size(bytes: u64) -> String {
    let mut left = bytes;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while left >= 10 * 1024
        && let Some(next) = units.next()
    {
        left /= 1024;
        unit = Some(next);
    }
    format!("{left} {}", unit.unwrap_or(&""))
}

/// Arguments of `freeze`.
#[derive(Debug, clap::Args)]
pub struct Freeze {
    #[command(flatten)]
    vm: Vm,
    /// After so long they go on by themselves
    #[arg(short, long, value_name = "SECONDS", default_value_t = 300)]
    time: u32,
}

/// Has a guest's file systems stand still.
pub fn freeze(args: &Freeze) -> Result<(), Error> {
    let path = format!("{GUEST}/freeze?seconds={}", args.time);
    args.vm
        .call_agent(|client| client.json(Method::POST, &path, None).map(drop))
}

/// Has them go on.
pub fn thaw(vm: &Vm) -> Result<(), Error> {
    let path = format!("{GUEST}/thaw");
    vm.call_agent(|client| client.json(Method::POST, &path, None).map(drop))
}

/// What `credentials` does.
#[derive(Debug, clap::Subcommand)]
pub enum Credentials {
    /// Set a user's password, which is read from standard input
    SetPassword {
        /// Whose.
        #[command(flatten)]
        whose: Whose,
        /// What is read is a hash as crypt(5) has it
        #[arg(long)]
        hashed: bool,
    },
    /// List the keys with which a user may log in
    ListSshKeys(Whose),
    /// Add keys with which a user may log in
    AddSshKey(Keys),
    /// Remove keys with which a user may log in
    RemoveSshKey(Keys),
}

/// A user of a guest.
#[derive(Debug, clap::Args)]
pub struct Whose {
    #[command(flatten)]
    vm: Vm,
    /// The user
    #[arg(short, long)]
    user: String,
}

/// Keys of a user.
#[derive(Debug, clap::Args)]
pub struct Keys {
    #[command(flatten)]
    whose: Whose,
    /// A file of public keys, a line a key; `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

/// Sets a password, lists, adds and removes keys.
pub fn credentials(what: &Credentials) -> Result<(), Error> {
    match what {
        Credentials::SetPassword { whose, hashed } => {
            let password = read(Path::new("-"))?;
            let password = password.lines().next().unwrap_or_default();
            let body = json!({ "user": whose.user, "password": password, "hashed": hashed });
            let path = format!("{GUEST}/password");
            whose
                .vm
                .call_agent(|client| client.json(Method::PUT, &path, Some(body)).map(drop))
        }
        Credentials::ListSshKeys(whose) => {
            let path = format!("{KEYS}?user={}", escape(&whose.user));
            let answer = whose.vm.call_agent(|client| client.get(&path))?;
            let keys = answer.get("keys").and_then(Value::as_array);
            let keys = keys.into_iter().flatten();
            let lines: String = keys
                .filter_map(Value::as_str)
                .map(|key| format!("{key}\n"))
                .collect();
            print(&lines)
        }
        Credentials::AddSshKey(keys) => change(keys, Method::POST),
        Credentials::RemoveSshKey(keys) => change(keys, Method::DELETE),
    }
}

fn change(keys: &Keys, method: Method) -> Result<(), Error> {
    let text = read(&keys.file)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<_> = lines.filter(|line| !line.starts_with('#')).collect();
    let body = json!({ "user": keys.whose.user, "keys": lines });
    let vm = &keys.whose.vm;
    vm.call_agent(|client| client.json(method, KEYS, Some(body)).map(drop))
}

fn read(file: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => io::stdin().lock().take(MAX_INPUT).read_to_string(&mut text),
        _ => fs::File::open(file).and_then(|file| file.take(MAX_INPUT).read_to_string(&mut text)),
    };
    match read {
        Ok(_) => Ok(text),
        Err(error) => Err(Error::File(file.display().to_string(), error)),
    }
}

/// A text within a query (RFC 3986, 2.1).
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_shown_as_people_read_it() {
        let info = json!({
            "hostname": "details",
            "os": {"pretty_name": "Debian GNU/Linux 12 (bookworm)", "kernel_release": "6.1.0"},
            "timezone": {"name": "UTC"},
            "uptime_ms": 61_500,
            "load": [0.5, 0.25, 0.0],
            "vcpus": 2,
            "memory": {"total": 1u64 << 30, "available": 1u64 << 29},
            "frozen": false,
            "filesystems": [{"mountpoint": "/", "device": "vda", "kind": "ext4",
                "total": 20u64 << 30, "used": 3u64 << 20, "available": 5}],
            "interfaces": [{"name": "enp1s0", "mac": "02:00:00:00:00:01", "up": true,
                "addresses": [{"ip": "10.0.2.2", "prefix": 24}]}],
            "users": [],
        });
        let shown = show(&GuestInfo::deserialize(info).unwrap());
        for line in [
            "load          0.5 0.25 0 on 2 vCPUs",
            "memory        512 MiB of 1024 MiB in use",
            "up            61 s",
        ] {
            assert!(shown.contains(line), "{line}: {shown}");
        }
        assert!(
            shown.contains("20 GiB") && shown.contains("3072 KiB"),
            "{shown}"
        );
        assert!(shown.contains("10.0.2.2/24"), "{shown}");
        assert!(!shown.contains("TERMINAL"), "{shown}");
    }

    #[test]
    fn a_name_in_a_query_is_escaped() {
        assert_eq!(escape("a b&c%"), "a%20b%26c%25");
        assert_eq!(escape("o.k-_~1"), "o.k-_~1");
    }
}
