//! Which operating system a root is.

use std::collections::HashMap;
use std::fs;

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
    /// The cloud-init that it has, or would have.
    pub cloud_init: CloudInit,
}

/// Releases of cloud-init, where what they do differs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum CloudInit {
    /// 22.4 and before it, as in Debian 12.
    V22,
    /// 25.1, as in Debian 13, and what comes after it.
    #[default]
    V25,
}

impl CloudInit {
    /// What a system of this name and age came with.
    fn of(id: &str, family: Family, version: &str) -> Self {
        let first_with_25 = match (id, family) {
            ("debian", _) => 13,
            ("fedora", _) => 41,
            // They were given it by updates, as far back as they are kept.
            (_, Family::RedHat) => 9,
            ("ubuntu", _) => 22,
            _ => return Self::V25,
        };
        let major = version.split('.').next().unwrap_or_default();
        match major.parse::<u32>() {
            Ok(major) if major < first_with_25 => Self::V22,
            // One without a number is not yet released.
            _ => Self::V25,
        }
    }
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
        Self::of(release())
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
        let version = word("VERSION_ID");
        Self {
            cloud_init: CloudInit::of(&id, family, &version),
            family,
            version,
            codename: word("VERSION_CODENAME"),
            id,
        }
    }
}

/// What this root's os-release(5) says.
pub fn release() -> HashMap<String, String> {
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
        assert_eq!(os.cloud_init, CloudInit::V22);
        let os = Os::of(words("ID=\"almalinux\"\nID_LIKE=\"rhel centos fedora\"\n"));
        assert_eq!(os.family, Family::RedHat);
        assert_eq!(Os::of(words("")).family, Family::Other);
        for (text, expected) in [
            ("ID=debian\nVERSION_ID=\"13\"\n", CloudInit::V25),
            ("ID=debian\n", CloudInit::V25),
            (
                "ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"20.04\"\n",
                CloudInit::V22,
            ),
            ("ID=fedora\nVERSION_ID=28\n", CloudInit::V22),
            (
                "ID=rocky\nID_LIKE=\"rhel\"\nVERSION_ID=\"9.4\"\n",
                CloudInit::V25,
            ),
        ] {
            assert_eq!(Os::of(words(text)).cloud_init, expected, "{text}");
        }
    }
}
