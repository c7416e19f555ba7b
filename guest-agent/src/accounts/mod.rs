//! /etc/passwd, group, shadow and gshadow, read and written here: a static binary has no NSS, and a
//! guest need not have useradd. What is allocated and what a new line holds is as shadow-utils'
//! useradd and groupadd have it, so that their other tools go on from there.

mod allocate;
mod change;
mod lock;
mod login_defs;
mod password;
mod table;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::userdata::files;
use change::{Change, Tables};
use login_defs::LoginDefs;
pub use password::{hash, random};
use table::Table;

/// A user, as passwd(5) has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its first group's number.
    pub gid: u32,
    /// Where it is at home.
    pub home: PathBuf,
}

/// What a new user is to be; useradd(8) has each of them as an option.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewUser {
    /// Its name.
    pub name: String,
    /// `--comment`
    pub comment: Option<String>,
    /// `--home`
    pub home: Option<String>,
    /// `--gid`, a name or a number.
    pub group: Option<String>,
    /// `--uid`
    pub uid: Option<u32>,
    /// `--groups`
    pub groups: Vec<String>,
    /// `--password`, a hash.
    pub hash: Option<String>,
    /// `--shell`
    pub shell: Option<String>,
    /// `--expiredate`, YYYY-MM-DD.
    pub expires: Option<String>,
    /// `--inactive`, days.
    pub inactive: Option<i64>,
    /// `--no-user-group`
    pub no_user_group: bool,
    /// `--system`
    pub system: bool,
    /// Without it the home is made and filled from /etc/skel.
    pub no_home: bool,
}

/// The accounts of the root that `etc` belongs to.
#[derive(Debug)]
pub struct Accounts {
    etc: PathBuf,
    /// Changes that are not written yet.
    together: Mutex<Option<Change>>,
}

impl Accounts {
    /// Those of this root.
    pub fn of_this_root() -> Self {
        Self::at("/etc")
    }

    /// Those whose files are in `etc`.
    pub fn at(etc: impl Into<PathBuf>) -> Self {
        Self {
            etc: etc.into(),
            together: Mutex::new(None),
        }
    }

    /// Writes what `with` does to these accounts at its end, for each wait for the disk is one of a
    /// guest's longest. Not within another call of it.
    pub fn together<T>(&self, with: impl FnOnce() -> T) -> io::Result<T> {
        *self.changes() = Some(Change::begin(&self.etc)?);
        let made = with();
        self.changes().take().map_or(Ok(()), Change::commit)?;
        Ok(made)
    }

    fn changes(&self) -> MutexGuard<'_, Option<Change>> {
        self.together.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn edit<T>(&self, with: impl FnOnce(&mut Tables) -> Result<T, String>) -> Result<T, String> {
        if let Some(change) = &mut *self.changes() {
            return change.edit(with);
        }
        let failed = |error: io::Error| error.to_string();
        let mut change = Change::begin(&self.etc).map_err(failed)?;
        let made = change.edit(with)?;
        change.commit().map_err(failed)?;
        Ok(made)
    }

    /// A line of a table, by its name.
    fn line(&self, file: &str, of: fn(&Tables) -> &Table, name: &str) -> Option<Vec<String>> {
        let line = |table: &Table| {
            table
                .line(name)
                .map(|line| line.map(str::to_owned).collect())
        };
        match &*self.changes() {
            Some(change) => line(of(change.tables())),
            None => line(&Table::read(&self.etc.join(file)).ok()?),
        }
    }

    /// The user that is called so.
    pub fn user(&self, name: &str) -> Option<User> {
        let passwd = self.line("passwd", |tables| &tables.passwd, name)?;
        let number = |at: usize| passwd.get(at)?.parse().ok();
        Some(User {
            name: name.to_owned(),
            uid: number(2)?,
            gid: number(3)?,
            home: passwd.get(5)?.into(),
        })
    }

    /// The number of the group that is called so.
    pub fn gid(&self, name: &str) -> Option<u32> {
        let group = self.line("group", |tables| &tables.group, name)?;
        group.get(2)?.parse().ok()
    }

    /// Makes a group, as `groupadd` does.
    pub fn add_group(&self, name: &str) -> Result<(), String> {
        check_name(name)?;
        self.edit(|tables| {
            let defs = LoginDefs::read(&self.etc);
            if tables.group.find(name).is_some() {
                return Err(format!("there is a group {name:?} already"));
            }
            let gid = allocate::id(&tables.group, defs.gids(), None)
                .ok_or("no number is left for a group")?;
            tables.add_group(name, gid);
            Ok(())
        })
    }

    /// Makes a user a member of groups that there are.
    pub fn join(&self, user: &str, groups: &[String]) -> Result<(), String> {
        self.edit(|tables| {
            tables.have_groups(groups)?;
            tables.join(user, groups);
            Ok(())
        })
    }

    /// Makes a user, and its home unless it does without.
    pub fn add_user(&self, new: &NewUser) -> Result<(), String> {
        check_name(&new.name)?;
        let defs = LoginDefs::read(&self.etc);
        let (home, uid, gid) = self.edit(|tables| self.new_lines(tables, new, &defs))?;
        if !new.no_home {
            make_home(&self.etc, &home, uid, gid, defs.home_mode())
                .map_err(|error| format!("{}: {error}", home.display()))?;
        }
        Ok(())
    }

    /// A new user's lines; its home, its number and its first group's.
    fn new_lines(
        &self,
        tables: &mut Tables,
        new: &NewUser,
        defs: &LoginDefs,
    ) -> Result<(PathBuf, u32, u32), String> {
        if tables.passwd.find(&new.name).is_some() {
            return Err(format!("there is a user {:?} already", new.name));
        }
        let user_group = new.group.is_none() && !new.no_user_group && defs.user_groups();
        if user_group && tables.group.find(&new.name).is_some() {
            return Err(format!(
                "there is a group {:?} already; name it as primary_group, or set no_user_group",
                new.name
            ));
        }
        tables.have_groups(&new.groups)?;
        let uids = if new.system {
            defs.system_uids()
        } else {
            defs.uids()
        };
        let gids = if new.system {
            defs.system_gids()
        } else {
            defs.gids()
        };
        let uid = match new.uid {
            Some(uid) if tables.passwd.has_number(uid) => {
                return Err(format!("the number {uid} is another user's"));
            }
            Some(uid) => uid,
            None => {
                allocate::id(&tables.passwd, uids, None).ok_or("no number is left for a user")?
            }
        };
        let gid = match &new.group {
            Some(group) => tables
                .group
                .field(group, 2)
                .and_then(|gid| gid.parse().ok())
                .or_else(|| {
                    group
                        .parse()
                        .ok()
                        .filter(|gid| tables.group.has_number(*gid))
                })
                .ok_or_else(|| format!("there is no group {group:?}"))?,
            None if user_group => allocate::id(&tables.group, gids, Some(uid))
                .ok_or("no number is left for a group")?,
            None => defs.default_group(),
        };
        let defaults = login_defs::Defaults::read(&self.etc);
        let home = match &new.home {
            Some(home) => home.clone(),
            None => format!("{}/{}", defaults.home(), new.name),
        };
        let shell = new.shell.clone().unwrap_or_else(|| defaults.shell());
        for (key, value) in [
            ("gecos", new.comment.as_deref().unwrap_or_default()),
            ("homedir", &home),
            ("shell", &shell),
            ("passwd", new.hash.as_deref().unwrap_or_default()),
        ] {
            if value.contains([':', '\n']) {
                return Err(format!(
                    "{key}: {value:?} has a colon or more than one line"
                ));
            }
        }
        // Nothing of the system's ages.
        let expires = new.expires.as_deref();
        let expires = match expires.filter(|date| !date.is_empty() && !new.system) {
            Some(date) => {
                days_of(date).ok_or_else(|| format!("expiredate: {date:?} is no YYYY-MM-DD"))?
            }
            None => String::new(),
        };
        tables.passwd.push(&[
            &new.name,
            "x",
            &uid.to_string(),
            &gid.to_string(),
            new.comment.as_deref().unwrap_or_default(),
            &home,
            &shell,
        ]);
        let [min, max, warn] = if new.system {
            [const { String::new() }; 3]
        } else {
            defs.ageing()
        };
        let inactive = new
            .inactive
            .or(defaults.inactive())
            .filter(|days| *days >= 0 && !new.system);
        tables.shadow.push(&[
            &new.name,
            new.hash.as_deref().unwrap_or("!"),
            &today().to_string(),
            &min,
            &max,
            &warn,
            &inactive.map(|days| days.to_string()).unwrap_or_default(),
            &expires,
            "",
        ]);
        if user_group {
            tables.add_group(&new.name, gid);
        }
        tables.join(&new.name, &new.groups);
        if !new.system {
            for (table, file) in [
                (&mut tables.subuid, "subuid"),
                (&mut tables.subgid, "subgid"),
            ] {
                // A range for the user's own namespaces.
                if let Some((start, count)) = allocate::range(table, defs.subordinate(file)) {
                    table.push(&[&new.name, &start.to_string(), &count.to_string()]);
                }
            }
        }
        Ok((home.into(), uid, gid))
    }

    fn shadow(&self, user: &str, with: impl FnOnce(&mut Table)) -> Result<(), String> {
        self.edit(|Tables { passwd, shadow, .. }| {
            if passwd.find(user).is_none() {
                return Err(format!("there is no user {user:?}"));
            }
            if shadow.find(user).is_none() {
                shadow.push(&[user, "!", &today().to_string(), "", "", "", "", "", ""]);
            }
            with(shadow);
            shadow.touch();
            Ok(())
        })
    }

    /// Sets a password's hash, of today.
    pub fn set_hash(&self, user: &str, hash: &str) -> Result<(), String> {
        if hash.contains([':', '\n']) {
            return Err("the hash has a colon or more than one line".to_owned());
        }
        self.shadow(user, |shadow| {
            shadow.set(user, 1, hash);
            shadow.set(user, 2, &today().to_string());
        })
    }

    /// Locks a password, as `passwd -l` does: a mark before its hash.
    pub fn lock(&self, user: &str) -> Result<(), String> {
        self.shadow(user, |shadow| {
            let hash = shadow.field(user, 1).unwrap_or_default().to_owned();
            if !hash.starts_with('!') {
                shadow.set(user, 1, &format!("!{hash}"));
            }
        })
    }

    /// Has a password changed at the next login, as `passwd --expire` does.
    pub fn expire(&self, user: &str) -> Result<(), String> {
        self.shadow(user, |shadow| shadow.set(user, 2, "0"))
    }
}

/// A name that no file of these takes for more than a name (useradd(8), CAVEATS).
fn check_name(name: &str) -> Result<(), String> {
    let inner = name.strip_suffix('$').unwrap_or(name);
    let mut letters = inner.chars();
    let first = letters
        .next()
        .is_some_and(|c| c.is_alphanumeric() || "_.".contains(c));
    let good = first
        && letters.all(|c| c.is_alphanumeric() || "_-.@+".contains(c))
        && !matches!(name, "." | "..")
        && name.len() <= 32
        && !name.chars().all(|c| c.is_ascii_digit());
    match good {
        true => Ok(()),
        false => Err(format!("{name:?} cannot be a name of a user or a group")),
    }
}

/// Days since 1970, as shadow(5) counts.
fn today() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs() / 86_400
}

/// The day of YYYY-MM-DD, or of a number of days.
fn days_of(date: &str) -> Option<String> {
    if date.chars().all(|c| c.is_ascii_digit()) {
        return Some(date.to_owned());
    }
    let mut parts = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (
        parts.next()?.ok()?,
        parts.next()?.ok()?,
        parts.next()?.ok()?,
    );
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // A year that begins in March has its leap day at its end.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, month) = (year / 400, (month + 9) % 12);
    let of_era = year - era * 400;
    let of_year = (153 * month + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days.to_string())
}

/// Makes a home and fills it with what every user gets. One that is there is left as it is.
fn make_home(etc: &Path, home: &Path, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
    if home.exists() {
        return Ok(());
    }
    files::make_folders(home)?;
    let skeleton = etc.join("skel");
    if skeleton.is_dir() {
        copy_below(&skeleton, home, uid, gid)?;
    }
    fs::set_permissions(home, fs::Permissions::from_mode(mode))?;
    chown(home, Some(uid), Some(gid))
}

fn copy_below(from: &Path, to: &Path, uid: u32, gid: u32) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, &target)?;
        } else if kind.is_dir() {
            fs::create_dir(&target)?;
            fs::set_permissions(&target, entry.metadata()?.permissions())?;
            copy_below(&entry.path(), &target, uid, gid)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
        }
        std::os::unix::fs::lchown(&target, Some(uid), Some(gid))?;
    }
    Ok(())
}
