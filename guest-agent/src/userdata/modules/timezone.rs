//! `timezone`

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::labels;
use crate::os::Family;
use crate::userdata::context::Context;
use crate::userdata::files;

const ZONES: &str = "/usr/share/zoneinfo";
const LOCAL: &str = "/etc/localtime";

/// Sets it.
pub fn run(context: &Context) -> Result<(), String> {
    let Some(node) = context.get("timezone").filter(|node| node.is_something()) else {
        return Ok(());
    };
    let zone = node.scalar().unwrap_or_default();
    let file = Path::new(ZONES).join(&zone);
    let inside = !zone.starts_with('/') && !zone.split('/').any(|part| part == "..");
    if !inside || !file.is_file() {
        return Err(node.wrong("timezone", format!("{} is no file", file.display())));
    }
    set(&zone, &file, context.os.family == Family::RedHat)
        .map_err(|error| format!("{LOCAL}: {error}"))
}

fn set(zone: &str, file: &Path, clock: bool) -> io::Result<()> {
    match clock {
        true => files::write(
            Path::new("/etc/sysconfig/clock"),
            format!("ZONE=\"{zone}\"\n").as_bytes(),
            0o644,
        )?,
        false => files::write(
            Path::new("/etc/timezone"),
            format!("{zone}\n").as_bytes(),
            0o644,
        )?,
    }
    let local = Path::new(LOCAL);
    if local.exists() && !local.is_symlink() {
        return fs::copy(file, local).map(drop);
    }
    match fs::remove_file(local) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(file, local)?;
    labels::wrote(local);
    Ok(())
}
