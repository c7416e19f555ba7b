//! The two sides of a user-mode network under test: who calls whom, by which family.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The guest's addresses, and the gateway's, of each family.
pub const GUEST: [&str; 2] = ["10.0.2.2", "fd10:0:2::2"];
/// See [`GUEST`].
pub const GATEWAY: [&str; 2] = ["10.0.2.1", "fd10:0:2::1"];

/// Who calls whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The guest calls the host.
    Out,
    /// The host calls the guest: a forwarded port.
    In,
}

impl Way {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Out, Self::In];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Out { "g->h" } else { "h->g" })
    }
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The one of two addresses that is of this family.
    pub fn of(self, [v4, v6]: [&str; 2]) -> IpAddr {
        let address = if self == Self::V4 { v4 } else { v6 };
        address.parse().unwrap()
    }

    /// Every address, at that port.
    pub fn any(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.of(["0.0.0.0", "::"]), port)
    }
}

impl From<IpAddr> for Family {
    fn from(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::V4 { "IPv4" } else { "IPv6" })
    }
}
