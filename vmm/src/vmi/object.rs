//! A mapping under inspection: fields are taken out of it one by one, and what remains at the end
//! is refused by name.

use super::error::Problem;
use super::instead;
use super::yaml::{Node, Value};
use serde_saphyr::Spanned;

/// Names farther than this from every known one get no suggestion.
const NEAR: f64 = 0.75;

/// The problems found so far.
pub(super) type Problems = Vec<Problem>;

/// A value with its path.
#[derive(Clone)]
pub(super) struct Field<'a> {
    pub(super) path: String,
    node: &'a Node,
}

impl<'a> Field<'a> {
    /// The document itself.
    pub(super) fn root(node: &'a Node) -> Self {
        Self {
            path: String::new(),
            node,
        }
    }

    /// Notes a problem at this value.
    pub(super) fn problem(&self, problems: &mut Problems, message: impl Into<String>) {
        let at = self.node.referenced;
        problems.push(Problem {
            line: at.line(),
            column: at.column(),
            path: self.path.clone(),
            message: message.into(),
        });
    }

    fn expected(&self, problems: &mut Problems, what: &str) {
        self.problem(
            problems,
            format!("expected {what}, found {}", self.node.value.kind()),
        );
    }

    /// The value itself.
    pub(super) fn node(&self) -> &'a Node {
        self.node
    }

    /// The value as a string.
    pub(super) fn string(&self, problems: &mut Problems) -> Option<&'a str> {
        match &self.node.value {
            Value::String(s) => Some(s),
            _ => {
                self.expected(problems, "a string");
                None
            }
        }
    }

    /// The value as a boolean.
    pub(super) fn boolean(&self, problems: &mut Problems) -> Option<bool> {
        match self.node.value {
            Value::Bool(b) => Some(b),
            _ => {
                self.expected(problems, "true or false");
                None
            }
        }
    }

    /// The value as a whole number from `min` to `max`.
    pub(super) fn integer(&self, problems: &mut Problems, min: u32, max: u32) -> Option<u32> {
        let Value::Int(n) = self.node.value else {
            self.expected(problems, "a whole number");
            return None;
        };
        let n = u32::try_from(n).ok().filter(|n| (min..=max).contains(n));
        if n.is_none() {
            self.problem(problems, format!("must be from {min} to {max}"));
        }
        n
    }

    /// The value as a Kubernetes quantity.
    pub(super) fn quantity(&self, problems: &mut Problems) -> Option<u64> {
        let parsed = match &self.node.value {
            Value::Int(n) => u64::try_from(*n).ok(),
            Value::Float(n) => super::quantity::parse(&n.to_string()),
            Value::String(s) => super::quantity::parse(s),
            _ => {
                self.expected(problems, "a quantity");
                return None;
            }
        };
        if parsed.is_none() {
            self.problem(problems, "not a quantity (such as 512Mi, 1G or 1073741824)");
        }
        parsed
    }

    /// The items of a list.
    pub(super) fn list(&self, problems: &mut Problems) -> Vec<Field<'a>> {
        let Value::List(items) = &self.node.value else {
            self.expected(problems, "a list");
            return Vec::new();
        };
        let item = |(i, node)| Field {
            path: format!("{}[{i}]", self.path),
            node,
        };
        items.iter().enumerate().map(item).collect()
    }

    /// The fields of a mapping whose keys are anybody's to choose.
    pub(super) fn entries(&self, problems: &mut Problems) -> Vec<(&'a str, Field<'a>)> {
        let Value::Map(entries) = &self.node.value else {
            self.expected(problems, "a mapping");
            return Vec::new();
        };
        let field = |(key, node): &'a (Spanned<String>, Node)| {
            let path = join(&self.path, &key.value);
            (key.value.as_str(), Field { path, node })
        };
        entries.iter().map(field).collect()
    }

    /// The mapping, every key of which must be in `known`.
    pub(super) fn object(
        &self,
        problems: &mut Problems,
        known: &'static [&'static str],
    ) -> Option<Object<'a>> {
        let Value::Map(entries) = &self.node.value else {
            self.expected(problems, "a mapping");
            return None;
        };
        let mut left = Vec::new();
        for (key, node) in entries {
            let path = join(&self.path, &key.value);
            if !known.contains(&key.value.as_str()) {
                problems.push(Problem {
                    line: key.referenced.line(),
                    column: key.referenced.column(),
                    path,
                    message: match nearest(&key.value, known) {
                        Some(name) => format!("unknown field; did you mean `{name}`?"),
                        None => "unknown field".to_owned(),
                    },
                });
            // Kubernetes reads null as absence.
            } else if !matches!(node.value, Value::Null) {
                let at = (key.referenced.line(), key.referenced.column());
                left.push((key.value.as_str(), at, Field { path, node }));
            }
        }
        Some(Object {
            field: self.clone(),
            left,
        })
    }

    fn is_empty_list(&self) -> bool {
        matches!(&self.node.value, Value::List(items) if items.is_empty())
    }
}

/// A mapping and those of its fields that nobody has taken yet.
pub(super) struct Object<'a> {
    field: Field<'a>,
    left: Vec<(&'a str, (u64, u64), Field<'a>)>,
}

impl<'a> Object<'a> {
    /// Takes a field out.
    pub(super) fn take(&mut self, name: &str) -> Option<Field<'a>> {
        let i = self.left.iter().position(|(key, ..)| *key == name)?;
        Some(self.left.remove(i).2)
    }

    /// Takes a field that must be there.
    pub(super) fn need(&mut self, problems: &mut Problems, name: &str) -> Option<Field<'a>> {
        let field = self.take(name);
        if field.is_none() {
            self.field
                .problem(problems, format!("`{name}` is required"));
        }
        field
    }

    /// Accepts fields that change nothing here.
    pub(super) fn ignore(&mut self, names: &[&str]) {
        self.left.retain(|(key, ..)| !names.contains(key));
    }

    /// Accepts a boolean that says what is so anyway; the other value stays, to be refused.
    pub(super) fn accept_bool(&mut self, name: &str, so: bool) {
        self.left.retain(|(key, _, field)| {
            !(*key == name && matches!(field.node.value, Value::Bool(b) if b == so))
        });
    }

    /// Accepts a string that says what is so anyway.
    pub(super) fn accept_str(&mut self, name: &str, so: &[&str]) {
        self.left.retain(|(key, _, field)| {
            !(*key == name
                && matches!(&field.node.value, Value::String(s) if so.contains(&s.as_str())))
        });
    }

    /// Accepts `{}` or `{enabled: so}` (KubeVirt's FeatureState; absent means true).
    pub(super) fn accept_state(&mut self, name: &str, key_of_state: &str, so: bool) {
        self.left.retain(|(key, _, field)| {
            let Value::Map(entries) = &field.node.value else {
                return true;
            };
            let says_so = match entries.as_slice() {
                [] => so,
                [(k, v)] => k.value == key_of_state && matches!(v.value, Value::Bool(b) if b == so),
                _ => false,
            };
            !(*key == name && says_so)
        });
    }

    /// The names left, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.left.iter().map(|(key, ..)| *key)
    }

    /// The mapping's own place and path.
    pub(super) fn field(&self) -> &Field<'a> {
        &self.field
    }

    /// Refuses what nobody took. An empty list asks for nothing.
    pub(super) fn finish(self, problems: &mut Problems) {
        for (_, (line, column), field) in self.left {
            if !field.is_empty_list() {
                let message = match instead::of(&field.path) {
                    Some(instead) => format!("not supported; {instead}"),
                    None => "not supported yet".to_owned(),
                };
                problems.push(Problem {
                    line,
                    column,
                    path: field.path,
                    message,
                });
            }
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

pub(super) fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let score = |k: &&str| strsim::jaro_winkler(&name.to_lowercase(), &k.to_lowercase());
    let best = known.iter().max_by(|a, b| score(a).total_cmp(&score(b)))?;
    (score(best) >= NEAR).then_some(*best)
}
