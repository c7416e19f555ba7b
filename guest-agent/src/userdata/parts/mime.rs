//! MIME multipart, by mail-parser.

use mail_parser::{Message, MessageParser, MessagePart, MimeHeaders, PartType};

use super::Raw;

/// Where cloud-init looks for the header that makes it a message.
const START: usize = 4096;
const MARK: &[u8] = b"mime-version:";
/// How deep messages may lie in one another.
const MAX_DEPTH: usize = 8;

/// Whether it is a message.
pub fn is_mime(data: &[u8]) -> bool {
    let start = data.get(..START).unwrap_or(data);
    start
        .windows(MARK.len())
        .any(|window| window.eq_ignore_ascii_case(MARK))
}

/// The message's parts, in the order in which they come.
pub fn parts(data: &[u8]) -> Result<Vec<Raw>, String> {
    let message = MessageParser::default()
        .parse(data.trim_ascii_start())
        .ok_or("not a MIME message, though it has a Mime-Version")?;
    let mut parts = Vec::new();
    walk(&message, 0, &mut parts);
    Ok(parts)
}

fn walk(message: &Message, depth: usize, parts: &mut Vec<Raw>) {
    for part in &message.parts {
        let content = match &part.body {
            PartType::Text(text) | PartType::Html(text) => text.as_bytes().to_vec(),
            PartType::Binary(bytes) | PartType::InlineBinary(bytes) => bytes.to_vec(),
            PartType::Message(inner) if depth < MAX_DEPTH => {
                walk(inner, depth + 1, parts);
                continue;
            }
            PartType::Message(_) | PartType::Multipart(_) => continue,
        };
        parts.push(Raw {
            kind: kind(part),
            name: part.attachment_name().map(str::to_owned),
            merge: header(message, part, "merge-type")
                .or_else(|| header(message, part, "x-merge-type")),
            launch_index: header(message, part, "launch-index").and_then(|text| text.parse().ok()),
            content,
        });
    }
}

fn kind(part: &MessagePart) -> String {
    match part.content_type() {
        Some(kind) => {
            let kind = format!("{}/{}", kind.ctype(), kind.subtype().unwrap_or_default());
            kind.to_ascii_lowercase()
        }
        None => "text/plain".to_owned(),
    }
}

/// A header of a part as it was written.
fn header(message: &Message, part: &MessagePart, name: &str) -> Option<String> {
    let found = part
        .headers
        .iter()
        .find(|header| header.name.as_str().eq_ignore_ascii_case(name))?;
    let range = found.offset_start as usize..found.offset_end as usize;
    let text = message.raw_message().get(range)?;
    Some(String::from_utf8_lossy(text).trim().to_owned())
}
