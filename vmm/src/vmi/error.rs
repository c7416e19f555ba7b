//! What is wrong with a manifest, and where.

use std::fmt;

/// More than this many problems are not reported in one go.
const REPORTED: usize = 10;

/// One problem: its place in the file, the field's path where there is one, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1; 0 where the place is the file as a whole.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
    /// Path of the field, as `spec.domain.devices.disks[0].name`; empty for the document itself.
    pub path: String,
    /// What is wrong, in one line.
    pub message: String,
}

/// A manifest that was refused; displays as one line a problem, `FILE:LINE:COL: PATH: MESSAGE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The file as the user named it.
    pub file: String,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().take(REPORTED).enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&self.file)?;
            if problem.line > 0 {
                write!(f, ":{}:{}", problem.line, problem.column)?;
            }
            f.write_str(": ")?;
            if !problem.path.is_empty() {
                write!(f, "{}: ", problem.path)?;
            }
            f.write_str(&problem.message)?;
        }
        if let Some(more) = self.problems.len().checked_sub(REPORTED).filter(|n| *n > 0) {
            write!(f, "\n{}: and {more} more", self.file)?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}
