//! The files of a snapshot.
//!
//! `snapshot` is the last that is written. Its first line has the version and a checksum of what
//! follows: JSON, with each other file's length and checksum, and the VM's state. `memory` is the
//! guest's, and `disk-0` and so on what it had written to the disks that went with it; all of these
//! are as long as what they hold, with holes where there are zeros.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::stream::{self, BLOCK, file};
use super::{SavedDisk, Snapshot, VERSION};
use crate::devices::virtio::block::disk::read_padded;
use crate::hex::hex;

const MAIN: &str = "snapshot";
const MEMORY: &str = "memory";
/// There where a VM with disks that stay was restored.
const USED: &str = "restored";
const MAGIC: &str = "peapod snapshot";
/// More than the state of the largest machine.
const MAX_STATE: usize = 64 << 20;

/// Why a snapshot can't be written or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system says so.
    #[error("{path}: {cause}", path = .0.display(), cause = .1)]
    Io(PathBuf, io::Error),
    /// It is not one.
    #[error("{path}: {why}", path = .0.display(), why = .1)]
    Invalid(PathBuf, String),
    /// The VM ended, or the connection did.
    #[error(
        "the snapshot is not whole, and what there was of it is removed: the VM has ended, or it was stopped"
    )]
    Cut,
}

/// What the main file has.
#[derive(Serialize, Deserialize)]
struct Main<S> {
    files: BTreeMap<String, Stored>,
    state: S,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    bytes: u64,
    /// Of each block that is not zeros, its place and its bytes.
    sha256: String,
}

/// A file that is being written.
struct Growing {
    name: String,
    file: File,
    sum: Sha256,
}

/// Writes a stream's pieces to files. What is not finished is removed.
pub struct Writer {
    directory: PathBuf,
    files: BTreeMap<u32, Growing>,
    state: Vec<u8>,
    /// What has come of the next piece.
    pending: Vec<u8>,
    ended: bool,
    finished: bool,
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |cause| Error::Io(path, cause)
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    // It has all that the guest knows.
    options.mode(0o600).open(path)
}

fn name(number: u32) -> String {
    match number {
        file::MEMORY => MEMORY.to_owned(),
        disk => format!("disk-{}", disk.saturating_sub(file::DISKS)),
    }
}

impl Writer {
    /// Makes the directory, which must not be there.
    pub fn create(directory: &Path) -> Result<Self, Error> {
        let made = DirBuilder::new().mode(0o700).create(directory);
        made.map_err(io_at(directory))?;
        Ok(Self {
            directory: directory.to_owned(),
            files: BTreeMap::new(),
            state: Vec::new(),
            pending: Vec::new(),
            ended: false,
            finished: false,
        })
    }

    fn piece(&mut self, number: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        match number {
            file::END => self.ended = true,
            file::STATE => {
                let in_order = at == self.state.len() as u64;
                if !in_order || self.state.len() + bytes.len() > MAX_STATE {
                    return Err(io::Error::other("what the VM sends is no snapshot"));
                }
                self.state.extend(bytes);
            }
            number => {
                let growing = self.file(number)?;
                growing.file.write_all_at(bytes, at)?;
                add(&mut growing.sum, at, bytes);
            }
        }
        Ok(())
    }

    fn file(&mut self, number: u32) -> io::Result<&mut Growing> {
        use std::collections::btree_map::Entry;
        match self.files.entry(number) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(new) => {
                let name = name(number);
                let file = create(&self.directory.join(&name))?;
                Ok(new.insert(Growing {
                    name,
                    file,
                    sum: Sha256::new(),
                }))
            }
        }
    }

    /// All has come: the snapshot is whole, and on stable storage.
    pub fn finish(mut self) -> Result<(), Error> {
        if !self.ended {
            return Err(Error::Cut);
        }
        let directory = self.directory.clone();
        let failed = || io_at(&directory);
        let invalid = |why: serde_json::Error| Error::Invalid(directory.clone(), why.to_string());
        let snapshot: Snapshot = serde_json::from_slice(&self.state).map_err(invalid)?;
        let disks = (file::DISKS..).zip(&snapshot.disks);
        let lengths = disks.map(|(number, disk)| (number, disk.size));
        let mut files = BTreeMap::new();
        for (number, bytes) in [(file::MEMORY, snapshot.memory)].into_iter().chain(lengths) {
            let growing = self.file(number).map_err(failed())?;
            let stable = growing.file.set_len(bytes);
            let stable = stable.and_then(|()| growing.file.sync_all());
            stable.map_err(failed())?;
            let sha256 = hex(&growing.sum.clone().finalize());
            files.insert(growing.name.clone(), Stored { bytes, sha256 });
        }
        let main = Main {
            files,
            state: &snapshot,
        };
        let json = serde_json::to_vec(&main).map_err(invalid)?;
        let sum = sum_of(&json);
        let path = directory.join(MAIN);
        let mut file = create(&path).map_err(failed())?;
        let written = writeln!(file, "{MAGIC} {VERSION} {sum}")
            .and_then(|()| file.write_all(&json))
            .and_then(|()| file.sync_all())
            .and_then(|()| File::open(&directory)?.sync_all());
        written.map_err(io_at(&path))?;
        self.finished = true;
        Ok(())
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pending = std::mem::take(&mut self.pending);
        pending.extend(bytes);
        let mut rest = &pending[..];
        while let Some((piece, behind)) = stream::first(rest).map_err(io::Error::other)? {
            self.piece(piece.file, piece.at, piece.bytes)?;
            rest = behind;
        }
        self.pending = rest.to_vec();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            // It was made by us, and is of no use to anybody.
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

fn add(sum: &mut Sha256, at: u64, bytes: &[u8]) {
    sum.update(at.to_le_bytes());
    sum.update(bytes);
}

/// What a file's first line says of what follows.
fn sum_of(json: &[u8]) -> String {
    hex(&Sha256::digest(json))
}

/// Reads the main file's content.
fn parse(bytes: &[u8]) -> Result<Main<Snapshot>, String> {
    let line = bytes.iter().position(|byte| *byte == b'\n');
    let (line, json) = bytes.split_at(line.ok_or("it is no snapshot of Peapod's")?);
    let json = json.get(1..).unwrap_or_default();
    let line = std::str::from_utf8(line).unwrap_or_default();
    let rest = line.strip_prefix(MAGIC).map(str::trim_start);
    let rest = rest.ok_or("it is no snapshot of Peapod's")?;
    let (version, sum) = rest.split_once(' ').unwrap_or((rest, ""));
    if version != VERSION.to_string() {
        return Err(format!(
            "it is of version {}, and this Peapod reads {VERSION}; restore it with the one that took it",
            version.escape_debug()
        ));
    }
    if sum != sum_of(json) {
        return Err("it is damaged: its checksum is another".to_owned());
    }
    serde_json::from_slice(json).map_err(|error| format!("it makes no sense: {error}"))
}

/// A snapshot that is there, its files open.
#[derive(Debug)]
pub struct Restored {
    directory: PathBuf,
    /// The guest's memory.
    pub memory: File,
    /// What was written to each disk, in the order of the snapshot's disks.
    layers: Vec<File>,
    /// What it is of.
    pub snapshot: Box<Snapshot>,
}

impl std::fmt::Debug for Snapshot {
    /// Not the state, which holds what the guest's registers do.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Snapshot({})", self.software)
    }
}

impl Restored {
    /// Opens a snapshot; `verify` reads all of it.
    pub fn open(directory: &Path, verify: bool) -> Result<Self, Error> {
        let path = directory.join(MAIN);
        let invalid = |why: String| Error::Invalid(path.clone(), why);
        let length = fs::metadata(&path).map_err(io_at(&path))?.len();
        if length > 2 * MAX_STATE as u64 {
            return Err(invalid("it is no snapshot of Peapod's".to_owned()));
        }
        let bytes = fs::read(&path).map_err(io_at(&path))?;
        let main = parse(&bytes).map_err(invalid)?;
        let open = |number: u32| {
            let name = name(number);
            let path = directory.join(&name);
            let file = File::open(&path).map_err(io_at(&path))?;
            let bytes = file.metadata().map_err(io_at(&path))?.len();
            let invalid = |why: String| Err(Error::Invalid(path.clone(), why));
            let Some(stored) = main.files.get(&name) else {
                return invalid("it does not belong to the snapshot".to_owned());
            };
            if bytes != stored.bytes {
                let why = format!("it is damaged: it has {bytes} bytes of {}", stored.bytes);
                return invalid(why);
            }
            if verify && sum(&file, bytes).map_err(io_at(&path))? != stored.sha256 {
                return invalid("it is damaged: its checksum is another".to_owned());
            }
            Ok(file)
        };
        let disks = (file::DISKS..).zip(&main.state.disks);
        Ok(Self {
            memory: open(file::MEMORY)?,
            layers: disks
                .map(|(number, _)| open(number))
                .collect::<Result<_, _>>()?,
            directory: directory.to_owned(),
            snapshot: Box::new(main.state),
        })
    }

    /// What was written to a disk of that name.
    pub fn disk(&self, name: &str) -> Option<(&SavedDisk, &File)> {
        let mut disks = self.snapshot.disks.iter().zip(&self.layers);
        disks.find(|(disk, _)| disk.name == name)
    }

    /// Has nobody else restore it, where the guest goes on writing to a disk that stays: with what it
    /// remembers of that disk no second guest may write there.
    pub fn use_up(&self) -> Result<(), Error> {
        let Some(kept) = self.snapshot.kept.first() else {
            return Ok(());
        };
        let path = self.directory.join(USED);
        match create(&path) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let why = format!(
                    "it was restored before, and what that guest has written to the disk `{kept}` this \
                     one knows nothing of; boot the VM instead"
                );
                Err(Error::Invalid(self.directory.clone(), why))
            }
            Err(error) => Err(Error::Io(path, error)),
        }
    }
}

fn sum(file: &File, length: u64) -> io::Result<String> {
    let mut sum = Sha256::new();
    let mut block = vec![0; BLOCK];
    for at in (0..length).step_by(BLOCK) {
        let len = (length - at).min(BLOCK as u64) as usize;
        let bytes = block.get_mut(..len).unwrap_or_default();
        read_padded(file, bytes, at)?;
        if bytes.iter().any(|byte| *byte != 0) {
            add(&mut sum, at, bytes);
        }
    }
    Ok(hex(&sum.finalize()))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use serde_json::json;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::super::stream::{Next, Stream};
    use super::*;

    /// A snapshot in `directory` of a VM with a MiB of memory, if the stream comes to its end.
    fn write(directory: &Path, kept: &[&str], whole: bool) -> Result<(), Error> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        memory
            .write_slice(b"remembered", GuestAddress(0x5_0000))
            .unwrap();
        let state = json!({
            "software": "test",
            "line": {"words": ["peapod", "run", "vm.yaml"], "directory": "/", "manifest": "kind: x"},
            "memory": 1 << 20,
            "disks": [],
            "kept": kept,
            "machine": {"vcpus": [], "chips": [], "clock": 7, "ports": {}, "windows": {}},
        });
        let (held, _until) = channel();
        let mut stream = Stream::new(state.to_string().into(), memory, Vec::new(), held);
        let mut writer = Writer::create(directory)?;
        loop {
            match stream.pull().unwrap() {
                // In parts, as a socket gives it.
                Next::Piece(piece) => piece
                    .chunks(1000)
                    .for_each(|part| writer.write_all(part).unwrap()),
                Next::Later => {}
                Next::End => break,
            }
            if !whole {
                break;
            }
        }
        writer.finish()
    }

    #[test]
    fn what_was_written_is_read_again_and_nobody_else_may_look() {
        use std::os::unix::fs::MetadataExt;
        let home = tempfile::tempdir().unwrap();
        let at = home.path().join("snap");
        write(&at, &[], true).unwrap();
        let restored = Restored::open(&at, true).unwrap();
        assert_eq!(restored.snapshot.line.words, ["peapod", "run", "vm.yaml"]);
        let mut bytes = [0; 10];
        restored.memory.read_exact_at(&mut bytes, 0x5_0000).unwrap();
        assert_eq!(&bytes, b"remembered");
        assert_eq!(fs::metadata(&at).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(at.join(MEMORY)).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(write(&at, &[], true), Err(Error::Io(..))));
        restored.use_up().unwrap();
        restored.use_up().unwrap();
    }

    #[test]
    fn one_that_was_cut_off_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let at = home.path().join("snap");
        assert!(matches!(write(&at, &[], false), Err(Error::Cut)));
        assert!(!at.exists());
    }

    #[test]
    fn one_that_is_damaged_or_foreign_is_refused_by_its_file() {
        let home = tempfile::tempdir().unwrap();
        let why = |break_it: &dyn Fn(&Path), verify| {
            let at = home.path().join("snap");
            write(&at, &[], true).unwrap();
            break_it(&at);
            let why = Restored::open(&at, verify).unwrap_err().to_string();
            fs::remove_dir_all(&at).unwrap();
            why
        };
        let change = |name: &'static str, from: &'static str, to: &'static str| {
            move |at: &Path| {
                let text = fs::read_to_string(at.join(name)).unwrap();
                assert!(text.contains(from));
                fs::write(at.join(name), text.replacen(from, to, 1)).unwrap();
            }
        };
        let said = why(&change(MAIN, "vm.yaml", "vm.yml"), false);
        assert!(
            said.ends_with("snap/snapshot: it is damaged: its checksum is another"),
            "{said}"
        );
        let said = why(&change(MAIN, "snapshot 2", "snapshot 9"), false);
        assert!(
            said.contains(&*format!(
                "it is of version 9, and this Peapod reads {VERSION}"
            )),
            "{said}"
        );
        let said = why(&change(MAIN, "peapod", "pod"), false);
        assert!(said.ends_with("it is no snapshot of Peapod's"), "{said}");
        let shorter = |at: &Path| {
            File::options()
                .write(true)
                .open(at.join(MEMORY))
                .unwrap()
                .set_len(5)
                .unwrap()
        };
        let said = why(&shorter, false);
        assert!(
            said.contains("memory: it is damaged: it has 5 bytes of 1048576"),
            "{said}"
        );
        let said = why(&change(MEMORY, "remembered", "dismembers"), true);
        assert!(said.contains("memory: it is damaged"), "{said}");
        let said = why(&|at| fs::remove_file(at.join(MEMORY)).unwrap(), false);
        assert!(said.contains("memory: No such file"), "{said}");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_behind_a_first_line_panic(version in 0..3u32, json in "[{\\[\"a-z:,0-9\\]}]{0,64}") {
            let sum = sum_of(json.as_bytes());
            for line in [format!("{MAGIC} {version} {sum}\n{json}"), json] {
                proptest::prop_assert!(parse(line.as_bytes()).is_err());
            }
        }
    }

    #[test]
    fn one_with_a_disk_that_stays_is_restored_once() {
        let home = tempfile::tempdir().unwrap();
        let at = home.path().join("snap");
        write(&at, &["data"], true).unwrap();
        Restored::open(&at, false).unwrap().use_up().unwrap();
        let why = Restored::open(&at, false).unwrap().use_up().unwrap_err();
        assert!(why.to_string().contains("to the disk `data`"), "{why}");
    }
}
