//! Why a container has ended, for `kubectl describe pod`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// The kubelet reads no more.
const MAX: usize = 4096;

/// The file for it, opened while the process may still open files.
#[derive(Debug)]
pub struct LastWord(Option<File>);

impl LastWord {
    /// The kubelet makes the file; where it is not there nobody reads it.
    pub fn at(path: &Path) -> Self {
        Self(OpenOptions::new().write(true).open(path).ok())
    }

    /// Says it. The end of a long one is what tells most.
    pub fn say(self, reason: &str) {
        let from = reason.len().saturating_sub(MAX);
        let from = (from..reason.len()).find(|at| reason.is_char_boundary(*at));
        let shown = reason.get(from.unwrap_or(0)..).unwrap_or_default();
        if let Some(mut file) = self.0
            && let Err(error) = file.write_all(shown.as_bytes())
        {
            tracing::debug!("the termination message: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_reason_is_what_is_kept_and_no_file_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("termination-log");
        LastWord::at(&path).say("lost");
        assert!(!path.exists());
        std::fs::write(&path, "").unwrap();
        LastWord::at(&path).say(&format!("{}the end", "ä".repeat(MAX)));
        let kept = std::fs::read_to_string(&path).unwrap();
        assert!(
            kept.len() <= MAX && kept.ends_with("the end"),
            "{}",
            kept.len()
        );
    }
}
