//! YAML as cloud-init's users know it: PyYAML's, which reads version 1.1 of the language. `yes` is
//! true, `0644` is octal, and `<<` merges. Every value knows the file and the line that it is from.
//!
//! The grammar is granit-parser's; what a plain scalar means is decided here.

mod node;
mod read;
mod scalar;
#[cfg(test)]
mod tests;
mod write;

pub use node::{Map, Node, Place, Value};
pub use read::read;
pub use write::write;
