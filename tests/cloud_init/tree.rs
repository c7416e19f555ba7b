//! What two boots left behind, path by path.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::seed::Seed;

/// A root that is `lower` with `upper` on top, as overlayfs has it.
pub struct Tree<'a> {
    /// What every boot starts from.
    pub lower: &'a Path,
    /// What this one has changed.
    pub upper: PathBuf,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    None,
    Folder,
    Link(PathBuf),
    File(Vec<u8>),
    Other,
}

impl Tree<'_> {
    /// Whether a day of shadow(5), counted from 1970, is the one on which this root was set up: a
    /// judged root is kept for days, and a set-up may pass midnight.
    fn set_up_on(&self, day: &str) -> bool {
        let ended = fs::metadata(self.upper.join("var/lib/cloud/data/result.json")).unwrap();
        let ended = ended.mtime() / (24 * 60 * 60);
        day.parse()
            .is_ok_and(|day: i64| (ended - 1..=ended).contains(&day))
    }

    fn changed(&self) -> BTreeSet<PathBuf> {
        fn walk(folder: &Path, upper: &Path, found: &mut BTreeSet<PathBuf>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                found.insert(path.strip_prefix(upper).unwrap().to_owned());
                if fs::symlink_metadata(&path).unwrap().is_dir() {
                    walk(&path, upper, found);
                }
            }
        }
        let mut found = BTreeSet::new();
        walk(&self.upper, &self.upper, &mut found);
        found
    }

    fn look(&self, path: &Path) -> (Option<Metadata>, Kind) {
        let upper = self.upper.join(path);
        let (place, metadata) = match fs::symlink_metadata(&upper) {
            // A whiteout: something that was deleted.
            Ok(found) if found.file_type().is_char_device() && found.rdev() == 0 => {
                return (None, Kind::None);
            }
            Ok(found) => (upper, found),
            Err(_) => match fs::symlink_metadata(self.lower.join(path)) {
                Ok(found) if !self.hidden(path) => (self.lower.join(path), found),
                _ => return (None, Kind::None),
            },
        };
        let kind = if metadata.is_dir() {
            Kind::Folder
        } else if metadata.is_symlink() {
            Kind::Link(fs::read_link(place).unwrap())
        } else if metadata.is_file() {
            Kind::File(fs::read(place).unwrap())
        } else {
            Kind::Other
        };
        (Some(metadata), kind)
    }

    /// Whether a folder above it was deleted.
    fn hidden(&self, path: &Path) -> bool {
        path.ancestors().skip(1).any(|above| {
            fs::symlink_metadata(self.upper.join(above)).is_ok_and(|found| !found.is_dir())
        })
    }

    /// What is at `path`, in a line.
    fn tell(&self, path: &Path) -> String {
        match self.look(path) {
            (None, _) => "nothing".to_owned(),
            (Some(found), kind) => format!(
                "{:o} {}:{} {}",
                found.mode() & 0o7777,
                found.uid(),
                found.gid(),
                match kind {
                    Kind::Folder => "folder".to_owned(),
                    Kind::Link(to) => format!("-> {}", to.display()),
                    Kind::File(bytes) => format!("{} bytes", bytes.len()),
                    _ => "other".to_owned(),
                }
            ),
        }
    }
}

/// What differs, a line a path: what cloud-init left, what the agent left.
pub fn compare(judge: &Tree, agent: &Tree, seed: &Seed) -> Vec<(PathBuf, String)> {
    let mut paths = judge.changed();
    paths.extend(agent.changed());
    let mut differences = Vec::new();
    for path in paths {
        let (judge_meta, judge_kind) = judge.look(&path);
        let (agent_meta, agent_kind) = agent.look(&path);
        let rights = |found: &Option<Metadata>| {
            found
                .as_ref()
                .map(|found| (found.mode(), found.uid(), found.gid()))
        };
        if rights(&judge_meta) != rights(&agent_meta) {
            differences.push((
                path.clone(),
                format!("{} | {}", judge.tell(&path), agent.tell(&path)),
            ));
            continue;
        }
        if judge_kind == agent_kind {
            continue;
        }
        let (Kind::File(theirs), Kind::File(ours)) = (&judge_kind, &agent_kind) else {
            differences.push((
                path.clone(),
                format!("{} | {}", judge.tell(&path), agent.tell(&path)),
            ));
            continue;
        };
        let set_up = |theirs: &str, ours: &str| judge.set_up_on(theirs) && agent.set_up_on(ours);
        if let Some(difference) = contents(&path, theirs, ours, seed, set_up) {
            differences.push((path, difference));
        }
    }
    differences
}

/// A file's lines, but for those that say who made it and when.
fn without_makers(text: &str) -> String {
    let made = |line: &str| {
        ["# Created by ", "# Added by "]
            .iter()
            .any(|words| line.starts_with(words))
    };
    text.split_inclusive('\n')
        .filter(|line| !made(line))
        .collect()
}

/// How two files differ, if that means anything; `set_up` is whether two days are those on which
/// the two roots were set up.
fn contents(
    path: &Path,
    theirs: &[u8],
    ours: &[u8],
    seed: &Seed,
    set_up: impl Fn(&str, &str) -> bool,
) -> Option<String> {
    let name = path.file_name().unwrap().to_string_lossy();
    let theirs = without_makers(&String::from_utf8_lossy(theirs));
    let ours = without_makers(&String::from_utf8_lossy(ours));
    // When something was done first.
    if path.parent().is_some_and(|folder| folder.ends_with("sem")) {
        return None;
    }
    // cloud-init keeps keys in a set, whose order is another in each run.
    if name == "authorized_keys" {
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines.join("\n")
        };
        let (theirs, ours) = (sorted(&theirs), sorted(&ours));
        return (theirs != ours).then(|| first_difference(&theirs, &ours));
    }
    // Two keys of the same kind.
    if name.starts_with("ssh_host_") {
        let kind = |text: &str| text.split_whitespace().next().map(str::to_owned);
        return (kind(&theirs) != kind(&ours)).then(|| first_difference(&theirs, &ours));
    }
    if name.starts_with("shadow") || name.starts_with("gshadow") {
        let mut their_lines = theirs.lines();
        let mut same = |ours| {
            let theirs = their_lines.next()?;
            same_account(theirs, ours, &seed.passwords, &set_up).then_some(theirs)
        };
        let ours: String = ours
            .split_inclusive('\n')
            .map(|line| match same(line.trim_end_matches('\n')) {
                Some(theirs) => format!("{theirs}\n"),
                None => line.to_owned(),
            })
            .collect();
        return (theirs != ours).then(|| first_difference(&theirs, &ours));
    }
    (theirs != ours).then(|| first_difference(&theirs, &ours))
}

/// Whether two lines of shadow(5) differ in nothing but the salt, or the method, of a hash, and the
/// day on which the account was set up.
fn same_account(
    theirs: &str,
    ours: &str,
    passwords: &[String],
    set_up: impl Fn(&str, &str) -> bool,
) -> bool {
    let theirs: Vec<&str> = theirs.split(':').collect();
    let ours: Vec<&str> = ours.split(':').collect();
    let others_differ = theirs.len() != ours.len()
        || (0..theirs.len()).any(|field| match field {
            1 => false,
            2 => theirs[2] != ours[2] && !set_up(theirs[2], ours[2]),
            _ => theirs[field] != ours[field],
        });
    let (Some(their_hash), Some(our_hash)) = (theirs.get(1), ours.get(1)) else {
        return false;
    };
    if others_differ || their_hash == our_hash {
        return !others_differ;
    }
    // A lock (passwd -l) is a mark before it.
    if their_hash.starts_with('!') != our_hash.starts_with('!') {
        return false;
    }
    let (their_hash, our_hash) = (
        their_hash.trim_start_matches('!'),
        our_hash.trim_start_matches('!'),
    );
    passwords.iter().any(|password| {
        if password == "RANDOM" {
            return their_hash.starts_with('$') && our_hash.starts_with('$');
        }
        crypt(password, their_hash) == their_hash && crypt(password, our_hash) == our_hash
    })
}

/// crypt(3), by the C library's own.
fn crypt(password: &str, hash: &str) -> String {
    let mut perl = Command::new("perl")
        .args(["-e", "chomp($p = <STDIN>); print crypt($p, $ARGV[0])", hash])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("perl");
    writeln!(perl.stdin.take().unwrap(), "{password}").unwrap();
    String::from_utf8(perl.wait_with_output().unwrap().stdout).unwrap()
}

fn first_difference(theirs: &str, ours: &str) -> String {
    let (mut their_lines, mut our_lines) = (theirs.lines(), ours.lines());
    for number in 1.. {
        match (their_lines.next(), our_lines.next()) {
            (None, None) => break,
            (theirs, ours) if theirs == ours => {}
            (theirs, ours) => {
                let show =
                    |line: Option<&str>| line.map_or("nothing".to_owned(), |l| format!("{l:?}"));
                return format!("line {number}: {} | {}", show(theirs), show(ours));
            }
        }
    }
    "the line ends".to_owned()
}
