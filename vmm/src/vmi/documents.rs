//! The documents of a file: which of them is the VMI, what of the others it may refer to, and what is
//! left alone.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::object::{Field, Object, Problems};
use super::schema;
use super::yaml::{Node, Value};

/// What a file has beside its VMI.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// Each Secret's keys, by its name.
    secrets: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Kind and name of each document that nobody here reads.
    left: Vec<String>,
}

/// The document that is the machine's, and what is beside it. One document alone is taken for it,
/// whatever it says that it is: what is wrong with it is then said.
pub(super) fn sort<'a>(nodes: &'a [Node], p: &mut Problems) -> Option<(Field<'a>, Beside)> {
    let mut beside = Beside::default();
    let mut machine = None;
    for node in nodes {
        let field = Field::root(node);
        let kind = text(node, "kind").unwrap_or_default();
        let is_machine = matches!(kind, "VirtualMachineInstance" | "VirtualMachine");
        if is_machine || nodes.len() == 1 {
            if machine.is_some() {
                field.problem(p, format!("a second {kind}; a file has one"));
            }
            machine.get_or_insert(field);
        } else if kind == "Secret" {
            beside.secret(&field, p);
        } else {
            let name = get(node, "metadata").and_then(|meta| text(meta, "name"));
            beside.left.push(format!("{kind} {}", name.unwrap_or("?")));
        }
    }
    if machine.is_none()
        && let Some(first) = nodes.first()
    {
        let what = "no document is a VirtualMachineInstance or a VirtualMachine";
        Field::root(first).problem(p, what);
    }
    Some((machine?, beside))
}

impl Beside {
    /// A sentence for its author, if there is something to say.
    pub(super) fn warning(&self) -> Option<String> {
        let left = self.left.join(", ");
        (!left.is_empty()).then(|| format!("left alone: {left}"))
    }

    /// What Secret `name` has under one of these keys. `Err` says what is missing.
    pub(super) fn secret_key(&self, name: &str, keys: &[&str]) -> Result<Vec<u8>, String> {
        let Some(secret) = self.secrets.get(name) else {
            return Err(format!(
                "Secret `{name}` is not in this file; put it beside the VMI"
            ));
        };
        let found = keys.iter().find_map(|key| secret.get(*key));
        found
            .cloned()
            .ok_or_else(|| format!("Secret `{name}` has no `{}`", keys.join("` or `")))
    }

    fn secret(&mut self, field: &Field<'_>, p: &mut Problems) {
        let Some(mut secret) = field.object(p, schema::SECRET) else {
            return;
        };
        let meta = secret.take("metadata");
        let name = meta.and_then(|meta| text(meta.node(), "name"));
        let mut keys = entries(&mut secret, "data", p, |field, p| {
            let text: String = field.string(p)?.split_ascii_whitespace().collect();
            let decoded = BASE64_STANDARD.decode(text).ok();
            if decoded.is_none() {
                field.problem(p, "not base64");
            }
            decoded
        });
        // What is written in plain is what counts, as Kubernetes has it.
        keys.extend(entries(&mut secret, "stringData", p, |field, p| {
            Some(field.string(p)?.as_bytes().to_vec())
        }));
        if let Some(name) = name {
            self.secrets.insert(name.to_owned(), keys);
        }
    }
}

fn entries(
    secret: &mut Object<'_>,
    name: &str,
    p: &mut Problems,
    read: impl Fn(&Field<'_>, &mut Problems) -> Option<Vec<u8>>,
) -> BTreeMap<String, Vec<u8>> {
    let field = secret.take(name);
    let fields = field.map(|field| field.entries(p)).unwrap_or_default();
    let read = fields
        .iter()
        .filter_map(|(key, field)| Some(((*key).to_owned(), read(field, p)?)));
    read.collect()
}

fn get<'a>(node: &'a Node, name: &str) -> Option<&'a Node> {
    let Value::Map(entries) = &node.value else {
        return None;
    };
    let found = entries.iter().find(|(key, _)| key.value == name);
    found.map(|(_, value)| value)
}

fn text<'a>(node: &'a Node, name: &str) -> Option<&'a str> {
    match &get(node, name)?.value {
        Value::String(text) => Some(text),
        _ => None,
    }
}
