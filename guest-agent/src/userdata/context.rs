//! What a module is given.

use std::collections::HashMap;
use std::fs;

use super::instance::Instance;
use super::report::Report;
use crate::accounts::Accounts;
use crate::labels;
use crate::seed::Seed;
use crate::yaml::Node;

/// What a module is given.
pub struct Context<'a> {
    /// All configuration: the user's over the vendor's over the disk's.
    pub config: Node,
    /// Where the rest came from.
    pub seed: &'a Seed,
    /// The instance's folder and what was done for it.
    pub instance: &'a Instance,
    /// Where failures go that are not the module's end.
    pub report: &'a Report,
    /// What is installed.
    pub os: Os,
    /// The root's users.
    pub accounts: Accounts,
    /// What the guest was called before it was given a name.
    pub nodename: String,
}

impl Context<'_> {
    /// A value of the configuration that is not null.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.config.get(key)
    }

    /// An item failed; the module goes on.
    pub fn failed(&self, module: &str, why: &str) {
        self.report.failed(module, why);
    }

    /// Gives what was written SELinux's labels.
    pub fn label(&self) {
        if let Err(why) = labels::put_right() {
            self.failed("selinux", &why);
        }
    }
}

/// An operating system, by os-release(5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Os {
    /// `ID`: `debian`, `fedora`.
    pub id: String,
    /// Whether it takes packages from apt, dnf or neither.
    pub family: Family,
    /// `VERSION_ID`
    pub version: String,
    /// `VERSION_CODENAME`
    pub codename: String,
}

/// Systems that are set up alike.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Family {
    /// Debian and what came from it.
    Debian,
    /// Red Hat's and Fedora's.
    RedHat,
    /// Any other.
    #[default]
    Other,
}

impl Os {
    /// This root's.
    pub fn of_this_root() -> Self {
        Self::of(os_release())
    }

    fn of(mut words: HashMap<String, String>) -> Self {
        let mut word = |key: &str| words.remove(key).unwrap_or_default();
        let (id, like) = (word("ID"), word("ID_LIKE"));
        let is = |names: &[&str]| {
            let mut all = std::iter::once(&*id).chain(like.split_whitespace());
            all.any(|name| names.contains(&name))
        };
        let family = if is(&["debian", "ubuntu"]) {
            Family::Debian
        } else if is(&["rhel", "fedora", "centos"]) {
            Family::RedHat
        } else {
            Family::Other
        };
        Self {
            family,
            version: word("VERSION_ID"),
            codename: word("VERSION_CODENAME"),
            id,
        }
    }
}

/// What this root's os-release(5) says.
pub fn os_release() -> HashMap<String, String> {
    let text = fs::read_to_string("/etc/os-release")
        .or_else(|_| fs::read_to_string("/usr/lib/os-release"));
    words(&text.unwrap_or_default())
}

fn words(text: &str) -> HashMap<String, String> {
    let entry = |line: &str| {
        let (key, value) = line.split_once('=')?;
        let value = value.trim().trim_matches(['"', '\'']);
        Some((key.to_owned(), value.to_owned()))
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_is_of_the_family_that_it_says() {
        let os = Os::of(words(
            "ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n",
        ));
        assert_eq!((os.family, &*os.version), (Family::Debian, "12"));
        let os = Os::of(words("ID=\"almalinux\"\nID_LIKE=\"rhel centos fedora\"\n"));
        assert_eq!(os.family, Family::RedHat);
        assert_eq!(Os::of(words("")).family, Family::Other);
    }
}
