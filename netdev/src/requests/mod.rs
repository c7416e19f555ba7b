//! What is asked of a network from outside its process, and what it answers, both JSON: a line
//! each at a control socket, and in the VMM's API the bodies of its requests.

mod answer;
pub mod show;

pub use answer::answer;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The longest request, in bytes.
pub const MAX_REQUEST: u64 = 64 << 10;
/// The longest answer, in bytes: as many flows as are listed.
pub const MAX_ANSWER: u64 = 4 << 20;

/// A request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// `{"forwards": [...]}`
    Forwards,
    /// `{"forwards": [...]}`, those that were added: all, or with an error none.
    Add {
        /// As for --publish.
        publish: String,
    },
    /// `{"forwards": [...]}`, those that were removed.
    Remove {
        /// As for --publish.
        publish: String,
    },
    /// `{"total": N, "flows": [...]}`
    Flows {
        /// So many at most.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        most: Option<usize>,
    },
    /// `{"counters": {...}}`
    Counters,
    /// `{"metrics": "..."}`
    Metrics,
    /// `{"capture": {...}}`, or null where there is none.
    Capture {
        /// What to do about it.
        action: Action,
        /// Where to, for a start.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<PathBuf>,
        /// The most bytes of each frame.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snaplen: Option<u32>,
        /// The most bytes of the file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_bytes: Option<u64>,
    },
}

impl Request {
    /// About a capture, with nothing said of how it is to be.
    pub fn capture(action: Action) -> Self {
        Self::Capture {
            action,
            path: None,
            snaplen: None,
            max_bytes: None,
        }
    }
}

/// What to do about a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Begin.
    Start,
    /// End.
    Stop,
    /// Say how far it is.
    Status,
}
