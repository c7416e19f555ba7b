//! What GRUB would start: grub.cfg is run up to its menu, and each entry of the menu to where it
//! would boot.

mod env;
mod run;
mod script;
#[cfg(test)]
mod tests;

use super::volume::Volume;
use super::{Entry, MAX_ENTRIES, Part, bls};
use run::{Boot, Fault, Item, Shell, What};

/// Menus within menus.
const MAX_DEPTH: usize = 4;

/// The entries of the menu, those of its submenus among them, and the default's index. `text` is
/// the configuration at `path` of that volume. The error begins with a line's number or a space.
pub(super) fn menu(
    volumes: &[Volume],
    volume: usize,
    path: &str,
    text: &str,
) -> Result<(Vec<Entry>, usize), String> {
    let script = script::parse(text)?;
    let mut shell = Shell::new(volumes, volume, path);
    shell.run(&script).map_err(|Fault(why)| format!(" {why}"))?;
    let default = shell.get("default");
    let place = volumes.get(volume).map(Volume::place).unwrap_or_default();
    let mut menu = Menu {
        source: format!("{place}: {path}"),
        entries: Vec::new(),
        default: None,
    };
    menu.add(&shell, Some(default.as_str()), 0);
    Ok((menu.entries, menu.default.unwrap_or(0)))
}

struct Menu {
    source: String,
    entries: Vec<Entry>,
    default: Option<usize>,
}

impl Menu {
    /// Adds what is in the shell's menu. `default` says which of it is chosen, where one is.
    fn add(&mut self, shell: &Shell<'_>, default: Option<&str>, depth: usize) {
        let chosen = default.map(|default| choose(&shell.menu, default));
        for (index, item) in shell.menu.iter().enumerate() {
            if self.entries.len() >= MAX_ENTRIES {
                return;
            }
            let below = match &chosen {
                Some((chosen, rest)) if *chosen == index => Some(rest.as_str()),
                _ => None,
            };
            let mut shell = shell.for_entry(item);
            match &item.what {
                What::Submenu(block) => {
                    if depth < MAX_DEPTH && shell.run(block).is_ok() {
                        self.add(&shell, below, depth + 1);
                    }
                }
                What::Entry(block) => {
                    let fault = shell.run(block).err();
                    if below.is_some() {
                        self.default = Some(self.entries.len());
                    }
                    self.entries.push(self.entry(item, shell.boot, fault));
                }
                What::Bls(volume, snippet) => {
                    if below.is_some() {
                        self.default = Some(self.entries.len());
                    }
                    let Some(on) = shell.volumes.get(*volume) else {
                        continue;
                    };
                    let expand = |text: &String| shell.interpolate(text);
                    let mut snippet = snippet.clone();
                    let options = snippet.options.iter().map(expand).collect::<Vec<_>>();
                    snippet.initrd = snippet.initrd.iter().map(expand).collect();
                    snippet.initrd.retain(|path| !path.is_empty());
                    let options = options.join(" ");
                    self.entries
                        .push(bls::entry(&snippet, *volume, on, options));
                }
            }
        }
    }

    fn entry(&self, item: &Item, boot: Boot, fault: Option<Fault>) -> Entry {
        let part = |(volume, path): (usize, String)| Part::file(volume, &path);
        Entry {
            title: item.title.clone(),
            id: item.id.clone(),
            why_not: fault.map(|Fault(why)| why).or(boot.why_not),
            kernel: boot.linux.map(part),
            initrd: boot.initrd.into_iter().map(part).collect(),
            cmdline: boot.cmdline,
            source: self.source.clone(),
        }
    }
}

/// Which item `default` stands for, by its number, title or identifier, and what is left of it
/// for a submenu; the first where it stands for none.
fn choose(menu: &[Item], default: &str) -> (usize, String) {
    let is =
        |item: &Item, name: &str| item.title == name || (!item.id.is_empty() && item.id == name);
    if let Some(index) = menu.iter().position(|item| is(item, default)) {
        return (index, String::new());
    }
    let (first, rest) = split(default);
    let number = first
        .trim()
        .parse::<usize>()
        .ok()
        .filter(|n| *n < menu.len());
    let index = number.or_else(|| menu.iter().position(|item| is(item, &first)));
    match index {
        Some(index) => (index, rest),
        None => (0, String::new()),
    }
}

/// What is before the first `>`, and what is behind it; `>>` is a plain one.
fn split(text: &str) -> (String, String) {
    let mut first = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '>' && chars.next_if_eq(&'>').is_none() {
            return (first, chars.collect());
        }
        first.push(c);
    }
    (first, String::new())
}
