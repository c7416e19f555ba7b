//! Frames: a length, a kind, a number, a payload.

use std::io::{self, Read, Write};

/// Bytes before the payload: length (of all that follows it, little-endian), kind, number.
const HEADER: usize = 4 + BODY_HEADER;
const BODY_HEADER: usize = 1 + 4;
/// The longest payload that either side sends or takes: user-data of a MiB as JSON has room.
pub const MAX_PAYLOAD: usize = 2 << 20;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something that happened: an [`super::Event`] as JSON. Its number is 0.
    Event,
    /// A [`super::Request`] as JSON, under a number that the asking side chooses.
    Request,
    /// The [`super::Reply`] to the request of that number, as JSON.
    Reply,
    /// Bytes of a stream that the request of that number opened; the first byte is the stream's
    /// (0 in, 1 out, 2 error), and a payload of that byte alone ends it.
    Data,
    /// A kind of a later version, to be passed over.
    Unknown(u8),
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Event => 0,
            Self::Request => 1,
            Self::Reply => 2,
            Self::Data => 3,
            Self::Unknown(byte) => byte,
        }
    }

    fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Event,
            1 => Self::Request,
            2 => Self::Reply,
            3 => Self::Data,
            byte => Self::Unknown(byte),
        }
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// The request's number; 0 for an event.
    pub number: u32,
    /// JSON, or a stream's bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Bytes of a stream of the request of that number; none end it.
    pub fn data(number: u32, stream: u8, bytes: &[u8]) -> Self {
        Self {
            kind: Kind::Data,
            number,
            payload: [&[stream], bytes].concat(),
        }
    }
}

/// Why a frame could not be read. The stream is of no use after any of these.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed or ended amid a frame.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The length is one that no frame has.
    #[error("a frame of {0} bytes: it must have {BODY_HEADER} to {max}", max = BODY_HEADER + MAX_PAYLOAD)]
    Length(u32),
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => error,
            FrameError::Length(_) => Self::other(error),
        }
    }
}

/// Reads the next frame; `None` where the stream ends between two. Memory grows with what really
/// arrives, not with the length that was announced.
pub fn read(from: &mut impl Read) -> Result<Option<Frame>, FrameError> {
    let mut length = [0; 4];
    if !fill(from, &mut length)? {
        return Ok(None);
    }
    let length = u32::from_le_bytes(length);
    let payload_len = usize::try_from(length)
        .ok()
        .and_then(|n| n.checked_sub(BODY_HEADER))
        .filter(|n| *n <= MAX_PAYLOAD)
        .ok_or(FrameError::Length(length))?;
    let mut head = [0; BODY_HEADER];
    from.read_exact(&mut head)?;
    let [kind, number @ ..] = head;
    let mut payload = Vec::new();
    from.take(payload_len as u64).read_to_end(&mut payload)?;
    if payload.len() < payload_len {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(Frame {
        kind: Kind::from_byte(kind),
        number: u32::from_le_bytes(number),
        payload,
    }))
}

/// Fills `buffer`; false where the stream ends before its first byte.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) if done == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Writes a frame in one piece. A payload above [`MAX_PAYLOAD`] is an error of the caller's.
pub fn write(to: &mut impl Write, frame: &Frame) -> io::Result<()> {
    if frame.payload.len() > MAX_PAYLOAD {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a payload of {} bytes is too long", frame.payload.len()),
        ));
    }
    let mut bytes = Vec::with_capacity(HEADER + frame.payload.len());
    bytes.extend(((BODY_HEADER + frame.payload.len()) as u32).to_le_bytes());
    bytes.push(frame.kind.byte());
    bytes.extend(frame.number.to_le_bytes());
    bytes.extend(&frame.payload);
    to.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written_and_the_end_is_seen() {
        let frame = Frame {
            kind: Kind::Request,
            number: 7,
            payload: b"{}".to_vec(),
        };
        let mut bytes = Vec::new();
        write(&mut bytes, &frame).unwrap();
        assert_eq!(bytes, b"\x07\0\0\0\x01\x07\0\0\0{}");
        let mut from = &bytes[..];
        assert_eq!(read(&mut from).unwrap(), Some(frame));
        assert_eq!(read(&mut from).unwrap(), None);
    }

    #[test]
    fn a_length_that_no_frame_has_is_refused_before_memory_is_taken() {
        for length in [0u32, 4, (BODY_HEADER + MAX_PAYLOAD + 1) as u32, u32::MAX] {
            let bytes = length.to_le_bytes();
            let error = read(&mut &bytes[..]).unwrap_err();
            assert!(matches!(error, FrameError::Length(n) if n == length));
        }
        let whole = MAX_PAYLOAD + 1;
        let too_long = Frame {
            kind: Kind::Data,
            number: 1,
            payload: vec![0; whole],
        };
        assert!(write(&mut Vec::new(), &too_long).is_err());
    }

    #[test]
    fn a_frame_that_is_cut_short_is_an_error() {
        for bytes in [&b"\x07\0"[..], b"\x07\0\0\0", b"\x07\0\0\0\x01\x07\0\0\0{"] {
            assert!(matches!(read(&mut &*bytes), Err(FrameError::Io(_))));
        }
    }

    proptest! {
        #[test]
        fn any_frame_survives_the_way(kind: u8, number: u32, payload in prop::collection::vec(any::<u8>(), 0..256)) {
            let frame = Frame { kind: Kind::from_byte(kind), number, payload };
            let mut bytes = Vec::new();
            write(&mut bytes, &frame).unwrap();
            prop_assert_eq!(read(&mut &bytes[..]).unwrap(), Some(frame));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut from = &bytes[..];
            while let Ok(Some(_)) = read(&mut from) {}
        }
    }
}
