//! /proc/net (proc(5)): every socket that there is, a line each.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Transport, Waiting};

/// A TCP socket that listens, and a UDP one that is not connected (linux/net/tcp_states.h).
const LISTEN: &str = "0A";
const CLOSE: &str = "07";

pub fn waiting() -> io::Result<Vec<Waiting>> {
    let mut all = Vec::new();
    for (transport, state, file) in [
        (Transport::Tcp, LISTEN, "tcp"),
        (Transport::Tcp, LISTEN, "tcp6"),
        (Transport::Udp, CLOSE, "udp"),
        (Transport::Udp, CLOSE, "udp6"),
    ] {
        let text = match fs::read_to_string(format!("/proc/net/{file}")) {
            Ok(text) => text,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        all.extend(text.lines().filter_map(|line| read(line, transport, state)));
    }
    Ok(all)
}

/// A line's local address, if its socket has that state.
fn read(line: &str, transport: Transport, state: &str) -> Option<Waiting> {
    let mut words = line.split_whitespace().skip(1);
    let (local, _, st) = (words.next()?, words.next()?, words.next()?);
    if st != state {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    // Words of the machine's own order.
    let mut words = address.as_bytes().chunks(8).map(|word| {
        let number = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        Some(number.to_ne_bytes())
    });
    let address = match address.len() {
        8 => IpAddr::from(Ipv4Addr::from(words.next()??)),
        32 => {
            let bytes: Vec<u8> = words.collect::<Option<Vec<_>>>()?.concat();
            IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))
        }
        _ => return None,
    };
    Some(Waiting {
        transport,
        address,
        port: u16::from_str_radix(port, 16).ok()?,
    })
}
