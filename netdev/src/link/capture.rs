//! Writes what goes through a link to a file, in pcapng (draft-ietf-opsawg-pcapng): each frame as
//! the engine sees it, with the time in nanoseconds and its direction, of which inbound is to the
//! guest.
//!
//! What a card is to cut is in the file as it is here, in one frame of up to 64 KiB, and a
//! checksum that the card is to finish is only begun; tell Wireshark not to check them.
//!
//! A thread writes, so that no file is slow enough to stop the network: what it is behind by more
//! than [`BEHIND`] is lost to the file and counted. An error ends the capture, and a line in the
//! log says so.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pcap_file::DataLink;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption, InterfaceTsResolution,
};

use super::loans::Loans;
use super::metered::Metered;
use super::{Capabilities, Link, MAX_FRAME, Offload, Received};

/// Bytes that wait for the thread before frames are lost to the file.
const BEHIND: usize = 4 << 20;
/// Bytes that are given to the thread before a turn ends.
const CHUNK: usize = 256 << 10;
/// Chunks on the way to the thread.
const CHUNKS: usize = 4;
/// What the end of a capture waits for the file.
const PATIENCE: Duration = Duration::from_secs(1);
/// A frame's block, besides the frame: 20 bytes of fields, 12 of lengths and type, 12 of options,
/// and padding.
const BLOCK: usize = 20 + 12 + 12 + 3;
// Directions of a frame (draft-ietf-opsawg-pcapng, section 4.3.1, epb_flags).
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// What to capture, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The file, which must not be there yet.
    pub path: PathBuf,
    /// The most bytes of each frame.
    pub snaplen: u32,
    /// The most bytes of the file; the capture ends where the next frame would not fit.
    pub max_bytes: u64,
}

impl Options {
    /// Whole frames, and 1 GiB of them at most.
    pub fn to(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            snaplen: MAX_FRAME as u32,
            max_bytes: 1 << 30,
        }
    }
}

/// How far a capture is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The file.
    pub path: PathBuf,
    /// Frames in it.
    pub frames: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Frames that are missing because the file was too slow.
    pub lost: u64,
    /// Why nothing more is captured, where that is so.
    pub ended: Option<String>,
}

/// What the thread tells.
#[derive(Default)]
struct Written {
    bytes: AtomicU64,
    error: Mutex<Option<io::Error>>,
}

/// A capture that goes on.
pub struct Capture {
    options: Options,
    writer: PcapNgWriter<Vec<u8>>,
    /// None when it has ended.
    chunks: Option<SyncSender<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
    written: Arc<Written>,
    /// Bytes so far, those in memory included.
    bytes: u64,
    frames: u64,
    lost: u64,
    full: bool,
}

impl Capture {
    /// Makes the file and a thread that writes it.
    pub fn start(options: Options) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&options.path)?;
        let mut writer = PcapNgWriter::new(Vec::new()).map_err(io::Error::other)?;
        let nanoseconds = InterfaceTsResolution::new(false, 9).map_err(io::Error::other)?;
        let interface = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: options.snaplen,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed("guest")),
                InterfaceDescriptionOption::IfTsResol(nanoseconds),
            ],
        };
        writer
            .write_pcapng_block(interface)
            .map_err(io::Error::other)?;
        let (chunks, queue) = mpsc::sync_channel(CHUNKS);
        let written: Arc<Written> = Arc::default();
        let thread = thread::Builder::new().name("capture".to_owned()).spawn({
            let (written, path) = (written.clone(), options.path.clone());
            move || {
                if let Err(error) = write(file, &queue, &written) {
                    tracing::warn!("the capture to {} has ended: {error}", path.display());
                    *written.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            }
        })?;
        Ok(Self {
            bytes: writer.get_ref().len() as u64,
            options,
            writer,
            chunks: Some(chunks),
            thread: Some(thread),
            written,
            frames: 0,
            lost: 0,
            full: false,
        })
    }

    /// Whether anything is captured still.
    pub fn goes_on(&self) -> bool {
        self.chunks.is_some()
    }

    /// How far it is.
    pub fn status(&self) -> Status {
        let error = &self.written.error;
        let error = error.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = match &*error {
            Some(error) => Some(error.to_string()),
            None if self.full => Some("the file is as large as it may be".to_owned()),
            None => None,
        };
        Status {
            path: self.options.path.clone(),
            frames: self.frames,
            bytes: self.written.bytes.load(Ordering::Relaxed),
            lost: self.lost,
            ended,
        }
    }

    /// How many bytes are captured of a frame of `len`.
    fn kept(&self, len: usize) -> usize {
        let most = self.options.snaplen as usize;
        if self.goes_on() { len.min(most) } else { 0 }
    }

    fn record(&mut self, parts: &[&[u8]], direction: u32) {
        if !self.goes_on() {
            return;
        }
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let mut kept = self.kept(len);
        if self.bytes + (kept + BLOCK) as u64 > self.options.max_bytes {
            tracing::info!(
                "the capture to {} has ended: the file is as large as it may be",
                self.options.path.display()
            );
            self.full = true;
            return self.end();
        }
        if self.writer.get_ref().len() + kept + BLOCK > BEHIND {
            self.lost += 1;
            return;
        }
        let mut frame = Vec::with_capacity(kept);
        for part in parts {
            let part = part.get(..kept.min(part.len())).unwrap_or_default();
            frame.extend_from_slice(part);
            kept -= part.len();
        }
        let before = self.writer.get_ref().len();
        let block = EnhancedPacketBlock {
            interface_id: 0,
            // A clock before 1970 is no reason to stop.
            timestamp: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            original_len: len as u32,
            data: Cow::Owned(frame),
            options: vec![EnhancedPacketOption::Flags(direction)],
        };
        if let Err(error) = self.writer.write_pcapng_block(block) {
            tracing::warn!("a frame could not be captured: {error}");
            return self.end();
        }
        let after = self.writer.get_ref().len();
        self.bytes += (after - before) as u64;
        self.frames += 1;
        if after >= CHUNK {
            self.hand_over();
        }
    }

    /// Gives the thread what there is, if it takes more.
    fn hand_over(&mut self) {
        if self.writer.get_ref().is_empty() {
            return;
        }
        let Some(chunks) = &self.chunks else {
            return;
        };
        match chunks.try_send(std::mem::take(self.writer.get_mut())) {
            Ok(()) => {}
            Err(TrySendError::Full(chunk)) => *self.writer.get_mut() = chunk,
            // It has said why.
            Err(TrySendError::Disconnected(_)) => self.chunks = None,
        }
    }

    /// Captures nothing more; the thread ends when it has written what it was given.
    fn end(&mut self) {
        self.hand_over();
        self.chunks = None;
    }

    /// Waits until all is in the file, for a second at most, and says how far it came.
    pub fn finish(mut self) -> Status {
        self.wait();
        self.status()
    }

    fn wait(&mut self) {
        let start = Instant::now();
        let is_late = || start.elapsed() >= PATIENCE;
        let pause = || thread::sleep(Duration::from_millis(1));
        while self.goes_on() && !self.writer.get_ref().is_empty() && !is_late() {
            self.hand_over();
            pause();
        }
        self.chunks = None;
        let thread = self.thread.take();
        while thread.as_ref().is_some_and(|thread| !thread.is_finished()) && !is_late() {
            pause();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.wait();
    }
}

fn write(mut file: File, chunks: &Receiver<Vec<u8>>, written: &Written) -> io::Result<()> {
    for chunk in chunks {
        file.write_all(&chunk)?;
        written
            .bytes
            .fetch_add(chunk.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// A link whose frames are captured while there is a capture.
pub struct Captured<'a> {
    link: Metered<'a>,
    /// The capture, of which there is none most of the time.
    pub capture: Option<Box<Capture>>,
}

impl<'a> Captured<'a> {
    /// Has `capture` see what goes through `link`.
    pub fn new(link: Metered<'a>, capture: Option<Box<Capture>>) -> Self {
        Self { link, capture }
    }

    /// Bytes of frames since the last [`Link::flush`], both ways.
    pub fn moved(&self) -> u64 {
        self.link.moved()
    }
}

impl Link for Captured<'_> {
    fn receive(&mut self, place: &mut [u8]) -> Option<Received> {
        let received = self.link.receive(place)?;
        if let Some(capture) = &mut self.capture {
            let frame = place.get_mut(..received.len).unwrap_or_default();
            if let Some(loan) = received.loan
                && let Some(loans) = self.link.loans()
                && let Some(kept) = frame.get_mut(..capture.kept(received.len))
                && let Err(error) = loans.copy(loan, 0, kept)
            {
                tracing::debug!("a frame that was lent cannot be read: {error}");
            }
            capture.record(&[frame], OUTBOUND);
        }
        Some(received)
    }

    fn loans(&self) -> Option<&Loans> {
        self.link.loans()
    }

    fn end_batch(&mut self) {
        self.link.end_batch();
    }

    fn send(&mut self, parts: &[&[u8]], offload: Offload) -> bool {
        let sent = self.link.send(parts, offload);
        if let Some(capture) = &mut self.capture
            && sent
        {
            capture.record(parts, INBOUND);
        }
        sent
    }

    fn flush(&mut self) {
        self.link.flush();
        if let Some(capture) = &mut self.capture {
            capture.hand_over();
        }
    }

    fn descriptors(&self) -> Vec<RawFd> {
        self.link.descriptors()
    }

    fn acknowledge(&mut self) {
        self.link.acknowledge();
    }

    fn capabilities(&self) -> Capabilities {
        self.link.capabilities()
    }

    fn piece(&self) -> usize {
        self.link.piece()
    }

    fn quiet(&mut self, quiet: bool) -> bool {
        self.link.quiet(quiet)
    }

    fn waits(&mut self) -> bool {
        self.link.waits()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use pcap_file::pcapng::PcapNgReader;
    use pcap_file::pcapng::blocks::block_common::Block;

    use super::super::fake::{self, Guest};
    use super::*;
    use crate::counters::Counters;

    /// Has `test` use a link that is captured, and returns the capture.
    fn captured(options: &Options, test: impl FnOnce(&mut Captured<'_>, &Guest)) -> Capture {
        let (mut fake, guest) = fake::pair();
        let link = Metered::new(&mut fake, Arc::<Counters>::default());
        let capture = Capture::start(options.clone()).unwrap();
        let mut link = Captured::new(link, Some(Box::new(capture)));
        test(&mut link, &guest);
        *link.capture.take().unwrap()
    }

    /// The frames of a file: how long they were, what is there of them, and their options.
    fn read(path: &Path) -> Vec<(u32, Vec<u8>, Vec<EnhancedPacketOption<'static>>)> {
        let mut reader = PcapNgReader::new(File::open(path).unwrap()).unwrap();
        let mut frames = Vec::new();
        while let Some(block) = reader.next_block() {
            match block.unwrap().0 {
                Block::InterfaceDescription(interface) => {
                    assert_eq!(interface.linktype, DataLink::ETHERNET);
                    assert_eq!(interface.ts_resolution().resolution(), 9);
                }
                Block::EnhancedPacket(packet) => {
                    let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                    let age = age - packet.timestamp;
                    assert!(age < Duration::from_secs(60), "{age:?}");
                    let options = packet.options.into_iter();
                    let options = options.map(|option| option.into_owned()).collect();
                    frames.push((packet.original_len, packet.data.into_owned(), options));
                }
                other => panic!("{other:?}"),
            }
        }
        frames
    }

    #[test]
    fn both_directions_are_in_the_file_and_long_frames_up_to_the_snaplen() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            snaplen: 50,
            ..Options::to(dir.path().join("file"))
        };
        let capture = captured(&options, |link, guest| {
            guest.send(b"from the guest".to_vec());
            link.receive(&mut [0; 100]).unwrap();
            let data = [b'x'; 60_000];
            assert!(link.send(&[b"to ", b"the guest ", &data], Offload::default()));
            link.flush();
        });
        let status = capture.finish();
        assert_eq!((status.frames, status.lost, status.ended), (2, 0, None));
        let len = std::fs::metadata(&options.path).unwrap().len();
        assert_eq!(status.bytes, len);
        let frames = read(&options.path);
        let flags = |flags| vec![EnhancedPacketOption::Flags(flags)];
        assert_eq!(frames[0], (14, b"from the guest".to_vec(), flags(OUTBOUND)));
        let (len, data, options) = &frames[1];
        assert_eq!((*len, data.len(), options), (60_013, 50, &flags(INBOUND)));
        assert!(data.starts_with(b"to the guest xxx"));
    }

    #[test]
    fn a_capture_ends_before_the_file_is_larger_than_it_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            max_bytes: 4000,
            ..Options::to(dir.path().join("file"))
        };
        let capture = captured(&options, |link, _| {
            for _ in 0..100 {
                assert!(link.send(&[&[0; 333]], Offload::default()));
            }
            assert!(!link.capture.as_ref().unwrap().goes_on());
        });
        let status = capture.finish();
        let len = std::fs::metadata(&options.path).unwrap().len();
        assert!((3000..=4000).contains(&len), "{len}");
        assert_eq!(read(&options.path).len() as u64, status.frames);
        assert_eq!(
            status.ended.as_deref(),
            Some("the file is as large as it may be")
        );
    }

    #[test]
    fn a_file_that_cannot_be_written_ends_the_capture_and_not_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let mut capture = Capture::start(Options::to(dir.path().join("file"))).unwrap();
        // A file that takes nothing, in place of the one that was made.
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (chunks, queue) = mpsc::sync_channel(CHUNKS);
        let error = thread::spawn(move || write(full, &queue, &Written::default()).unwrap_err());
        capture.chunks = Some(chunks);
        capture.record(&[b"frame"], INBOUND);
        capture.hand_over();
        assert_eq!(error.join().unwrap().kind(), io::ErrorKind::StorageFull);
        capture.record(&[b"frame"], INBOUND);
        capture.hand_over();
        assert!(!capture.goes_on());
        capture.record(&[b"frame"], INBOUND);
        assert_eq!(capture.frames, 2);
    }

    #[test]
    fn frames_that_the_file_is_too_slow_for_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut capture = Capture::start(Options::to(dir.path().join("file"))).unwrap();
        // A thread that takes nothing.
        let (chunks, _queue) = mpsc::sync_channel(CHUNKS);
        capture.chunks = Some(chunks);
        let frame = [0; 60_000];
        while capture.lost == 0 {
            capture.record(&[&frame], INBOUND);
            assert!(capture.bytes < 8 << 20);
        }
        assert!(capture.bytes > 4 << 20);
        assert!(capture.goes_on());
        capture.chunks = None;
    }

    #[test]
    fn a_file_that_is_there_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "precious").unwrap();
        let error = Capture::start(Options::to(&path)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
