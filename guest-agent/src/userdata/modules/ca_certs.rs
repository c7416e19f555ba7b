//! `ca_certs`

use std::borrow::Borrow;
use std::fs;
use std::io;
use std::path::Path;

use crate::os::{CloudInit, Family};
use crate::userdata::command::Program;
use crate::userdata::context::Context;
use crate::userdata::files;
use crate::yaml::Node;

const CONFIG: &str = "/etc/ca-certificates.conf";
const NAME: &str = "cloud-init-ca-certs.crt";
/// Of which the system trusts those that its configuration names.
const DEBIAN: &str = "/usr/share/ca-certificates";
/// Of which it trusts all.
const DEBIAN_LOCAL: &str = "/usr/local/share/ca-certificates";
const REDHAT: &str = "/usr/share/pki/ca-trust-source/anchors";
const DISABLED: &str = "# Modified by cloud-init to deselect certs due to user-data";

/// Changes whom the guest trusts.
pub fn run(context: &Context) -> Result<(), String> {
    let Some(config) = context.get("ca_certs").or_else(|| context.get("ca-certs")) else {
        return Ok(());
    };
    let redhat = context.os.family == Family::RedHat;
    let old = context.os.cloud_init < CloudInit::V25;
    let failed = |error: io::Error| format!("ca_certs: {error}");
    let remove = config
        .entry("remove-defaults")
        .or_else(|| config.entry("remove_defaults"));
    if remove.is_some_and(Node::is_something) {
        match (redhat, old) {
            (true, _) => empty("/etc/pki/ca-trust"),
            (false, true) => remove_all(),
            (false, false) => disable_all(),
        }
        .map_err(failed)?;
        if !redhat {
            distrust_new()?;
        }
    }
    let trusted = config.get("trusted").map(Node::scalars).unwrap_or_default();
    let write = |folder: &str, name: &str, text: &str| {
        files::write(&Path::new(folder).join(name), text.as_bytes(), 0o644).map_err(failed)
    };
    if !old {
        let folder = if redhat { REDHAT } else { DEBIAN_LOCAL };
        for (at, certificate) in (1..).zip(&trusted) {
            write(folder, &format!("cloud-init-ca-cert-{at}.crt"), certificate)?;
        }
    } else if !trusted.is_empty() {
        let folder = if redhat { REDHAT } else { DEBIAN };
        write(folder, NAME, &trusted.join("\n"))?;
        if !redhat {
            name_in_config().map_err(failed)?;
        }
    }
    let program = if redhat {
        "update-ca-trust"
    } else {
        "update-ca-certificates"
    };
    Program::new(&[program]).run()
}

fn remove_all() -> io::Result<()> {
    empty(DEBIAN)?;
    empty("/etc/ssl/certs")?;
    files::write(Path::new(CONFIG), b"", 0o644)
}

/// Names those of the system as not to be trusted.
fn disable_all() -> io::Result<()> {
    let Ok(text) = fs::read_to_string(CONFIG) else {
        return Ok(());
    };
    let mut lines = Vec::new();
    let mut headed = false;
    for line in text.lines() {
        headed |= line == DISABLED;
        match line.is_empty() || line.starts_with(['#', '!']) {
            true => lines.push(line.to_owned()),
            false => {
                if !headed {
                    lines.push(DISABLED.to_owned());
                    headed = true;
                }
                lines.push(format!("!{line}"));
            }
        }
    }
    write_config(&lines)
}

/// Has a package that brings others trust none of them.
fn distrust_new() -> Result<(), String> {
    Program::new(&[
        "sh",
        "-c",
        "command -v debconf-set-selections >/dev/null || exit 0; echo 'ca-certificates \
         ca-certificates/trust_new_crts select no' | debconf-set-selections -",
    ])
    .run()
}

fn empty(folder: &str) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// The list of what is trusted has the file's name at its end.
fn name_in_config() -> io::Result<()> {
    let text = fs::read_to_string(CONFIG)?;
    let mut lines: Vec<&str> = text.lines().filter(|line| *line != NAME).collect();
    lines.push(NAME);
    write_config(&lines)
}

fn write_config(lines: &[impl Borrow<str>]) -> io::Result<()> {
    let text = format!("{}\n", lines.join("\n"));
    files::write(Path::new(CONFIG), text.as_bytes(), 0o644)
}
