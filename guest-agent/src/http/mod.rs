//! Files over http and https, for `seedfrom`, `#include`, `write_files` and `phone_home`; by ureq.

mod names;
mod tls;

pub use names::addresses;

use std::thread;
use std::time::Duration;

use ureq::config::Config;
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Error};

/// In every error that is the server's own answer.
pub const STATUS: &str = "the server answered ";
/// cloud-init's: a try may take so long, and there are so many.
const PATIENCE: Duration = Duration::from_secs(5);
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);

fn agent() -> Agent {
    let config = Config::builder()
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .user_agent(concat!("peapod-agent/", env!("CARGO_PKG_VERSION")))
        .proxy(None)
        .tls_config(tls::config())
        .build();
    Agent::with_parts(config, DefaultConnector::new(), names::Names)
}

/// Calls until it succeeds, the server answers for good, or there were `tries`.
fn repeat<T>(
    tries: u32,
    pause: Duration,
    call: impl Fn() -> Result<T, Error>,
) -> Result<T, String> {
    let mut left = tries.max(1);
    loop {
        let error = match call() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        left -= 1;
        if let Some(why) = tls::distrusted(&error) {
            return Err(why);
        }
        let why = match &error {
            // It will not say another thing in a second.
            Error::StatusCode(status @ 400..500) => return Err(format!("{STATUS}{status}")),
            Error::StatusCode(status) => format!("{STATUS}{status}"),
            Error::BadUri(_) | Error::BodyExceedsLimit(_) => {
                return Err(error.to_string());
            }
            _ => error.to_string(),
        };
        if left == 0 {
            return Err(why);
        }
        thread::sleep(pause);
    }
}

/// The bytes at an address, at most `limit` of them.
pub fn get(address: &str, limit: u64) -> Result<Vec<u8>, String> {
    let agent = agent();
    repeat(TRIES, PAUSE, || {
        let mut response = agent.get(address).call()?;
        response.body_mut().with_config().limit(limit).read_to_vec()
    })
}

/// Posts a form.
pub fn post(
    address: &str,
    fields: &[(&str, String)],
    tries: u32,
    pause: Duration,
) -> Result<(), String> {
    let agent = agent();
    let fields = || fields.iter().map(|(key, value)| (*key, value.as_str()));
    repeat(tries, pause, || {
        agent.post(address).send_form(fields()).map(drop)
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn http_that_leads_to_https_goes_on_by_tls() {
        let secure = TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        let answer = format!(
            "HTTP/1.1 302 Found\r\nLocation: HTTPS://{}/\r\nContent-Length: 0\r\n\
             Connection: close\r\n\r\n",
            secure.local_addr().unwrap()
        );
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let first = thread::spawn(move || {
            let mut first = [0];
            secure.accept().unwrap().0.read_exact(&mut first).unwrap();
            first[0]
        });
        agent().get(&address).call().unwrap_err();
        // A handshake (RFC 8446, 5.1).
        assert_eq!(first.join().unwrap(), 22);
    }
}
