//! `random_seed`: bytes for the kernel's generator, before anybody makes a key.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::userdata::command::{Program, exists};
use crate::userdata::context::Context;
use crate::userdata::{files, parts};
use crate::yaml::{Node, Value};

/// Mixes them in.
pub fn run(context: &Context) -> Result<(), String> {
    let Some(node) = context.get("random_seed") else {
        return Ok(());
    };
    let word = |key: &str| node.get(key).and_then(Node::scalar);
    let wrong = |key: &str, why: String| node.wrong(&format!("random_seed.{key}"), why);
    let file = word("file").unwrap_or_else(|| "/dev/urandom".to_owned());
    let data = match node.get("data").map(|data| &data.value) {
        Some(Value::Bytes(bytes)) => bytes.clone(),
        _ => word("data").unwrap_or_default().into_bytes(),
    };
    let data = match word("encoding").as_deref() {
        None | Some("raw") => data,
        Some("b64" | "base64") => STANDARD
            .decode(data.trim_ascii())
            .map_err(|error| wrong("data", error.to_string()))?,
        Some("gz" | "gzip") => parts::gunzip(&data).map_err(|why| wrong("data", why))?,
        Some(other) => return Err(wrong("encoding", format!("{other:?}: raw, base64 or gzip"))),
    };
    if !data.is_empty() {
        let path = Path::new(&file);
        let written = match path.starts_with("/dev") {
            true => std::fs::write(path, &data),
            false => files::append(path, &data, 0o644),
        };
        written.map_err(|error| wrong("file", format!("{file}: {error}")))?;
    }
    let command = node.get("command").map(Node::scalars).unwrap_or_default();
    let Some(program) = command.first() else {
        return Ok(());
    };
    if !exists(program) && !program.contains('/') {
        return match node.flag("command_required", false) {
            true => Err(wrong("command", format!("there is no {program}"))),
            false => Ok(()),
        };
    }
    Program::new(&command).env("RANDOM_SEED_FILE", &file).run()
}
