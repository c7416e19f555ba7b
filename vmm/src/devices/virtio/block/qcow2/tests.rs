//! Images as qemu-img makes them, read and written here, and looked at by qemu-img again.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

use super::*;

const MIB: usize = 1 << 20;

/// A process that another test starts has, until it is another program, whatever is open here, and
/// with it the lock of an image that is closed meanwhile.
fn patiently<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let pause = || std::thread::sleep(Duration::from_millis(10));
    (0..500).find_map(|_| {
        attempt().or_else(|| {
            pause();
            None
        })
    })
}

/// Runs a tool of qemu-utils on files of `folder`; what it says.
fn tool(folder: &Path, words: &str) -> String {
    let mut words = words.split(' ');
    let program = words.next().unwrap();
    let mut command = Command::new(program);
    command.args(words).current_dir(folder);
    let said = patiently(|| {
        let output = command.output();
        let output = output.unwrap_or_else(|e| panic!("{program} (qemu-utils): {e}"));
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let locked = said.contains("Failed to get");
        assert!(output.status.success() || locked, "{said}");
        (!locked).then_some(said)
    });
    said.unwrap()
}

/// 4 MiB of which every other 192 KiB is zeros and no two sectors are alike.
fn content() -> Vec<u8> {
    let sector = |n: usize| {
        let mut sector = [0; 512];
        if (n / 384).is_multiple_of(2) {
            sector[..8].copy_from_slice(&(n as u64 + 1).to_be_bytes());
            sector[511] = n as u8;
        }
        sector
    };
    (0..4 * MIB / 512).flat_map(sector).collect()
}

fn read(disk: &mut dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.size() as usize];
    disk.read(&VolatileSlice::from(bytes.as_mut_slice()), 0)
        .unwrap();
    bytes
}

fn open_below(folder: &Path, name: &str, read_only: bool) -> Result<Qcow2Disk, DiskError> {
    let opened = patiently(|| match open_now(folder, name, read_only) {
        Err(DiskError::InUse(_)) => None,
        result => Some(result),
    });
    opened.unwrap()
}

fn open_now(folder: &Path, name: &str, read_only: bool) -> Result<Qcow2Disk, DiskError> {
    let allowed = [folder.to_owned()];
    Qcow2Disk::open(&folder.join(name), read_only, BackingFiles::Below(&allowed))
}

/// A folder with `raw`, the content, and what `commands` make of it.
fn folder(commands: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("raw"), content()).unwrap();
    for command in commands {
        tool(folder.path(), command);
    }
    folder
}

#[test]
fn what_qemu_img_made_is_read_as_qemu_img_reads_it() {
    for commands in [
        &["qemu-img convert -O qcow2 raw disk"][..],
        &["qemu-img convert -c -O qcow2 raw disk"],
        &["qemu-img convert -c -O qcow2 -o compat=0.10,cluster_size=4096 raw disk"],
        &["qemu-img convert -O qcow2 -o cluster_size=2M,refcount_bits=64 raw disk"],
        // The rest is in a raw image, or in a compressed one, or two images below.
        &["qemu-img create -q -f qcow2 -b raw -F raw disk"],
        &[
            "qemu-img convert -c -O qcow2 raw base",
            "qemu-img create -q -f qcow2 -b base -F qcow2 middle",
            "qemu-io -c discard\u{a0}0\u{a0}512k -c write\u{a0}-P\u{a0}9\u{a0}1m\u{a0}100k middle",
            "qemu-img create -q -f qcow2 -b middle -F qcow2 disk 8M",
            "qemu-io -c write\u{a0}-z\u{a0}2m\u{a0}64k -c write\u{a0}-P\u{a0}7\u{a0}3000k\u{a0}70k disk",
        ],
        // A snapshot keeps what was; the active layer is what is.
        &[
            "qemu-img convert -O qcow2 raw disk",
            "qemu-img snapshot -c before disk",
            "qemu-io -c write\u{a0}-P\u{a0}5\u{a0}100k\u{a0}1m disk",
        ],
    ] {
        let folder = folder(&[]);
        for command in commands {
            // qemu-io takes a command of several words as one argument.
            let words: Vec<String> = command
                .split(' ')
                .map(|w| w.replace('\u{a0}', " "))
                .collect();
            let output = Command::new(&words[0])
                .args(&words[1..])
                .current_dir(folder.path())
                .output();
            assert!(output.unwrap().status.success(), "{command}");
        }
        tool(folder.path(), "qemu-img convert -O raw disk flat");
        let mut disk = open_below(folder.path(), "disk", true).unwrap();
        assert!(
            read(&mut disk) == fs::read(folder.path().join("flat")).unwrap(),
            "{commands:?}"
        );
    }
}

#[test]
fn bytes_that_lie_in_one_place_of_a_file_are_found_there_and_no_others() {
    let folder = folder(&[
        "qemu-img convert -c -O qcow2 raw compressed",
        "qemu-img convert -O qcow2 raw whole",
        "qemu-img create -q -f qcow2 -b raw -F raw overlay",
    ]);
    let place = |name, at, len, write| {
        let mut disk = open_below(folder.path(), name, false).unwrap();
        let found = disk.place(at, len, write);
        found.map(|(file, place)| {
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, place).unwrap();
            bytes
        })
    };
    let of = |at: usize, len: usize| Some(content()[at..at + len].to_vec());
    // The first 192 KiB lie in a row, the next are zeros and lie nowhere.
    assert_eq!(place("whole", 1024, 128 << 10, false), of(1024, 128 << 10));
    assert_eq!(place("whole", 1024, 128 << 10, true), of(1024, 128 << 10));
    assert_eq!(place("whole", 128 << 10, 128 << 10, false), None);
    assert_eq!(place("compressed", 0, 512, false), None);
    assert_eq!(place("overlay", 512, 4096, false), of(512, 4096));
    assert_eq!(place("overlay", 512, 4096, true), None, "the image below");
}

#[test]
fn an_image_s_own_tables_are_not_written_past_imago() {
    let folder = folder(&["qemu-img convert -O qcow2 raw disk"]);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(folder.path().join("disk"))
        .unwrap();
    let entry = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes) & ordered::PLACE
    };
    // Its first cluster is said to lie where the table is that says so.
    let l1 = entry(40);
    let copied = 1 << 63;
    let lie = l1 | copied;
    file.write_all_at(&lie.to_be_bytes(), entry(l1)).unwrap();
    let mut disk = open_below(folder.path(), "disk", false).unwrap();
    assert!(disk.place(0, 512, false).is_some());
    assert!(disk.place(0, 512, true).is_none());
    assert!(disk.place(64 << 10, 512, true).is_some());
}

#[derive(Debug, Clone)]
enum Change {
    Write(u8),
    Zero,
    Discard,
    Flush,
}

/// Each with its first sector, and how many.
type Changes = Vec<(Change, usize, usize)>;

fn changes() -> impl Strategy<Value = Changes> {
    let change = prop_oneof![
        4 => any::<u8>().prop_map(Change::Write),
        1 => Just(Change::Zero),
        1 => Just(Change::Discard),
        1 => Just(Change::Flush),
    ];
    prop::collection::vec((change, 0usize..8192, 1usize..700), 1..24)
}

/// Makes a change, on the disk and on its model.
fn make(disk: &mut dyn Disk, model: &mut [u8], change: &Change, at: usize, len: usize) {
    match change {
        Change::Write(byte) => {
            let mut bytes = vec![*byte; len];
            model[at..at + len].copy_from_slice(&bytes);
            // Every other one as a ring writes it.
            let past = byte.is_multiple_of(2);
            match disk.place(at as u64, len as u64, true).filter(|_| past) {
                Some((file, place)) => file.write_all_at(&bytes, place).unwrap(),
                None => {
                    let slice = VolatileSlice::from(bytes.as_mut_slice());
                    disk.write(&slice, at as u64).unwrap();
                }
            }
        }
        Change::Flush => disk.flush().unwrap(),
        zero => {
            model[at..at + len].fill(0);
            let unmap = matches!(zero, Change::Discard);
            disk.zero(at as u64, len as u64, unmap).unwrap();
        }
    }
}

/// Images to write to, each the content.
fn writable() -> (tempfile::TempDir, [(u32, &'static str); 4]) {
    let folder = folder(&[
        "qemu-img convert -c -O qcow2 raw compressed",
        "qemu-img create -q -f qcow2 -b compressed -F qcow2 overlay",
        "qemu-img convert -O qcow2 -o cluster_size=4096 raw small",
        "qemu-img convert -O qcow2 -o compat=0.10 raw old",
    ]);
    let images = [(4, "compressed"), (4, "overlay"), (4, "small"), (2, "old")];
    (folder, images)
}

fn within(model: &[u8], sector: usize, sectors: usize) -> (usize, usize) {
    let at = (sector * 512).min(model.len() - 512);
    (at, (sectors * 512).min(model.len() - at))
}

/// Has `test` make changes to fresh disks of each kind, the folder's `disk`.
fn on_each(test: impl Fn(&Path, Qcow2Disk, Changes)) {
    let (made, images) = writable();
    let folder = made.path();
    for (cases, base) in images {
        let mut runner = TestRunner::new(Config::with_cases(cases));
        let run = |changes: Changes| {
            fs::copy(folder.join(base), folder.join("disk")).unwrap();
            test(folder, open_below(folder, "disk", false).unwrap(), changes);
            Ok(())
        };
        runner.run(&changes(), run).unwrap();
    }
}

#[test]
fn whatever_is_written_is_there_and_qemu_img_finds_the_image_sound() {
    on_each(|folder, mut disk, changes| {
        let mut model = content();
        for (change, sector, sectors) in changes {
            let (at, len) = within(&model, sector, sectors);
            make(&mut disk, &mut model, &change, at, len);
        }
        assert!(read(&mut disk) == model);
        disk.flush().unwrap();
        drop(disk);
        tool(folder, "qemu-img check -q disk");
        tool(folder, "qemu-img convert -O raw disk flat");
        assert!(fs::read(folder.join("flat")).unwrap() == model);
    });
}

#[test]
fn what_was_flushed_is_there_when_the_process_is_killed_and_nothing_is_corrupt() {
    on_each(|folder, mut disk, changes| {
        let mut model = content();
        let mut since = vec![false; model.len()];
        for (change, sector, sectors) in changes {
            let (at, len) = within(&model, sector, sectors);
            make(&mut disk, &mut model, &change, at, len);
            match change {
                Change::Flush => since.fill(false),
                _ => since[at..at + len].fill(true),
            }
            // What the kernel has of the file is what a killed process leaves.
            fs::copy(folder.join("disk"), folder.join("left")).unwrap();
            let mut check = Command::new("qemu-img");
            check.args(["check", "-q", "left"]).current_dir(folder);
            let status = check.status().unwrap();
            // 3: clusters that nobody uses, which is allowed.
            assert!(matches!(status.code(), Some(0 | 3)), "{status}");
        }
        let left = read(&mut open_below(folder, "left", true).unwrap());
        let mut bytes = left.iter().zip(&model).zip(&since);
        assert!(bytes.all(|((left, model), since)| *since || left == model));
    });
}

/// What reached a file, in order, and what the guest did meanwhile.
#[derive(Debug)]
enum Event {
    Written(u64, Vec<u8>),
    Zeroed(u64, u64),
    Synced,
    /// The guest changes these bytes.
    Touched(usize, usize),
    /// A flush has ended, and this is the disk.
    Flushed(Vec<u8>),
}

/// A file whose every change is known.
#[derive(Debug)]
struct Recorder {
    file: File,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Recorder {
    fn note(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

impl std::fmt::Display for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("recorder")
    }
}

impl Storage for Recorder {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    unsafe fn pure_readv(&self, to: IoVectorMut<'_>, at: u64) -> io::Result<()> {
        // SAFETY: the caller's promises are passed on, here and below.
        unsafe { self.file.pure_readv(to, at) }
    }

    unsafe fn pure_writev(&self, from: IoVector<'_>, at: u64) -> io::Result<()> {
        let mut bytes = vec![0; from.len() as usize];
        from.copy_into_slice(&mut bytes);
        self.note(Event::Written(at, bytes));
        // SAFETY: as above.
        unsafe { self.file.pure_writev(from, at) }
    }

    unsafe fn pure_write_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        self.note(Event::Zeroed(at, len));
        // SAFETY: as above.
        unsafe { self.file.pure_write_zeroes(at, len) }
    }

    unsafe fn pure_write_allocated_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        self.note(Event::Zeroed(at, len));
        // SAFETY: as above.
        unsafe { self.file.pure_write_zeroes(at, len) }
    }

    unsafe fn pure_discard(&self, at: u64, len: u64) -> io::Result<()> {
        self.note(Event::Zeroed(at, len));
        // SAFETY: as above.
        unsafe { self.file.pure_discard(at, len) }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.flush()
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()?;
        self.note(Event::Synced);
        Ok(())
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.file.get_storage_helper()
    }

    fn resize(&self, size: u64, preallocate: PreallocateMode) -> io::Result<()> {
        self.file.resize(size, preallocate)
    }
}

/// What a power cut at this place of the log leaves: all that was synced, and of the rest what
/// `luck` says.
fn cut(before: &[u8], events: &[Event], luck: u64) -> Vec<u8> {
    let synced = events.iter().rposition(|e| matches!(e, Event::Synced));
    let mut image = before.to_vec();
    for (i, event) in events.iter().enumerate() {
        let lucky = luck >> (i % 64) & 1 == 1;
        if synced.is_none_or(|synced| i > synced) && !lucky {
            continue;
        }
        let (at, bytes) = match event {
            Event::Written(at, bytes) => (*at as usize, bytes.clone()),
            Event::Zeroed(at, len) => (*at as usize, vec![0; *len as usize]),
            _ => continue,
        };
        image.resize(image.len().max(at + bytes.len()), 0);
        image[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    image
}

#[test]
fn a_power_cut_at_any_place_leaves_what_was_flushed_and_nothing_corrupt() {
    let (made, _) = writable();
    let folder = made.path();
    for base in ["compressed", "small"] {
        let before = fs::read(folder.join(base)).unwrap();
        let mut runner = TestRunner::new(Config::with_cases(4));
        let cuts = prop::collection::vec((any::<Index>(), any::<u64>()), 4);
        let run = |(changes, cuts): (Changes, Vec<(Index, u64)>)| {
            let path = folder.join("disk");
            fs::write(&path, &before).unwrap();
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .unwrap();
            let header = header::read(&file, &path).unwrap();
            let layout = header.layout(&file, &path).unwrap();
            let file = File::from_open_file(file, StorageOpenOptions::new().write(true)).unwrap();
            let events = Arc::new(Mutex::new(Vec::new()));
            let recorder = Recorder {
                file,
                events: Arc::clone(&events),
            };
            let note = |event| events.lock().unwrap().push(event);
            let image = Qcow2::<Ordered<Recorder>>::builder(Ordered::new(recorder, layout, None));
            let image = image.write(true).backing(None).data_file(None);
            let image = image.open(DenyImplicitOpenGate::default()).unwrap();
            let mut disk = Qcow2Disk {
                image: FormatAccess::new(image),
                size: header.size,
                read_only: false,
                piece: Vec::new(),
            };
            let mut model = content();
            note(Event::Flushed(model.clone()));
            for (change, sector, sectors) in changes {
                let (at, len) = within(&model, sector, sectors);
                if !matches!(change, Change::Flush) {
                    note(Event::Touched(at, len));
                }
                make(&mut disk, &mut model, &change, at, len);
                if matches!(change, Change::Flush) {
                    note(Event::Flushed(model.clone()));
                }
            }
            drop(disk);
            note(Event::Flushed(model));
            let events = events.lock().unwrap();
            for (place, luck) in cuts {
                let events = &events[..=place.index(events.len())];
                // A file of its own: what another test starts this moment may hold the last one's
                // lock until it is another program.
                let left = format!("left-{luck}");
                fs::write(folder.join(&left), cut(&before, events, luck)).unwrap();
                let mut check = Command::new("qemu-img");
                check.args(["check", "-q", &left]).current_dir(folder);
                let said = check.output().unwrap();
                assert!(matches!(said.status.code(), Some(0 | 3)), "{said:?}");
                let left = read(&mut open_below(folder, &left, true).unwrap());
                let flushed = events.iter().rposition(|e| matches!(e, Event::Flushed(_)));
                let (flushed, after) = events.split_at(flushed.unwrap() + 1);
                let Some(Event::Flushed(model)) = flushed.last() else {
                    unreachable!()
                };
                let mut touched = vec![false; model.len()];
                for event in after {
                    if let Event::Touched(at, len) = event {
                        touched[*at..at + len].fill(true);
                    }
                }
                let mut bytes = left.iter().zip(model).zip(&touched);
                assert!(bytes.all(|((left, model), touched)| *touched || left == model));
            }
            Ok(())
        };
        runner.run(&(changes(), cuts), run).unwrap();
    }
}

#[test]
fn what_cannot_be_read_is_named_with_the_command_that_mends_it() {
    let folder = folder(&[
        "qemu-img create -q -f qcow2 -o compression_type=zstd zstd 1M",
        "qemu-img create -q -f qcow2 -o extended_l2=on extended 1M",
        "qemu-img create -q -f qcow2 -o data_file=data,data_file_raw=on external 1M",
        "qemu-img create -q -f qcow2 luks 1M",
        "qemu-img create -q -f qcow2 dirty 1M",
        "qemu-img create -q -f qcow2 corrupt 1M",
        "qemu-img create -q -f qcow2 future 1M",
        "qemu-img create -q -f qcow2 short 1M",
        "qemu-img create -q -f qcow2 huge 1M",
        "qemu-img create -q -f qcow2 tables 1M",
        "qemu-img create -q -f qcow2 uncounted 1M",
        "qemu-img create -q -f qcow2 snapshot 1M",
        "qemu-img snapshot -c before snapshot",
    ]);
    let patch = |name: &str, at: u64, bytes: &[u8]| {
        let file = OpenOptions::new()
            .write(true)
            .open(folder.path().join(name));
        file.unwrap().write_all_at(bytes, at).unwrap();
    };
    patch("luks", 35, &[2]);
    patch("dirty", 79, &[1]);
    patch("corrupt", 79, &[2]);
    patch("future", 78, &[1]);
    patch("huge", 24, &[0x7f]);
    patch("tables", 24, &(1u64 << 40).to_be_bytes());
    let short = OpenOptions::new()
        .write(true)
        .open(folder.path().join("short"));
    short.unwrap().set_len(80).unwrap();
    for (name, said, command) in [
        ("zstd", "zstd", "qemu-img convert -O qcow2 "),
        ("extended", "extended L2", "qemu-img convert -O qcow2 "),
        ("external", "another file", "qemu-img convert -O qcow2 "),
        ("luks", "encrypted", "qemu-img convert"),
        ("dirty", "not closed properly", "qemu-img check -r all "),
        ("corrupt", "marked corrupt", "qemu-img check -r all "),
        (
            "future",
            "not known here (0x100)",
            "qemu-img convert -O qcow2 ",
        ),
        ("short", "truncated in its header", ""),
        ("tables", "its tables are not of its disk's size", ""),
        ("huge", "larger than 16 TiB", ""),
        ("raw", "is no qcow2 image", ""),
    ] {
        let error = open_below(folder.path(), name, true)
            .err()
            .unwrap()
            .to_string();
        assert_eq!(error.lines().count(), 1);
        assert!(error.contains(said) && error.contains(command), "{error}");
        assert!(error.contains(&format!("/{name}: ")), "{error}");
    }
    // The header's cluster is nobody's, so the next thing written would go there.
    let table = fs::read(folder.path().join("uncounted")).unwrap();
    let table = u64::from_be_bytes(table[48..56].try_into().unwrap());
    patch("uncounted", table, &[0; 8]);
    let error = open_below(folder.path(), "uncounted", false).err().unwrap();
    let error = error.to_string();
    assert!(
        error.contains("its refcounts are wrong: `qemu-img check -r all"),
        "{error}"
    );
    assert!(open_below(folder.path(), "snapshot", true).is_ok());
    let error = open_below(folder.path(), "snapshot", false).err().unwrap();
    let error = error.to_string();
    assert!(
        error.contains("has snapshots, and is only read: `qemu-img convert"),
        "{error}"
    );
}

#[test]
fn a_backing_file_is_opened_only_below_a_directory_that_was_named() {
    let made = folder(&[
        "qemu-img create -q -f qcow2 -b raw -F raw disk",
        "qemu-img create -q -f qcow2 -u -b /etc/passwd -F raw thief 1M",
        "qemu-img create -q -f qcow2 -u -b ../../../../../../etc/passwd -F raw climber 1M",
        "qemu-img create -q -f qcow2 -u -b nbd://localhost/x -F raw net 1M",
        "qemu-img create -q -f qcow2 -u -b pool -F qcow2 loop 1M",
        "qemu-img create -q -f qcow2 -u -b loop -F qcow2 pool 1M",
        "qemu-img create -q -f qcow2 -u -b raw -F vmdk other 1M",
        "qemu-img create -q -f qcow2 -u -b gone -F raw lost 1M",
    ]);
    let folder = made.path();
    std::os::unix::fs::symlink("/etc/passwd", folder.join("link")).unwrap();
    tool(
        folder,
        "qemu-img create -q -f qcow2 -u -b link -F raw linked 1M",
    );
    let refused = |name: &str, said: &str| {
        let error = open_below(folder, name, true).err().unwrap().to_string();
        assert!(error.contains(said), "{name}: {error}");
    };
    for thief in ["thief", "climber", "linked"] {
        refused(thief, "--backing-dir /etc");
    }
    refused("net", "is no file");
    refused("loop", "more than 16 backing files");
    refused("other", "has another format");
    refused("lost", "gone: No such file");
    let disk = folder.join("disk");
    let alone = |allowed| {
        Qcow2Disk::open(&disk, true, allowed)
            .err()
            .unwrap()
            .to_string()
    };
    let (nobody, said) = (Vec::new(), alone(BackingFiles::None));
    assert!(said.contains("not in the container image"), "{said}");
    let said = alone(BackingFiles::Below(&nobody));
    assert!(
        said.contains(&format!("--backing-dir {}", folder.display())),
        "{said}"
    );
    assert!(open_below(folder, "disk", false).is_ok());
}

#[test]
fn neither_we_nor_qemu_write_what_the_other_has_open() {
    let made = folder(&["qemu-img convert -O qcow2 raw disk"]);
    let folder = made.path();
    let qemu = || {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "qcow2", "disk"]).current_dir(folder);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    for read_only in [false, true] {
        let ours = open_below(folder, "disk", read_only).unwrap();
        let output = qemu().wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("Failed to get"), "{said}");
        drop(ours);
    }
    let theirs = patiently(|| {
        let mut theirs = qemu();
        // It may have ended already.
        let _ = theirs.stdin.as_mut().unwrap().write_all(b"length\n");
        let output = BufReader::new(theirs.stdout.take().unwrap());
        // Where it has answered, it has opened.
        let mut lines = output.lines().map_while(Result::ok);
        let opened = lines.any(|line| line.contains("4 MiB"));
        opened.then_some((theirs, lines))
    });
    let (mut theirs, _output) = theirs.expect("qemu-io opens what nobody has open");
    for read_only in [false, true] {
        let refused = open_now(folder, "disk", read_only);
        assert!(matches!(refused, Err(DiskError::InUse(_))));
    }
    drop(theirs.stdin.take());
    theirs.wait().unwrap();
    assert!(open_below(folder, "disk", false).is_ok());
}

#[test]
fn no_bytes_of_an_image_make_its_reader_panic() {
    let made = folder(&["qemu-img convert -c -O qcow2 -o cluster_size=512 raw disk"]);
    let folder = made.path();
    let sound = fs::read(folder.join("disk")).unwrap();
    let mut runner = TestRunner::new(Config::with_cases(200));
    // The header, what it points to, and anything.
    let place = prop_oneof![0usize..112, 0usize..16384, 0usize..sound.len()];
    let patches = prop::collection::vec((place, any::<u64>()), 1..6);
    let run = |patches: Vec<(usize, u64)>| {
        let mut bytes = sound.clone();
        for (at, value) in patches {
            let at = at.min(bytes.len() - 8);
            bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        fs::write(folder.join("bad"), bytes).unwrap();
        if let Ok(mut disk) = open_below(folder, "bad", false) {
            let mut buffer = vec![1; 4096];
            let slice = VolatileSlice::from(buffer.as_mut_slice());
            for at in [0, 8192, disk.size().saturating_sub(4096)] {
                let _ = disk.read(&slice, at);
                let _ = disk.write(&slice, at);
                let _ = disk.zero(at, 4096, true);
            }
            let _ = disk.flush();
        }
        Ok(())
    };
    runner.run(&patches, run).unwrap();
}
