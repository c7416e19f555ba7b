//! The kernel's command line (linux/Documentation/admin-guide/kernel-parameters.rst).

/// The words that matter here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// `root=`, a device's path.
    pub root: Option<String>,
    /// `rootfstype=`.
    pub rootfstype: Option<String>,
    /// `ro`, unless a later `rw` undid it.
    pub read_only: bool,
    /// `init=`.
    pub init: Option<String>,
    /// `rdinit=`.
    pub rdinit: Option<String>,
}

impl CommandLine {
    /// Reads the line. As the kernel does, a later word wins, and what is in double quotes is
    /// one word.
    pub fn parse(line: &str) -> Self {
        let mut parsed = Self::default();
        let mut quoted = false;
        let words = line.trim().split(|c: char| {
            quoted ^= c == '"';
            !quoted && c.is_ascii_whitespace()
        });
        for word in words {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let value = || Some(value.trim_matches('"').to_owned());
            match name.trim_start_matches('"') {
                "root" => parsed.root = value(),
                "rootfstype" => parsed.rootfstype = value(),
                "init" => parsed.init = value(),
                "rdinit" => parsed.rdinit = value(),
                "ro" => parsed.read_only = true,
                "rw" => parsed.read_only = false,
                _ => {}
            }
        }
        parsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_wins_and_quotes_hold_a_value_together() {
        let line = "console=ttyS0 quiet root=/dev/sda ro root=/dev/vda rootfstype=ext4 rw \
                    init=\"/bin/my init\" rdinit=/a -- x\n";
        assert_eq!(
            CommandLine::parse(line),
            CommandLine {
                root: Some("/dev/vda".to_owned()),
                rootfstype: Some("ext4".to_owned()),
                read_only: false,
                init: Some("/bin/my init".to_owned()),
                rdinit: Some("/a".to_owned()),
            }
        );
        assert_eq!(CommandLine::parse(""), CommandLine::default());
    }
}
