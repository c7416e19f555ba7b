//! Seeds that nobody wrote: words of the language in any order, the same at every run.

use super::seed::Seed;

const COUNT: u64 = 40;

/// The generated seeds.
pub fn seeds() -> Vec<Seed> {
    (1..=COUNT).map(seed).collect()
}

/// Numbers that look like chance (xorshift64, Marsaglia 2003).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }

    fn sometimes(&mut self) -> bool {
        self.below(2) == 0
    }
}

fn seed(number: u64) -> Seed {
    let mut chance = Chance(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut text = "#cloud-config\n".to_owned();
    users(&mut chance, &mut text);
    files(&mut chance, &mut text);
    commands(&mut chance, &mut text);
    for (key, values) in [
        ("hostname", &["web", "db.example.org"][..]),
        ("fqdn", &["a.example.org", "b.c.d"]),
        ("manage_etc_hosts", &["true", "localhost", "false"]),
        ("ssh_pwauth", &["true", "no", "'yes'", "unchanged"]),
        ("disable_root", &["true", "false"]),
        ("timezone", &["Europe/Paris", "UTC"]),
        (
            "ssh_authorized_keys",
            &["[ssh-rsa AAAA a, ssh-rsa BBBB b]", "[]"],
        ),
        ("apt_pipelining", &["false", "2", "os"]),
    ] {
        if chance.below(3) == 0 {
            text += &format!("{key}: {}\n", chance.of(values));
        }
    }
    Seed::new(&format!("generated/{number:02}"), text.as_bytes())
}

fn users(chance: &mut Chance, text: &mut String) {
    if chance.sometimes() {
        let groups = ["[ops, adm]", "ops,cdrom", "[{ops: [daemon]}, other]"];
        *text += &format!("groups: {}\n", chance.of(&groups));
    }
    if chance.below(4) == 0 {
        return;
    }
    *text += "users:\n";
    if chance.sometimes() {
        *text += "  - default\n";
    }
    for name in ["ann", "bob", "cy"].iter().take(1 + chance.below(3)) {
        *text += &format!("  - name: {name}\n");
        let system = chance.below(5) == 0;
        let own: &[(&str, &[&str])] = match system {
            true => &[("system", &["true"])],
            false => &[(
                "ssh_authorized_keys",
                &["[ssh-rsa CCCC c]", "ssh-ed25519 DDDD d"],
            )],
        };
        for (key, values) in own {
            if system || chance.sometimes() {
                *text += &format!("    {key}: {}\n", chance.of(values));
            }
        }
        for (key, values) in [
            ("gecos", &["Somebody", "'A, B, C'"][..]),
            ("shell", &["/bin/bash", "/bin/sh"]),
            ("groups", &["adm, sudo", "[games, made]"]),
            ("lock_passwd", &["true", "false"]),
            ("lock-passwd", &["false"]),
            ("sudo", &["['ALL=(ALL) NOPASSWD:ALL']", "ALL=(ALL) ALL"]),
            ("homedir", &["/srv/homes/x", "/home/other"]),
            ("hashed_passwd", &["$6$salt$hash"]),
            ("expiredate", &["'2033-01-31'"]),
            ("no_user_group", &["true"]),
        ] {
            if chance.below(3) == 0 {
                *text += &format!("    {key}: {}\n", chance.of(values));
            }
        }
    }
}

fn files(chance: &mut Chance, text: &mut String) {
    *text += "write_files:\n";
    for number in 0..1 + chance.below(4) {
        *text += &format!(
            "  - path: /srv/{}{number}\n",
            chance.of(&["", "deep/", "a/../b/"])
        );
        let (content, encoding) = [
            ("text", ""),
            ("'with: colon'", "text/plain"),
            ("aGVsbG8=", "b64"),
            ("H4sIAAAAAAAAA8vIBACsKpPYAgAAAA==", "gz+b64"),
            ("|\n      two\n      lines", ""),
        ][chance.below(5)];
        *text += &format!("    content: {content}\n");
        if !encoding.is_empty() {
            *text += &format!("    encoding: {encoding}\n");
        }
        for (key, values) in [
            ("permissions", &["'0600'", "0755", "'4711'"][..]),
            ("owner", &["daemon:adm", "root:games", "games"]),
            ("append", &["true", "false"]),
            ("defer", &["true", "no"]),
        ] {
            if chance.sometimes() {
                *text += &format!("    {key}: {}\n", chance.of(values));
            }
        }
    }
}

fn commands(chance: &mut Chance, text: &mut String) {
    for key in ["bootcmd", "runcmd"] {
        *text += &format!("{key}:\n");
        for number in 0..1 + chance.below(3) {
            let command = chance.of(&[
                "echo N >>/srv/order",
                "[sh, -c, 'echo \"$0\" >>/srv/order', N]",
                "'false; echo N $? >>/srv/order'",
                "[touch, \"/srv/KEY's N\"]",
                "|\n      for i in 1 2; do echo N $i >>/srv/order; done",
            ]);
            let command = command
                .replace('N', &number.to_string())
                .replace("KEY", key);
            *text += &format!("  - {command}\n");
        }
    }
}
