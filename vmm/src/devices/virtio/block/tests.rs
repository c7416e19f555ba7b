//! Requests as a driver makes them, and as a hostile one does.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::prelude::*;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use super::cow::CowDisk;
use super::disk::{DiskError, RawDisk};
use super::qcow2::{BackingFiles, Qcow2Disk};
use super::*;

const WRITE: u16 = 2;
const HEADER: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STATUS: u64 = 0x3_0000;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

fn image(directory: &Path, sectors: usize) -> std::path::PathBuf {
    let path = directory.join("disk.img");
    let bytes: Vec<u8> = (0..sectors * 512).map(|i| (i / 512) as u8).collect();
    fs::write(&path, bytes).unwrap();
    path
}

/// A request's header (section 5.2.6).
fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Executes one request: its type, sector and buffers (address, length, flags) behind the header.
fn request(
    memory: &GuestMemory,
    disk: &mut dyn Disk,
    kind: u32,
    sector: u64,
    buffers: &[(u64, u32, u16)],
) -> u32 {
    let header = header(kind, sector);
    memory.write_slice(&header, GuestAddress(HEADER)).unwrap();
    let mut descriptors = vec![RawDescriptor::from(Descriptor::new(HEADER, 16, 0, 0))];
    for (at, len, flags) in buffers {
        descriptors.push(RawDescriptor::from(Descriptor::new(*at, *len, *flags, 0)));
    }
    chain(memory, disk, &descriptors)
}

fn chain(memory: &GuestMemory, disk: &mut dyn Disk, descriptors: &[RawDescriptor]) -> u32 {
    let mock = MockSplitQueue::create(memory, GuestAddress(0), 16);
    mock.build_desc_chain(descriptors).unwrap();
    let mut queue: Queue = mock.create_queue().unwrap();
    let chain = queue.pop_descriptor_chain(memory).unwrap();
    let (serial, counters) = (b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0", Counters::default());
    request::execute(chain, disk, serial, &counters).unwrap_or(0)
}

fn status(memory: &GuestMemory) -> u8 {
    memory.read_obj(GuestAddress(STATUS)).unwrap()
}

#[test]
fn what_was_written_is_read_back_and_is_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(directory.path(), 8);
    let (memory, mut disk) = (memory(), RawDisk::open(&path, false).unwrap());
    memory
        .write_slice(&[0xaa; 1024], GuestAddress(DATA))
        .unwrap();
    request(
        &memory,
        &mut disk,
        1,
        2,
        &[(DATA, 600, 0), (DATA + 600, 424, 0), (STATUS, 1, WRITE)],
    );
    assert_eq!(status(&memory), OK);
    request(&memory, &mut disk, 4, 0, &[(STATUS, 1, WRITE)]);
    assert_eq!(status(&memory), OK);
    let written = request(
        &memory,
        &mut disk,
        0,
        1,
        &[(DATA, 2048, WRITE), (STATUS, 1, WRITE)],
    );
    assert_eq!((status(&memory), written), (OK, 2049));
    let mut back = [0; 2048];
    memory.read_slice(&mut back, GuestAddress(DATA)).unwrap();
    assert_eq!(
        (back[0], back[512], back[1535], back[1536]),
        (1, 0xaa, 0xaa, 4)
    );
    assert_eq!(fs::read(&path).unwrap()[1024..2048], [0xaa; 1024]);
}

#[test]
fn a_discarded_or_zeroed_range_reads_as_zeros() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(directory.path(), 32);
    let (memory, mut disk) = (memory(), RawDisk::open(&path, false).unwrap());
    for (kind, sector, flags) in [(11u32, 8u64, 0u32), (13, 16, 0), (13, 24, 1)] {
        let range = [
            &sector.to_le_bytes()[..],
            &2u32.to_le_bytes(),
            &flags.to_le_bytes(),
        ]
        .concat();
        memory.write_slice(&range, GuestAddress(DATA)).unwrap();
        request(
            &memory,
            &mut disk,
            kind,
            0,
            &[(DATA, 16, 0), (STATUS, 1, WRITE)],
        );
        assert_eq!(status(&memory), OK);
        let at = sector as usize * 512;
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes[at..at + 1024], [0; 1024]);
        assert_eq!(bytes[at + 1024], sector as u8 + 2);
    }
}

#[test]
fn what_does_not_fit_or_is_not_known_is_refused_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(directory.path(), 8);
    let before = fs::read(&path).unwrap();
    let (memory, mut disk) = (memory(), RawDisk::open(&path, false).unwrap());
    let end = (STATUS, 1, WRITE);
    for (kind, sector, buffers, expected) in [
        (1, 7, vec![(DATA, 1024, 0), end], IOERR),
        (1, u64::MAX, vec![(DATA, 512, 0), end], IOERR),
        (1, 0, vec![(DATA, 100, 0), end], IOERR),
        (0, 8, vec![(DATA, 512, WRITE), end], IOERR),
        (99, 0, vec![end], UNSUPPORTED),
        (11, 0, vec![(DATA, 15, 0), end], IOERR),
    ] {
        request(&memory, &mut disk, kind, sector, &buffers);
        assert_eq!(status(&memory), expected, "{kind} {sector}");
    }
    // no room for a status, or memory that is not there
    assert_eq!(request(&memory, &mut disk, 1, 0, &[(DATA, 512, 0)]), 0);
    assert_eq!(
        request(&memory, &mut disk, 1, 0, &[(1 << 40, 512, 0), end]),
        0
    );
    assert_eq!(fs::read(&path).unwrap(), before);
    let mut read_only = RawDisk::from_bytes("seed", &[7; 1024]).unwrap();
    request(&memory, &mut read_only, 1, 0, &[(DATA, 512, 0), end]);
    assert_eq!(status(&memory), IOERR);
}

#[test]
fn an_image_in_memory_is_whole_and_its_zeros_take_none() {
    let mut image = vec![0; (16 << 20) + 100];
    image[5000] = 7;
    image[16 << 20] = 9;
    let disk = RawDisk::from_bytes("seed", &image).unwrap();
    let file = disk.file().unwrap();
    image.resize(image.len().next_multiple_of(512), 0);
    let mut read = vec![1; image.len()];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut read, 0).unwrap();
    assert!(read == image && disk.size() == image.len() as u64);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    // Two pages, or huge ones where the kernel is told to use them for all files in memory.
    assert!(blocks * 512 <= 2 * (2 << 20), "{blocks}");
}

#[test]
fn a_layer_takes_the_writes_and_its_base_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(directory.path(), 300);
    let before = fs::read(&path).unwrap();
    let base = RawDisk::open(&path, true).unwrap();
    let disk = CowDisk::new(Box::new(base), directory.path());
    let (memory, mut disk) = (memory(), disk.unwrap());
    memory
        .write_slice(&[0xbb; 2048], GuestAddress(DATA))
        .unwrap();
    // over the border of the first two clusters
    request(
        &memory,
        &mut disk,
        1,
        126,
        &[(DATA, 2048, 0), (STATUS, 1, WRITE)],
    );
    assert_eq!(status(&memory), OK);
    request(
        &memory,
        &mut disk,
        0,
        124,
        &[(DATA, 4096, WRITE), (STATUS, 1, WRITE)],
    );
    let mut back = [0; 4096];
    memory.read_slice(&mut back, GuestAddress(DATA)).unwrap();
    let sectors: Vec<u8> = back.chunks(512).map(|sector| sector[0]).collect();
    assert_eq!(sectors, [124, 125, 0xbb, 0xbb, 0xbb, 0xbb, 130, 131]);
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn an_image_that_is_written_is_nobody_else_s_and_readers_share() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(directory.path(), 8);
    let writer = RawDisk::open(&path, false).unwrap();
    assert!(matches!(
        RawDisk::open(&path, false),
        Err(DiskError::InUse(_))
    ));
    assert!(matches!(
        RawDisk::open(&path, true),
        Err(DiskError::InUse(_))
    ));
    drop(writer);
    let _reader = RawDisk::open(&path, true).unwrap();
    assert!(RawDisk::open(&path, true).is_ok());
    assert!(matches!(
        RawDisk::open(&path, false),
        Err(DiskError::InUse(_))
    ));
}

#[test]
fn a_truncated_or_missing_image_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("short.img");
    fs::write(&path, [0; 700]).unwrap();
    let error = RawDisk::open(&path, false).unwrap_err().to_string();
    assert!(
        error.contains("short.img") && error.contains("700 bytes"),
        "{error}"
    );
    let missing = RawDisk::open(Path::new("/nowhere.img"), false)
        .unwrap_err()
        .to_string();
    assert!(
        missing.starts_with("disk /nowhere.img: No such file"),
        "{missing}"
    );
}

/// The device under a driver that writes a MiB, a request of 4 KiB after the other, then flushes
/// and asks for what is not there.
fn write_a_mib(limits: limit::Limits) -> (std::time::Duration, Arc<Counters>) {
    use crate::devices::virtio::testing::{BUFFERS, Driver};
    const LEN: u32 = 4096;
    let directory = tempfile::tempdir().unwrap();
    let disk = RawDisk::empty(1 << 20, directory.path()).unwrap();
    let limiter = limit::Limiter::new(limits).unwrap();
    let block = Block::new(Box::new(disk), "", limiter);
    let counters = block.counters();
    let mut driver = Driver::new(Arc::new(std::sync::Mutex::new(block)));
    driver.start();
    let start = Instant::now();
    let mut ask = |kind: u32, sector: u64, data: &[(u64, u32, u16)]| {
        let header = header(kind, sector);
        let at = GuestAddress(BUFFERS);
        driver.memory.write_slice(&header, at).unwrap();
        let mut buffers = vec![(BUFFERS, 16, 0)];
        buffers.extend(data);
        buffers.push((BUFFERS + 0x100, 1, WRITE));
        let used = driver.used(0);
        driver.request(0, 0, &buffers);
        driver.kick(0);
        driver.wait("the disk", |driver| driver.used(0) != used);
    };
    for sector in (0..2048).step_by(8) {
        ask(1, sector, &[(BUFFERS + 0x1000, LEN, 0)]);
    }
    ask(4, 0, &[]);
    ask(0, 2048, &[(BUFFERS + 0x1000, LEN, WRITE)]);
    (start.elapsed(), counters)
}

/// The device under a driver that makes 32 requests available before it kicks: writes of a page each,
/// a flush amid them, then reads of all of them, and a discard of the first page amid those.
fn much_at_once(block: Block) {
    use crate::devices::virtio::testing::{BUFFERS, Driver};
    const COUNT: u64 = 32;
    const PAGE: u64 = 4096;
    let counters = block.counters();
    let mut driver = Driver::new(Arc::new(std::sync::Mutex::new(block)));
    driver.start();
    let (data, back, control) = (BUFFERS, BUFFERS + COUNT * PAGE, BUFFERS + 2 * COUNT * PAGE);
    let ask = |driver: &mut Driver, n: u64, kind: u32, buffer: Option<(u64, u32, u16)>| {
        let header = header(kind, n * 8);
        let at = control + n * 32;
        driver
            .memory
            .write_slice(&header, GuestAddress(at))
            .unwrap();
        driver
            .memory
            .write_slice(&[0xff], GuestAddress(at + 16))
            .unwrap();
        let mut buffers = vec![(at, 16, 0)];
        buffers.extend(buffer);
        buffers.push((at + 16, 1, WRITE));
        driver.request(0, n as u16 * 3, &buffers);
    };
    let finish = |driver: &mut Driver, times: u16| {
        driver.kick(0);
        driver.wait("all of them", |driver| {
            driver.used(0) == times * (COUNT as u16 + 1)
        });
        for n in 0..=COUNT {
            let at = GuestAddress(control + n * 32 + 16);
            assert_eq!(driver.memory.read_obj::<u8>(at).unwrap(), OK, "{n}");
        }
    };
    for n in 0..COUNT {
        let page = [n as u8 + 1; PAGE as usize];
        let at = data + n * PAGE;
        driver.memory.write_slice(&page, GuestAddress(at)).unwrap();
        if n == COUNT / 2 {
            ask(&mut driver, COUNT, 4, None);
        }
        ask(&mut driver, n, 1, Some((at, PAGE as u32, 0)));
    }
    finish(&mut driver, 1);
    for n in 0..COUNT {
        if n == COUNT / 2 {
            let range = [&0u64.to_le_bytes()[..], &8u32.to_le_bytes(), &[0; 4]].concat();
            driver
                .memory
                .write_slice(&range, GuestAddress(data))
                .unwrap();
            ask(&mut driver, COUNT, 11, Some((data, 16, 0)));
        }
        ask(
            &mut driver,
            n,
            0,
            Some((back + n * PAGE, PAGE as u32, WRITE)),
        );
    }
    finish(&mut driver, 2);
    for n in 0..COUNT {
        let mut page = [0; PAGE as usize];
        let at = GuestAddress(back + n * PAGE);
        driver.memory.read_slice(&mut page, at).unwrap();
        assert_eq!(page, [n as u8 + 1; PAGE as usize], "{n}");
    }
    ask(&mut driver, 0, 0, Some((back, PAGE as u32, WRITE)));
    driver.kick(0);
    driver.wait("the discarded", |driver| driver.used(0) == 2 * 33 + 1);
    assert_eq!(driver.memory.read_obj::<u8>(GuestAddress(back)).unwrap(), 0);
    assert_eq!(counters.moved(), (2 * COUNT + 1) * PAGE);
    assert_eq!(counters.errors.get(), 0);
}

#[test]
fn many_requests_at_once_are_all_done_and_none_takes_another_s_place() {
    let directory = tempfile::tempdir().unwrap();
    let disk = || RawDisk::empty(1 << 20, directory.path()).unwrap();
    let by_ring = matches!(super::aio::Aio::new(4), super::aio::Aio::Ring(_));
    assert!(by_ring, "this host has no io_uring, so it is not tried");
    let twice = |disk: &dyn Fn() -> Box<dyn Disk>| {
        much_at_once(Block::new(disk(), "", None));
        much_at_once(Block::new(disk(), "", None).with_threads());
    };
    twice(&|| Box::new(disk()));
    twice(&|| Box::new(CowDisk::new(Box::new(disk()), directory.path()).unwrap()));
    let made = Cell::new(0);
    twice(&|| {
        // Another for each: a process that another test starts keeps one locked for a moment.
        made.set(made.get() + 1);
        let image = directory.path().join(format!("image{}", made.get()));
        let mut create = std::process::Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]);
        assert!(create.arg(&image).arg("1M").status().unwrap().success());
        Box::new(Qcow2Disk::open(&image, false, BackingFiles::None).unwrap())
    });
}

#[test]
fn a_layer_s_bytes_lie_in_it_once_all_of_them_are_written_and_below_it_before() {
    let directory = tempfile::tempdir().unwrap();
    let base = RawDisk::open(&image(directory.path(), 512), true).unwrap();
    let mut disk = CowDisk::new(Box::new(base), directory.path()).unwrap();
    let first = |place: Option<(&fs::File, u64)>| {
        place.map(|(file, at)| {
            let mut byte = [0; 1];
            let n = file.read_at(&mut byte, at).unwrap();
            byte[..n].to_vec()
        })
    };
    const CLUSTER: u64 = 64 << 10;
    assert_eq!(first(disk.place(512, CLUSTER, false)), Some(vec![1]));
    assert!(
        disk.place(0, 512, true).is_none(),
        "the rest is copied first"
    );
    let mut bytes = [9; 512];
    disk.write(&VolatileSlice::from(&mut bytes[..]), 512)
        .unwrap();
    assert_eq!(first(disk.place(0, CLUSTER, false)), Some(vec![0]));
    assert_eq!(first(disk.place(512, 512, true)), Some(vec![9]));
    assert!(disk.place(512, CLUSTER, false).is_none(), "in two files");
    // Not even where nothing from below is needed: who reads it meanwhile finds what was.
    assert!(disk.place(CLUSTER, CLUSTER, true).is_none());
    let last = disk.size() - CLUSTER;
    disk.zero(last, CLUSTER, true).unwrap();
    assert_eq!(first(disk.place(last, CLUSTER, false)), Some(vec![0]));
    disk.read(&VolatileSlice::from(&mut bytes[..]), disk.size() - 512)
        .unwrap();
    assert_eq!(bytes, [0; 512]);
}

/// The device under a driver with three queues, each of which asks for pages of its own at once: all of
/// them come back, each by the queue that asked.
fn much_by_three(block: Block) {
    use crate::devices::virtio::testing::{BUFFERS, Driver};
    const COUNT: u16 = 40;
    const PAGE: u64 = 4096;
    let block = block.with_queues(3);
    let mut driver = Driver::new(Arc::new(std::sync::Mutex::new(block)));
    driver.start();
    let page = |queue: usize, n: u16| (queue as u64 * u64::from(COUNT) + u64::from(n)) * 8;
    let status = |queue: usize, n: u16| BUFFERS + 32 * page(queue, n) + 16;
    let data = |queue: usize| BUFFERS + 0x1_0000 + queue as u64 * PAGE;
    for (turn, kind) in (1..).zip([1_u32, 0]) {
        for queue in 0..3 {
            let bytes = [queue as u8 * (2 - turn as u8) + 1; PAGE as usize];
            let at = GuestAddress(data(queue));
            driver.memory.write_slice(&bytes, at).unwrap();
            for n in 0..COUNT {
                let at = status(queue, n) - 16;
                let header = header(kind, page(queue, n));
                let to = GuestAddress(at);
                driver.memory.write_slice(&header, to).unwrap();
                driver
                    .memory
                    .write_obj(0xff_u8, GuestAddress(at + 16))
                    .unwrap();
                let (flags, first) = (if kind == 0 { WRITE } else { 0 }, n * 3);
                let buffers = [
                    (at, 16, 0),
                    (data(queue), PAGE as u32, flags),
                    (at + 16, 1, WRITE),
                ];
                driver.request(queue, first, &buffers);
            }
        }
        (0..3).for_each(|queue| driver.kick(queue));
        for queue in 0..3 {
            driver.wait("its own", |driver| driver.used(queue) == turn * COUNT);
            for n in 0..COUNT {
                let at = GuestAddress(status(queue, n));
                assert_eq!(driver.memory.read_obj::<u8>(at).unwrap(), OK, "{queue} {n}");
            }
        }
    }
    for queue in 0..3 {
        let mut bytes = [0; PAGE as usize];
        let at = GuestAddress(data(queue));
        driver.memory.read_slice(&mut bytes, at).unwrap();
        assert_eq!(bytes, [queue as u8 + 1; PAGE as usize]);
    }
}

#[test]
fn each_queue_of_several_gets_what_it_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let disk = || RawDisk::empty(1 << 20, directory.path()).unwrap();
    let layered = || CowDisk::new(Box::new(disk()), directory.path()).unwrap();
    much_by_three(Block::new(Box::new(disk()), "", None));
    much_by_three(Block::new(Box::new(disk()), "", None).with_threads());
    much_by_three(Block::new(Box::new(layered()), "", None));
    much_by_three(Block::new(Box::new(layered()), "", None).with_threads());
}

#[test]
fn a_driver_is_told_of_the_queues_and_may_leave_some_alone() {
    use crate::devices::virtio::testing::{BUFFERS, Driver};
    let directory = tempfile::tempdir().unwrap();
    let disk = || RawDisk::empty(1 << 20, directory.path()).unwrap();
    let told = |queues| {
        let block = Block::new(Box::new(disk()), "", None).with_queues(queues);
        let mut count = [0; 2];
        block.read_config(34, &mut count);
        let offered = block.features() >> VIRTIO_BLK_F_MQ & 1;
        (
            u16::from_le_bytes(count),
            block.queue_sizes().len(),
            offered,
        )
    };
    assert_eq!(
        [told(1), told(4), told(64)],
        [(1, 1, 0), (4, 4, 1), (16, 16, 1)]
    );
    let block = Block::new(Box::new(disk()), "", None).with_queues(4);
    let mut driver = Driver::new(Arc::new(std::sync::Mutex::new(block)));
    driver.begin();
    driver.place(2, Driver::places(2));
    driver.add_status(4);
    driver
        .memory
        .write_slice(&[4, 0, 0, 0], GuestAddress(BUFFERS))
        .unwrap();
    driver.request(2, 0, &[(BUFFERS, 16, 0), (BUFFERS + 16, 1, WRITE)]);
    driver.kick(2);
    driver.wait("the only one", |driver| driver.used(2) == 1);
    assert_eq!(driver.status(), 15);
}

#[test]
fn what_a_guest_has_done_is_counted() {
    let (_, counters) = write_a_mib(limit::Limits::default());
    let ops = [&counters.writes, &counters.flushes, &counters.reads];
    assert_eq!(ops.map(netdev::counters::Counter::get), [256, 1, 1]);
    assert_eq!(counters.written_bytes.get(), 1 << 20);
    assert_eq!((counters.errors.get(), counters.moved()), (1, 1 << 20));
}

#[test]
fn a_disk_is_held_to_its_limits_and_loses_no_request() {
    let limits = [(Some(1 << 20), None), (None, Some(256))];
    for (bytes, requests) in limits {
        let (took, counters) = write_a_mib(limit::Limits { bytes, requests });
        assert_eq!(counters.writes.get(), 256);
        // A second's worth, a tenth of which goes at once.
        assert!(took.as_millis() >= 850, "{took:?}");
    }
}

proptest! {
    #[test]
    fn no_chain_panics_or_reaches_past_the_disk(
        header in prop::array::uniform16(any::<u8>()),
        kind in 0u32..16,
        buffers in prop::collection::vec((0u64..0x11_0000, 0u32..0x2000, any::<bool>()), 0..8),
    ) {
        let memory = memory();
        let mut disk = RawDisk::from_bytes("x", &[0; 4096]).unwrap();
        memory.write_slice(&header, GuestAddress(HEADER)).unwrap();
        memory.write_slice(&kind.to_le_bytes(), GuestAddress(HEADER)).unwrap();
        let mut descriptors = vec![RawDescriptor::from(Descriptor::new(HEADER, 16, 0, 0))];
        for (at, len, write) in buffers {
            let flags = if write { WRITE } else { 0 };
            descriptors.push(RawDescriptor::from(Descriptor::new(at, len, flags, 0)));
        }
        chain(&memory, &mut disk, &descriptors);
        prop_assert_eq!(disk.size(), 4096);
    }
}
