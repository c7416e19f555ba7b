//! /etc/login.defs (login.defs(5)) and /etc/default/useradd (useradd(8)).

use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Numbers of users or of groups.
#[derive(Debug, Clone, Copy)]
pub struct Ids {
    /// The first.
    pub min: u32,
    /// The last.
    pub max: u32,
    /// Whether they are given from the last.
    pub downwards: bool,
}

/// Ranges of subordinate numbers.
#[derive(Debug, Clone, Copy)]
pub struct Ranges {
    /// The first number.
    pub min: u64,
    /// The last.
    pub max: u64,
    /// How many a user gets.
    pub count: u64,
}

/// What login.defs says.
#[derive(Debug)]
pub struct LoginDefs(HashMap<String, String>);

impl LoginDefs {
    /// Reads it; without the file everything is as shadow-utils has it.
    pub fn read(etc: &Path) -> Self {
        let text = fs::read_to_string(etc.join("login.defs")).unwrap_or_default();
        let entry = |line: &str| {
            let line = line.trim();
            let (key, value) = line.split_once(|c: char| c.is_ascii_whitespace())?;
            let value = value.trim().trim_matches('"');
            (!key.starts_with('#')).then(|| (key.to_owned(), value.to_owned()))
        };
        Self(text.lines().filter_map(entry).collect())
    }

    fn number(&self, key: &str) -> Option<u64> {
        let value = self.0.get(key)?;
        if let Some(digits) = value.strip_prefix("0x") {
            return u64::from_str_radix(digits, 16).ok();
        }
        match value.strip_prefix('0') {
            Some(digits) if !digits.is_empty() => u64::from_str_radix(digits, 8).ok(),
            _ => value.parse().ok(),
        }
    }

    fn id(&self, key: &str, default: u32) -> u32 {
        let number = self.number(key).and_then(|number| number.try_into().ok());
        number.unwrap_or(default)
    }

    /// Of people.
    pub fn uids(&self) -> Ids {
        Ids {
            min: self.id("UID_MIN", 1000),
            max: self.id("UID_MAX", 60_000),
            downwards: false,
        }
    }

    /// Of people's groups.
    pub fn gids(&self) -> Ids {
        Ids {
            min: self.id("GID_MIN", 1000),
            max: self.id("GID_MAX", 60_000),
            downwards: false,
        }
    }

    /// Of the system's users.
    pub fn system_uids(&self) -> Ids {
        Ids {
            min: self.id("SYS_UID_MIN", 101),
            max: self.id("SYS_UID_MAX", self.uids().min.saturating_sub(1)),
            downwards: true,
        }
    }

    /// Of the system's groups.
    pub fn system_gids(&self) -> Ids {
        Ids {
            min: self.id("SYS_GID_MIN", 101),
            max: self.id("SYS_GID_MAX", self.gids().min.saturating_sub(1)),
            downwards: true,
        }
    }

    /// `SUB_UID_*` or `SUB_GID_*`, by the name of the file.
    pub fn subordinate(&self, file: &str) -> Ranges {
        let kind = if file == "subuid" { "UID" } else { "GID" };
        let number = |what: &str, default| {
            self.number(&format!("SUB_{kind}_{what}"))
                .unwrap_or(default)
        };
        Ranges {
            min: number("MIN", 100_000),
            max: number("MAX", 600_100_000),
            count: number("COUNT", 65_536),
        }
    }

    /// Whether a user gets a group of its own.
    pub fn user_groups(&self) -> bool {
        self.0
            .get("USERGROUPS_ENAB")
            .is_some_and(|value| value.eq_ignore_ascii_case("yes"))
    }

    /// The group of a user that has none of its own.
    pub fn default_group(&self) -> u32 {
        100
    }

    /// How old a password may get: min, max and warning, in days.
    pub fn ageing(&self) -> [String; 3] {
        ["PASS_MIN_DAYS", "PASS_MAX_DAYS", "PASS_WARN_AGE"]
            .map(|key| self.0.get(key).cloned().unwrap_or_default())
            .map(|days| if days == "-1" { String::new() } else { days })
    }

    /// The mode of a home.
    pub fn home_mode(&self) -> u32 {
        let by_umask = || 0o777 & !self.id("UMASK", 0o022);
        self.number("HOME_MODE")
            .and_then(|mode| mode.try_into().ok())
            .unwrap_or_else(by_umask)
    }
}

/// What /etc/default/useradd says.
#[derive(Debug)]
pub struct Defaults(HashMap<String, String>);

impl Defaults {
    /// Reads it.
    pub fn read(etc: &Path) -> Self {
        let text = fs::read_to_string(etc.join("default/useradd")).unwrap_or_default();
        let entry = |line: &str| {
            let (key, value) = line.trim().split_once('=')?;
            (!key.starts_with('#')).then(|| (key.to_owned(), value.trim_matches('"').to_owned()))
        };
        Self(text.lines().filter_map(entry).collect())
    }

    /// The shell of a user that wants none.
    pub fn shell(&self) -> String {
        self.0
            .get("SHELL")
            .cloned()
            .unwrap_or_else(|| "/bin/sh".to_owned())
    }

    /// Below which homes are.
    pub fn home(&self) -> String {
        self.0
            .get("HOME")
            .cloned()
            .unwrap_or_else(|| "/home".to_owned())
    }

    /// Days after which an expired password locks the account.
    pub fn inactive(&self) -> Option<i64> {
        self.0.get("INACTIVE")?.parse().ok()
    }
}
