//! `packages`, `package_update` and `package_upgrade`

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fcntl_lock};

use crate::os::{CloudInit, Family};
use crate::userdata::command::{Program, exists};
use crate::userdata::context::Context;
use crate::userdata::instance::Frequency;
use crate::yaml::{Node, Value};

const MODULE: &str = "package_update_upgrade_install";
const REBOOT_REQUIRED: &str = "/var/run/reboot-required";
/// Another apt may have them: one that a timer started.
const APT_LOCKS: [&str; 4] = [
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/cache/apt/archives/lock",
    "/var/lib/apt/lists/lock",
];
const APT_PATIENCE: Duration = Duration::from_secs(30 * 60);
const APT: [&str; 6] = [
    "apt-get",
    "--option=Dpkg::Options::=--force-confold",
    "--option=Dpkg::options::=--force-unsafe-io",
    "--assume-yes",
    "--quiet",
    "dist-upgrade",
];

/// Updates the lists, upgrades, installs, each if it is asked for.
pub fn run(context: &Context) -> Result<(), String> {
    let any = |keys: [&str; 2]| keys.iter().any(|key| context.config.flag(key, false));
    let upgrade = any(["package_upgrade", "apt_upgrade"]);
    let packages = match context.get("packages") {
        Some(node) => wanted(context, node)?,
        None => Vec::new(),
    };
    if !(upgrade || !packages.is_empty() || any(["package_update", "apt_update"])) {
        return Ok(());
    }
    let mut errors = Vec::new();
    if let Err(why) = update(context) {
        errors.push(format!("update: {why}"));
    }
    if upgrade && let Err(why) = self::upgrade(context) {
        errors.push(format!("upgrade: {why}"));
    }
    if !packages.is_empty()
        && let Err(why) = install(context, &packages)
    {
        errors.push(format!("{}: {why}", packages.join(" ")));
    }
    let reboot = any(["package_reboot_if_required", "apt_reboot_if_required"]);
    if reboot && Path::new(REBOOT_REQUIRED).exists() {
        super::power_state::reboot();
    }
    for why in &errors {
        context.failed(MODULE, why);
    }
    Ok(())
}

/// The packages' names; a list of two is a name and a version.
fn wanted(context: &Context, node: &Node) -> Result<Vec<String>, String> {
    let items = match &node.value {
        Value::List(items) => items.clone(),
        Value::Text(_) => vec![node.clone()],
        _ => return Err(node.wrong("packages", format!("a list, not {}", node.kind()))),
    };
    let mut names = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let words = item.scalars();
        let fail = |why: &str| context.failed(MODULE, &item.wrong(&format!("packages[{at}]"), why));
        match (&item.value, &*words) {
            (Value::Map(map), _) => {
                // Of a package manager: {apt: [a, [b, 1.0]]}.
                for (manager, list) in map {
                    let ours = match context.os.family {
                        Family::Debian => "apt",
                        _ => "dnf",
                    };
                    match manager == ours {
                        true => names.append(&mut wanted(context, list)?),
                        false => fail(&format!("{manager} is not this system's package manager")),
                    }
                }
            }
            (Value::List(_), [name, version]) => names.push(match context.os.family {
                Family::Debian => format!("{name}={version}"),
                _ => format!("{name}-{version}"),
            }),
            (_, [name]) if !name.starts_with('-') && !name.is_empty() => names.push(name.clone()),
            _ => fail("a package is a name, or a name and a version"),
        }
    }
    Ok(names)
}

fn apt(context: &Context, words: &[&str]) -> Result<(), String> {
    wait_for_apt()?;
    let system = context.get("system_info");
    let own = system
        .and_then(|system| system.get("apt_get_command"))
        .map(Node::scalars);
    let mut command: Vec<String> = match own {
        Some(command) => command,
        None => APT.iter().take(5).map(|word| (*word).to_owned()).collect(),
    };
    if exists("eatmydata") {
        command.insert(0, "eatmydata".to_owned());
    }
    command.extend(words.iter().map(|word| (*word).to_owned()));
    Program::new(&command)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run()
}

/// Waits until no other apt runs.
fn wait_for_apt() -> Result<(), String> {
    let end = Instant::now() + APT_PATIENCE;
    loop {
        let taken = APT_LOCKS.iter().find(|path| {
            let file = std::fs::OpenOptions::new().write(true).open(path);
            file.is_ok_and(|file| {
                fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
            })
        });
        match taken {
            None => return Ok(()),
            Some(path) if Instant::now() > end => {
                return Err(format!("{path} has been another's for half an hour"));
            }
            Some(_) => thread::sleep(Duration::from_secs(1)),
        }
    }
}

fn dnf() -> Result<&'static str, String> {
    let found = ["dnf", "yum"].into_iter().find(|name| exists(name));
    found.ok_or_else(|| "there is neither apt-get nor dnf nor yum".to_owned())
}

/// Has the lists of packages brought up to date, once an instance.
pub fn update(context: &Context) -> Result<(), String> {
    update_if(context, Frequency::Instance)
}

/// The same after new sources, which cloud-init does not take for the once of an instance any more.
pub fn update_after_new_sources(context: &Context) -> Result<(), String> {
    let often = match context.os.cloud_init {
        CloudInit::V22 => Frequency::Instance,
        CloudInit::V25 => Frequency::Always,
    };
    update_if(context, often)
}

fn update_if(context: &Context, often: Frequency) -> Result<(), String> {
    let mut outcome = Ok(());
    context
        .instance
        .run("update_sources", often, || {
            outcome = match context.os.family {
                Family::Debian => apt(context, &["update"]),
                _ => dnf().and_then(|dnf| Program::new(&[dnf, "-y", "makecache"]).run()),
            };
        })
        .map_err(|error| error.to_string())?;
    outcome
}

fn upgrade(context: &Context) -> Result<(), String> {
    match context.os.family {
        Family::Debian => apt(context, &["dist-upgrade"]),
        _ => Program::new(&[dnf()?, "-y", "upgrade"]).run(),
    }
}

/// Installs packages; where one of them cannot be, the others are.
pub fn install(context: &Context, packages: &[String]) -> Result<(), String> {
    update(context)?;
    let together = |packages: &[&str]| match context.os.family {
        Family::Debian => {
            let mut words = vec!["install"];
            words.extend(packages);
            apt(context, &words)
        }
        _ => {
            let mut words = vec![dnf()?, "-y", "install"];
            words.extend(packages);
            Program::new(&words).run()
        }
    };
    let all: Vec<&str> = packages.iter().map(|name| &**name).collect();
    let Err(why) = together(&all) else {
        return Ok(());
    };
    if all.len() == 1 {
        return Err(why);
    }
    let failed: Vec<&str> = all
        .into_iter()
        .filter(|name| together(&[name]).is_err())
        .collect();
    match failed.is_empty() {
        true => Ok(()),
        false => Err(format!("{why}; of these it is {}", failed.join(" "))),
    }
}
