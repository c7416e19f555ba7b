//! The host's keys, and who may log in with which: `ssh_keys`, `ssh_authorized_keys`,
//! `disable_root`.

use std::fs;
use std::path::Path;

use super::people;
use crate::labels;
use crate::os::CloudInit;
use crate::sshd;
use crate::userdata::command::Program;
use crate::userdata::context::Context;
use crate::userdata::files;
use crate::yaml::Node;

const MODULE: &str = "ssh";
const FOLDER: &str = "/etc/ssh";
const KINDS: [&str; 4] = ["rsa", "dsa", "ecdsa", "ed25519"];
/// What root is told who logs in by key (cloud-init's `disable_root_opts`).
pub const DISABLED: &str = "no-port-forwarding,no-agent-forwarding,no-X11-forwarding,command=\"echo \
    'Please login as the user \\\"$USER\\\" rather than the user \\\"$DISABLE_USER\\\".';echo;sleep \
    10;exit 142\"";

/// The options with the names in their places.
pub fn instead_of(options: &str, user: &str, disabled: &str) -> String {
    options
        .replace("$USER", user)
        .replace("$DISABLE_USER", disabled)
}

/// Does it all.
pub fn run(context: &Context) -> Result<(), String> {
    if context.config.flag("ssh_deletekeys", true) {
        delete_keys();
    }
    match context.get("ssh_keys") {
        Some(keys) => given_keys(context, keys),
        None => make_keys(context),
    }
    // It may have come up before them, and have none or another instance's; it may not read what has a
    // label of its own and not that.
    context.label();
    let restarted = sshd::restart();
    let user = people::default_user(&context.config);
    let mut keys = match context.config.flag("allow_public_ssh_keys", true) {
        true => context.seed.public_keys(),
        false => Vec::new(),
    };
    if let Some(more) = context.get("ssh_authorized_keys") {
        if more.list().is_none() {
            return Err(more.wrong(
                "ssh_authorized_keys",
                format!("a list, not {}", more.kind()),
            ));
        }
        keys.extend(more.scalars());
    }
    let mut outcome =
        restarted.map_err(|why| format!("the server goes on with its old keys: {why}"));
    if let Some(user) = &user {
        outcome = outcome.and(sshd::add(&context.accounts, user, &keys, None));
    }
    let options = match context.config.flag("disable_root", true) {
        true => {
            let options = context.get("disable_root_opts").and_then(Node::scalar);
            let options = options.unwrap_or_else(|| DISABLED.to_owned());
            instead_of(&options, user.as_deref().unwrap_or("NONE"), "root")
        }
        false => String::new(),
    };
    outcome.and(sshd::add(&context.accounts, "root", &keys, Some(&options)))
}

/// Sees that every user that was asked for has its file of keys, where a key may then be put.
pub fn every_user(context: &Context) -> Result<(), String> {
    if context.config.flag("no_ssh_fingerprints", false) {
        return Ok(());
    }
    for user in people::users(&context.config)? {
        // One without a home has no place for keys.
        let home = context.accounts.user(&user.name).map(|user| user.home);
        if home.is_some_and(|home| home.is_dir()) {
            sshd::add(&context.accounts, &user.name, &[], None)?;
        }
    }
    Ok(())
}

/// Those of the image are every guest's.
fn delete_keys() {
    for entry in fs::read_dir(FOLDER).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("ssh_host_") && name.contains("key") {
            // One that stays is replaced below.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn given_keys(context: &Context, keys: &Node) {
    for (key, value) in keys.map().into_iter().flatten() {
        let failed =
            |why: &str| context.failed(MODULE, &value.wrong(&format!("ssh_keys.{key}"), why));
        let parts = key.split_once('_').filter(|(kind, _)| KINDS.contains(kind));
        let Some((kind, what)) = parts else {
            failed("the keys are of rsa, dsa, ecdsa and ed25519");
            continue;
        };
        // What is no secret was one for long.
        let public = match context.os.cloud_init {
            CloudInit::V22 => 0o600,
            CloudInit::V25 => 0o644,
        };
        let (suffix, mode) = match what {
            "private" => ("", 0o600),
            "public" => (".pub", public),
            "certificate" => ("-cert.pub", public),
            _ => {
                failed("_private, _public or _certificate");
                continue;
            }
        };
        let path = format!("{FOLDER}/ssh_host_{kind}_key{suffix}");
        let text = value.scalar().unwrap_or_default();
        if let Err(error) = files::write(Path::new(&path), text.as_bytes(), mode) {
            failed(&format!("{path}: {error}"));
        }
        if what == "certificate"
            && let Err(error) = sshd::set_option("HostCertificate", &path)
        {
            failed(&format!("sshd_config: {error}"));
        }
    }
    for kind in KINDS {
        let given = |what: &str| keys.get(&format!("{kind}_{what}")).is_some();
        if given("private") && !given("public") {
            let path = format!("{FOLDER}/ssh_host_{kind}_key");
            let script = format!(
                "o=$(ssh-keygen -yf \"{path}\") && echo \"$o\" root@localhost > \"{path}.pub\""
            );
            if let Err(why) = Program::new(&["sh", "-xc", &script]).run() {
                context.failed(MODULE, &format!("ssh_keys.{kind}_private: {why}"));
            }
        }
    }
}

fn make_keys(context: &Context) {
    let kinds = match context.get("ssh_genkeytypes") {
        Some(kinds) => kinds.scalars(),
        None => KINDS.map(str::to_owned).to_vec(),
    };
    // A guest without a server needs none.
    if kinds.is_empty() || !crate::userdata::command::exists("ssh-keygen") {
        return;
    }
    for kind in kinds {
        let path = format!("{FOLDER}/ssh_host_{kind}_key");
        if Path::new(&path).exists() {
            continue;
        }
        let made = files::make_folders(FOLDER.as_ref())
            .map_err(|error| error.to_string())
            .and_then(|_| {
                Program::new(&["ssh-keygen", "-q", "-t", &kind, "-N", "", "-f", &path]).run()
            });
        labels::wrote(path.as_ref());
        labels::wrote(format!("{path}.pub").as_ref());
        if let Err(why) = made {
            context.failed(MODULE, &format!("a host key of kind {kind}: {why}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_disabled_is_told_who_is_not() {
        let options = instead_of(DISABLED, "debian", "root");
        assert!(options.contains(
            "command=\"echo 'Please login as the user \\\"debian\\\" rather than the user \\\"root\\\".';echo;sleep 10;exit 142\""
        ), "{options}");
    }
}
