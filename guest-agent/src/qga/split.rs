//! Cuts what comes into messages: each is a JSON object, with or without a line's end after it.

/// A longer message is none.
const MAX_MESSAGE: usize = 8 << 20;
/// Nobody has as many objects in one another.
const MAX_DEPTH: usize = 128;
/// Ends whatever has begun: what follows is another message (guest-sync-delimited).
const MARK: u8 = 0xff;

/// What has come of a message so far.
#[derive(Debug, Default)]
pub struct Splitter {
    bytes: Vec<u8>,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Splitter {
    /// The message that this byte ends. One that is too long is handed over cut, which is none.
    pub fn push(&mut self, byte: u8) -> Option<Vec<u8>> {
        if byte == MARK {
            *self = Self::default();
            return None;
        }
        if self.bytes.is_empty() && byte.is_ascii_whitespace() {
            return None;
        }
        self.bytes.push(byte);
        match (self.in_string, byte) {
            (true, _) if self.escaped => self.escaped = false,
            (true, b'\\') => self.escaped = true,
            (_, b'"') => self.in_string = !self.in_string,
            (true, _) => {}
            (false, b'{' | b'[') => self.depth += 1,
            (false, b'}' | b']') => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        let closed = matches!(byte, b'}' | b']') && self.depth == 0 && !self.in_string;
        // What is no object ends with its line.
        let line = byte == b'\n' && self.depth == 0 && !self.in_string;
        let odd = self.bytes.len() >= MAX_MESSAGE || self.depth > MAX_DEPTH;
        (closed || line || odd).then(|| std::mem::take(self).bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(bytes: &[u8]) -> Vec<String> {
        let mut splitter = Splitter::default();
        let messages = bytes.iter().filter_map(|byte| splitter.push(*byte));
        messages
            .map(|message| String::from_utf8(message).unwrap())
            .collect()
    }

    #[test]
    fn messages_are_objects_with_or_without_a_line_s_end() {
        let two = split(b"{\"a\":\"}\\\"\"}\n {\"b\":[{}]}{\"c\"");
        assert_eq!(two, ["{\"a\":\"}\\\"\"}", "{\"b\":[{}]}"]);
        assert_eq!(split(b"hello\n{}"), ["hello\n", "{}"]);
    }

    #[test]
    fn a_mark_ends_what_has_begun() {
        assert_eq!(split(b"{\"a\": \"\xff{}"), ["{}"]);
    }

    #[test]
    fn what_is_too_long_or_too_deep_is_not_waited_for() {
        let mut splitter = Splitter::default();
        let mut given = 0;
        for _ in 0..=MAX_DEPTH {
            given += splitter.push(b'[').map_or(0, |message| message.len());
        }
        assert_eq!(given, MAX_DEPTH + 1);
        splitter.push(b'"');
        let long = (0..MAX_MESSAGE).find_map(|_| splitter.push(b'x')).unwrap();
        assert_eq!(long.len(), MAX_MESSAGE);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in "([ -~]|\\PC|\\xff|[{}\"\\\\]){0,64}") {
            let mut splitter = Splitter::default();
            for byte in bytes.bytes().chain([MARK]) {
                if let Some(message) = splitter.push(byte) {
                    let _ = super::super::parse(&message);
                }
            }
        }
    }
}
