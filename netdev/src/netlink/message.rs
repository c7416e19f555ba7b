//! Messages of rtnetlink(7). Those about addresses and routes are netlink-packet-route's; of a link
//! a few fields are wanted here, and that crate's reading of links knows every kind of card there is,
//! which would be a twentieth of the guest's agent.

use netlink_packet_core::{
    DecodeError, Emitable, NLA_HEADER_SIZE, NetlinkDeserializable, NetlinkHeader,
    NetlinkSerializable, NlaBuffer, NlasIterator, Parseable,
};

/// A message about a link, an address or a route.
pub struct Message<B> {
    kind: u16,
    /// What it says.
    pub body: B,
}

impl<B> Message<B> {
    /// One of this kind, of rtnetlink's.
    pub fn new(kind: u16, body: B) -> Self {
        Self { kind, body }
    }
}

impl<B: Emitable> NetlinkSerializable for Message<B> {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.body.emit(buffer);
    }
}

impl<B: Parseable<[u8]>> NetlinkDeserializable for Message<B> {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let body = B::parse(payload)?;
        Ok(Self::new(header.message_type, body))
    }
}

/// A network link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its address, where it has one of six bytes.
    pub mac: [u8; 6],
    /// What its frames may measure.
    pub mtu: Option<u32>,
    /// Somebody has brought it up.
    pub is_up: bool,
    /// It is the machine's own loopback.
    pub is_loopback: bool,
    /// It is a network card.
    pub is_ethernet: bool,
}

/// The length of a `struct ifinfomsg`: family, type, index, flags and which of them count.
const HEADER: usize = 16;

impl Parseable<[u8]> for Link {
    fn parse(message: &[u8]) -> Result<Self, DecodeError> {
        let Some(([_, _, k0, k1, i0, i1, i2, i3, f0, f1, f2, f3, ..], attributes)) =
            message.split_first_chunk::<HEADER>()
        else {
            return Err(DecodeError::buffer_too_small(message.len(), HEADER));
        };
        let flags = i32::from_ne_bytes([*f0, *f1, *f2, *f3]);
        let mut link = Self {
            index: u32::from_ne_bytes([*i0, *i1, *i2, *i3]),
            is_up: flags & libc::IFF_UP != 0,
            is_loopback: flags & libc::IFF_LOOPBACK != 0,
            is_ethernet: u16::from_ne_bytes([*k0, *k1]) == libc::ARPHRD_ETHER,
            ..Self::default()
        };
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                libc::IFLA_IFNAME => {
                    let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
                    link.name = String::from_utf8_lossy(name).into_owned();
                }
                libc::IFLA_ADDRESS => link.mac = value.try_into().unwrap_or_default(),
                libc::IFLA_MTU => link.mtu = value.try_into().ok().map(u32::from_ne_bytes),
                // A bridge, a dummy, a tunnel: nothing that a machine comes with.
                libc::IFLA_LINKINFO => link.is_ethernet = false,
                _ => {}
            }
        }
        Ok(link)
    }
}

/// What changes about a link; with nothing said, the question for all of them.
#[derive(Debug, Default)]
pub struct Change<'a> {
    /// The link's number; 0 in the question.
    pub index: u32,
    /// Whether it is brought up or taken down.
    pub up: Option<bool>,
    /// The MTU that it gets.
    pub mtu: Option<u32>,
    /// The name that it gets, while it is down.
    pub name: Option<&'a str>,
}

impl Change<'_> {
    /// The attributes' kinds and values.
    fn attributes(&self) -> impl Iterator<Item = (u16, Vec<u8>)> {
        let mtu = self
            .mtu
            .map(|mtu| (libc::IFLA_MTU, mtu.to_ne_bytes().to_vec()));
        let name = self
            .name
            .map(|name| (libc::IFLA_IFNAME, [name.as_bytes(), b"\0"].concat()));
        mtu.into_iter().chain(name)
    }
}

impl Emitable for Change<'_> {
    fn buffer_len(&self) -> usize {
        let lengths = self
            .attributes()
            .map(|(_, value)| NLA_HEADER_SIZE + value.len().next_multiple_of(4));
        HEADER + lengths.sum::<usize>()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.fill(0);
        let Some((header, mut rest)) = buffer.split_first_chunk_mut::<HEADER>() else {
            return;
        };
        let up = libc::IFF_UP as u32;
        let (_, fields) = header.split_at_mut(4);
        let values = match self.up {
            Some(true) => [self.index, up, up],
            Some(false) => [self.index, 0, up],
            None => [self.index, 0, 0],
        };
        for (field, value) in fields.chunks_exact_mut(4).zip(values) {
            field.copy_from_slice(&value.to_ne_bytes());
        }
        for (kind, value) in self.attributes() {
            let length = NLA_HEADER_SIZE + value.len();
            let Some((this, others)) = rest.split_at_mut_checked(length.next_multiple_of(4)) else {
                return;
            };
            rest = others;
            let mut attribute = NlaBuffer::new(this);
            attribute.set_kind(kind);
            attribute.set_length(length as u16);
            attribute.value_mut().copy_from_slice(&value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_read_up_to_what_is_cut_short() {
        let mut message = vec![0; HEADER];
        message[2] = 1; // ARPHRD_ETHER
        message[4] = 7;
        message[8] = (libc::IFF_UP | libc::IFF_LOOPBACK) as u8;
        message.extend(b"\x09\0\x03\0eth0\0\0\0\0");
        message.extend(b"\x0a\0\x01\0\x02\0\0\0\0\x09\0\0");
        message.extend(b"\x08\0\x04\0\xdc\x05\0\0");
        let link = Link::parse(&message).unwrap();
        let wanted = Link {
            index: 7,
            name: "eth0".to_owned(),
            mac: [2, 0, 0, 0, 0, 9],
            mtu: Some(1500),
            is_up: true,
            is_loopback: true,
            is_ethernet: true,
        };
        assert_eq!(link, wanted);
        message.extend(b"\x04\0\x12\0");
        assert!(!Link::parse(&message).unwrap().is_ethernet);
        for end in 0..HEADER {
            assert!(Link::parse(&message[..end]).is_err());
        }
        message.extend(b"\xff\0\x12\0");
        assert!(Link::parse(&message).is_err());
    }

    #[test]
    fn what_changes_about_a_link_is_written_as_the_kernel_reads_it() {
        let mut buffer = [0xff; 64];
        let mut emitted = |change: Change| {
            let length = change.buffer_len();
            change.emit(&mut buffer[..length]);
            buffer[..length].to_vec()
        };
        assert_eq!(emitted(Change::default()), [0; HEADER]);
        let change = Change {
            index: 7,
            up: Some(false),
            mtu: Some(1500),
            name: Some("enp1s0"),
        };
        let mut wanted = vec![0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        wanted.extend(b"\x08\0\x04\0\xdc\x05\0\0");
        wanted.extend(b"\x0b\0\x03\0enp1s0\0\0");
        assert_eq!(emitted(change), wanted);
    }
}
