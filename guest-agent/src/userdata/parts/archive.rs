//! `#cloud-config-archive`: parts as a list of YAML.

use super::{Kind, Raw};
use crate::yaml::{self, Node, Value};

/// The parts; a line of `errors` for an entry that is none.
pub fn entries(file: &str, text: &str, errors: &mut Vec<String>) -> Result<Vec<Raw>, String> {
    let node = yaml::read(file, text)?;
    let list = match &node.value {
        Value::List(list) => list,
        Value::Null => return Ok(Vec::new()),
        _ => return Err(node.wrong("", "an archive is a list")),
    };
    let mut parts = Vec::new();
    for (at, entry) in list.iter().enumerate() {
        match &entry.value {
            Value::Text(text) => parts.push(raw(text.as_bytes(), None)),
            Value::Map(_) => parts.push(part(entry)),
            _ => errors.push(entry.wrong(&format!("[{at}]"), "neither text nor a mapping")),
        }
    }
    Ok(parts)
}

fn raw(content: &[u8], kind: Option<String>) -> Raw {
    let kind = kind.unwrap_or_else(|| match Kind::by_header(content) {
        Some(_) => "text/plain".to_owned(),
        None => "text/cloud-config".to_owned(),
    });
    Raw {
        kind,
        content: content.to_vec(),
        ..Raw::default()
    }
}

fn part(entry: &Node) -> Raw {
    let word = |key: &str| entry.get(key).and_then(Node::scalar);
    let content = match entry.get("content").map(|node| &node.value) {
        Some(Value::Bytes(bytes)) => bytes.clone(),
        _ => word("content").unwrap_or_default().into_bytes(),
    };
    Raw {
        name: word("filename"),
        launch_index: word("launch-index").and_then(|text| text.parse().ok()),
        merge: ["Merge-Type", "X-Merge-Type"].into_iter().find_map(word),
        ..raw(&content, word("type"))
    }
}
