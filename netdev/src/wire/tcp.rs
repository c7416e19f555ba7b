//! TCP segments (RFC 9293) with the two options that matter here: MSS and window scale
//! (RFC 7323).

use super::{be16, be32};

/// A segment's control bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: Self = Self(1);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(2);
    /// The connection is over.
    pub const RST: Self = Self(4);
    /// Push.
    pub const PSH: Self = Self(8);
    /// The acknowledgement counts.
    pub const ACK: Self = Self(16);

    /// Whether all of `other`'s bits are set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Bytes of a header without options.
pub const TCP: usize = 20;
const KIND_MSS: u8 = 2;
const KIND_WINDOW_SCALE: u8 = 3;
/// RFC 7323, section 2.3.
const MAX_SCALE: u8 = 14;

/// A segment, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number of the first byte.
    pub sequence: u32,
    /// The next byte that the sender expects.
    pub acknowledgement: u32,
    /// Control bits.
    pub flags: Flags,
    /// The window, not scaled.
    pub window: u16,
    /// The largest segment that the sender takes, if it says.
    pub mss: Option<u16>,
    /// Its window's scale, if it says.
    pub scale: Option<u8>,
    /// The data.
    pub payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads a segment; `None` where it is cut short or lies about its lengths.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let header = usize::from(packet.get(12)? >> 4) * 4;
        let mut options = packet.get(TCP..header)?;
        let (mut mss, mut scale) = (None, None);
        loop {
            options = match options {
                [] | [0, ..] => break,
                [1, rest @ ..] => rest,
                [kind, len, ..] => {
                    let len = usize::from(*len).max(2);
                    match *kind {
                        KIND_MSS if len == 4 => mss = be16(options, 2),
                        KIND_WINDOW_SCALE if len == 3 => {
                            scale = options.get(2).map(|scale| (*scale).min(MAX_SCALE));
                        }
                        _ => {}
                    }
                    match options.get(len..) {
                        Some(rest) => rest,
                        None => break,
                    }
                }
                _ => break,
            };
        }
        Some(Self {
            source: be16(packet, 0)?,
            destination: be16(packet, 2)?,
            sequence: be32(packet, 4)?,
            acknowledgement: be32(packet, 8)?,
            flags: Flags(*packet.get(13)?),
            window: be16(packet, 14)?,
            mss,
            scale,
            payload: packet.get(header..)?,
        })
    }
}

/// A header to be written.
#[derive(Debug, Clone, Copy)]
pub struct SegmentHeader {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement.
    pub acknowledgement: u32,
    /// Control bits.
    pub flags: Flags,
    /// The window, scaled.
    pub window: u16,
    /// MSS and, perhaps, window scale, on a SYN.
    pub options: Option<(u16, Option<u8>)>,
}

impl SegmentHeader {
    /// Where in the header the checksum lies.
    pub const CHECKSUM: usize = 16;
    /// The longest header that is written.
    pub const MAX: usize = TCP + 8;

    /// Writes the header, with a checksum of zero, to the start of `place` and returns its length. A
    /// place that is too short gets none.
    pub fn write(&self, place: &mut [u8]) -> usize {
        let Some(header) = place.first_chunk_mut::<{ Self::MAX }>() else {
            return 0;
        };
        let len = match self.options {
            None => TCP,
            Some((_, None)) => TCP + 4,
            Some((_, Some(_))) => Self::MAX,
        };
        header[0..2].copy_from_slice(&self.source.to_be_bytes());
        header[2..4].copy_from_slice(&self.destination.to_be_bytes());
        header[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        header[8..12].copy_from_slice(&self.acknowledgement.to_be_bytes());
        header[12] = (len as u8 / 4) << 4;
        header[13] = self.flags.0;
        header[14..16].copy_from_slice(&self.window.to_be_bytes());
        // checksum and urgent pointer
        header[16..20].fill(0);
        if let Some((mss, scale)) = self.options {
            let [m0, m1] = mss.to_be_bytes();
            header[20..24].copy_from_slice(&[KIND_MSS, 4, m0, m1]);
            let scale = scale.unwrap_or_default();
            header[24..].copy_from_slice(&[1, KIND_WINDOW_SCALE, 3, scale]);
        }
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syn_is_read_as_it_was_written() {
        let header = SegmentHeader {
            source: 1,
            destination: 2,
            sequence: 3,
            acknowledgement: 4,
            flags: Flags::SYN.and(Flags::ACK),
            window: 5,
            options: Some((1460, Some(7))),
        };
        let mut bytes = [0; SegmentHeader::MAX];
        assert_eq!(header.write(&mut bytes), bytes.len());
        let segment = Segment::parse(&bytes).unwrap();
        assert_eq!((segment.mss, segment.scale), (Some(1460), Some(7)));
        assert_eq!(
            (segment.sequence, segment.acknowledgement, segment.window),
            (3, 4, 5)
        );
        assert!(segment.flags.has(Flags::SYN) && !segment.flags.has(Flags::RST));
        assert!(segment.payload.is_empty());
    }

    #[test]
    fn an_option_that_lies_about_its_length_ends_the_list() {
        let header = SegmentHeader {
            source: 0,
            destination: 0,
            sequence: 0,
            acknowledgement: 0,
            flags: Flags::SYN,
            window: 0,
            options: Some((1460, Some(7))),
        };
        let mut bytes = [0; SegmentHeader::MAX];
        header.write(&mut bytes);
        bytes[21] = 200;
        assert_eq!(Segment::parse(&bytes).unwrap().scale, None);
        bytes[12] = 0xf0;
        assert_eq!(Segment::parse(&bytes), None);
    }
}
