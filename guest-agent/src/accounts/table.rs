//! A file of lines of fields between colons.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::labels;

/// Such a file. A line that is none of a name is kept as it is.
#[derive(Debug, Clone)]
pub struct Table {
    path: PathBuf,
    lines: Vec<String>,
    /// What was read or kept last; `None` where there is no such file, which then is not written either.
    text: Option<String>,
    /// What that took the place of.
    old: Option<String>,
    touched: bool,
}

impl Table {
    /// Reads it.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = match fs::read(path) {
            // A comment may be in any encoding; it must survive, and does where it is UTF-8.
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let lines = text.as_deref().unwrap_or_default().lines();
        Ok(Self {
            path: path.to_owned(),
            lines: lines.map(str::to_owned).collect(),
            text,
            old: None,
            touched: false,
        })
    }

    /// The place of the line of a name.
    pub fn find(&self, name: &str) -> Option<usize> {
        let of_name = |line: &String| line.split(':').next() == Some(name) && line.contains(':');
        self.lines.iter().position(of_name)
    }

    /// The fields of the line of a name, which is the first of them.
    pub fn line(&self, name: &str) -> Option<impl Iterator<Item = &str>> {
        Some(self.lines.get(self.find(name)?)?.split(':'))
    }

    /// A field of the line of a name; the name itself is field 0.
    pub fn field(&self, name: &str, at: usize) -> Option<&str> {
        self.line(name)?.nth(at)
    }

    /// Field `at` of every line, as a number.
    pub fn numbers(&self, at: usize) -> impl Iterator<Item = u32> + '_ {
        let number = move |line: &String| line.split(':').nth(at)?.parse().ok();
        self.lines.iter().filter_map(number)
    }

    /// The lines, field by field.
    pub fn rows(&self) -> impl Iterator<Item = Vec<&str>> + '_ {
        self.lines.iter().map(|line| line.split(':').collect())
    }

    /// Whether a line has this number where passwd and group have theirs.
    pub fn has_number(&self, number: u32) -> bool {
        self.numbers(2).any(|other| other == number)
    }

    /// Sets a field of the line of a name.
    pub fn set(&mut self, name: &str, at: usize, value: &str) {
        let Some(line) = self.find(name).and_then(|at| self.lines.get_mut(at)) else {
            return;
        };
        let mut fields: Vec<&str> = line.split(':').collect();
        if let Some(field) = fields.get_mut(at) {
            *field = value;
        }
        *line = fields.join(":");
    }

    /// Adds a member to the list that a field is.
    pub fn add_member(&mut self, name: &str, at: usize, member: &str) {
        let Some(list) = self.field(name, at) else {
            return;
        };
        if list.split(',').any(|other| other == member) {
            return;
        }
        let list = match list {
            "" => member.to_owned(),
            list => format!("{list},{member}"),
        };
        self.set(name, at, &list);
    }

    /// Has it written even where nothing changes, as `passwd` does: the old file beside it is this one
    /// then.
    pub fn touch(&mut self) {
        self.touched = true;
    }

    /// Adds a line.
    pub fn push(&mut self, fields: &[&str]) {
        self.lines.push(fields.join(":"));
    }

    /// Ends a change: what there was before it is the old file now, though nothing is written yet.
    pub fn keep(&mut self) {
        let Some(text) = &mut self.text else {
            return;
        };
        let new: String = self.lines.iter().flat_map(|line| [line, "\n"]).collect();
        if new != *text || self.touched {
            self.old = Some(std::mem::replace(text, new));
            self.touched = false;
        }
    }

    /// Writes beside it what was kept, and nothing where nothing was. The old file stays with a dash
    /// after its name.
    fn stage(self) -> io::Result<Option<Staged>> {
        let (Some(text), Some(before)) = (self.text, self.old) else {
            return Ok(None);
        };
        let old = fs::metadata(&self.path)?;
        let write = |mark: &str, text: &str| {
            let path = beside(&self.path, mark);
            let mut file = new_file(&path)?;
            file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
            fchown(&file, Some(old.uid()), Some(old.gid()))?;
            file.write_all(text.as_bytes())?;
            labels::copy(&self.path, &path)?;
            Ok::<_, io::Error>(file)
        };
        write("-", &before)?;
        let file = write("+", &text)?;
        let path = self.path;
        Ok(Some(Staged { path, file }))
    }
}

/// What a table is to be, beside what it is.
struct Staged {
    path: PathBuf,
    file: File,
}

/// Writes what was kept of them, which are of one file system: a guest that is cut off has each old
/// file or the new one, whole.
pub fn commit(tables: impl IntoIterator<Item = Table>) -> io::Result<()> {
    let mut staged = Vec::new();
    for table in tables {
        staged.extend(table.stage()?);
    }
    // All at once, for each wait for the disk is one of a guest's longest.
    if let Some(any) = staged.first() {
        rustix::fs::syncfs(&any.file)?;
    }
    let put = |Staged { path, .. }: Staged| {
        labels::wrote(&beside(&path, "-"));
        fs::rename(beside(&path, "+"), &path)
    };
    staged.into_iter().try_for_each(put)
}

fn beside(path: &Path, mark: &str) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(mark);
    PathBuf::from(name)
}

/// A file that nobody but root can read before it has its rights, and that is no link to another.
fn new_file(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}
