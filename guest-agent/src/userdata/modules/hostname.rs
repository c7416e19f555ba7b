//! `hostname`, `fqdn` and `manage_etc_hosts`.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::json;

use crate::os::Family;
use crate::userdata::context::Context;
use crate::userdata::{files, jinja};
use crate::yaml::Node;

const HOSTNAME: &str = "/etc/hostname";
const HOSTS: &str = "/etc/hosts";
const TEMPLATES: &str = "/etc/cloud/templates";
/// What /etc/hosts is made of where the disk brings no template.
const TEMPLATE: &str = "## template: jinja\n127.0.1.1 {{fqdn}} {{hostname}}\n127.0.0.1 localhost\n\n\
    ::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n";

/// What the guest is called.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Names {
    host: String,
    full: String,
    /// Whether nobody said so.
    default: bool,
}

impl Names {
    fn of(context: &Context) -> Self {
        let word = |key: &str| context.get(key).and_then(Node::scalar);
        let host = word("hostname");
        if let Some(full) = word("fqdn") {
            let short = full.split('.').next().unwrap_or_default().to_owned();
            return Self {
                host: host.unwrap_or(short),
                full,
                default: false,
            };
        }
        if let Some(host) = &host
            && let Some((short, _)) = host.split_once('.')
            && !short.is_empty()
        {
            return Self {
                host: short.to_owned(),
                full: host.clone(),
                default: false,
            };
        }
        let (short, full, default) = of_seed(context);
        Self {
            default: default && host.is_none(),
            host: host.unwrap_or(short),
            full,
        }
    }

    /// The one that is written.
    fn written(&self, context: &Context) -> String {
        let full = match context.config.entry("prefer_fqdn_over_hostname") {
            Some(node) => node.is_true(),
            None => context.os.family == Family::RedHat,
        };
        match (full && !self.full.is_empty()) || self.host.is_empty() {
            true => self.full.clone(),
            false => self.host.clone(),
        }
    }
}

/// The short and the full name that the seed gives.
pub fn by_seed(context: &Context) -> (String, String) {
    let (short, full, _) = of_seed(context);
    (short, full)
}

/// The short and the full name by the meta-data, or else the one that the guest has.
fn of_seed(context: &Context) -> (String, String, bool) {
    let (name, default) = match &context.seed.hostname {
        Some(name) if name.parse::<Ipv4Addr>().is_ok() => {
            let name = format!("ip-{}", name.replace('.', "-"));
            return (name.clone(), name, false);
        }
        Some(name) => (name.clone(), false),
        None => {
            let name = context.nodename.clone();
            let default = name == "localhost";
            (full_name(&name).unwrap_or(name), default)
        }
    };
    let (short, domain) = name.split_once('.').unwrap_or((&name, ""));
    let full = match domain {
        "" | "localdomain" => short.to_owned(),
        _ => name.clone(),
    };
    (short.to_owned(), full, default)
}

/// The name that /etc/hosts has before this one.
fn full_name(name: &str) -> Option<String> {
    let hosts = fs::read_to_string(HOSTS).ok()?;
    hosts.lines().find_map(|line| {
        let words: Vec<&str> = line.split('#').next()?.split_whitespace().collect();
        let aliases = words.get(2..)?;
        let first = words.get(1).filter(|first| first.contains('.'))?;
        aliases.contains(&name).then(|| (*first).to_owned())
    })
}

fn preserved(context: &Context) -> bool {
    context.config.flag("preserve_hostname", false)
}

/// Gives the guest its name where somebody has said it.
pub fn early(context: &Context) -> Result<(), String> {
    let said = ["hostname", "fqdn"]
        .iter()
        .any(|key| context.get(key).is_some());
    match said || context.seed.hostname.is_some() {
        true => set(context),
        false => Ok(()),
    }
}

/// Gives the guest its name, once an instance, or again when it is another.
pub fn set(context: &Context) -> Result<(), String> {
    let names = Names::of(context);
    if preserved(context) || (names.default && names.host == "localhost") {
        return Ok(());
    }
    let kept = context.instance.shared("data/set-hostname");
    let quoted = |name: &str| serde_json::Value::from(name);
    let (full, host) = (quoted(&names.full), quoted(&names.host));
    let text = format!("{{\n \"fqdn\": {full},\n \"hostname\": {host}\n}}\n");
    if fs::read_to_string(&kept).is_ok_and(|before| before == text) {
        return Ok(());
    }
    let name = names.written(context);
    write(Path::new(HOSTNAME), &name)?;
    apply(&name)?;
    files::write(&kept, text.as_bytes(), 0o644)
        .map_err(|error| format!("{}: {error}", kept.display()))
}

/// Gives it the name again, unless somebody in the guest has chosen another since.
pub fn update(context: &Context) -> Result<(), String> {
    let names = Names::of(context);
    if preserved(context) || (names.default && names.host == "localhost") {
        return Ok(());
    }
    let name = names.written(context);
    let kept = context.instance.shared("data/previous-hostname");
    let before = read(&kept);
    let now = read(Path::new(HOSTNAME));
    if let (Some(before), Some(now)) = (&before, &now)
        && before != now
    {
        return Ok(());
    }
    if before.as_ref() != Some(&name) {
        write(&kept, &name)?;
    }
    if now
        .as_ref()
        .is_none_or(|now| Some(now) == before.as_ref() && *now != name)
    {
        write(Path::new(HOSTNAME), &name)?;
        apply(&names.host)?;
    }
    Ok(())
}

fn apply(name: &str) -> Result<(), String> {
    rustix::system::sethostname(name.as_bytes())
        .map_err(|error| format!("hostname: {name:?}: {error}"))
}

/// The name in a file like hostname(5).
fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let mut names = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    names.find(|name| !name.is_empty()).map(str::to_owned)
}

/// Puts the name into such a file, whose comments stay.
fn write(path: &Path, name: &str) -> Result<(), String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut found = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        let (head, comment) = match line.find('#') {
            Some(at) => line.split_at(at),
            None => (line, ""),
        };
        if head.trim().is_empty() {
            lines.push(line.to_owned());
        } else if !found {
            found = true;
            lines.push(format!("{name}{comment}"));
        }
    }
    if !found {
        lines.push(name.to_owned());
    }
    let text = format!("{}\n", lines.join("\n"));
    files::write(path, text.as_bytes(), 0o644)
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Keeps /etc/hosts: all of it, or only the guest's own line.
pub fn hosts(context: &Context) -> Result<(), String> {
    let Some(manage) = context.get("manage_etc_hosts") else {
        return Ok(());
    };
    let names = Names::of(context);
    let failed = |error: io::Error| format!("{HOSTS}: {error}");
    if manage.is_true() || manage.text() == Some("template") {
        let text = template(context);
        let variables = json!({"hostname": names.host, "fqdn": names.full});
        let (text, _) = jinja::render("hosts.tmpl", &text, &variables)?;
        return files::write(Path::new(HOSTS), text.as_bytes(), 0o644).map_err(failed);
    }
    if manage.text() != Some("localhost") {
        return match manage.is_false() {
            true => Ok(()),
            false => Err(manage.wrong("manage_etc_hosts", "true, false or localhost")),
        };
    }
    let ip = match context.os.family {
        Family::Debian => "127.0.1.1",
        _ => "127.0.0.1",
    };
    let text = fs::read_to_string(HOSTS).unwrap_or_default();
    match with_line(&text, ip, &names) {
        Some(text) => files::write(Path::new(HOSTS), text.as_bytes(), 0o644).map_err(failed),
        None => Ok(()),
    }
}

fn template(context: &Context) -> String {
    let family = match context.os.family {
        Family::RedHat => "redhat",
        _ => "debian",
    };
    let names = [&*context.os.id, family].map(|name| format!("{TEMPLATES}/hosts.{name}.tmpl"));
    let found = names.iter().find_map(|name| fs::read_to_string(name).ok());
    found.unwrap_or_else(|| TEMPLATE.to_owned())
}

/// hosts(5) with a line of the guest's own after those that the address has; `None` if it is there.
fn with_line(text: &str, ip: &str, names: &Names) -> Option<String> {
    let words = |line: &str| -> Vec<String> {
        let line = line.split('#').next().unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect()
    };
    let mut kept = String::new();
    let mut own = Vec::new();
    for line in text.lines() {
        let words = words(line);
        if words.first().is_some_and(|word| word == ip) {
            own.push(words);
        } else if words.is_empty() {
            kept.push_str(&format!("{line}\n"));
        } else {
            let comment = line.find('#').map_or("", |at| line.split_at(at).1);
            kept.push_str(&format!("{}{comment}\n", words.join("\t")));
        }
    }
    let is_there = |line: &Vec<String>| {
        let mut names_of = line.iter().skip(1);
        names_of.next() == Some(&names.full) && names_of.any(|name| *name == names.host)
    };
    if own.iter().any(is_there) {
        return None;
    }
    own.push(vec![ip.to_owned(), names.full.clone(), names.host.clone()]);
    for line in own {
        kept.push_str(&format!("{}\n", line.join("\t")));
    }
    kept.push('\n');
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_added_once() {
        let names = Names {
            host: "box".to_owned(),
            full: "box.example.org".to_owned(),
            default: false,
        };
        let text = "# a\n127.0.0.1 localhost\n127.0.1.1 old\n::1 x # c\n";
        let text = with_line(text, "127.0.1.1", &names).unwrap();
        assert_eq!(
            text,
            "# a\n127.0.0.1\tlocalhost\n::1\tx# c\n127.0.1.1\told\n127.0.1.1\tbox.example.org\tbox\n\n"
        );
        assert_eq!(with_line(&text, "127.0.1.1", &names), None);
    }

    #[test]
    fn a_name_takes_the_old_one_s_place() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hostname");
        fs::write(&file, "# c\nold\n").unwrap();
        write(&file, "new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "# c\nnew\n");
        assert_eq!(read(&file).as_deref(), Some("new"));
    }
}
