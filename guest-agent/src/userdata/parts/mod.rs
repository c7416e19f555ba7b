//! User-data as parts: whatever they are packed in is unpacked here, into what is done one by one.
//!
//! What a part is, its type or its first words say (cloud-init's user_data.py and handlers).

mod archive;
mod include;
mod kind;
mod mime;
#[cfg(test)]
mod tests;

use std::io::Read;

use flate2::read::MultiGzDecoder;

pub use kind::Kind;

/// What user-data may grow to when they are unpacked.
const MAX_UNPACKED: u64 = 16 << 20;
/// How many parts they may have.
const MAX_PARTS: usize = 1000;
/// How deep parts may lie in one another.
const MAX_DEPTH: usize = 8;

/// A part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub kind: Kind,
    /// Its file's name.
    pub name: String,
    /// What errors call it.
    pub place: String,
    /// What it holds.
    pub content: Vec<u8>,
    /// How its header wants it merged (`Merge-Type`).
    pub merge: Option<String>,
    /// The one instance of a launch that it is for.
    pub launch_index: Option<i64>,
}

/// A part before its kind is known.
#[derive(Debug, Default)]
struct Raw {
    /// Its type, as MIME has it, in lower case.
    kind: String,
    name: Option<String>,
    content: Vec<u8>,
    merge: Option<String>,
    launch_index: Option<i64>,
}

/// Gets what an address holds; `once` if the instance keeps it.
pub type Fetch<'a> = &'a dyn Fn(&str, bool) -> Result<Vec<u8>, String>;

/// Unpacks user-data. What cannot be unpacked is a line of `errors`; the other parts stay.
pub fn unpack(file: &str, data: &[u8], fetch: Fetch, errors: &mut Vec<String>) -> Vec<Part> {
    let mut unpacker = Unpacker {
        file,
        fetch,
        parts: Vec::new(),
        errors,
    };
    unpacker.message(data, 0);
    let Unpacker { mut parts, .. } = unpacker;
    // The only one is the file itself, and its lines are the file's.
    if let [part] = &mut *parts {
        part.place = file.to_owned();
    }
    parts
}

struct Unpacker<'a> {
    file: &'a str,
    fetch: Fetch<'a>,
    parts: Vec<Part>,
    errors: &'a mut Vec<String>,
}

impl Unpacker<'_> {
    fn wrong(&mut self, why: &str) {
        self.errors.push(format!("{}: {why}", self.file));
    }

    /// A message: a whole multipart one, or all of it one part.
    fn message(&mut self, data: &[u8], depth: usize) {
        if depth > MAX_DEPTH {
            return self.wrong("includes lie too deep in one another");
        }
        let unzipped;
        let mut data = data;
        if data.starts_with(&[0x1f, 0x8b]) {
            match gunzip(data) {
                Ok(bytes) => unzipped = bytes,
                Err(why) => return self.wrong(&why),
            }
            data = &unzipped;
        }
        if mime::is_mime(data) {
            match mime::parts(data) {
                Ok(parts) => parts.into_iter().for_each(|raw| self.part(raw, depth)),
                Err(why) => self.wrong(&why),
            }
            return;
        }
        self.part(
            Raw {
                kind: kind::UNNAMED.to_owned(),
                content: data.to_vec(),
                ..Raw::default()
            },
            depth,
        );
    }

    fn part(&mut self, mut raw: Raw, depth: usize) {
        if kind::is_zipped(&raw.kind) {
            match gunzip(&raw.content) {
                Ok(bytes) => raw.content = bytes,
                Err(why) => return self.wrong(&why),
            }
            raw.kind = "text/plain".to_owned();
        }
        let kind = Kind::of(&raw.kind, &raw.content);
        match kind {
            Kind::Include => self.include(&raw, depth),
            Kind::Archive => self.archive(&raw, depth),
            kind => self.attach(kind, raw),
        }
    }

    fn attach(&mut self, kind: Kind, raw: Raw) {
        if self.parts.len() >= MAX_PARTS {
            if self.parts.len() == MAX_PARTS {
                self.wrong("more than 1000 parts");
            }
            return;
        }
        let name = raw
            .name
            .unwrap_or_else(|| format!("part-{:03}", self.parts.len() + 1));
        self.parts.push(Part {
            place: format!("{}/{name}", self.file),
            kind,
            name,
            content: raw.content,
            merge: raw.merge,
            launch_index: raw.launch_index,
        });
    }

    fn include(&mut self, raw: &Raw, depth: usize) {
        let text = String::from_utf8_lossy(&raw.content).into_owned();
        for (address, once) in include::addresses(&text) {
            match (self.fetch)(&address, once) {
                Ok(bytes) => self.message(&bytes, depth + 1),
                Err(why) => self.wrong(&format!("#include {address}: {why}")),
            }
        }
    }

    fn archive(&mut self, raw: &Raw, depth: usize) {
        if depth > MAX_DEPTH {
            return self.wrong("archives lie too deep in one another");
        }
        let name = raw
            .name
            .as_deref()
            .map_or(self.file.to_owned(), |name| format!("{}/{name}", self.file));
        let text = String::from_utf8_lossy(&raw.content).into_owned();
        match archive::entries(&name, &text, self.errors) {
            Ok(entries) => {
                for entry in entries {
                    let kind = Kind::of(&entry.kind, &entry.content);
                    self.attach(kind, entry);
                }
            }
            Err(why) => self.errors.push(why),
        }
    }
}

/// What gzip packed, if it is not too much.
pub fn gunzip(data: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut decoder = MultiGzDecoder::new(data).take(MAX_UNPACKED + 1);
    match decoder.read_to_end(&mut bytes) {
        Err(error) => Err(format!("not gzip, or not all of it: {error}")),
        Ok(_) if bytes.len() as u64 > MAX_UNPACKED => {
            Err(format!("more than {MAX_UNPACKED} bytes when unpacked"))
        }
        Ok(_) => Ok(bytes),
    }
}
