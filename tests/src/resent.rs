//! What a guest's kernel sent again, by its own counters.

/// Segments that were sent again, and the probes that may be some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resent {
    /// All of them.
    pub segments: u64,
    /// Tail loss probes: sent where two round trips have brought no answer (RFC 8985, section 7), so that
    /// a guest sends some that only waits for a CPU, as an emulated one beside others does.
    pub probes: u64,
}

impl Resent {
    /// The script that prints what is read here.
    pub const TELL: &str = "cat /proc/net/snmp /proc/net/netstat\n";

    /// Of what the script printed: two lines of each protocol, names and values. Nothing where a name
    /// isn't there.
    pub fn read(said: &str) -> Option<Self> {
        let value = |protocol: &str, name: &str| {
            let mut lines = said.lines().filter_map(|line| line.strip_prefix(protocol));
            let mut columns = lines.next()?.split(' ').zip(lines.next()?.split(' '));
            columns.find(|column| column.0 == name)?.1.parse().ok()
        };
        Some(Self {
            segments: value("Tcp: ", "RetransSegs")?,
            probes: value("TcpExt: ", "TCPLossProbes")?,
        })
    }

    /// Those that something else than a clock had the kernel send.
    pub fn but_for_probes(self) -> u64 {
        self.segments.saturating_sub(self.probes)
    }
}

#[test]
fn each_name_has_the_value_below_it() {
    let said = "Tcp: RtoMin RetransSegs InErrs\nTcp: 200 3 7\nUdp: InErrors\nUdp: 9\n\
        TcpExt: TCPLossProbes TCPTimeouts\nTcpExt: 2 5\n";
    let resent = Resent::read(said).unwrap();
    assert_eq!((resent.segments, resent.probes), (3, 2));
    assert_eq!(resent.but_for_probes(), 1);
    assert_eq!(Resent::read("Tcp: RetransSegs\nTcp: 3\n"), None);
}
