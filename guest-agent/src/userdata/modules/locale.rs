//! `locale`

use std::fs;
use std::path::Path;

use crate::os::Family;
use crate::userdata::command::{Program, exists};
use crate::userdata::context::Context;
use crate::userdata::files;
use crate::yaml::Node;

const SUPPORTED: &str = "/etc/locale.gen";

/// Sets it, and has it made where locales are made.
pub fn run(context: &Context) -> Result<(), String> {
    let Some(node) = context.get("locale").filter(|node| !node.is_false()) else {
        return Ok(());
    };
    let locale = node.scalar().unwrap_or_default();
    let good = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    if locale.is_empty() || !locale.chars().all(good) {
        return Err(node.wrong("locale", format!("{locale:?} is no locale's name")));
    }
    let file = context.get("locale_configfile").and_then(Node::scalar);
    if context.os.family != Family::Debian {
        let file = file.unwrap_or_else(|| "/etc/locale.conf".to_owned());
        return write(&file, &locale);
    }
    let file = file.unwrap_or_else(|| "/etc/default/locale".to_owned());
    let built_in = ["c", "c.utf-8", "posix"].contains(&&*locale.to_lowercase());
    if !built_in && exists("locale-gen") {
        // Debian's makes what this file names, and nothing else.
        enable(&locale).map_err(|error| format!("{SUPPORTED}: {error}"))?;
        Program::new(&["locale-gen", &locale]).run()?;
    }
    match exists("update-locale") {
        true => Program::new(&[
            "update-locale",
            &format!("--locale-file={file}"),
            &format!("LANG={locale}"),
        ])
        .run(),
        false => write(&file, &locale),
    }
}

fn write(file: &str, locale: &str) -> Result<(), String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("LANG="))
        .collect();
    let lang = format!("LANG={locale}");
    lines.push(&lang);
    let text = format!("{}\n", lines.join("\n"));
    files::write(Path::new(file), text.as_bytes(), 0o644)
        .map_err(|error| format!("{file}: {error}"))
}

/// Takes the mark off a locale's line.
fn enable(locale: &str) -> std::io::Result<()> {
    let Ok(text) = fs::read_to_string(SUPPORTED) else {
        return Ok(());
    };
    let of_locale = |line: &str| line.split_whitespace().next() == Some(locale);
    if text.lines().any(of_locale) {
        return Ok(());
    }
    let mut found = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        let bare = line.trim_start_matches(['#', ' ']);
        match of_locale(bare) {
            true => {
                found = true;
                lines.push(bare.to_owned());
            }
            false => lines.push(line.to_owned()),
        }
    }
    if !found {
        let charset = locale
            .split_once('.')
            .map_or("UTF-8", |(_, charset)| charset);
        lines.push(format!("{locale} {charset}"));
    }
    files::rewrite(
        Path::new(SUPPORTED),
        format!("{}\n", lines.join("\n")).as_bytes(),
        0o644,
    )
}
