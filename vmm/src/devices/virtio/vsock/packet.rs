//! A packet's header (virtio 1.2, section 5.10.6).

/// Bytes of a header.
pub const HEADER: usize = 44;
/// The host's address (linux/include/uapi/linux/vm_sockets.h).
pub const HOST_CID: u64 = 2;
/// The type of a byte stream, the only one there is here.
pub const STREAM: u16 = 1;
/// Shutdown's flags: the sender will not receive any more, will not send any more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// See [`SHUTDOWN_RECEIVE`].
pub const SHUTDOWN_SEND: u32 = 2;

/// What a packet asks for or tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// To connect.
    Request = 1,
    /// Connected.
    Response = 2,
    /// The connection is over, or there is none.
    Reset = 3,
    /// One or both directions are over.
    Shutdown = 4,
    /// Data.
    Data = 5,
    /// How much room there is.
    CreditUpdate = 6,
    /// To be told how much room there is.
    CreditRequest = 7,
}

impl Op {
    fn from_u16(value: u16) -> Option<Self> {
        Some(match value {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The sender's address.
    pub source_cid: u64,
    /// The receiver's address.
    pub destination_cid: u64,
    /// The sender's port.
    pub source_port: u32,
    /// The receiver's port.
    pub destination_port: u32,
    /// Bytes of data behind the header.
    pub len: u32,
    /// [`STREAM`], or a kind of socket that is not supported.
    pub kind: u16,
    /// `None` for one that nobody knows.
    pub op: Option<Op>,
    /// For a shutdown.
    pub flags: u32,
    /// The sender's room for data, in bytes.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of that room, ever.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    pub fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let (a, b, c) = (u64s(bytes), u32s(bytes), u16s(bytes));
        Self {
            source_cid: a(0),
            destination_cid: a(8),
            source_port: b(16),
            destination_port: b(20),
            len: b(24),
            kind: c(28),
            op: Op::from_u16(c(30)),
            flags: b(32),
            buf_alloc: b(36),
            fwd_cnt: b(40),
        }
    }

    /// The header's bytes.
    pub fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let fields: [&[u8]; 10] = [
            &self.source_cid.to_le_bytes(),
            &self.destination_cid.to_le_bytes(),
            &self.source_port.to_le_bytes(),
            &self.destination_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.map_or(0, |op| op as u16).to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        let all = fields.into_iter().flatten();
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = *from);
        bytes
    }
}

fn u64s(bytes: &[u8; HEADER]) -> impl Fn(usize) -> u64 + '_ {
    |at| {
        let field = bytes.iter().skip(at).take(8).rev();
        field.fold(0, |value, byte| value << 8 | u64::from(*byte))
    }
}

fn u32s(bytes: &[u8; HEADER]) -> impl Fn(usize) -> u32 + '_ {
    |at| u64s(bytes)(at) as u32
}

fn u16s(bytes: &[u8; HEADER]) -> impl Fn(usize) -> u16 + '_ {
    |at| u64s(bytes)(at) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = Header {
            source_cid: 3,
            destination_cid: HOST_CID,
            source_port: 1023,
            destination_port: 20_549,
            len: 7,
            kind: STREAM,
            op: Some(Op::Shutdown),
            flags: SHUTDOWN_SEND,
            buf_alloc: 1 << 18,
            fwd_cnt: u32::MAX,
        };
        let bytes = header.bytes();
        assert_eq!(bytes[24..34], [7, 0, 0, 0, 1, 0, 4, 0, 2, 0]);
        assert_eq!(Header::from_bytes(&bytes), header);
        assert_eq!(Header::from_bytes(&[0xff; HEADER]).op, None);
    }
}
