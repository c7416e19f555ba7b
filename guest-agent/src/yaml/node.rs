//! A value and where it stands.

use std::fmt;
use std::sync::Arc;

/// Where a value was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The file: `user-data`, or a part's own name.
    pub file: Arc<str>,
    /// From 1; 0 where it was written by nobody.
    pub line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

/// A mapping, in the order in which it was written.
pub type Map = Vec<(String, Node)>;

/// What a value is.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Value {
    /// `null`, or nothing at all.
    #[default]
    Null,
    /// A truth.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
    /// `!!binary`.
    Bytes(Vec<u8>),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping; its keys as Python's `str()` has them.
    Map(Map),
}

/// A value and its place.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Where it was written.
    pub place: Place,
}

impl From<Value> for Node {
    fn from(value: Value) -> Self {
        let place = Place::default();
        Self { value, place }
    }
}

impl From<&str> for Node {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned()).into()
    }
}

impl Node {
    /// An empty mapping.
    pub fn empty() -> Self {
        Value::Map(Map::new()).into()
    }

    /// The value of a key, unless it is null.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key)
            .filter(|node| !matches!(node.value, Value::Null))
    }

    /// The value of a key, null too.
    pub fn entry(&self, key: &str) -> Option<&Self> {
        let found = self.map()?.iter().find(|(name, _)| name == key);
        found.map(|(_, node)| node)
    }

    /// The value at a path of keys.
    pub fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| node.get(key))
    }

    /// Sets a key of a mapping.
    pub fn set(&mut self, key: &str, node: Self) {
        if let Value::Map(map) = &mut self.value {
            match map.iter_mut().find(|(name, _)| name == key) {
                Some((_, old)) => *old = node,
                None => map.push((key.to_owned(), node)),
            }
        }
    }

    /// Takes a key out of a mapping.
    pub fn take(&mut self, key: &str) -> Option<Self> {
        let Value::Map(map) = &mut self.value else {
            return None;
        };
        let at = map.iter().position(|(name, _)| name == key)?;
        Some(map.remove(at).1)
    }

    /// The mapping that it is.
    pub fn map(&self) -> Option<&Map> {
        match &self.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The sequence that it is.
    pub fn list(&self) -> Option<&[Self]> {
        match &self.value {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    /// The text that it is.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A scalar as Python's `str()` has it.
    pub fn scalar(&self) -> Option<String> {
        Some(match &self.value {
            Value::Text(text) => text.clone(),
            Value::Int(number) => number.to_string(),
            Value::Float(number) => format!("{number:?}"),
            Value::Bool(true) => "True".to_owned(),
            Value::Bool(false) => "False".to_owned(),
            Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => return None,
        })
    }

    /// Whether it means yes: cloud-init takes words and numbers for truths too.
    pub fn is_true(&self) -> bool {
        self.means(true, ["true", "1", "on", "yes"])
    }

    /// Whether it means no.
    pub fn is_false(&self) -> bool {
        self.means(false, ["off", "0", "no", "false"])
    }

    fn means(&self, answer: bool, words: [&str; 4]) -> bool {
        match &self.value {
            Value::Bool(truth) => *truth == answer,
            Value::Int(number) => *number == i64::from(answer),
            Value::Text(text) => words.contains(&&*text.trim().to_lowercase()),
            _ => false,
        }
    }

    /// Whether Python takes it for true in a condition.
    pub fn is_something(&self) -> bool {
        match &self.value {
            Value::Null => false,
            Value::Bool(truth) => *truth,
            Value::Int(number) => *number != 0,
            Value::Float(number) => *number != 0.0,
            Value::Text(text) => !text.is_empty(),
            Value::Bytes(bytes) => !bytes.is_empty(),
            Value::List(list) => !list.is_empty(),
            Value::Map(map) => !map.is_empty(),
        }
    }

    /// Whether a key's value means yes; `default` where there is none.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        self.entry(key).map_or(default, Self::is_true)
    }

    /// A sequence's scalars, or the one that stands for a sequence.
    pub fn scalars(&self) -> Vec<String> {
        match &self.value {
            Value::List(list) => list.iter().filter_map(Self::scalar).collect(),
            _ => self.scalar().into_iter().collect(),
        }
    }

    /// What kind of value it is, for a person.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a truth value",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Text(_) => "text",
            Value::Bytes(_) => "bytes",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// An error that says where.
    pub fn wrong(&self, key: &str, why: impl fmt::Display) -> String {
        match (&*self.place.file, key) {
            ("", key) => format!("{key}: {why}"),
            (_, "") => format!("{}: {why}", self.place),
            (_, key) => format!("{}: {key}: {why}", self.place),
        }
    }

    /// As JSON has it, for templates and for what is shown.
    pub fn json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(truth) => Json::Bool(*truth),
            Value::Int(number) => Json::from(*number),
            Value::Float(number) => Json::from(*number),
            Value::Text(text) => Json::String(text.clone()),
            Value::Bytes(bytes) => Json::String(String::from_utf8_lossy(bytes).into_owned()),
            Value::List(list) => Json::Array(list.iter().map(Self::json).collect()),
            Value::Map(map) => {
                let entry = |(key, node): &(String, Self)| (key.clone(), node.json());
                Json::Object(map.iter().map(entry).collect())
            }
        }
    }
}
