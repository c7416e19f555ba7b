//! Istio's sidecar is told that the pod's work is over, or the pod would live on with nothing but
//! its proxy in it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// The agent's port in Istio's proxy container.
const AGENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15020);
const REQUEST: &str = "POST /quitquitquit HTTP/1.1\r\nHost: 127.0.0.1:15020\r\n\
                       Content-Length: 0\r\nConnection: close\r\n\r\n";
const PATIENCE: Duration = Duration::from_secs(2);

/// Tells it, where there is one.
pub fn quit() {
    match ask(AGENT) {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => {
            tracing::info!("Istio's proxy was told to end");
        }
        Ok(answer) => {
            let line = answer.lines().next().unwrap_or_default().escape_debug();
            tracing::warn!("Istio's proxy was told to end, and says: {line}");
        }
        // There is none.
        Err(error) => tracing::debug!("{AGENT}: {error}"),
    }
}

/// The first bytes of the answer.
fn ask(agent: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&agent, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(REQUEST.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(512).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_proxy_is_asked_once_and_its_answer_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let agent = listener.local_addr().unwrap();
        let proxy = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let n = stream.read(&mut request).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            String::from_utf8_lossy(&request[..n]).into_owned()
        });
        assert!(ask(agent).unwrap().starts_with("HTTP/1.1 200"));
        assert!(
            proxy
                .join()
                .unwrap()
                .starts_with("POST /quitquitquit HTTP/1.1\r\n")
        );
        assert!(ask(agent).is_err());
    }
}
