//! `ca_certs`

use std::fs;
use std::io;
use std::path::Path;

use crate::userdata::command::Program;
use crate::userdata::context::{Context, Family};
use crate::userdata::files;
use crate::yaml::Node;

const CONFIG: &str = "/etc/ca-certificates.conf";
const NAME: &str = "cloud-init-ca-certs.crt";
const DEBIAN: &str = "/usr/share/ca-certificates/cloud-init-ca-certs.crt";
const REDHAT: &str = "/usr/share/pki/ca-trust-source/anchors/cloud-init-ca-certs.crt";

/// Changes whom the guest trusts.
pub fn run(context: &Context) -> Result<(), String> {
    let Some(config) = context.get("ca_certs").or_else(|| context.get("ca-certs")) else {
        return Ok(());
    };
    let redhat = context.os.family == Family::RedHat;
    let failed = |error: io::Error| format!("ca_certs: {error}");
    let remove = config
        .entry("remove-defaults")
        .or_else(|| config.entry("remove_defaults"));
    if remove.is_some_and(Node::is_something) {
        remove_defaults(redhat).map_err(failed)?;
    }
    let trusted = config.get("trusted").map(Node::scalars).unwrap_or_default();
    if !trusted.is_empty() {
        let file = if redhat { REDHAT } else { DEBIAN };
        files::write(Path::new(file), trusted.join("\n").as_bytes(), 0o644).map_err(failed)?;
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

fn remove_defaults(redhat: bool) -> io::Result<()> {
    if redhat {
        return empty("/etc/pki/ca-trust");
    }
    empty("/usr/share/ca-certificates")?;
    empty("/etc/ssl/certs")?;
    files::write(Path::new(CONFIG), b"", 0o644)?;
    Program::new(&[
        "sh",
        "-c",
        "command -v debconf-set-selections >/dev/null || exit 0; echo 'ca-certificates \
         ca-certificates/trust_new_crts select no' | debconf-set-selections -",
    ])
    .run()
    .map_err(io::Error::other)
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
    files::write(
        Path::new(CONFIG),
        format!("{}\n", lines.join("\n")).as_bytes(),
        0o644,
    )
}
