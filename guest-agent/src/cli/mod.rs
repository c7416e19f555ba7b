//! `cloud-init` and `cloud-id`, for who asks for them by name in a guest that has neither.

mod schema;
mod status;

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::ExitCode;

use lexopt::prelude::*;

/// Where the program lies when it is on no disk.
pub const PROGRAM: &str = "/run/peapod/agent";
/// Where the Debian package has it.
const PACKAGED: &str = "/usr/sbin/peapod-agent";
const NAMES: [&str; 2] = ["cloud-init", "cloud-id"];
/// Where the disk's own would be, and where ours is put if there is none.
const FOLDERS: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"];

const USAGE: &str = "usage: cloud-init status [--wait] [--long] [--format tabular|json|yaml]\n       \
    cloud-init schema -c FILE | --system\n       cloud-init query KEY | --all\n       cloud-init --version\n\
    This is peapod-agent under cloud-init's name; its other commands are not supported.";

/// Makes the two names lead here, where the disk has no cloud-init.
pub fn install() -> io::Result<()> {
    let [ours, ..] = FOLDERS;
    let leads_here = |path: &Path| {
        let to = fs::read_link(path).ok();
        to.is_some_and(|to| to == Path::new(PROGRAM) || to == Path::new(PACKAGED))
    };
    let has = |name: &str| {
        let mut paths = FOLDERS.iter().map(|folder| Path::new(folder).join(name));
        paths.any(|path| path.symlink_metadata().is_ok() && !leads_here(&path))
    };
    if NAMES.iter().any(|name| has(name)) {
        return Ok(());
    }
    // A package's stays where it is: below /run nothing may be executed everywhere.
    let packaged = fs::read_link("/proc/self/exe").is_ok_and(|path| path == Path::new(PACKAGED));
    let program = Path::new(if packaged { PACKAGED } else { PROGRAM });
    if !program.exists() {
        fs::create_dir_all("/run/peapod")?;
        fs::copy("/proc/self/exe", program)?;
        fs::set_permissions(program, fs::Permissions::from_mode(0o755))?;
    }
    fs::create_dir_all(ours)?;
    for name in NAMES {
        let path = Path::new(ours).join(name);
        // One that leads to where another boot's agent was.
        if leads_here(&path) {
            fs::remove_file(&path)?;
        }
        symlink(program, path)?;
    }
    Ok(())
}

/// Answers as the program of this name, if it is one of the two.
pub fn run(name: &str) -> Option<ExitCode> {
    let outcome = match name {
        "cloud-init" => cloud_init(),
        "cloud-id" => cloud_id(),
        _ => return None,
    };
    Some(outcome.unwrap_or_else(|why| {
        eprintln!("{name}: {why}");
        ExitCode::from(1)
    }))
}

fn cloud_init() -> Result<ExitCode, String> {
    let mut words = lexopt::Parser::from_env();
    let failed = |error: lexopt::Error| error.to_string();
    match words.next().map_err(failed)? {
        Some(Value(command)) if command == "status" => status::run(&mut words).map_err(failed),
        Some(Value(command)) if command == "schema" => schema::run(&mut words),
        Some(Value(command)) if command == "query" => query(&mut words),
        Some(Short('v') | Long("version")) => {
            println!("cloud-init, by peapod-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        Some(Short('h') | Long("help")) => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(USAGE.to_owned()),
    }
}

fn cloud_id() -> Result<ExitCode, String> {
    let data = instance_data()?;
    let cloud = data.pointer("/v1/cloud_id").and_then(|id| id.as_str());
    println!("{}", cloud.unwrap_or("unknown"));
    Ok(ExitCode::SUCCESS)
}

/// Root's, or everybody's.
fn instance_data() -> Result<serde_json::Value, String> {
    let names = ["instance-data-sensitive.json", "instance-data.json"];
    let paths = names.map(|name| format!("/run/cloud-init/{name}"));
    let text = paths.iter().find_map(|path| fs::read_to_string(path).ok());
    let text = text.ok_or("/run/cloud-init/instance-data.json: not there yet")?;
    serde_json::from_str(&text).map_err(|error| format!("instance-data.json: {error}"))
}

fn query(words: &mut lexopt::Parser) -> Result<ExitCode, String> {
    let data = crate::userdata::variables(&instance_data()?);
    match words.next().map_err(|error| error.to_string())? {
        Some(Short('a') | Long("all")) => println!("{data:#}"),
        Some(Value(key)) => {
            let key = key.to_string_lossy().into_owned();
            let mut value = Some(&data);
            for part in key.split('.') {
                value = value.and_then(|value| value.get(part));
            }
            match value.ok_or_else(|| format!("instance-data has no {key:?}"))? {
                serde_json::Value::String(text) => println!("{text}"),
                other => println!("{other:#}"),
            }
        }
        _ => return Err(USAGE.to_owned()),
    }
    Ok(ExitCode::SUCCESS)
}
