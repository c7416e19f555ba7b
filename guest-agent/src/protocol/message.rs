//! What the frames say. Every enum has an `Unknown` for what a later version adds; unknown fields
//! are passed over.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Frame, GuestInfo, Kind};

/// Where the agent is in the guest's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The initramfs's /init.
    Initramfs,
    /// Process 1 of a plain root.
    Init,
    /// A service under the root's own init.
    Service,
    /// One of a later version.
    #[serde(other)]
    Unknown,
}

/// How far a stage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageState {
    /// It began.
    Started,
    /// It did all that it had to.
    Done,
    /// It did not; the detail says why.
    Failed,
    /// One of a later version.
    #[serde(other)]
    Unknown,
}

/// How the guest's set-up ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Everything was done.
    Done,
    /// Something failed; the guest runs.
    Degraded,
    /// One of a later version.
    #[serde(other)]
    Unknown,
}

/// Something that happened. The first event of each side is its `Hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Who speaks.
    Hello {
        /// [`super::VERSION`] of the speaker.
        version: u32,
        /// Its name and release, for a log.
        software: String,
        /// The agent's place; absent in the VMM's hello.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<Role>,
    },
    /// A stage of the guest's boot.
    Stage {
        /// Its name: `modules`, `network`, `root`, `user-data`.
        name: String,
        /// How far it is.
        state: StageState,
        /// Milliseconds since the guest's kernel started its clock.
        uptime_ms: u64,
        /// What failed, for a person.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// The guest's set-up is over.
    Ready {
        /// How it went.
        outcome: Outcome,
        /// Milliseconds since the guest's kernel started its clock.
        uptime_ms: u64,
    },
    /// The ports on which programs of the guest can be reached, all of them: when the agent has
    /// looked for the first time, and when they have changed.
    Ports {
        /// TCP's, ascending.
        tcp: Vec<u16>,
        /// UDP's, ascending.
        udp: Vec<u16>,
        /// The first and the last of UDP's that the kernel gives to clients, of which none is among those.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clients: Option<(u16, u16)>,
    },
    /// The guest cannot go on, and ends.
    Fatal {
        /// Why, for a person.
        reason: String,
    },
    /// One of a later version.
    #[serde(other)]
    Unknown,
}

/// Something to do, from the VMM to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Answer.
    Ping,
    /// Power the guest off, cleanly. The reply says that it has begun.
    PowerOff,
    /// Of a session: run a program. Its streams are data; the reply is [`Reply::Exited`].
    Exec(Exec),
    /// Of a session that runs a program on a terminal, which has this size now. No reply.
    Resize(Size),
    /// Of a session: send a file. It is data; the reply is [`Reply::File`].
    ReadFile {
        /// Its path.
        path: String,
    },
    /// Of a session: write the data that follows to a file, which is replaced as a whole.
    WriteFile {
        /// Its path.
        path: String,
        /// Its permissions; those that it has, or 0644, where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
    },
    /// Tell what the guest is and has; the reply is [`Reply::GuestInfo`].
    GuestInfo,
    /// Set the clock, where it is off by a second or more: nobody has run the guest for a while.
    SetClock {
        /// The time, in nanoseconds since 1970.
        unix_ns: u64,
    },
    /// Begin random numbers anew: the guest is a copy of another, which has the same.
    Reseed {
        /// What nobody else has.
        seed: Vec<u8>,
    },
    /// Have the file systems of disks stand still; the reply is [`Reply::Frozen`].
    Freeze {
        /// After so long they go on by themselves; after 300 s where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seconds: Option<u32>,
    },
    /// Have them go on; the reply is [`Reply::Thawed`].
    Thaw,
    /// Set a user's password.
    SetPassword {
        /// Whose.
        user: String,
        /// The password, or its hash.
        password: String,
        /// It is a hash of crypt(5).
        #[serde(default)]
        hashed: bool,
    },
    /// Tell the keys with which a user may log in; the reply is [`Reply::AuthorizedKeys`].
    AuthorizedKeys {
        /// Whose.
        user: String,
    },
    /// Add keys with which a user may log in.
    AddAuthorizedKeys {
        /// Whose.
        user: String,
        /// A line of authorized_keys each.
        keys: Vec<String>,
    },
    /// Remove keys with which a user may log in.
    RemoveAuthorizedKeys {
        /// Whose.
        user: String,
        /// As they were added; options and comments do not matter.
        keys: Vec<String>,
    },
    /// One of a later version; the reply is an error.
    #[serde(other)]
    Unknown,
}

/// A program to run, as root.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Words of its environment, beside PATH, HOME and LANG.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Where it runs; `/` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The size of the terminal that it gets; three streams where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<Size>,
}

/// A terminal's size, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// The streams of a program, the first byte of a data frame.
pub mod stream {
    /// To it.
    pub const IN: u8 = 0;
    /// From it; a terminal's as well.
    pub const OUT: u8 = 1;
    /// What it complains of.
    pub const ERROR: u8 = 2;
}

/// The end of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Done.
    Ok,
    /// Not done; a sentence for a person.
    Error(String),
    /// The program has ended.
    Exited {
        /// By itself, with this status.
        code: Option<i32>,
        /// By this signal.
        signal: Option<i32>,
    },
    /// All of the file was sent.
    File {
        /// Its permissions.
        mode: u32,
    },
    /// What the guest is and has.
    GuestInfo(Box<GuestInfo>),
    /// So many file systems stand still.
    Frozen(u32),
    /// So many go on.
    Thawed(u32),
    /// The keys, a line of authorized_keys each.
    AuthorizedKeys(Vec<String>),
}

impl Event {
    /// The frame that carries this event.
    pub fn frame(&self) -> Frame {
        frame(Kind::Event, 0, self)
    }
}

impl Request {
    /// The frame that carries this request under `number`.
    pub fn frame(&self, number: u32) -> Frame {
        frame(Kind::Request, number, self)
    }
}

impl Reply {
    /// The frame that answers request `number`.
    pub fn frame(&self, number: u32) -> Frame {
        frame(Kind::Reply, number, self)
    }
}

fn frame(kind: Kind, number: u32, message: &impl Serialize) -> Frame {
    // These messages have string keys and no failing field, so they always serialise.
    let payload = serde_json::to_vec(message).unwrap_or_default();
    Frame {
        kind,
        number,
        payload,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first released version's words, which must be understood for ever.
    #[test]
    fn the_first_version_s_messages_keep_their_form() {
        for (event, json) in [
            (
                Event::Hello {
                    version: 1,
                    software: "peapod-agent 0.1.0".to_owned(),
                    role: Some(Role::Initramfs),
                },
                r#"{"event":"hello","version":1,"software":"peapod-agent 0.1.0","role":"initramfs"}"#,
            ),
            (
                Event::Stage {
                    name: "root".to_owned(),
                    state: StageState::Failed,
                    uptime_ms: 12,
                    detail: Some("why".to_owned()),
                },
                r#"{"event":"stage","name":"root","state":"failed","uptime_ms":12,"detail":"why"}"#,
            ),
            (
                Event::Ready {
                    outcome: Outcome::Done,
                    uptime_ms: 3,
                },
                r#"{"event":"ready","outcome":"done","uptime_ms":3}"#,
            ),
            (
                Event::Fatal {
                    reason: "no root".to_owned(),
                },
                r#"{"event":"fatal","reason":"no root"}"#,
            ),
        ] {
            assert_eq!(event.frame().payload, json.as_bytes());
            assert_eq!(serde_json::from_str::<Event>(json).unwrap(), event);
        }
        assert_eq!(
            Request::PowerOff.frame(9).payload,
            br#"{"request":"power-off"}"#
        );
        let exec = Exec {
            argv: vec!["sh".to_owned()],
            env: [("A".to_owned(), "b".to_owned())].into(),
            cwd: None,
            terminal: Some(Size {
                rows: 1,
                columns: 2,
            }),
        };
        for (request, json) in [
            (
                Request::Exec(exec),
                r#"{"request":"exec","argv":["sh"],"env":{"A":"b"},"terminal":{"rows":1,"columns":2}}"#,
            ),
            (
                Request::Resize(Size {
                    rows: 3,
                    columns: 4,
                }),
                r#"{"request":"resize","rows":3,"columns":4}"#,
            ),
            (
                Request::ReadFile {
                    path: "/a".to_owned(),
                },
                r#"{"request":"read-file","path":"/a"}"#,
            ),
            (
                Request::WriteFile {
                    path: "/a".to_owned(),
                    mode: Some(0o600),
                },
                r#"{"request":"write-file","path":"/a","mode":384}"#,
            ),
            (Request::GuestInfo, r#"{"request":"guest-info"}"#),
            (
                Request::SetClock { unix_ns: 7 },
                r#"{"request":"set-clock","unix_ns":7}"#,
            ),
            (
                Request::Freeze { seconds: Some(9) },
                r#"{"request":"freeze","seconds":9}"#,
            ),
            (Request::Freeze { seconds: None }, r#"{"request":"freeze"}"#),
            (Request::Thaw, r#"{"request":"thaw"}"#),
            (
                Request::SetPassword {
                    user: "a".to_owned(),
                    password: "b".to_owned(),
                    hashed: false,
                },
                r#"{"request":"set-password","user":"a","password":"b","hashed":false}"#,
            ),
            (
                Request::AuthorizedKeys {
                    user: "a".to_owned(),
                },
                r#"{"request":"authorized-keys","user":"a"}"#,
            ),
            (
                Request::AddAuthorizedKeys {
                    user: "a".to_owned(),
                    keys: vec!["k".to_owned()],
                },
                r#"{"request":"add-authorized-keys","user":"a","keys":["k"]}"#,
            ),
            (
                Request::RemoveAuthorizedKeys {
                    user: "a".to_owned(),
                    keys: Vec::new(),
                },
                r#"{"request":"remove-authorized-keys","user":"a","keys":[]}"#,
            ),
        ] {
            assert_eq!(request.frame(9).payload, json.as_bytes());
            assert_eq!(serde_json::from_str::<Request>(json).unwrap(), request);
        }
        for (reply, json) in [
            (
                Reply::Exited {
                    code: Some(0),
                    signal: None,
                },
                r#"{"exited":{"code":0,"signal":null}}"#,
            ),
            (Reply::File { mode: 420 }, r#"{"file":{"mode":420}}"#),
            (Reply::Frozen(2), r#"{"frozen":2}"#),
            (Reply::Thawed(2), r#"{"thawed":2}"#),
            (
                Reply::AuthorizedKeys(vec!["ssh-rsa A".to_owned()]),
                r#"{"authorized-keys":["ssh-rsa A"]}"#,
            ),
        ] {
            assert_eq!(reply.frame(9).payload, json.as_bytes());
            assert_eq!(serde_json::from_str::<Reply>(json).unwrap(), reply);
        }
        assert_eq!(Reply::Ok.frame(9).payload, br#""ok""#);
        assert_eq!(
            Reply::Error("no".to_owned()).frame(9).payload,
            br#"{"error":"no"}"#
        );
    }

    #[test]
    fn what_a_later_version_adds_is_passed_over() {
        let event: Event = serde_json::from_str(r#"{"event":"weather","sun":true}"#).unwrap();
        assert_eq!(event, Event::Unknown);
        let ready = r#"{"event":"ready","outcome":"splendid","uptime_ms":3,"more":[1]}"#;
        let event: Event = serde_json::from_str(ready).unwrap();
        assert_eq!(
            event,
            Event::Ready {
                outcome: Outcome::Unknown,
                uptime_ms: 3
            }
        );
        let request: Request = serde_json::from_str(r#"{"request":"dance","to":1}"#).unwrap();
        assert_eq!(request, Request::Unknown);
    }
}
