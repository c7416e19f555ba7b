//! The root's own list of where packages come from: `sources_list` and `disable_suites` of `apt`.

use std::fs;
use std::path::Path;

use super::apt::{self, Mirrors, SOURCES_FOLDER, TRUSTED};
use super::apt_key;
use crate::os::CloudInit;
use crate::userdata::context::Context;
use crate::yaml::Node;

const SOURCES: &str = "/etc/apt/sources.list";
/// What begins a line of sources.list(5), and what one of the deb822 format that follows it.
const ONE_LINE: [&str; 2] = ["deb ", "deb-src "];
const DEB822: [&str; 4] = ["Types: ", "Suites: ", "Components: ", "URIs: "];
const REDACTED: &str = "# cloud-init disable_suites redacted: ";

/// Writes it.
pub fn write(context: &Context, apt: &Node, mirrors: &Mirrors) -> Result<(), String> {
    let mut keys = Vec::new();
    for (key, name) in [("primary", "primary_key"), ("security", "security_key")] {
        for mirror in apt.get(key).and_then(Node::list).unwrap_or_default() {
            if apt_key::has_key(mirror) {
                let path = apt_key::add(mirror, key, TRUSTED)
                    .map_err(|why| mirror.wrong(&format!("apt.{key}"), why))?;
                keys.push((name, path.display().to_string()));
            }
        }
    }
    let id = &context.os.id;
    let template = match apt.get("sources_list").and_then(Node::scalar) {
        Some(text) => text,
        None => {
            let format = match context.os.cloud_init {
                CloudInit::V22 => "",
                CloudInit::V25 => ".deb822",
            };
            let path = format!("/etc/cloud/templates/sources.list.{id}{format}.tmpl");
            match fs::read_to_string(&path) {
                Ok(text) => text,
                // A disk without cloud-init's templates keeps its own list.
                Err(_) => return Ok(()),
            }
        }
    };
    let text = mirrors.fill(&template, &keys)?;
    let disabled = apt
        .get("disable_suites")
        .map(Node::scalars)
        .unwrap_or_default();
    let disabled = suites(&disabled, &mirrors.release);
    if !is_deb822(&text) {
        return apt::write(SOURCES, &without_suites(&text, &disabled));
    }
    let text = match disabled.is_empty() {
        true => text,
        false => deb822_without_suites(&text, &disabled),
    };
    apt::write(&format!("{SOURCES_FOLDER}/{id}.sources"), &text)?;
    // Which says the same, and would be read besides.
    match Path::new(SOURCES).exists() {
        true => fs::remove_file(SOURCES).map_err(|error| format!("{SOURCES}: {error}")),
        false => Ok(()),
    }
}

/// The suites that are meant, of a release of this name.
fn suites(names: &[String], release: &str) -> Vec<String> {
    let suite = |name: &String| match &**name {
        "release" => release.to_owned(),
        "updates" | "backports" | "security" | "proposed" => format!("{release}-{name}"),
        name => name.replace("$RELEASE", release),
    };
    names.iter().map(suite).collect()
}

fn is_deb822(text: &str) -> bool {
    let any = |starts: &[&str]| {
        let mut lines = text.lines();
        lines.any(|line| starts.iter().any(|start| line.starts_with(start)))
    };
    !any(&ONE_LINE) && any(&DEB822)
}

/// Puts a mark before the lines of some suites.
fn without_suites(text: &str, suites: &[String]) -> String {
    let mut result = String::new();
    for line in text.split_inclusive('\n') {
        let mut words = line.split_whitespace().skip(1).peekable();
        if words.peek().is_some_and(|word| word.starts_with('[')) {
            // Options may have blanks in them.
            for word in words.by_ref() {
                if word.ends_with(']') {
                    break;
                }
            }
        }
        let suite = words.nth(1);
        let off = suite.is_some_and(|suite| suites.iter().any(|other| other == suite));
        if off && !line.starts_with('#') {
            result.push_str("# suite disabled by cloud-init: ");
        }
        result.push_str(line);
    }
    result
}

/// The same where an entry has many lines, and a line many suites.
fn deb822_without_suites(text: &str, suites: &[String]) -> String {
    let mut result = Vec::new();
    let mut entry = String::new();
    for line in text.lines() {
        if line.trim().is_empty() {
            if !entry.is_empty() {
                result.push(whole_or_off(std::mem::take(&mut entry)));
            }
            result.push(line.to_owned());
            continue;
        }
        if line.starts_with('#') && entry.is_empty() {
            result.push(line.to_owned());
            continue;
        }
        let words = line.strip_prefix("Suites:").map(str::split_whitespace);
        let words: Vec<&str> = words.into_iter().flatten().collect();
        let on = |word: &&str| !suites.iter().any(|suite| suite == word);
        let kept: Vec<&str> = words.iter().copied().filter(on).collect();
        match kept == words {
            true => entry.push_str(line),
            false => entry.push_str(&format!("{REDACTED}{line}\nSuites: {}", kept.join(" "))),
        }
        entry.push('\n');
    }
    if !entry.is_empty() {
        result.push(whole_or_off(entry));
    }
    result.join("\n")
}

/// An entry, or what is left of it behind marks where it has no suite any more.
fn whole_or_off(entry: String) -> String {
    let suites = |line: &&str| line.starts_with("Suites:");
    let mut lines = entry.lines();
    if lines.any(|line| suites(&line) && line.split_whitespace().count() > 1) {
        return entry;
    }
    let mut off = "## Entry disabled by cloud-init, due to disable_suites\n".to_owned();
    for line in entry.lines().filter(|line| !suites(line)) {
        let line = line.replace(REDACTED, "");
        off.push_str(&format!("# disabled by cloud-init: {line}\n"));
    }
    off
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_disabled() {
        let text = "# x\ndeb http://m d main\ndeb [ arch=amd64 a=b ] http://m d-updates main\n";
        assert_eq!(
            without_suites(text, &suites(&["updates".to_owned()], "d")),
            "# x\ndeb http://m d main\n# suite disabled by cloud-init: deb [ arch=amd64 a=b ] http://m d-updates main\n"
        );
    }

    #[test]
    fn an_entry_goes_with_its_last_suite() {
        let text = "# x\nTypes: deb\nSuites: d d-updates\n\nTypes: deb\nSuites: d-security\n";
        assert!(is_deb822(text));
        let off = ["updates", "security"].map(str::to_owned);
        assert_eq!(
            deb822_without_suites(text, &suites(&off, "d")),
            "# x\nTypes: deb\n# cloud-init disable_suites redacted: Suites: d d-updates\nSuites: d\n\n\n\
             ## Entry disabled by cloud-init, due to disable_suites\n\
             # disabled by cloud-init: Types: deb\n# disabled by cloud-init: Suites: d-security\n"
        );
    }
}
