//! From a value to text: block style, every text that could mean something else in quotes.

use super::{Node, Value, scalar};

/// The text, which ends with a line's end.
pub fn write(node: &Node) -> String {
    let mut text = String::new();
    block(node, 0, &mut text);
    text
}

fn block(node: &Node, indent: usize, text: &mut String) {
    let blanks = " ".repeat(indent);
    match &node.value {
        Value::Map(map) if !map.is_empty() => {
            for (key, node) in map {
                text.push_str(&format!("{blanks}{}:", quoted(key)));
                value(node, indent, text);
            }
        }
        Value::List(list) if !list.is_empty() => {
            for node in list {
                text.push_str(&format!("{blanks}-"));
                value(node, indent, text);
            }
        }
        _ => text.push_str(&format!("{blanks}{}\n", inline(node))),
    }
}

fn value(node: &Node, indent: usize, text: &mut String) {
    match &node.value {
        Value::Map(map) if !map.is_empty() => {
            text.push('\n');
            block(node, indent + 2, text);
        }
        Value::List(list) if !list.is_empty() => {
            text.push('\n');
            block(node, indent + 2, text);
        }
        _ => text.push_str(&format!(" {}\n", inline(node))),
    }
}

fn inline(node: &Node) -> String {
    match &node.value {
        Value::Null => "null".to_owned(),
        Value::Bool(truth) => truth.to_string(),
        Value::Text(text) => quoted(text),
        Value::List(_) => "[]".to_owned(),
        Value::Map(_) => "{}".to_owned(),
        _ => node.scalar().unwrap_or_default(),
    }
}

/// JSON's quotes are YAML's double ones.
fn quoted(text: &str) -> String {
    let plain = !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && matches!(scalar::resolve(text), Value::Text(_));
    match plain {
        true => text.to_owned(),
        false => serde_json::Value::from(text).to_string(),
    }
}
