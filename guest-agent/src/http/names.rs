//! Names of hosts: /etc/hosts and the nameservers of /etc/resolv.conf are asked here, for a static
//! binary has no getaddrinfo.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use netdev::resolver::{Nameserver, Resolver};
use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::http::uri::Scheme;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver as Resolve};
use ureq::unversioned::transport::NextTimeout;

/// How long a nameserver may take, and how often each is asked.
const PATIENCE: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
/// What one may answer without TCP (EDNS is not offered).
const ANSWER: usize = 512;

/// ureq's way to ask.
#[derive(Debug)]
pub struct Names;

impl Resolve for Names {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().ok_or(Error::HostNotFound)?;
        let port = uri.port_u16().unwrap_or(match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => 443,
            _ => 80,
        });
        let mut found = self.empty();
        for address in addresses(host).into_iter().take(16) {
            found.push(SocketAddr::new(address, port));
        }
        match found.is_empty() {
            true => Err(Error::HostNotFound),
            false => Ok(found),
        }
    }
}

/// The addresses of a host; none where nobody knows it.
pub fn addresses(host: &str) -> Vec<IpAddr> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse() {
        return vec![address];
    }
    let known = in_hosts(&fs::read_to_string("/etc/hosts").unwrap_or_default(), host);
    if !known.is_empty() {
        return known;
    }
    let resolver = Resolver::of_the_pod();
    let searched = resolver
        .search
        .iter()
        .map(|domain| format!("{host}.{domain}."));
    let plain = std::iter::once(format!("{}.", host.trim_end_matches('.')));
    // As the C library: a name with so many dots is first asked as it is.
    let dots = host.bytes().filter(|byte| *byte == b'.').count();
    let names: Vec<String> = match dots >= usize::from(resolver.ndots.unwrap_or(1)) {
        true => plain.chain(searched).collect(),
        false => searched.chain(plain).collect(),
    };
    for name in names {
        let mut found = Vec::new();
        for kind in [RecordType::A, RecordType::AAAA] {
            found.append(&mut ask(&resolver.nameservers, &name, kind));
        }
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

/// The addresses that hosts(5) has for a name.
fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let line = |line: &str| -> Option<IpAddr> {
        let mut words = line.split('#').next()?.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words
            .any(|name| name.eq_ignore_ascii_case(host))
            .then_some(address)
    };
    text.lines().filter_map(line).collect()
}

fn ask(servers: &[Nameserver], name: &str, kind: RecordType) -> Vec<IpAddr> {
    let Ok(name) = Name::from_ascii(name) else {
        return Vec::new();
    };
    let Ok(id) = random_id() else {
        return Vec::new();
    };
    let mut question = Message::new(id, MessageType::Query, OpCode::Query);
    question.add_query(Query::query(name, kind));
    question.metadata.recursion_desired = true;
    for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
        if let Ok(answer) = exchange(server.address, &question) {
            let address = |data: &RData| match data {
                RData::A(address) => Some(IpAddr::V4(address.0)),
                RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                // Of an alias the server tells the addresses too.
                _ => None,
            };
            return answer
                .answers
                .iter()
                .filter_map(|record| address(&record.data))
                .collect();
        }
    }
    Vec::new()
}

/// What a stranger does not guess, so that nobody but the server answers.
fn random_id() -> io::Result<u16> {
    let mut bytes = [0; 2];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u16::from_ne_bytes(bytes))
}

fn exchange(server: IpAddr, question: &Message) -> io::Result<Message> {
    // An address and not its text, which the standard library would look up as a name.
    let any: IpAddr = match server {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    // Only this server's answers come in then.
    socket.connect((server, 53))?;
    socket.send(&question.to_vec().map_err(io::Error::other)?)?;
    let end = Instant::now() + PATIENCE;
    let mut bytes = [0; ANSWER];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut bytes)?;
        match Message::from_vec(bytes.get(..length).unwrap_or_default()) {
            Ok(answer) if answer.metadata.id == question.metadata.id => return Ok(answer),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_hosts_is_read() {
        let text = "# x\n10.0.0.1 a b # c\n::1 b\nodd b\n";
        assert_eq!(
            in_hosts(text, "B"),
            [
                "10.0.0.1".parse::<IpAddr>().unwrap(),
                "::1".parse().unwrap()
            ]
        );
        assert!(in_hosts(text, "c").is_empty());
        assert_eq!(addresses("[::1]"), ["::1".parse::<IpAddr>().unwrap()]);
    }
}
