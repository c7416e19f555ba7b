//! `write_files`

use std::os::unix::fs::chown;
use std::path::{Component, Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::http;
use crate::os::CloudInit;
use crate::userdata::context::Context;
use crate::userdata::{files, parts};
use crate::yaml::{Node, Value};

const MODULE: &str = "write_files";
const MODE: u32 = 0o644;

/// Writes those that do not wait.
pub fn run(context: &Context) -> Result<(), String> {
    write_all(context, false)
}

/// Writes those that wait for users and packages.
pub fn deferred(context: &Context) -> Result<(), String> {
    write_all(context, true)
}

fn write_all(context: &Context, deferred: bool) -> Result<(), String> {
    let Some(list) = context.get("write_files") else {
        return Ok(());
    };
    let items = list
        .list()
        .ok_or_else(|| list.wrong(MODULE, format!("a list, not {}", list.kind())))?;
    for (at, item) in items.iter().enumerate() {
        if item.flag("defer", false) != deferred {
            continue;
        }
        if let Err(why) = write(context, item) {
            context.failed(MODULE, &item.wrong(&format!("{MODULE}[{at}]"), why));
        }
    }
    Ok(())
}

fn write(context: &Context, item: &Node) -> Result<(), String> {
    let word = |key: &str| item.get(key).and_then(Node::scalar);
    let path = word("path")
        .filter(|path| !path.is_empty())
        .ok_or("it has no path")?;
    let path = absolute(&path);
    let content = match item
        .get("source")
        .and_then(|source| source.get("uri"))
        .and_then(Node::scalar)
    {
        Some(address) => http::get(&address, crate::seed::MAX_FILE)?,
        None => content(item)?,
    };
    let mode = match item.get("permissions") {
        Some(node) => mode(node).ok_or("permissions: not an octal number")?,
        None => MODE,
    };
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let owner = word("owner").unwrap_or_else(|| "root:root".to_owned());
    if context.os.cloud_init >= CloudInit::V25
        && let Some(folder) = path.parent()
    {
        for folder in files::make_folders(folder).map_err(failed)? {
            let (uid, gid) = ids(context, &owner)?;
            chown(folder, uid, gid).map_err(failed)?;
        }
    }
    match item.flag("append", false) {
        true => files::append(&path, &content, mode),
        false => files::write(&path, &content, mode),
    }
    .map_err(failed)?;
    let (uid, gid) = ids(context, &owner)?;
    chown(&path, uid, gid).map_err(failed)?;
    // Which a change of the owner may have taken from.
    use std::os::unix::fs::PermissionsExt;
    match mode & 0o6000 {
        0 => Ok(()),
        _ if uid.is_none() && gid.is_none() => Ok(()),
        _ => std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode & 0o1777))
            .map_err(failed),
    }
}

/// The numbers of an owner, `USER:GROUP`; none for what is to stay as it is.
fn ids(context: &Context, owner: &str) -> Result<(Option<u32>, Option<u32>), String> {
    let (user, group) = owner.split_once(':').unwrap_or((owner, ""));
    let name = |name: &str| {
        let name = name.trim();
        let none = name.is_empty() || name == "-1" || name.eq_ignore_ascii_case("none");
        (!none).then(|| name.to_owned())
    };
    let uid = match name(user) {
        Some(name) => Some(
            context
                .accounts
                .user(&name)
                .ok_or_else(|| format!("owner: there is no user {name:?} yet; with defer: true it is written when there is"))?
                .uid,
        ),
        None => None,
    };
    let gid = match name(group) {
        Some(name) => Some(
            context
                .accounts
                .gid(&name)
                .ok_or_else(|| format!("owner: there is no group {name:?}"))?,
        ),
        None => None,
    };
    Ok((uid, gid))
}

fn content(item: &Node) -> Result<Vec<u8>, String> {
    let content = match item.entry("content").map(|node| &node.value) {
        Some(Value::Bytes(bytes)) => bytes.clone(),
        Some(Value::Text(text)) => text.clone().into_bytes(),
        Some(Value::Null) | None => Vec::new(),
        Some(_) => return Err("content: it is not text; put it in quotes or after a |".to_owned()),
    };
    let encoding = item
        .get("encoding")
        .and_then(Node::scalar)
        .unwrap_or_default();
    let encoding = encoding.to_lowercase();
    let base64 = |bytes: &[u8]| {
        // Line ends and what else is none of its letters, as Python's decoder passes over.
        let letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
        let letters: Vec<u8> = bytes.iter().copied().filter(letter).collect();
        STANDARD
            .decode(letters)
            .map_err(|error| format!("content: not base64: {error}"))
    };
    match encoding.trim() {
        "gz" | "gzip" => parts::gunzip(&content).map_err(|why| format!("content: {why}")),
        "gz+base64" | "gzip+base64" | "gz+b64" | "gzip+b64" => {
            parts::gunzip(&base64(&content)?).map_err(|why| format!("content: {why}"))
        }
        "b64" | "base64" => base64(&content),
        "" | "text/plain" => Ok(content),
        other => Err(format!(
            "encoding: {other:?} is none of b64, gz, gz+b64, text/plain"
        )),
    }
}

/// Permissions: octal in quotes, or a number, which YAML reads as octal after a 0.
fn mode(node: &Node) -> Option<u32> {
    match &node.value {
        Value::Int(number) => u32::try_from(*number).ok(),
        Value::Text(text) => {
            let text = text.trim();
            let digits = text.strip_prefix("0o").unwrap_or(text);
            u32::from_str_radix(digits, 8).ok()
        }
        _ => None,
    }
}

/// The path from the root on, without `.` and `..`.
fn absolute(path: &str) -> PathBuf {
    let mut result = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => result.push(name),
            Component::ParentDir => drop(result.pop()),
            _ => {}
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    fn item(text: &str) -> Node {
        yaml::read("f", text).unwrap()
    }

    #[test]
    fn content_is_decoded_as_it_says() {
        for text in [
            "content: hi",
            "{content: 'aGk=', encoding: b64}",
            "{content: \"aG\\nk=\", encoding: base64}",
            "content: !!binary aGk=",
            "{content: !!binary H4sIAAAAAAAAA8vIBACsKpPYAgAAAA==, encoding: gzip}",
            "{content: H4sIAAAAAAAAA8vIBACsKpPYAgAAAA==, encoding: gz+b64}",
        ] {
            assert_eq!(content(&item(text)).unwrap(), b"hi", "{text}");
        }
        content(&item("content: [1]")).unwrap_err();
        content(&item("{content: x, encoding: rot13}")).unwrap_err();
    }

    #[test]
    fn permissions_are_octal_however_they_are_written() {
        for (text, expected) in [
            ("'0640'", Some(0o640)),
            ("0640", Some(0o640)),
            ("'640'", Some(0o640)),
            ("x", None),
        ] {
            assert_eq!(mode(&item(text)), expected, "{text}");
        }
        assert_eq!(absolute("a/../../etc/./x"), Path::new("/etc/x"));
    }
}
