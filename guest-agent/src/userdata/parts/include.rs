//! `#include` and `#include-once`: addresses, one a line.

/// The addresses, each with whether the instance keeps what it held.
pub fn addresses(text: &str) -> Vec<(String, bool)> {
    let mut once = false;
    let mut found = Vec::new();
    for line in text.lines() {
        let lower = line.to_ascii_lowercase();
        let mut line = line;
        for (header, is_once) in [("#include-once", true), ("#include", false)] {
            if lower.starts_with(header) {
                line = line.get(header.len()..).unwrap_or_default();
                once = is_once;
                break;
            }
        }
        let line = line.trim();
        if !line.is_empty() && !line.starts_with('#') {
            found.push((line.to_owned(), once));
        }
    }
    found
}
