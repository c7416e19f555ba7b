//! The pod's /etc/resolv.conf (resolv.conf(5)), read here because a static binary must not ask
//! the C library.

use std::net::IpAddr;

/// What glibc takes at most.
const MAX_NAMESERVERS: usize = 3;

/// Where names are looked up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Nameservers, the first first.
    pub nameservers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
}

impl Resolver {
    /// Reads the file's text; what it does not know it passes over, as the C library does. A
    /// nameserver with a zone (`fe80::1%eth0`) is passed over too: the guest has other links.
    pub fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    if let Some(Ok(address)) = words.next().map(str::parse)
                        && resolver.nameservers.len() < MAX_NAMESERVERS
                    {
                        resolver.nameservers.push(address);
                    }
                }
                // The last of these lines counts.
                Some("search" | "domain") => resolver.search = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        resolver
    }

    /// The pod's own; empty where there is no such file.
    pub fn of_the_pod() -> Self {
        Self::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_s_file_is_read() {
        let resolver = Resolver::parse(
            "# made by kubelet\nsearch default.svc.cluster.local svc.cluster.local\n\
             nameserver 10.96.0.10\nnameserver fe80::1%eth0\noptions ndots:5\nnameserver x\n\
             nameserver fd00:10:96::a\n",
        );
        let wanted: [IpAddr; 2] = [
            "10.96.0.10".parse().unwrap(),
            "fd00:10:96::a".parse().unwrap(),
        ];
        assert_eq!(resolver.nameservers, wanted);
        assert_eq!(
            resolver.search,
            ["default.svc.cluster.local", "svc.cluster.local"]
        );
    }
}
