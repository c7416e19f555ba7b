//! Snapshots: a VM that stands still as a directory, and a VM that begins where it stood
//! (docs/snapshots.md).
//!
//! A VM tells what it is as a stream of [`stream::Piece`]s; whoever asked writes them to files. So
//! the process that runs a guest needs no right to write anywhere.

pub mod directory;
pub mod layer;
pub mod stream;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::machine::state::State;

/// The version of what is written. It grows when an older Peapod could not read it, or this one not
/// an older one's.
pub const VERSION: u32 = 2;

/// A VM that stood still, without the bytes of its memory and disks.
#[derive(Serialize, Deserialize)]
pub struct Snapshot {
    /// What wrote it, for a person.
    pub software: String,
    /// How it was started.
    pub line: Line,
    /// Bytes of memory.
    pub memory: u64,
    /// The disks that went with it, in the manifest's order.
    pub disks: Vec<SavedDisk>,
    /// The disks that stay, which the guest may write.
    pub kept: Vec<String>,
    /// The machine.
    pub machine: State,
}

/// The command line and the manifest of a VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// The command line's words, the program's name first.
    pub words: Vec<String>,
    /// Where it was said.
    pub directory: PathBuf,
    /// The manifest's text.
    pub manifest: String,
}

impl Line {
    /// This process's own; `None` where a word of it is no text.
    pub fn own(manifest: String) -> Option<Self> {
        let words = std::env::args_os().map(|word| word.into_string().ok());
        Some(Self {
            words: words.collect::<Option<_>>()?,
            directory: std::env::current_dir().ok()?,
            manifest,
        })
    }
}

/// A disk that went with its VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedDisk {
    /// The manifest's name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// The clusters that the guest has written, a bit each; all of them where the disk had nothing
    /// below.
    pub written: Option<Vec<u64>>,
}
