//! A container's probe as a Pod has it, asked as a kubelet asks it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Container;

/// Whom a probe asks.
#[derive(Debug)]
enum Asked {
    Http { path: String, port: u16 },
    Tcp { port: u16 },
    Exec(Vec<String>),
}

/// A probe, and what its answers have been.
#[derive(Debug)]
pub struct Probe {
    asked: Asked,
    delay: Duration,
    period: Duration,
    timeout: Duration,
    successes: u64,
    /// So many failures in a row are one.
    pub failures: u64,
    /// What takes the place of the pod's, where the probe has one of its own.
    pub grace: Option<Duration>,
    next: Instant,
    row: (bool, u64),
}

impl Probe {
    /// The one of a container that is so called, where it has one. It has just been started.
    pub fn of(container: &Value, name: &str) -> Option<Self> {
        let probe = container.get(name)?;
        let port = |handler: &Value| port(container, &handler["port"]);
        let asked = if let Some(get) = probe.get("httpGet") {
            Asked::Http {
                path: get["path"].as_str().unwrap_or("/").to_owned(),
                port: port(get),
            }
        } else if let Some(socket) = probe.get("tcpSocket") {
            Asked::Tcp { port: port(socket) }
        } else {
            let command = probe["exec"]["command"].clone();
            Asked::Exec(serde_json::from_value(command).expect("words"))
        };
        // The API's defaults.
        let number = |name: &str, default| probe[name].as_u64().unwrap_or(default);
        let seconds = |name: &str, default| Duration::from_secs(number(name, default));
        let mut probe = Self {
            asked,
            delay: seconds("initialDelaySeconds", 0),
            period: seconds("periodSeconds", 10),
            timeout: seconds("timeoutSeconds", 1),
            successes: number("successThreshold", 1),
            failures: number("failureThreshold", 3),
            grace: probe["terminationGracePeriodSeconds"]
                .as_u64()
                .map(Duration::from_secs),
            next: Instant::now(),
            row: (true, 0),
        };
        probe.begin();
        Some(probe)
    }

    /// Forgets what was answered: the container has been started again.
    pub fn begin(&mut self) {
        self.next = Instant::now() + self.delay;
        self.row = (true, 0);
    }

    /// Asks if it is time to: why it failed, if it did.
    pub fn ask(&mut self, pod: IpAddr, container: &Container) -> Option<Result<(), String>> {
        if Instant::now() < self.next {
            return None;
        }
        self.next = Instant::now() + self.period;
        let answer = match &self.asked {
            Asked::Http { path, port } => http((pod, *port).into(), path, self.timeout),
            Asked::Tcp { port } => tcp((pod, *port).into(), self.timeout).map(drop),
            Asked::Exec(command) => exec(container, command, self.timeout),
        };
        let (same, times) = self.row;
        self.row = match answer.is_ok() {
            ok if ok == same => (ok, times + 1),
            ok => (ok, 1),
        };
        Some(answer)
    }

    /// What so many answers of one kind in a row have made certain.
    pub fn verdict(&self) -> Option<bool> {
        let (ok, times) = self.row;
        let wanted = if ok { self.successes } else { self.failures };
        (times >= wanted).then_some(ok)
    }
}

/// By its number, or by its name among the container's.
fn port(container: &Value, port: &Value) -> u16 {
    let number = port.as_u64().or_else(|| {
        let mut ports = container["ports"].as_array()?.iter();
        ports.find(|known| known["name"] == *port)?["containerPort"].as_u64()
    });
    u16::try_from(number.expect("a port")).expect("a port")
}

fn tcp(to: SocketAddr, timeout: Duration) -> Result<TcpStream, String> {
    TcpStream::connect_timeout(&to, timeout).map_err(|error| error.to_string())
}

fn http(to: SocketAddr, path: &str, timeout: Duration) -> Result<(), String> {
    let end = Instant::now() + timeout;
    let mut stream = tcp(to, timeout)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: kube-probe/1.33\r\nConnection: close\r\n\r\n"
    );
    let mut ask = || {
        stream.write_all(request.as_bytes())?;
        let (mut answer, mut bytes) = (Vec::new(), [0; 1024]);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match stream.read(&mut bytes)? {
                0 => return Ok(String::from_utf8_lossy(&answer).into_owned()),
                n => answer.extend_from_slice(&bytes[..n]),
            }
        }
    };
    let answer: Result<String, std::io::Error> = ask();
    let answer = answer.map_err(|error| error.to_string())?;
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    match status {
        Some(200..400) => Ok(()),
        _ => Err(answer),
    }
}

fn exec(container: &Container, command: &[String], timeout: Duration) -> Result<(), String> {
    let end = Instant::now() + timeout;
    let mut command = container.command(command);
    command.stdin(Stdio::null());
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = quiet.spawn().map_err(|error| error.to_string())?;
    loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(status.to_string()),
            None if Instant::now() > end => break,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("no end in {timeout:?}"))
}
