//! Runs a script: variables, conditions, and the commands of which a kernel's start is made. What
//! is not known has failed, as an unknown command has in GRUB.

use std::collections::BTreeMap;

use super::super::bls::{self, Snippet};
use super::super::volume::Volume;
use super::super::{ENTRIES, MAX_TEXT, version};
use super::env;
use super::script::{self, Block, Piece, Statement, Word};

/// Statements that are carried out for one menu, or one entry.
const MAX_STEPS: usize = 20_000;
/// Functions and files within each other.
const MAX_DEPTH: usize = 16;
const MAX_FILES: usize = 32;
const MAX_VARIABLES: usize = 1024;
/// The longest value, and command line.
const MAX_VALUE: usize = 16 << 10;
const MAX_MENU: usize = 1024;
const MAX_ENV: u64 = 64 << 10;

/// Why a script could not be run to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault(pub(super) String);

/// A line of the menu.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) title: String,
    pub(super) id: String,
    pub(super) arguments: Vec<String>,
    pub(super) what: What,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    Entry(Block),
    Submenu(Block),
    /// An entry of type 1, whose paths are of this volume.
    Bls(usize, Snippet),
}

/// What an entry would start.
#[derive(Debug, Clone, Default)]
pub(super) struct Boot {
    /// Volume and path.
    pub(super) linux: Option<(usize, String)>,
    pub(super) initrd: Vec<(usize, String)>,
    pub(super) cmdline: String,
    /// It starts something else.
    pub(super) why_not: Option<String>,
}

/// A script that runs.
pub(super) struct Shell<'a> {
    pub(super) volumes: &'a [Volume],
    variables: BTreeMap<String, String>,
    functions: BTreeMap<String, Block>,
    arguments: Vec<String>,
    pub(super) menu: Vec<Item>,
    pub(super) boot: Boot,
    succeeded: bool,
    steps: usize,
    files: usize,
    depth: usize,
}

impl<'a> Shell<'a> {
    /// A shell as GRUB has it when it reads the configuration at `path` of `volume`.
    pub(super) fn new(volumes: &'a [Volume], volume: usize, path: &str) -> Self {
        let root = volumes
            .get(volume)
            .map(Volume::grub_name)
            .unwrap_or_default();
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let prefix = format!("({root}){directory}");
        let mut variables = BTreeMap::new();
        let mut set = |name: &str, value: &str| variables.insert(name.to_owned(), value.to_owned());
        set("root", &root);
        set("prefix", &prefix);
        set("config_directory", &prefix);
        // As it is started from a BIOS, which most images can be.
        set("grub_platform", "pc");
        set("grub_cpu", "i386");
        for feature in [
            "menuentry_id",
            "menuentry_options",
            "platform_search_hint",
            "timeout_style",
            "default_font_path",
            "all_video_module",
            "nativedisk_cmd",
            "chainloader_bpb",
            "ntldr",
            "200_final",
        ] {
            set(&format!("feature_{feature}"), "y");
        }
        Self {
            volumes,
            variables,
            functions: BTreeMap::new(),
            arguments: Vec::new(),
            menu: Vec::new(),
            boot: Boot::default(),
            succeeded: true,
            steps: 0,
            files: 0,
            depth: 0,
        }
    }

    /// A shell that goes on with a line of this one's menu.
    pub(super) fn for_entry(&self, item: &Item) -> Self {
        let mut variables = self.variables.clone();
        variables.insert("chosen".to_owned(), item.title.clone());
        Self {
            volumes: self.volumes,
            variables,
            functions: self.functions.clone(),
            arguments: item.arguments.clone(),
            menu: Vec::new(),
            boot: Boot::default(),
            succeeded: true,
            steps: 0,
            files: self.files,
            depth: 0,
        }
    }

    /// A variable's value, empty where it has none.
    pub(super) fn get(&self, name: &str) -> String {
        match name {
            "?" => if self.succeeded { "0" } else { "1" }.to_owned(),
            "#" => self.arguments.len().to_string(),
            "@" | "*" => self.arguments.join(" "),
            name => match name.parse::<usize>() {
                Ok(n) => n
                    .checked_sub(1)
                    .and_then(|n| self.arguments.get(n))
                    .cloned(),
                Err(_) => self.variables.get(name).cloned(),
            }
            .unwrap_or_default(),
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Fault> {
        if value.len() > MAX_VALUE || name.len() > MAX_VALUE {
            return Err(Fault("a variable is too long".to_owned()));
        }
        if self.variables.len() >= MAX_VARIABLES && !self.variables.contains_key(name) {
            return Err(Fault("too many variables".to_owned()));
        }
        self.variables.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// The text with its variables' values.
    pub(super) fn interpolate(&self, text: &str) -> String {
        let value = |piece| match piece {
            Piece::Text(text) => text,
            Piece::Variable { name, .. } => self.get(&name),
        };
        let text: String = script::interpolate(text).into_iter().map(value).collect();
        text.trim().chars().take(MAX_VALUE).collect()
    }

    /// The words that a word becomes.
    fn expand(&self, word: &Word, into: &mut Vec<String>) -> Result<(), Fault> {
        let mut text = String::new();
        let mut is_word = word.quoted;
        for piece in &word.pieces {
            match piece {
                Piece::Text(plain) => {
                    text += plain;
                    is_word = true;
                }
                Piece::Variable { name, quoted: true } => text += &self.get(name),
                Piece::Variable { name, .. } => {
                    let value = self.get(name);
                    is_word |= !value.trim().is_empty();
                    if value.starts_with(char::is_whitespace) && !text.is_empty() {
                        into.push(std::mem::take(&mut text));
                    }
                    let mut parts = value.split_whitespace().peekable();
                    while let Some(part) = parts.next() {
                        text += part;
                        if parts.peek().is_some() {
                            into.push(std::mem::take(&mut text));
                        }
                    }
                }
            }
            if text.len() > MAX_VALUE {
                return Err(Fault("a word is too long".to_owned()));
            }
        }
        if is_word {
            into.push(text);
        }
        Ok(())
    }

    fn words(&self, words: &[Word]) -> Result<Vec<String>, Fault> {
        let mut expanded = Vec::new();
        for word in words {
            self.expand(word, &mut expanded)?;
        }
        if expanded.len() > MAX_VALUE {
            return Err(Fault("a command has too many words".to_owned()));
        }
        Ok(expanded)
    }

    /// Carries out statements.
    pub(super) fn run(&mut self, block: &Block) -> Result<(), Fault> {
        for statement in block.iter() {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(Fault("its script does not end".to_owned()));
            }
            self.statement(statement)?;
        }
        Ok(())
    }

    fn holds(&mut self, condition: &Block) -> Result<bool, Fault> {
        self.run(condition)?;
        Ok(self.succeeded)
    }

    fn statement(&mut self, statement: &Statement) -> Result<(), Fault> {
        match statement {
            Statement::Command { words, block } => {
                let words = self.words(words)?;
                let not = words.iter().take_while(|w| *w == "!").count();
                let Some((name, arguments)) = words.get(not..).and_then(<[_]>::split_first) else {
                    return Ok(());
                };
                let succeeded = self.command(name, arguments, block.as_ref())?;
                self.succeeded = succeeded != (not % 2 == 1);
                Ok(())
            }
            Statement::If {
                branches,
                otherwise,
            } => {
                for (condition, body) in branches {
                    if self.holds(condition)? {
                        return self.run(body);
                    }
                }
                self.run(otherwise)
            }
            Statement::While {
                condition,
                until,
                body,
            } => {
                while self.holds(condition)? != *until {
                    // An empty loop has steps too.
                    self.steps += 1;
                    if self.steps > MAX_STEPS {
                        return Err(Fault("its script does not end".to_owned()));
                    }
                    self.run(body)?;
                }
                Ok(())
            }
            Statement::For { name, words, body } => {
                for word in self.words(words)? {
                    self.set(name, &word)?;
                    self.run(body)?;
                }
                Ok(())
            }
            Statement::Function { name, body } => {
                if self.functions.len() < MAX_VARIABLES {
                    self.functions.insert(name.clone(), body.clone());
                }
                Ok(())
            }
        }
    }

    fn deeper(&mut self, block: &Block) -> Result<(), Fault> {
        if self.depth >= MAX_DEPTH {
            return Err(Fault("its script calls itself for ever".to_owned()));
        }
        self.depth += 1;
        let result = self.run(block);
        self.depth -= 1;
        result
    }

    /// Carries out a command; whether it succeeded.
    fn command(
        &mut self,
        name: &str,
        arguments: &[String],
        block: Option<&Block>,
    ) -> Result<bool, Fault> {
        if let Some(function) = self.functions.get(name).cloned() {
            let outer = std::mem::replace(&mut self.arguments, arguments.to_vec());
            let result = self.deeper(&function);
            self.arguments = outer;
            return result.map(|()| self.succeeded);
        }
        match name {
            "menuentry" | "submenu" => return Ok(self.add(name, arguments, block)),
            "set" | "export" => {
                if let Some((name, value)) = arguments.first().and_then(|a| a.split_once('=')) {
                    self.set(name, value)?;
                }
            }
            "unset" => {
                for name in arguments {
                    self.variables.remove(name);
                }
            }
            "[" => {
                let test = arguments.split_last();
                return Ok(test.is_some_and(|(end, test)| end == "]" && self.test(test)));
            }
            "test" => return Ok(self.test(arguments)),
            "search" | "search.fs_uuid" | "search.fs_label" | "search.file" => {
                return self.search(name, arguments);
            }
            "load_env" => return self.load_env(arguments),
            "source" | "configfile" | "." | "normal" => return self.source(arguments),
            "blscfg" => return Ok(self.blscfg()),
            "linux" | "linux16" | "linuxefi" => return self.linux(arguments),
            "initrd" | "initrd16" | "initrdefi" => {
                let found: Option<Vec<_>> = arguments.iter().map(|a| self.path(a)).collect();
                let Some(found) = found else { return Ok(false) };
                self.boot.initrd = found;
            }
            "chainloader" => self.boot.why_not = Some("starts another boot loader".to_owned()),
            "multiboot" | "multiboot2" | "xen_hypervisor" => {
                self.boot.why_not = Some("starts a hypervisor".to_owned());
            }
            "false" | "loadfont" | "keystatus" => return Ok(false),
            "insmod" | "true" | ":" | "save_env" | "echo" | "gfxmode" | "terminal_input"
            | "terminal_output" | "serial" | "sleep" => {}
            // `name=value` alone is a command too.
            name => {
                let Some((name, value)) = name.split_once('=') else {
                    return Ok(false);
                };
                self.set(name, value)?;
            }
        }
        Ok(true)
    }

    fn add(&mut self, kind: &str, arguments: &[String], block: Option<&Block>) -> bool {
        let Some(block) = block.filter(|_| self.menu.len() < MAX_MENU) else {
            return false;
        };
        let mut plain = Vec::new();
        let mut id = String::new();
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--id" => id = words.next().cloned().unwrap_or_default(),
                "--class" | "--users" | "--hotkey" | "--source" => drop(words.next()),
                option if option.starts_with("--") => {
                    if let Some(value) = option.strip_prefix("--id=") {
                        id = value.to_owned();
                    }
                }
                _ => plain.push(word.clone()),
            }
        }
        let title = plain.first().cloned().unwrap_or_default();
        self.menu.push(Item {
            id,
            title,
            arguments: plain,
            what: match kind {
                "submenu" => What::Submenu(block.clone()),
                _ => What::Entry(block.clone()),
            },
        });
        true
    }

    /// The volume that a device's name stands for: `hd0,gpt1`, `hd0,msdos1`, `hd0,1`, `hd0`.
    fn device(&self, name: &str) -> Option<usize> {
        let number = match name.strip_prefix("hd0")? {
            "" => 0,
            rest => {
                let rest = rest.strip_prefix(',')?;
                let digits = rest.trim_start_matches(|c: char| c.is_ascii_alphabetic());
                digits.parse().ok()?
            }
        };
        self.volumes.iter().position(|v| v.number == number)
    }

    /// The volume and path of `(device)/path` or of `/path` on the root.
    fn path(&self, path: &str) -> Option<(usize, String)> {
        let (device, path) = match path.strip_prefix('(') {
            Some(rest) => {
                let (device, path) = rest.split_once(')')?;
                (device.to_owned(), path)
            }
            None => (String::new(), path),
        };
        let device = match device.as_str() {
            "" => self.get("root"),
            _ => device,
        };
        Some((self.device(&device)?, path.to_owned()))
    }

    fn file(&self, path: &str) -> Option<(bool, u64)> {
        let (volume, path) = self.path(path)?;
        self.volumes.get(volume)?.stat(&path)
    }

    /// `test`: alternatives (`-o`) of what must all hold (`-a`).
    fn test(&self, words: &[String]) -> bool {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut rest = words.as_slice();
        self.any(&mut rest, 0) && rest.is_empty()
    }

    fn any(&self, rest: &mut &[&str], depth: usize) -> bool {
        let mut holds = false;
        loop {
            let mut all = true;
            loop {
                // Each is read though it be decided already.
                all &= self.primary(rest, depth);
                match rest.split_first() {
                    Some((&"-a", tail)) => *rest = tail,
                    _ => break,
                }
            }
            holds |= all;
            match rest.split_first() {
                Some((&"-o", tail)) => *rest = tail,
                _ => return holds,
            }
        }
    }

    fn primary(&self, rest: &mut &[&str], depth: usize) -> bool {
        let mut negated = false;
        while let ["!", tail @ ..] = *rest {
            negated = !negated;
            *rest = tail;
        }
        let number = |text: &str| text.trim().parse::<i64>().unwrap_or(0);
        let (holds, tail) = match *rest {
            ["(", tail @ ..] if depth < MAX_DEPTH => {
                let mut inner = tail;
                let holds = self.any(&mut inner, depth + 1);
                match inner {
                    [")", tail @ ..] => (holds, tail),
                    _ => (false, &[][..]),
                }
            }
            [a, "=" | "==", b, tail @ ..] => (a == b, tail),
            [a, "!=", b, tail @ ..] => (a != b, tail),
            [a, "<", b, tail @ ..] => (a < b, tail),
            [a, ">", b, tail @ ..] => (a > b, tail),
            [a, "-eq", b, tail @ ..] => (number(a) == number(b), tail),
            [a, "-ne", b, tail @ ..] => (number(a) != number(b), tail),
            [a, "-lt", b, tail @ ..] => (number(a) < number(b), tail),
            [a, "-le", b, tail @ ..] => (number(a) <= number(b), tail),
            [a, "-gt", b, tail @ ..] => (number(a) > number(b), tail),
            [a, "-ge", b, tail @ ..] => (number(a) >= number(b), tail),
            ["-z", text, tail @ ..] => (text.is_empty(), tail),
            ["-n", text, tail @ ..] => (!text.is_empty(), tail),
            ["-d", path, tail @ ..] => (self.file(path).is_some_and(|(dir, _)| dir), tail),
            ["-f", path, tail @ ..] => (self.file(path).is_some_and(|(dir, _)| !dir), tail),
            ["-e", path, tail @ ..] => (self.file(path).is_some(), tail),
            ["-s", path, tail @ ..] => (self.file(path).is_some_and(|(_, len)| len > 0), tail),
            [text, tail @ ..] => (!text.is_empty(), tail),
            [] => (false, &[][..]),
        };
        *rest = tail;
        holds != negated
    }

    fn search(&mut self, command: &str, arguments: &[String]) -> Result<bool, Fault> {
        let mut by = command.strip_prefix("search.").unwrap_or("file").to_owned();
        let mut variable = None;
        let mut wanted = None;
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-u" | "--fs-uuid" => by = "fs_uuid".to_owned(),
                "-l" | "--label" | "--fs-label" => by = "fs_label".to_owned(),
                "-f" | "--file" => by = "file".to_owned(),
                "-s" | "--set" => variable = Some("root"),
                "--hint" => drop(words.next()),
                option if option.starts_with('-') => {
                    variable = option.strip_prefix("--set=").or(variable);
                }
                _ if wanted.is_none() => wanted = Some(word),
                // `search.fs_uuid UUID root hd0,gpt1`
                word if command != "search" && variable.is_none() => variable = Some(word),
                _ => {}
            }
        }
        let Some(wanted) = wanted else {
            return Ok(false);
        };
        let found = self.volumes.iter().find(|volume| match by.as_str() {
            "fs_uuid" => volume
                .uuid
                .as_ref()
                .is_some_and(|u| u.eq_ignore_ascii_case(wanted)),
            "fs_label" => volume.label.as_ref() == Some(wanted),
            _ => volume.stat(wanted).is_some(),
        });
        let Some(name) = found.map(Volume::grub_name) else {
            return Ok(false);
        };
        self.set(variable.unwrap_or("root"), &name)?;
        Ok(true)
    }

    fn load_env(&mut self, arguments: &[String]) -> Result<bool, Fault> {
        let mut file = format!("{}/grubenv", self.get("prefix"));
        let mut only = Vec::new();
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-f" | "--file" => file = words.next().cloned().unwrap_or_default(),
                "-s" | "--skip-sig" => {}
                option => match option.strip_prefix("--file=") {
                    Some(path) => file = path.to_owned(),
                    None => only.push(word),
                },
            }
        }
        let Some(bytes) = self.read(&file, MAX_ENV)? else {
            return Ok(false);
        };
        for (name, value) in env::parse(&bytes) {
            if only.is_empty() || only.contains(&&name) {
                self.set(&name, &value)?;
            }
        }
        Ok(true)
    }

    fn read(&mut self, path: &str, max: u64) -> Result<Option<Vec<u8>>, Fault> {
        self.files += 1;
        if self.files > MAX_FILES {
            return Err(Fault("its script reads too many files".to_owned()));
        }
        let found = self.path(path);
        let volume = found
            .as_ref()
            .and_then(|(volume, _)| self.volumes.get(*volume));
        let read = volume
            .zip(found.as_ref())
            .map(|(v, (_, path))| v.read(path, max));
        Ok(read.and_then(Result::ok))
    }

    fn source(&mut self, arguments: &[String]) -> Result<bool, Fault> {
        let Some(path) = arguments.first() else {
            return Ok(false);
        };
        let Some(bytes) = self.read(path, MAX_TEXT)? else {
            return Ok(false);
        };
        let script = script::parse(&String::from_utf8_lossy(&bytes))
            .map_err(|why| Fault(format!("{path}:{why}")))?;
        self.deeper(&script)?;
        Ok(true)
    }

    /// The root's entries of type 1, the newest first.
    fn blscfg(&mut self) -> bool {
        let Some(index) = self.device(&self.get("root")) else {
            return false;
        };
        let Some(volume) = self.volumes.get(index) else {
            return false;
        };
        let mut directories = ENTRIES.iter().map(|d| bls::snippets(volume, d));
        let Some(mut found) = directories.find(|found| !found.is_empty()) else {
            return false;
        };
        found.sort_by(|a, b| version::compare(&b.id, &a.id));
        let room = MAX_MENU.saturating_sub(self.menu.len());
        for snippet in found.into_iter().take(room) {
            self.menu.push(Item {
                title: snippet.title.clone().unwrap_or_default(),
                id: snippet.id.clone(),
                arguments: Vec::new(),
                what: What::Bls(index, snippet),
            });
        }
        true
    }

    fn linux(&mut self, arguments: &[String]) -> Result<bool, Fault> {
        let Some((kernel, options)) = arguments.split_first() else {
            return Ok(false);
        };
        let Some(found) = self.path(kernel) else {
            self.boot.why_not = Some(format!(
                "its kernel {kernel} is on no partition of this disk"
            ));
            return Ok(false);
        };
        // A word with a space in it was in quotes, and the kernel has to see that.
        let quote = |word: &String| match word.contains(char::is_whitespace) {
            true => format!("\"{word}\""),
            false => word.clone(),
        };
        let cmdline = options.iter().map(quote).collect::<Vec<_>>().join(" ");
        if cmdline.len() > MAX_VALUE {
            return Err(Fault("a command line is too long".to_owned()));
        }
        self.boot = Boot {
            linux: Some(found),
            cmdline,
            ..Boot::default()
        };
        Ok(true)
    }
}
