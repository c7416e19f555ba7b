//! Commands inside a guest: a line of Ruby in its user-data serves a shell on a forwarded port.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// A guest that runs commands for a test.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    shell: SocketAddr,
}

impl Default for Guest {
    fn default() -> Self {
        Self::at(Self::PORT)
    }
}

impl Guest {
    /// The port in the guest, which the manifest has to declare.
    pub const PORT: u16 = 9099;

    /// The guest whose port is `port` of 127.0.0.1.
    pub fn at(port: u16) -> Self {
        let shell = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        Self { shell }
    }

    /// The guest of the pod that has this address.
    pub fn of(pod: IpAddr) -> Self {
        let shell = SocketAddr::new(pod, Self::PORT);
        Self { shell }
    }

    /// The user-data that serves the shell: reads a script up to the end of the stream, runs it
    /// and answers with what it printed.
    pub const SERVE: &str = "ruby -rsocket -ropen3 -e 'TCPServer.new(9099).tap { |s| loop { \
        Thread.new(s.accept) { |c| c.write(Open3.capture2e(\"bash\", stdin_data: c.read)[0]); \
        c.close } } }' > /dev/null 2>&1 &\n";

    /// Touches what there is of memory but for 40 MiB, and keeps it.
    pub const FILL: &str = "busybox mount -t tmpfs -o size=100% none /mnt
        free=$(busybox awk '/MemAvailable/ { print int($2 / 1024) - 40 }' /proc/meminfo)
        busybox dd if=/dev/zero of=/mnt/x bs=1M count=$free 2>/dev/null";

    /// Runs `script` by bash in the guest and returns what it printed, waiting up to `limit` for
    /// the shell to come up.
    pub fn run(self, script: &str, limit: Duration) -> String {
        let end = Instant::now() + limit;
        loop {
            match self.attempt(script, limit) {
                Ok(output) => return output,
                Err(error) if Instant::now() > end => panic!("no shell in the guest: {error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    fn attempt(self, script: &str, limit: Duration) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.shell)?;
        stream.set_read_timeout(Some(limit))?;
        // A shell that answers nothing is one that is not there yet.
        stream.write_all(format!("{script}\necho end-of-output\n").as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut output = String::new();
        stream.read_to_string(&mut output)?;
        output
            .strip_suffix("end-of-output\n")
            .map(str::to_owned)
            .ok_or_else(|| std::io::Error::other(format!("cut short: {output:?}")))
    }
}
