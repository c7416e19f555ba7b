//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

use super::Protocol;

/// A sum of 16-bit words in the making.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    sum: u64,
    /// Whether the bytes so far are odd in number, so that the next one is a low one.
    odd: bool,
}

impl Sum {
    /// The sum of the pseudo header that TCP's, UDP's and ICMPv6's checksums begin with
    /// (RFC 9293, section 3.1; RFC 8200, section 8.1). The two addresses are of one family.
    pub fn pseudo(from: IpAddr, to: IpAddr, protocol: Protocol, len: usize) -> Self {
        let mut sum = Self::default();
        for address in [from, to] {
            match address {
                IpAddr::V4(address) => sum = sum.with(&address.octets()),
                IpAddr::V6(address) => sum = sum.with(&address.octets()),
            }
        }
        let number = protocol.number(from.is_ipv6());
        sum.with(&[0, number]).with(&(len as u32).to_be_bytes())
    }

    /// With `bytes` behind what there is.
    #[must_use]
    pub fn with(mut self, bytes: &[u8]) -> Self {
        let bytes = match bytes {
            [low, rest @ ..] if self.odd => {
                self.sum += u64::from(*low);
                self.odd = false;
                rest
            }
            bytes => bytes,
        };
        let (words, rest) = bytes.as_chunks::<4>();
        // Words of 32 bits: their halves add up to the same in the end.
        self.sum += words
            .iter()
            .map(|word| u64::from(u32::from_be_bytes(*word)))
            .sum::<u64>();
        let (pairs, last) = rest.as_chunks::<2>();
        for pair in pairs {
            self.sum += u64::from(u16::from_be_bytes(*pair));
        }
        if let [high] = last {
            self.sum += u64::from(*high) << 8;
            self.odd = true;
        }
        self
    }

    /// The sum in 16 bits, not yet inverted: what a card that does the rest wants to find
    /// (virtio 1.2, section 5.1.6.2).
    pub fn folded(self) -> u16 {
        let mut sum = self.sum;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// The checksum.
    pub fn finish(self) -> u16 {
        !self.folded()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rfc_s_example_sums_as_it_says() {
        // RFC 1071, section 3
        let sum = Sum::default().with(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
    }

    proptest! {
        #[test]
        fn parts_sum_to_what_the_whole_does(
            bytes in prop::collection::vec(any::<u8>(), 0..64), cut in 0..64usize,
        ) {
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            let parts = Sum::default().with(a).with(b).finish();
            prop_assert_eq!(parts, Sum::default().with(&bytes).finish());
        }
    }
}
