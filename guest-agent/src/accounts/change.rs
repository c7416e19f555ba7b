//! A change of the tables, or several of which only the last is written.

use std::io;
use std::path::Path;

use super::lock::Lock;
use super::table::{self, Table};

/// The tables. Where there is no such file it is an empty one that is not written.
#[derive(Debug, Clone)]
pub struct Tables {
    pub passwd: Table,
    pub shadow: Table,
    pub group: Table,
    pub gshadow: Table,
    /// subuid(5)
    pub subuid: Table,
    /// subgid(5)
    pub subgid: Table,
}

impl Tables {
    fn read(etc: &Path) -> io::Result<Self> {
        let read = |name: &str| Table::read(&etc.join(name));
        Ok(Self {
            passwd: read("passwd")?,
            shadow: read("shadow")?,
            group: read("group")?,
            gshadow: read("gshadow")?,
            subuid: read("subuid")?,
            subgid: read("subgid")?,
        })
    }

    /// Adds a group.
    pub fn add_group(&mut self, name: &str, gid: u32) {
        self.group.push(&[name, "x", &gid.to_string(), ""]);
        self.gshadow.push(&[name, "!", "", ""]);
    }

    /// An error names a group that there is not.
    pub fn have_groups(&self, wanted: &[String]) -> Result<(), String> {
        match wanted.iter().find(|name| self.group.find(name).is_none()) {
            Some(name) => Err(format!("there is no group {name:?}")),
            None => Ok(()),
        }
    }

    /// Makes a user a member of groups.
    pub fn join(&mut self, user: &str, groups: &[String]) {
        for group in groups {
            self.group.add_member(group, 3, user);
            self.gshadow.add_member(group, 3, user);
        }
    }
}

/// The tables, locked.
#[derive(Debug)]
pub struct Change {
    tables: Tables,
    _lock: Lock,
}

impl Change {
    /// Waits for whoever else changes them.
    pub fn begin(etc: &Path) -> io::Result<Self> {
        Ok(Self {
            _lock: Lock::take(etc)?,
            tables: Tables::read(etc)?,
        })
    }

    /// As they will be.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Does one more thing to them, or nothing where it fails.
    pub fn edit<T>(
        &mut self,
        with: impl FnOnce(&mut Tables) -> Result<T, String>,
    ) -> Result<T, String> {
        let mut tables = self.tables.clone();
        let made = with(&mut tables)?;
        for table in [
            &mut tables.passwd,
            &mut tables.shadow,
            &mut tables.group,
            &mut tables.gshadow,
            &mut tables.subuid,
            &mut tables.subgid,
        ] {
            table.keep();
        }
        self.tables = tables;
        Ok(made)
    }

    /// Writes them.
    pub fn commit(self) -> io::Result<()> {
        let Tables {
            passwd,
            shadow,
            group,
            gshadow,
            subuid,
            subgid,
        } = self.tables;
        table::commit([passwd, shadow, group, gshadow, subuid, subgid])
    }
}
