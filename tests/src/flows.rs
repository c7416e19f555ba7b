//! Many connections at once into a guest that sends back what it gets.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::PATIENCE;
use crate::space::all_descriptors;

/// Connections that live.
#[derive(Debug)]
pub struct Flows(Vec<TcpStream>);

impl Flows {
    /// The guest's port.
    pub const PORT: u16 = 9100;

    /// The user-data that serves it.
    pub const SERVE: &str = "ulimit -n 8192\nruby -rsocket -e 's = TCPServer.new(9100); \
        loop { Thread.new(s.accept) { |c| IO.copy_stream(c, c); c.close } }' > /dev/null 2>&1 &\n";

    /// Opens so many, each of which has sent something and got it back.
    pub fn open(to: SocketAddr, count: usize) -> io::Result<Self> {
        all_descriptors()?;
        let open = |_| {
            let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let flows = Self((0..count).map(open).collect::<io::Result<_>>()?);
        flows.exchange(1)?;
        Ok(flows)
    }

    /// Has so many bytes be under way on each at once, there and back.
    pub fn exchange(&self, len: usize) -> io::Result<()> {
        let mut bytes = vec![7; len];
        for mut stream in &self.0 {
            stream.write_all(&bytes)?;
        }
        for mut stream in &self.0 {
            stream.read_exact(&mut bytes)?;
        }
        Ok(())
    }
}
