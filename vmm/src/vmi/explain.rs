//! What a field is, for people, and what a manifest may have, for editors.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::fields::{Kind, below, fields, row};
use super::instead;

/// What is written of a refused field before what to do about it.
const REFUSED: &str = "not supported";

/// A page about the field at `path`, and its own fields; `Err` says which it may have meant.
pub fn explain(path: &str) -> Result<String, String> {
    let path = path.strip_prefix("spec.template.").unwrap_or(path);
    let mut at = String::new();
    for name in path.split('.').filter(|name| !name.is_empty()) {
        let known = fields(&at).unwrap_or_default();
        if !known.contains(&name) {
            let place = if at.is_empty() { "a VMI" } else { &at };
            let near = super::object::nearest(name, known);
            let near = near.map(|near| format!("; did you mean `{near}`?"));
            let near = near.unwrap_or_default();
            return Err(format!("{place} has no field `{name}`{near}"));
        }
        at = below(&at, name);
    }
    let mut page = String::new();
    if !at.is_empty() {
        let (kind, text) = said(&at);
        // Writing to a String cannot fail.
        let _ = writeln!(page, "{at}{kind}\n  {text}");
    }
    let known = fields(&at).unwrap_or_default();
    let longest = known.iter().map(|name| name.len()).max().unwrap_or(0);
    if !known.is_empty() && !at.is_empty() {
        page.push('\n');
    }
    for name in known {
        let (_, text) = said(&below(&at, name));
        let _ = writeln!(page, "  {name:longest$}  {text}");
    }
    Ok(page)
}

/// A field's kind and what it is for, or what to do about it.
fn said(path: &str) -> (&'static str, String) {
    match row(path) {
        Some((kind, text)) => (kind.name(), text.to_owned()),
        None => ("", refused(path)),
    }
}

fn refused(path: &str) -> String {
    match instead::of(path) {
        Some(instead) => format!("{REFUSED}; {instead}"),
        None => REFUSED.to_owned(),
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Text => ": a text",
            Self::Number => ": a number",
            Self::Quantity => ": a quantity, such as 512Mi",
            Self::Switch => ": true or false",
            Self::Texts => ": texts by keys",
            Self::Any => "",
            Self::Object => ": an object",
            Self::List => ": a list",
        }
    }
}

/// The JSON schema (2020-12) of manifests.
pub fn schema() -> Value {
    let mut properties = properties("");
    let spec = properties.insert("spec".to_owned(), json!({}));
    for (name, known) in [
        ("apiVersion", &super::read::API_VERSIONS[..]),
        ("kind", &super::read::KINDS[..]),
    ] {
        properties.insert(name.to_owned(), json!({ "enum": known }));
    }
    let of = |kind: &str| json!({ "properties": { "spec": { "$ref": kind } } });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What Peapod takes of KubeVirt's manifests",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "if": { "properties": { "kind": { "const": "VirtualMachine" } } },
        "then": of("#/$defs/vm"),
        "else": of("#/$defs/vmi"),
        "$defs": {
            "vmi": spec,
            "vm": {
                "type": "object",
                "properties": {
                    "template": {
                        "type": "object",
                        "properties": { "metadata": {}, "spec": { "$ref": "#/$defs/vmi" } },
                        "required": ["spec"],
                    },
                },
                "required": ["template"],
            },
        },
    })
}

fn properties(path: &str) -> Map<String, Value> {
    let known = fields(path).unwrap_or_default().iter();
    let all = known.map(|name| ((*name).to_owned(), field(&below(path, name))));
    all.collect()
}

fn object(path: &str) -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": properties(path) })
}

fn field(path: &str) -> Value {
    let Some((kind, text)) = row(path) else {
        // An empty list asks for nothing.
        return json!({ "description": refused(path), "type": "array", "maxItems": 0 });
    };
    let mut schema = match kind {
        Kind::Text => json!({ "type": "string" }),
        Kind::Number => json!({ "type": "integer" }),
        Kind::Quantity => json!({ "type": ["string", "number"] }),
        Kind::Switch => json!({ "type": "boolean" }),
        Kind::Texts => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        Kind::Any => json!({}),
        Kind::Object => object(path),
        Kind::List => json!({ "type": "array", "items": object(path) }),
    };
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("description".to_owned(), text.into());
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::super::fields::{FIELDS, OBJECTS};
    use super::*;

    #[test]
    fn every_field_is_explained_or_refused_with_what_to_do() {
        for (at, known) in OBJECTS {
            for name in *known {
                let path = below(at, name);
                let said = row(&path).is_some() || instead::of(&path).is_some();
                assert!(said, "{path}");
                let listed = matches!(row(&path), Some((Kind::Object | Kind::List, _)));
                assert_eq!(listed, fields(&path).is_some(), "{path}");
            }
        }
    }

    #[test]
    fn every_row_is_a_field_s() {
        for (path, ..) in FIELDS {
            let is = OBJECTS.iter().any(|(at, known)| {
                known.iter().any(|name| match path.strip_prefix("*.") {
                    Some(last) => last == *name,
                    None => *path == below(at, name),
                })
            });
            assert!(is, "{path}");
        }
    }

    #[test]
    fn a_page_tells_of_a_field_and_what_is_in_it() {
        let page = explain("spec.domain.memory").unwrap();
        assert!(page.starts_with("spec.domain.memory: an object\n  the guest's memory\n\n"));
        assert!(page.contains("  guest      how much"), "{page}");
        assert!(
            page.contains("  hugepages  it is made of huge pages"),
            "{page}"
        );
        let of_a_vm = explain("spec.template.spec.domain.memory").unwrap();
        assert_eq!(of_a_vm, page);
        assert!(explain("").unwrap().contains("  spec"));
        let error = explain("spec.domain.cpu.corez").unwrap_err();
        assert_eq!(
            error,
            "spec.domain.cpu has no field `corez`; did you mean `cores`?"
        );
    }

    #[test]
    fn the_schema_takes_what_is_taken_and_refuses_what_is_refused() {
        let schema = jsonschema::validator_for(&schema()).unwrap();
        let example = include_str!("../../../examples/bookinfo/details.yaml");
        let printed = include_str!("testdata/kubectl-get.yaml");
        for text in [example, printed] {
            let value: Value = serde_saphyr::from_str(text).unwrap();
            let faults: Vec<_> = schema.iter_errors(&value).map(|f| f.to_string()).collect();
            assert!(faults.is_empty(), "{faults:?}");
        }
        let mut vmi: Value = serde_saphyr::from_str(example).unwrap();
        let template = json!({ "spec": vmi["spec"], "metadata": {} });
        let vm = json!({
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "metadata": { "name": "vm" },
            "spec": { "running": true, "template": template },
        });
        assert!(schema.is_valid(&vm));
        vmi["spec"]["domain"]["devices"]["gpus"] = json!([{}]);
        assert!(!schema.is_valid(&vmi));
    }
}
