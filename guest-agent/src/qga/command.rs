//! The commands, as the schema of QEMU's guest agent has them (qga/qapi-schema.json). What is not
//! known is refused, a field as well as a command.

use serde::Deserialize;
use serde_json::{Map, Value};

/// The class of most errors.
const GENERIC: &str = "GenericError";

/// Why there is no answer that is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A word for programs.
    pub class: &'static str,
    /// A sentence for people.
    pub why: String,
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self {
            class: GENERIC,
            why,
        }
    }
}

/// A command and its arguments.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
#[allow(missing_docs)] // the schema has them
pub enum Command {
    GuestPing {},
    GuestInfo {},
    GuestSync {
        id: i64,
    },
    GuestSyncDelimited {
        id: i64,
    },
    GuestGetOsinfo {},
    GuestNetworkGetInterfaces {},
    GuestGetFsinfo {},
    GuestGetUsers {},
    GuestGetHostName {},
    GuestGetTimezone {},
    GuestGetLoad {},
    GuestGetVcpus {},
    GuestGetTime {},
    GuestSetTime {
        time: Option<i64>,
    },
    GuestShutdown {
        mode: Option<String>,
    },
    GuestExec {
        path: String,
        #[serde(default)]
        arg: Vec<String>,
        #[serde(default)]
        env: Vec<String>,
        input_data: Option<String>,
        #[serde(default)]
        capture_output: Capture,
    },
    GuestExecStatus {
        pid: i64,
    },
    GuestFileOpen {
        path: String,
        mode: Option<String>,
    },
    GuestFileRead {
        handle: i64,
        count: Option<i64>,
    },
    GuestFileWrite {
        handle: i64,
        buf_b64: String,
        count: Option<i64>,
    },
    GuestFileSeek {
        handle: i64,
        offset: i64,
        whence: Value,
    },
    GuestFileFlush {
        handle: i64,
    },
    GuestFileClose {
        handle: i64,
    },
    GuestFsfreezeStatus {},
    GuestFsfreezeFreeze {},
    GuestFsfreezeFreezeList {
        mountpoints: Option<Vec<String>>,
    },
    GuestFsfreezeThaw {},
    GuestSshGetAuthorizedKeys {
        username: String,
    },
    GuestSshAddAuthorizedKeys {
        username: String,
        keys: Vec<String>,
        #[serde(default)]
        reset: bool,
    },
    GuestSshRemoveAuthorizedKeys {
        username: String,
        keys: Vec<String>,
    },
    GuestSetUserPassword {
        username: String,
        password: String,
        #[serde(default)]
        crypted: bool,
    },
}

/// What of a program's output is kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Capture {
    /// Both streams, or nothing.
    Both(bool),
    /// By a word: `none`, `stdout`, `stderr`, `separated`, `merged`.
    Word(String),
}

impl Default for Capture {
    fn default() -> Self {
        Self::Both(false)
    }
}

/// The names of all, as `guest-info` lists them.
pub const NAMES: [&str; 31] = [
    "guest-ping",
    "guest-info",
    "guest-sync",
    "guest-sync-delimited",
    "guest-get-osinfo",
    "guest-network-get-interfaces",
    "guest-get-fsinfo",
    "guest-get-users",
    "guest-get-host-name",
    "guest-get-timezone",
    "guest-get-load",
    "guest-get-vcpus",
    "guest-get-time",
    "guest-set-time",
    SHUTDOWN,
    "guest-exec",
    "guest-exec-status",
    "guest-file-open",
    "guest-file-read",
    "guest-file-write",
    "guest-file-seek",
    "guest-file-flush",
    "guest-file-close",
    "guest-fsfreeze-status",
    "guest-fsfreeze-freeze",
    "guest-fsfreeze-freeze-list",
    "guest-fsfreeze-thaw",
    "guest-ssh-get-authorized-keys",
    "guest-ssh-add-authorized-keys",
    "guest-ssh-remove-authorized-keys",
    "guest-set-user-password",
];

/// The only command without an answer.
pub const SHUTDOWN: &str = "guest-shutdown";

/// Reads a message: its own `id`, which the answer carries, and the command.
pub fn parse(message: &[u8]) -> (Option<Value>, Result<Command, Failure>) {
    let mut fields: Map<String, Value> = match serde_json::from_slice(message) {
        Ok(fields) => fields,
        Err(error) => return (None, Err(format!("not a JSON object: {error}").into())),
    };
    let id = fields.remove("id");
    (id, command(fields))
}

fn command(mut fields: Map<String, Value>) -> Result<Command, Failure> {
    let name = match fields.remove("execute") {
        Some(Value::String(name)) => name,
        _ => return Err("`execute` is not the name of a command".to_owned().into()),
    };
    if !NAMES.contains(&&*name) {
        return Err(Failure {
            class: "CommandNotFound",
            why: format!("The command {name} has not been found"),
        });
    }
    let arguments = fields.remove("arguments");
    if let Some(odd) = fields.keys().next() {
        return Err(format!("QMP input member '{odd}' is unexpected").into());
    }
    let arguments = arguments.unwrap_or_else(|| Map::new().into());
    let command: Map<String, Value> = [(name.clone(), arguments)].into_iter().collect();
    serde_json::from_value(command.into()).map_err(|error| format!("{name}: {error}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Command, Failure> {
        parse(text.as_bytes()).1
    }

    #[test]
    fn a_command_has_its_arguments_and_no_others() {
        let ping = Ok(Command::GuestPing {});
        assert_eq!(read(r#"{"execute":"guest-ping"}"#), ping);
        assert_eq!(read(r#"{"execute":"guest-ping","arguments":{}}"#), ping);
        for odd in [
            r#"{"execute":"guest-ping","arguments":{"a":1}}"#,
            r#"{"execute":"guest-ping","more":1}"#,
            r#"{"execute":"guest-sync"}"#,
            r#"{"execute":"guest-sync","arguments":{"id":"x"}}"#,
            r#"{"execute":1}"#,
            "[]",
            "{",
        ] {
            assert_eq!(read(odd).unwrap_err().class, GENERIC, "{odd}");
        }
        let unknown = read(r#"{"execute":"guest-dance"}"#).unwrap_err();
        assert_eq!(unknown.class, "CommandNotFound");
    }

    #[test]
    fn every_name_is_a_command_s() {
        for name in NAMES {
            let text = format!(r#"{{"execute":"{name}","arguments":{{"no":1}}}}"#);
            let why = read(&text).unwrap_err().why;
            assert!(why.contains("unknown field `no`"), "{name}: {why}");
        }
    }
}
