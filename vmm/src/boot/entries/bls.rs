//! Boot Loader Specification (UAPI.1): entries of type 1, a file each, and of type 2, a unified
//! kernel image each; sorted, and the default chosen, as systemd-boot does.

use std::cmp::Ordering;

use guest_agent::pattern::matches;

use super::volume::Volume;
use super::{Entry, MAX_ENTRIES, MAX_TEXT, Part, uki, version};

/// A file of type 1, or what a unified kernel image says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Snippet {
    /// The file's name without `.conf` or `.efi`, and without what counts boot attempts.
    pub(super) id: String,
    /// All attempts to boot it have failed.
    pub(super) is_bad: bool,
    pub(super) title: Option<String>,
    pub(super) version: String,
    pub(super) machine_id: String,
    pub(super) sort_key: Option<String>,
    pub(super) linux: Option<String>,
    pub(super) initrd: Vec<String>,
    pub(super) options: Vec<String>,
}

impl Snippet {
    /// Reads a file of type 1 that is called `name`.
    pub(super) fn parse(name: &str, text: &str) -> Self {
        let mut snippet = Self::named(name);
        for line in text.lines() {
            let line = line.trim();
            let Some((key, value)) = line.split_once([' ', '\t']) else {
                continue;
            };
            let value = value.trim().to_owned();
            match key {
                "title" => snippet.title = Some(value),
                "version" => snippet.version = value,
                "machine-id" => snippet.machine_id = value,
                "sort-key" => snippet.sort_key = Some(value),
                "linux" => snippet.linux = Some(value),
                // GRUB's form has several in a line.
                "initrd" => snippet
                    .initrd
                    .extend(value.split_whitespace().map(str::to_owned)),
                "options" => snippet.options.push(value),
                _ => {}
            }
        }
        snippet
    }

    fn named(name: &str) -> Self {
        let stem = name
            .strip_suffix(".conf")
            .or_else(|| name.strip_suffix(".efi"))
            .unwrap_or(name);
        let (id, counter) = match stem.rsplit_once('+') {
            Some((id, counter)) if is_counter(counter) => (id, counter),
            _ => (stem, ""),
        };
        Self {
            id: id.to_owned(),
            is_bad: counter
                .split('-')
                .next()
                .is_some_and(|left| !left.is_empty() && left.bytes().all(|b| b == b'0')),
            ..Self::default()
        }
    }

    /// What a person is shown.
    pub(super) fn title(&self) -> String {
        let title = self.title.clone().unwrap_or_else(|| self.id.clone());
        match self.version.as_str() {
            "" => title,
            version if title.contains(version) => title,
            version => format!("{title} ({version})"),
        }
    }
}

/// `LEFT` or `LEFT-DONE`.
fn is_counter(text: &str) -> bool {
    let mut numbers = text.splitn(2, '-');
    numbers.all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The order of the menu: the first is the default.
fn order(a: &Snippet, b: &Snippet) -> Ordering {
    let newest = |a: &str, b: &str| version::compare(b, a);
    let by_key = match (&a.sort_key, &b.sort_key) {
        (Some(x), Some(y)) => x
            .cmp(y)
            .then_with(|| a.machine_id.cmp(&b.machine_id))
            .then_with(|| newest(&a.version, &b.version)),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    };
    a.is_bad
        .cmp(&b.is_bad)
        .then(by_key)
        .then_with(|| newest(&a.id, &b.id))
}

/// The snippets of type 1 in a directory of a volume.
pub(super) fn snippets(volume: &Volume, directory: &str) -> Vec<Snippet> {
    let names = volume.list(directory).into_iter();
    let names = names
        .filter(|name| name.ends_with(".conf"))
        .take(MAX_ENTRIES);
    let read = |name: String| {
        let bytes = volume.read(&format!("{directory}/{name}"), MAX_TEXT).ok()?;
        let snippet = Snippet::parse(&name, &String::from_utf8_lossy(&bytes));
        snippet.linux.is_some().then_some(snippet)
    };
    names.filter_map(read).collect()
}

/// The entries that systemd-boot would show of these volumes, of which it reads the EFI system
/// partition and the extended boot loader partition; the default is the first.
pub(super) fn find(volumes: &[Volume], boot: &[usize]) -> Vec<Entry> {
    let mut found: Vec<(Snippet, Entry)> = Vec::new();
    let mut default = None;
    for &index in boot {
        let Some(volume) = volumes.get(index) else {
            continue;
        };
        for snippet in snippets(volume, "/loader/entries") {
            let entry = entry(&snippet, index, volume, snippet.options.join(" "));
            found.push((snippet, entry));
        }
        let images = volume.list("/EFI/Linux").into_iter();
        let images = images.filter(|name| name.to_ascii_lowercase().ends_with(".efi"));
        for name in images.take(MAX_ENTRIES) {
            let path = format!("/EFI/Linux/{name}");
            if let Some((snippet, entry)) = unified(index, volume, &name, &path) {
                found.push((snippet, entry));
            }
        }
        let config = volume.read("/loader/loader.conf", MAX_TEXT).ok();
        let config = config.map(|c| String::from_utf8_lossy(&c).into_owned());
        default = default.or_else(|| config.as_deref().and_then(pattern));
    }
    found.sort_by(|(a, _), (b, _)| order(a, b));
    if let Some(pattern) = default {
        let matching = |(snippet, entry): &(Snippet, Entry)| {
            let name = entry.source.rsplit('/').next().unwrap_or_default();
            [name, &snippet.id].iter().any(|id| matches(&pattern, id))
        };
        if let Some(at) = found.iter().position(matching) {
            let chosen = found.remove(at);
            found.insert(0, chosen);
        }
    }
    found.into_iter().map(|(_, entry)| entry).collect()
}

/// An entry of type 1 whose files are on the same volume.
pub(super) fn entry(snippet: &Snippet, volume: usize, on: &Volume, options: String) -> Entry {
    let file = |path: &String| Part::file(volume, path);
    Entry {
        title: snippet.title(),
        id: snippet.id.clone(),
        kernel: snippet.linux.as_ref().map(file),
        initrd: snippet.initrd.iter().map(file).collect(),
        cmdline: options,
        source: format!("{}: /loader/entries/{}.conf", on.place(), snippet.id),
        why_not: None,
    }
}

fn unified(index: usize, volume: &Volume, name: &str, path: &str) -> Option<(Snippet, Entry)> {
    let bytes = volume.read(path, uki::MAX).ok()?;
    let image = uki::Uki::parse(&bytes).ok()?;
    let field = |names: &[&str]| {
        let mut values = names.iter().filter_map(|name| image.os_release(name));
        values.next()
    };
    let snippet = Snippet {
        title: field(&["PRETTY_NAME"]),
        version: field(&["IMAGE_VERSION", "VERSION_ID", "BUILD_ID"]).unwrap_or_default(),
        sort_key: field(&["IMAGE_ID", "ID"]),
        ..Snippet::named(name)
    };
    let section = |name| Part::Section {
        volume: index,
        path: path.to_owned(),
        name,
    };
    let entry = Entry {
        title: snippet.title(),
        id: snippet.id.clone(),
        kernel: Some(section(".linux")),
        initrd: image
            .has(".initrd")
            .then(|| section(".initrd"))
            .into_iter()
            .collect(),
        cmdline: image.cmdline(),
        source: format!("{}: {path}", volume.place()),
        why_not: None,
    };
    Some((snippet, entry))
}

/// `default` of loader.conf; what starts with @ is kept in the firmware, which we have not.
fn pattern(config: &str) -> Option<String> {
    let mut lines = config.lines().map(str::trim);
    let value = lines.find_map(|l| l.strip_prefix("default")?.strip_prefix([' ', '\t']))?;
    let value = value.trim();
    (!value.is_empty() && !value.starts_with('@')).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_menu_is_in_the_specification_s_order() {
        let snippet = |name, text| Snippet::parse(name, text);
        let mut menu = [
            snippet("b-6.1.conf", "linux /b\n"),
            snippet("new+0-3.conf", "linux /n\nsort-key a\nversion 9\n"),
            snippet(
                "c.conf",
                "linux /c\nsort-key fedora\nversion 6.9\nmachine-id m\n",
            ),
            snippet(
                "d+2.conf",
                "linux /d\nsort-key fedora\nversion 6.10\nmachine-id m\n",
            ),
            snippet("e.conf", "linux /e\nsort-key debian\nversion 1\n"),
            snippet("b-6.2.conf", "linux /f\n"),
        ];
        menu.sort_by(order);
        let ids: Vec<_> = menu.iter().map(|s| s.id.as_str()).collect();
        assert_eq!(ids, ["e", "d", "c", "b-6.2", "b-6.1", "new"]);
        assert!(menu[5].is_bad);
    }

    #[test]
    fn a_snippet_s_lines_are_read_as_the_specification_has_them() {
        let snippet = Snippet::parse(
            "id.conf",
            "# comment\ntitle   Fedora Linux\nversion 6.5\nlinux /vmlinuz\ninitrd /a.img\n\
             initrd /b.img $tuned_initrd\noptions root=UUID=1 ro\noptions  quiet\nfoo bar\n",
        );
        assert_eq!(snippet.title(), "Fedora Linux (6.5)");
        assert_eq!(snippet.initrd, ["/a.img", "/b.img", "$tuned_initrd"]);
        assert_eq!(snippet.options, ["root=UUID=1 ro", "quiet"]);
    }

    #[test]
    fn the_default_of_loader_conf_is_a_pattern() {
        assert_eq!(
            pattern("timeout 3\ndefault  arch-*\n").as_deref(),
            Some("arch-*")
        );
        assert_eq!(pattern("default @saved"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(name in "\\PC{0,20}", text in "(?s).{0,200}") {
            let snippet = Snippet::parse(&name, &text);
            let _ = (snippet.title(), order(&snippet, &Snippet::parse(&text, &name)));
            let _ = (matches(&name, &text), pattern(&text));
        }
    }
}
