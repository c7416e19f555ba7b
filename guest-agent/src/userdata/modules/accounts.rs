//! `users`, `groups`, `password`, `chpasswd` and `ssh_pwauth`.

use std::fs;
use std::path::Path;

use super::{people, ssh};
use crate::accounts::{self, NewUser};
use crate::os::CloudInit;
use crate::sshd;
use crate::userdata::command::tell;
use crate::userdata::context::Context;
use crate::userdata::files;
use crate::yaml::{Node, Value};

const MODULE: &str = "users_groups";
const SUDOERS: &str = "/etc/sudoers";
const SUDO_FOLDER: &str = "/etc/sudoers.d";
const SUDO_FILE: &str = "/etc/sudoers.d/90-cloud-init-users";
/// As long as cloud-init's.
const RANDOM_LENGTH: usize = 20;

/// Makes groups, then users.
pub fn users_groups(context: &Context) -> Result<(), String> {
    let made = context.accounts.together(|| make(context));
    made.map_err(|error| error.to_string())?
}

fn make(context: &Context) -> Result<(), String> {
    for group in people::groups(&context.config)? {
        if let Err(why) = make_group(context, &group) {
            context.failed(MODULE, &format!("groups: {}: {why}", group.name));
        }
    }
    let users = people::users(&context.config)?;
    let default = users.iter().find(|user| user.default);
    let default = default.map(|user| user.name.clone());
    for user in &users {
        if let Err(why) = make_user(context, user, default.as_deref()) {
            context.failed(
                MODULE,
                &user.config.wrong(&format!("users: {}", user.name), why),
            );
        }
    }
    Ok(())
}

fn make_group(context: &Context, group: &people::Group) -> Result<(), String> {
    if context.accounts.gid(&group.name).is_none() {
        context.accounts.add_group(&group.name)?;
    }
    let mut missing = Vec::new();
    for member in &group.members {
        match context.accounts.user(member) {
            Some(_) => context
                .accounts
                .join(member, std::slice::from_ref(&group.name))?,
            None => missing.push(&**member),
        }
    }
    match missing.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "no such user yet, for groups are made before users: {}",
            missing.join(", ")
        )),
    }
}

fn make_user(
    context: &Context,
    user: &people::Person,
    default: Option<&str>,
) -> Result<(), String> {
    let config = &user.config;
    let name = &*user.name;
    let said = |key: &str| config.get(key).filter(|node| node.is_something());
    if said("snapuser").is_some() {
        return Err("snapuser: users of snap are not supported".to_owned());
    }
    if said("ssh_import_id").is_some() {
        context.failed(
            MODULE,
            &config.wrong(&format!("users: {name}: ssh_import_id"), "not supported"),
        );
    }
    let homeless = ["no_create_home", "system"]
        .into_iter()
        .find(|key| said(key).is_some());
    let needs = ["ssh_authorized_keys", "ssh_import_id", "ssh_redirect_user"];
    if let (Some(homeless), Some(needs)) =
        (homeless, needs.into_iter().find(|key| said(key).is_some()))
    {
        return Err(format!("{needs} and {homeless} do not go together"));
    }
    let redirect = said("ssh_redirect_user");
    if redirect.is_some() && said("ssh_authorized_keys").is_some() {
        return Err("ssh_redirect_user and ssh_authorized_keys do not go together".to_owned());
    }
    if context.accounts.user(name).is_none() {
        add_user(context, name, config)?;
    }
    if let Some(password) = said("plain_text_passwd").and_then(Node::scalar) {
        context
            .accounts
            .set_hash(name, &accounts::hash(&password)?)?;
    }
    if let Some(hash) = said("hashed_passwd").and_then(Node::scalar) {
        context.accounts.set_hash(name, &hash)?;
    }
    if config.entry("lock_passwd").is_none_or(Node::is_something) {
        context.accounts.lock(name)?;
    }
    if let Some(rules) = said("sudo") {
        write_sudo_rules(context, name, &rules.scalars())?;
    }
    if let Some(keys) = config.entry("ssh_authorized_keys") {
        let keys = match &keys.value {
            Value::Map(map) => map.iter().filter_map(|(_, key)| key.scalar()).collect(),
            _ => keys.scalars(),
        };
        sshd::add(&context.accounts, name, &keys, None)?;
    }
    if redirect.is_some() {
        let to = default.ok_or("ssh_redirect_user: there is no default user")?;
        let keys = context.seed.public_keys();
        if keys.is_empty() {
            return Err("ssh_redirect_user: the meta-data have no public-keys".to_owned());
        }
        let options = ssh::instead_of(ssh::DISABLED, to, name);
        sshd::add(&context.accounts, name, &keys, Some(&options))?;
    }
    Ok(())
}

fn add_user(context: &Context, name: &str, config: &Node) -> Result<(), String> {
    let word = |key: &str| {
        let node = config.get(key).filter(|node| node.is_something());
        node.and_then(Node::scalar)
    };
    let flag = |key: &str| config.get(key).is_some_and(Node::is_something);
    let number = |key: &str| match word(key) {
        Some(text) => text
            .parse::<i64>()
            .map(Some)
            .map_err(|_| format!("{key}: {text:?} is no number")),
        None => Ok(None),
    };
    let groups = people::names(config.get("groups"));
    let primary = word("primary_group");
    if config.entry("create_groups").is_none_or(Node::is_something) {
        for group in groups.iter().chain(&primary) {
            if context.accounts.gid(group).is_none() {
                context.accounts.add_group(group)?;
            }
        }
    }
    let uid = match config.get("uid").and_then(Node::scalar) {
        Some(text) => Some(
            text.parse()
                .map_err(|_| format!("uid: {text:?} is no number"))?,
        ),
        None => None,
    };
    context.accounts.add_user(&NewUser {
        name: name.to_owned(),
        comment: word("gecos"),
        home: word("homedir"),
        group: primary,
        uid,
        groups,
        hash: word("passwd"),
        shell: word("shell"),
        expires: word("expiredate"),
        inactive: number("inactive")?,
        no_user_group: flag("no_user_group"),
        system: flag("system"),
        no_home: flag("no_create_home") || flag("system"),
    })
}

/// Adds rules of sudoers(5) for a user, in a file that is read with the others.
fn write_sudo_rules(context: &Context, name: &str, rules: &[String]) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{SUDO_FILE}: {error}");
    if let Some(rule) = rules.iter().find(|rule| rule.contains('\n')) {
        return Err(format!("sudo: a rule is one line, not {rule:?}"));
    }
    include_sudo_folder().map_err(failed)?;
    let mut text = format!("\n# User rules for {name}\n");
    for rule in rules {
        text.push_str(&format!("{name} {rule}\n"));
    }
    let file = Path::new(SUDO_FILE);
    let there = || fs::read_to_string(file).unwrap_or_default();
    match file.exists() {
        // Of an instance before this.
        true if context.os.cloud_init >= CloudInit::V25 && there().contains(&text) => Ok(()),
        true => files::append(file, text.as_bytes(), 0o440).map_err(failed),
        false => {
            let text = format!("# Created by peapod-agent\n{text}");
            files::write(file, text.as_bytes(), 0o440).map_err(failed)
        }
    }
}

fn include_sudo_folder() -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let sudoers = Path::new(SUDOERS);
    let text = fs::read_to_string(sudoers);
    let included = text.as_ref().is_ok_and(|text| {
        text.lines().any(|line| {
            let line = line.trim();
            let folder = ["#includedir", "@includedir"]
                .into_iter()
                .find_map(|word| line.strip_prefix(word));
            folder.is_some_and(|folder| folder.trim().trim_end_matches('/') == SUDO_FOLDER)
        })
    });
    if !included {
        let line = format!("\n# Added by peapod-agent\n#includedir {SUDO_FOLDER}\n");
        match text.is_ok() {
            true => files::append(sudoers, line.as_bytes(), 0o440)?,
            false => files::write(sudoers, line.trim_start().as_bytes(), 0o440)?,
        }
    }
    fs::create_dir_all(SUDO_FOLDER)?;
    fs::set_permissions(SUDO_FOLDER, fs::Permissions::from_mode(0o750))
}

/// A password to set.
struct Password {
    user: String,
    word: String,
    hashed: bool,
}

/// Sets passwords, then whether ssh takes them.
pub fn set_passwords(context: &Context) -> Result<(), String> {
    let mut random = Vec::new();
    let mut passwords = Vec::new();
    let chpasswd = context.get("chpasswd");
    let users = chpasswd.and_then(|node| node.get("users"));
    let mut made_up = |user: &str| {
        let word = accounts::random(RANDOM_LENGTH).map_err(|error| error.to_string())?;
        random.push(format!("{user}:{word}"));
        Ok::<_, String>(word)
    };
    // Those in clear are set before those that are hashes.
    for (at, item) in users
        .and_then(Node::list)
        .unwrap_or_default()
        .iter()
        .enumerate()
    {
        match of_item(item, &mut made_up) {
            Ok(password) => passwords.push(password),
            Err(why) => {
                let key = format!("chpasswd.users[{at}]");
                context.failed("set_passwords", &item.wrong(&key, why));
            }
        }
    }
    let list = chpasswd.and_then(|node| node.get("list"));
    let lines: Vec<String> = match list.map(|list| &list.value) {
        Some(Value::Text(text)) => text.lines().map(str::to_owned).collect(),
        Some(Value::List(list)) => list.iter().filter_map(Node::scalar).collect(),
        _ => Vec::new(),
    };
    for line in lines.iter().filter(|line| !line.trim().is_empty()) {
        match line.split_once(':') {
            Some((user, word)) => {
                let hashed = is_hash(word);
                let word = match word {
                    "R" | "RANDOM" => made_up(user)?,
                    word => word.to_owned(),
                };
                passwords.push(Password {
                    user: user.to_owned(),
                    word,
                    hashed,
                });
            }
            None => {
                let why = "a line is NAME:PASSWORD".to_owned();
                context.failed(
                    "set_passwords",
                    &list.map_or(why.clone(), |list| list.wrong("chpasswd.list", &why)),
                );
            }
        }
    }
    if passwords.is_empty()
        && let Some(word) = context.get("password").and_then(Node::scalar)
    {
        let user = people::default_user(&context.config)
            .ok_or("password: it is the default user's, and there is none")?;
        passwords.push(Password {
            hashed: is_hash(&word),
            user,
            word,
        });
    }
    passwords.sort_by_key(|password| password.hashed);
    let set = passwords
        .iter()
        .filter(|password| match set(context, password) {
            Ok(()) => true,
            Err(why) => {
                context.failed("set_passwords", &format!("{}: {why}", password.user));
                false
            }
        });
    let set: Vec<&Password> = set.collect();
    if chpasswd.is_none_or(|node| node.flag("expire", true)) {
        for password in set {
            context.accounts.expire(&password.user)?;
        }
    }
    if !random.is_empty() {
        tell(&format!(
            "Set the following 'random' passwords\n{}\n",
            random.join("\n")
        ));
    }
    allow_ssh(context)
}

fn of_item(
    item: &Node,
    made_up: &mut impl FnMut(&str) -> Result<String, String>,
) -> Result<Password, String> {
    let word = |key: &str| item.get(key).and_then(Node::scalar);
    let user = word("name").ok_or("it has no name")?;
    let kind = word("type").unwrap_or_else(|| "hash".to_owned());
    let (word, hashed) = match &*kind {
        "RANDOM" => (made_up(&user)?, false),
        "text" | "hash" => (
            word("password").ok_or("it has no password")?,
            kind == "hash",
        ),
        other => return Err(format!("type: hash, text or RANDOM, not {other:?}")),
    };
    Ok(Password { user, word, hashed })
}

/// Whether a word is a hash that cloud-init takes for one.
fn is_hash(word: &str) -> bool {
    let methods = ["$1$", "$2a$", "$2y$", "$5$", "$6$"];
    let rest = methods
        .into_iter()
        .find_map(|method| word.strip_prefix(method));
    rest.and_then(|rest| rest.split_once('$'))
        .is_some_and(|(salt, hash)| !salt.is_empty() && !hash.is_empty())
        && !word.contains(':')
}

fn set(context: &Context, password: &Password) -> Result<(), String> {
    let hash = match password.hashed {
        true => password.word.clone(),
        false => accounts::hash(&password.word)?,
    };
    context.accounts.set_hash(&password.user, &hash)
}

/// `ssh_pwauth`
fn allow_ssh(context: &Context) -> Result<(), String> {
    let Some(node) = context.get("ssh_pwauth") else {
        return Ok(());
    };
    let value = if node.is_true() {
        "yes"
    } else if node.is_false() {
        "no"
    } else if node
        .scalar()
        .is_some_and(|text| text.eq_ignore_ascii_case("unchanged"))
    {
        return Ok(());
    } else {
        return Err(node.wrong("ssh_pwauth", "true, false or unchanged"));
    };
    let changed = sshd::set_option("PasswordAuthentication", value)
        .map_err(|error| format!("sshd_config: {error}"))?;
    // A server that runs has read the old one.
    match changed {
        true => sshd::reload(),
        false => Ok(()),
    }
}
