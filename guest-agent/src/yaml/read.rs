//! From text to a value.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use granit_parser::{Event, Options, Parser, ScalarStyle, Span, Tag};

use super::node::{Map, Node, Place, Value};
use super::scalar;

/// How deep values may lie in one another.
const MAX_DEPTH: usize = 64;
/// How many values a text may have, those that aliases repeat among them: each takes memory.
const MAX_NODES: usize = 200_000;
/// And how many bytes of scalars.
const MAX_BYTES: usize = 16 << 20;

/// Reads the one document of a text; null where it has none. An error says `FILE:LINE: why`.
pub fn read(file: &str, text: &str) -> Result<Node, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut options = Options::default();
    options.block_scalar_eof_without_line_feed = true;
    let mut reader = Reader {
        parser: Parser::new_from_str_with_options(text, options),
        file: file.into(),
        anchors: HashMap::new(),
        nodes: 0,
        bytes: 0,
    };
    let mut document = Node::default();
    let mut documents = 0;
    while let Some((event, span)) = reader.next()? {
        match event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            Event::DocumentStart(..) => {
                documents += 1;
                if documents > 1 {
                    return Err(reader.error(&span, "a second document begins here"));
                }
            }
            event => document = reader.node(event, &span, 0)?,
        }
    }
    Ok(document)
}

struct Reader<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    file: Arc<str>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    bytes: usize,
}

impl<'a> Reader<'a> {
    /// The next event that is more than a comment.
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, String> {
        loop {
            match self.parser.next_event() {
                None => return Ok(None),
                Some(Ok((Event::Comment(..), _))) => {}
                Some(Ok(event)) => return Ok(Some(event)),
                Some(Err(error)) => {
                    return Err(format!(
                        "{}:{}:{}: {}",
                        self.file,
                        error.marker().line(),
                        error.marker().col() + 1,
                        error.info()
                    ));
                }
            }
        }
    }

    fn place(&self, span: &Span) -> Place {
        Place {
            file: self.file.clone(),
            line: u32::try_from(span.start.line()).unwrap_or(u32::MAX),
        }
    }

    fn error(&self, span: &Span, why: &str) -> String {
        format!("{}: {why}", self.place(span))
    }

    fn node(&mut self, event: Event<'a>, span: &Span, depth: usize) -> Result<Node, String> {
        if depth > MAX_DEPTH {
            return Err(self.error(span, "values lie too deep in one another"));
        }
        self.count(span, 1, 0)?;
        let place = self.place(span);
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.count(span, 0, text.len())?;
                let plain = style == ScalarStyle::Plain;
                let value = scalar_value(&text, plain, tag.as_deref())
                    .map_err(|why| self.error(span, &why))?;
                (value, anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut list = Vec::new();
                while let Some((event, span)) = self.next()? {
                    if event == Event::SequenceEnd {
                        break;
                    }
                    list.push(self.node(event, &span, depth + 1)?);
                }
                (Value::List(list), anchor)
            }
            Event::MappingStart(_, anchor, _) => (Value::Map(self.map(depth)?), anchor),
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(self.error(span, "an alias of something that holds it"));
                };
                let (nodes, bytes) = weight(&node);
                self.count(span, nodes, bytes)?;
                return Ok(node);
            }
            _ => return Err(self.error(span, "a value is missing")),
        };
        let node = Node { value, place };
        if anchor != 0 {
            let (nodes, bytes) = weight(&node);
            self.count(span, nodes, bytes)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn count(&mut self, span: &Span, nodes: usize, bytes: usize) -> Result<(), String> {
        self.nodes += nodes;
        self.bytes += bytes;
        if self.nodes > MAX_NODES || self.bytes > MAX_BYTES {
            return Err(self.error(span, "too many values"));
        }
        Ok(())
    }

    fn map(&mut self, depth: usize) -> Result<Map, String> {
        let mut index: HashMap<String, usize> = HashMap::new();
        let mut map = Map::new();
        let mut merged: Vec<Node> = Vec::new();
        while let Some((event, span)) = self.next()? {
            if event == Event::MappingEnd {
                break;
            }
            let merge =
                matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<");
            let key = self.node(event, &span, depth + 1)?;
            let Some((event, value_span)) = self.next()? else {
                break;
            };
            let node = self.node(event, &value_span, depth + 1)?;
            if merge {
                match node.value {
                    Value::List(list) => merged.extend(list),
                    _ => merged.push(node),
                }
                continue;
            }
            let key = match key.value {
                Value::Null => "None".to_owned(),
                _ => key
                    .scalar()
                    .ok_or_else(|| self.error(&span, "a key is more than a word"))?,
            };
            // The last of two that are the same.
            match index.get(&key).and_then(|at| map.get_mut(*at)) {
                Some((_, old)) => *old = node,
                None => {
                    index.insert(key.clone(), map.len());
                    map.push((key, node));
                }
            }
        }
        for node in merged {
            let Value::Map(more) = node.value else {
                return Err(format!("{}: << takes a mapping", node.place));
            };
            for (key, node) in more {
                if !index.contains_key(&key) {
                    index.insert(key.clone(), map.len());
                    map.push((key, node));
                }
            }
        }
        Ok(map)
    }
}

/// How many values and how many bytes of scalars a value has.
fn weight(node: &Node) -> (usize, usize) {
    let sum = |sum: (usize, usize), node: &Node| {
        let (nodes, bytes) = weight(node);
        (sum.0 + nodes, sum.1 + bytes)
    };
    match &node.value {
        Value::Text(text) => (1, text.len()),
        Value::Bytes(bytes) => (1, bytes.len()),
        Value::List(list) => list.iter().fold((1, 0), sum),
        Value::Map(map) => map.iter().map(|(_, node)| node).fold((1, 0), sum),
        _ => (1, 0),
    }
}

fn scalar_value(text: &str, plain: bool, tag: Option<&Tag>) -> Result<Value, String> {
    let Some(tag) = tag else {
        return Ok(match plain {
            true => scalar::resolve(text),
            false => Value::Text(text.to_owned()),
        });
    };
    let kind = match tag.core_suffix() {
        Some(kind) => kind.to_owned(),
        None if tag.original() == "!" => "str".to_owned(),
        None => tag.original(),
    };
    match &*kind {
        "str" | "python/unicode" | "!!python/unicode" | "timestamp" | "!!timestamp" => {
            Ok(Value::Text(text.to_owned()))
        }
        "binary" | "!!binary" => {
            let packed: String = text.split_whitespace().collect();
            let bytes = STANDARD.decode(packed);
            bytes
                .map(Value::Bytes)
                .map_err(|error| format!("!!binary: {error}"))
        }
        "int" | "float" | "bool" | "null" => match scalar::resolve(text) {
            Value::Text(_) => Err(format!("{text:?} is no !!{kind}")),
            value => Ok(value),
        },
        _ => Err(format!("the tag {kind} is not known")),
    }
}
