//! `apt` and `apt_pipelining`

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{apt_key, apt_sources, packages};
use crate::userdata::command::{Program, exists};
use crate::userdata::context::Context;
use crate::userdata::{files, jinja};
use crate::yaml::Node;

const MODULE: &str = "apt_configure";
const PIPELINE: &str = "/etc/apt/apt.conf.d/90cloud-init-pipelining";
const PROXY: &str = "/etc/apt/apt.conf.d/90cloud-init-aptproxy";
const CONF: &str = "/etc/apt/apt.conf.d/94cloud-init-config";
pub(super) const SOURCES_FOLDER: &str = "/etc/apt/sources.list.d";
pub(super) const TRUSTED: &str = "/etc/apt/trusted.gpg.d";
const SIGNED_BY: &str = "/etc/apt/cloud-init.gpg.d";
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
const DEFAULT_SECURITY: &str = "http://deb.debian.org/debian-security";

/// `apt_pipelining`
pub fn pipelining(context: &Context) -> Result<(), String> {
    let Some(node) = context.config.entry("apt_pipelining") else {
        return Ok(());
    };
    let word = node
        .scalar()
        .unwrap_or_else(|| "none".to_owned())
        .to_lowercase();
    let depth = match word.trim() {
        "none" | "unchanged" | "os" => return Ok(()),
        "false" => "0",
        depth @ ("0" | "1" | "2" | "3" | "4" | "5") => depth,
        _ => return Err(node.wrong("apt_pipelining", "os, none, false or 0 to 5")),
    };
    let text = format!(
        "//Written by cloud-init per 'apt_pipelining'\nAcquire::http::Pipeline-Depth \"{depth}\";\n"
    );
    write(PIPELINE, &text)
}

pub(super) fn write(path: &str, text: &str) -> Result<(), String> {
    files::write(Path::new(path), text.as_bytes(), 0o644)
        .map_err(|error| format!("{path}: {error}"))
}

/// What stands for a mirror and a release in a source.
pub(super) struct Mirrors {
    primary: String,
    security: String,
    /// The release's name.
    pub(super) release: String,
}

impl Mirrors {
    fn of(context: &Context, apt: &Node) -> Self {
        let given = |key: &str| {
            let list = apt.get(key)?.list()?;
            let of = |wanted: &str| {
                list.iter().find(|item| {
                    let arches = item.get("arches").map(Node::scalars).unwrap_or_default();
                    arches.iter().any(|arch| arch == wanted)
                })
            };
            of("amd64").or_else(|| of("default"))?.get("uri")?.scalar()
        };
        let system = context.config.at(&["system_info", "package_mirrors"]);
        let system = system.and_then(Node::list).and_then(<[Node]>::first);
        let system = |key: &str| system?.at(&["failsafe", key])?.scalar();
        let (primary, security) = match given("primary") {
            Some(primary) => (primary.clone(), given("security").unwrap_or(primary)),
            None => (
                system("primary").unwrap_or_else(|| DEFAULT_MIRROR.to_owned()),
                system("security").unwrap_or_else(|| DEFAULT_SECURITY.to_owned()),
            ),
        };
        Self {
            primary,
            security,
            release: context.os.codename.clone(),
        }
    }

    /// Text with what its names stand for: these besides.
    pub(super) fn fill(&self, text: &str, more: &[(&str, String)]) -> Result<String, String> {
        let (primary, security, release) = (&self.primary, &self.security, &self.release);
        let mut names: Vec<(&str, &str)> = vec![
            ("MIRROR", primary),
            ("PRIMARY", primary),
            ("SECURITY", security),
            ("RELEASE", release),
            ("mirror", primary),
            ("primary", primary),
            ("security", security),
            ("codename", release),
        ];
        names.extend(more.iter().map(|(name, value)| (*name, &**value)));
        if jinja::is_template(text) {
            let variables = names
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.into()));
            return Ok(jinja::render("sources.list", text, &Value::Object(variables.collect()))?.0);
        }
        // One that begins as another does comes before it.
        names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        let mut text = text.to_owned();
        for (name, value) in names {
            for form in [format!("${{{name}}}"), format!("${name}")] {
                text = text.replace(&form, value);
            }
        }
        Ok(text)
    }
}

/// `apt`
pub fn run(context: &Context) -> Result<(), String> {
    if !exists("apt-get") {
        return Ok(());
    }
    let empty = Node::empty();
    let apt = context.get("apt").unwrap_or(&empty);
    if apt.map().is_none() {
        return Err(apt.wrong("apt", format!("a mapping, not {}", apt.kind())));
    }
    for key in [
        "apt_sources",
        "apt_mirror",
        "apt_mirror_search",
        "apt_proxy",
        "apt_custom_sources_list",
    ] {
        if let Some(node) = context.get(key) {
            context.failed(
                MODULE,
                &node.wrong(key, "this old key is not supported; use apt:"),
            );
        }
    }
    let mirrors = Mirrors::of(context, apt);
    let report = |outcome: Result<(), String>| {
        if let Err(why) = outcome {
            context.failed(MODULE, &why);
        }
    };
    report(select(apt));
    if !apt.flag("preserve_sources_list", false) {
        report(apt_sources::write(context, apt, &mirrors));
    }
    report(configure(apt));
    let Some(sources) = apt.get("sources") else {
        return Ok(());
    };
    let entries = sources.map().ok_or_else(|| {
        sources.wrong("apt.sources", format!("a mapping, not {}", sources.kind()))
    })?;
    for (name, entry) in entries {
        let added = source(name, entry, &mirrors);
        report(added.map_err(|why| entry.wrong(&format!("apt.sources.{name}"), why)));
    }
    packages::update_after_new_sources(context)
}

/// `debconf_selections`
fn select(apt: &Node) -> Result<(), String> {
    let Some(sets) = apt.get("debconf_selections") else {
        return Ok(());
    };
    let mut sets: Vec<(&str, String)> = sets
        .map()
        .into_iter()
        .flatten()
        .filter_map(|(name, set)| Some((&**name, set.scalar()?)))
        .collect();
    sets.sort();
    let lines: Vec<&str> = sets.iter().map(|(_, set)| set.trim_end()).collect();
    let script = "printf '%s\\n' \"$1\" | debconf-set-selections";
    Program::new(&["sh", "-c", script, "sh", &lines.join("\n")]).run()
}

fn configure(apt: &Node) -> Result<(), String> {
    let mut proxies = String::new();
    for (key, scheme) in [
        ("proxy", "http"),
        ("http_proxy", "http"),
        ("ftp_proxy", "ftp"),
        ("https_proxy", "https"),
    ] {
        if let Some(proxy) = apt.get(key).and_then(Node::scalar) {
            proxies.push_str(&format!("Acquire::{scheme}::Proxy \"{proxy}\";\n"));
        }
    }
    let conf = apt.get("conf").and_then(Node::scalar).unwrap_or_default();
    for (path, text) in [(PROXY, &proxies), (CONF, &conf)] {
        match text.is_empty() {
            // One of an instance before this.
            true => drop(fs::remove_file(path)),
            false => write(path, text)?,
        }
    }
    Ok(())
}

fn source(name: &str, entry: &Node, mirrors: &Mirrors) -> Result<(), String> {
    let word = |key: &str| entry.get(key).and_then(Node::scalar);
    let name = word("filename").unwrap_or_else(|| name.to_owned());
    let source = word("source");
    let signed = source
        .as_ref()
        .is_some_and(|source| source.contains("$KEY_FILE"));
    let folder = if signed { SIGNED_BY } else { TRUSTED };
    let key_file = match apt_key::has_key(entry) {
        true => apt_key::add(entry, &name, folder)?,
        false => PathBuf::new(),
    };
    let Some(source) = source else {
        return Ok(());
    };
    let source = mirrors.fill(&source, &[("KEY_FILE", key_file.display().to_string())])?;
    if source
        .split_whitespace()
        .next()
        .is_some_and(|word| word.contains(':'))
    {
        return Program::new(&["add-apt-repository", "--no-update", &source]).run();
    }
    let mut path = Path::new(SOURCES_FOLDER).join(&name).into_os_string();
    if !name.ends_with(".list") {
        path.push(".list");
    }
    let path = Path::new(&path);
    let text = format!("{source}\n");
    match entry
        .entry("append")
        .is_some_and(|append| !append.is_something())
    {
        true => files::write(path, text.as_bytes(), 0o644),
        false => files::append(path, text.as_bytes(), 0o644),
    }
    .map_err(|error| format!("{}: {error}", path.display()))
}
