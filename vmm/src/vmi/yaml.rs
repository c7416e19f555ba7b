//! A YAML document as a tree in which every key and value knows its place. JSON is YAML.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::error::Problem;

/// A file may have Services and Deployments beside its VMI.
const MAX_DOCUMENTS: usize = 64;
/// A larger manifest is refused unread; etcd's own limit for an object is 1.5 MiB.
const MAX_BYTES: usize = 1 << 20;

/// A value and its place.
pub(super) type Node = Spanned<Value>;

/// What YAML can say that Kubernetes takes.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    String(String),
    List(Vec<Node>),
    Map(Vec<(Spanned<String>, Node)>),
}

impl Value {
    /// As Kubernetes has it.
    pub(super) fn json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(value) => (*value).into(),
            Self::Int(value) => i64::try_from(*value).map_or(serde_json::Value::Null, Into::into),
            Self::Float(value) => (*value).into(),
            Self::String(value) => value.clone().into(),
            Self::List(nodes) => nodes.iter().map(|node| node.value.json()).collect(),
            Self::Map(entries) => {
                let entries = entries
                    .iter()
                    .map(|(key, node)| (key.value.clone(), node.value.json()));
                serde_json::Value::Object(entries.collect())
            }
        }
    }

    /// What it is, for "expected X, found Y".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::String(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E: Error>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E: Error>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v.into()))
    }
    fn visit_u64<E: Error>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Int(v.into()))
    }
    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }
    fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }
    fn visit_string<E: Error>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}

/// Parses all documents that are not empty, bounded in size, depth, nodes and alias expansion.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Node>, Problem> {
    if bytes.len() > MAX_BYTES {
        return Err(whole(format!("larger than the limit of {MAX_BYTES} bytes")));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|e| whole(format!("not UTF-8 from byte {} on", e.valid_up_to())))?;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 64,
            max_nodes: 100_000,
            max_aliases: 1_000,
            max_documents: MAX_DOCUMENTS,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
            max_alias_expansions_per_anchor: 1_000,
        },
        // `n`, `on` and the like are names here; where a boolean is wanted they are refused.
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|e| {
        let (line, column) = e.location().map_or((0, 0), |at| (at.line(), at.column()));
        Problem {
            line,
            column,
            path: String::new(),
            message: sentence(&e.to_string()),
        }
    })
}

/// A problem of no place.
pub(super) fn whole(message: String) -> Problem {
    Problem {
        line: 0,
        column: 0,
        path: String::new(),
        message,
    }
}

/// The crate's message without its place, which is said in front, and its advice to programmers.
fn sentence(text: &str) -> String {
    let text = text.lines().next().unwrap_or_default();
    if text.contains("alias") {
        return "aliases expand to more than the limit".to_owned();
    }
    let text = match text.split_once(" column ") {
        // "line 1 column 4: unclosed bracket" as well as "unclosed bracket at line 1, column 4".
        Some((before, after))
            if before.starts_with("line ") || before.starts_with("error: line ") =>
        {
            after.split_once(": ").map_or(text, |(_, message)| message)
        }
        _ => text,
    };
    let end = [" at line ", ", set "]
        .iter()
        .filter_map(|tail| text.find(tail))
        .min();
    text.get(..end.unwrap_or(text.len()))
        .unwrap_or(text)
        .to_owned()
}
