//! The documents of a file: which of them is the VMI, what of the others it may refer to, and what is
//! left alone.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::machine::Keyed;
use super::object::{Field, Object, Problems};
use super::schema;
use super::yaml::{Node, Value};

/// Keys and what is under them.
type Keys = BTreeMap<String, Vec<u8>>;

/// What a file has beside its VMI.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// Each Secret's keys, by its name.
    secrets: BTreeMap<String, Keys>,
    /// The same of each ConfigMap.
    config_maps: BTreeMap<String, Keys>,
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
        } else if kind == "ConfigMap" {
            beside.config_map(&field, p);
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

    /// All keys of one, if it is in the file.
    pub(super) fn keys(&self, of: Keyed, name: &str) -> Option<&Keys> {
        let all = match of {
            Keyed::ConfigMap => &self.config_maps,
            Keyed::Secret => &self.secrets,
            Keyed::ServiceAccount | Keyed::DownwardApi => return None,
        };
        all.get(name)
    }

    fn config_map(&mut self, field: &Field<'_>, p: &mut Problems) {
        let Some(mut map) = field.object(p, schema::CONFIG_MAP) else {
            return;
        };
        let meta = map.take("metadata");
        let name = meta.and_then(|meta| text(meta.node(), "name"));
        let mut keys = entries(&mut map, "binaryData", p, base64);
        keys.extend(entries(&mut map, "data", p, plain));
        if let Some(name) = name {
            self.config_maps.insert(name.to_owned(), keys);
        }
    }

    fn secret(&mut self, field: &Field<'_>, p: &mut Problems) {
        let Some(mut secret) = field.object(p, schema::SECRET) else {
            return;
        };
        let meta = secret.take("metadata");
        let name = meta.and_then(|meta| text(meta.node(), "name"));
        let mut keys = entries(&mut secret, "data", p, base64);
        // What is written in plain is what counts, as Kubernetes has it.
        keys.extend(entries(&mut secret, "stringData", p, plain));
        if let Some(name) = name {
            self.secrets.insert(name.to_owned(), keys);
        }
    }
}

fn plain(field: &Field<'_>, p: &mut Problems) -> Option<Vec<u8>> {
    Some(field.string(p)?.as_bytes().to_vec())
}

/// Bytes that are written in base64.
pub(super) fn base64(field: &Field<'_>, p: &mut Problems) -> Option<Vec<u8>> {
    // Line breaks are common in it, and Go's decoder skips them.
    let text: String = field.string(p)?.split_ascii_whitespace().collect();
    let decoded = BASE64_STANDARD.decode(text).ok();
    if decoded.is_none() {
        field.problem(p, "not base64");
    }
    decoded
}

fn entries(
    secret: &mut Object<'_>,
    name: &str,
    p: &mut Problems,
    read: impl Fn(&Field<'_>, &mut Problems) -> Option<Vec<u8>>,
) -> Keys {
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
