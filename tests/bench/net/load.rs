//! The load, inside the namespaces: servers on one side, a client on the other, this same program
//! as processes of their own. What a process found out is a line of numbers on its output.

use std::fmt;
use std::io::{self, BufRead, Read, Write, stdin};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What a server's ports are for, counted from its first.
pub mod service {
    /// Reads and throws away, for the time that the server was told; says bytes and nanoseconds.
    pub const SINK: u16 = 0;
    /// Gives every byte back.
    pub const ECHO: u16 = 1;
    /// Gives one byte back and closes.
    pub const ONCE: u16 = 2;
    /// Counts datagrams; says their number when told a line.
    pub const DATAGRAMS: u16 = 3;
    /// Four ports that accept and keep.
    pub const HOLD: std::ops::Range<u16> = 4..8;
    /// Those that speak TCP and end.
    pub const STREAMS: std::ops::RangeInclusive<u16> = SINK..=ONCE;
}

const BUFFER: usize = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(5);
/// Datagrams are sent in bursts of at most this long.
const BURST: Duration = Duration::from_micros(100);
/// Room for what comes in while the server isn't running, on a machine of few cores.
const DATAGRAM_BUFFER: usize = 2 << 20;

/// Runs the part that the words name.
pub fn run(words: &[String]) -> io::Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", first, seconds] => serve(read(first), read(seconds)),
        ["send", to] => send(read(to)),
        ["ask", to, times] => ask(read(to), read(times)),
        ["connect", to, times] => connect(read(to), read(times)),
        ["datagrams", to, size, pace, seconds] => {
            datagrams(read(to), read(size), read(pace), read(seconds))
        }
        ["hold", flows, seconds, ref to @ ..] => hold(read(flows), read(seconds), to),
        ["relay", ref routes @ ..] => relay(routes),
        _ => Err(io::Error::other(words.join(" "))),
    }
}

/// A word that this program wrote itself.
fn read<T: FromStr<Err: fmt::Debug>>(word: &str) -> T {
    word.parse().expect("a number or an address")
}

/// Answers each connection in a thread of its port's, one after the other.
fn each_stream(port: u16, mut answer: impl FnMut(TcpStream) + Send + 'static) -> io::Result<()> {
    let listener = TcpListener::bind(("::", port))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // One whose end got lost must not keep the next from its answer for ever.
            let _ = stream.set_read_timeout(Some(PATIENCE));
            answer(stream);
        }
    });
    Ok(())
}

/// Every service, from port `first` on, until the process that started this closes its end.
fn serve(first: u16, seconds: f64) -> io::Result<()> {
    let window = Duration::from_secs_f64(seconds);
    each_stream(first + service::SINK, move |stream| drain(stream, window))?;
    each_stream(first + service::ECHO, |mut stream| {
        let mut byte = [0];
        let _ = stream.set_nodelay(true);
        while let Ok(1) = stream.read(&mut byte) {
            let _ = stream.write_all(&byte);
        }
    })?;
    each_stream(first + service::ONCE, |mut stream| {
        let mut byte = [0];
        if let Ok(1) = stream.read(&mut byte) {
            let _ = stream.write_all(&byte);
        }
    })?;
    for port in service::HOLD {
        // Kept by nobody and closed by nobody: they go with the process.
        each_stream(first + port, std::mem::forget)?;
    }
    let socket = UdpSocket::bind(("::", first + service::DATAGRAMS))?;
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, DATAGRAM_BUFFER)?;
    let counter = Arc::new(AtomicU64::new(0));
    let received = Arc::clone(&counter);
    thread::spawn(move || {
        let mut bytes = [0; 2048];
        while socket.recv(&mut bytes).is_ok() {
            received.fetch_add(1, Ordering::Relaxed);
        }
    });
    println!("ready");
    for _ in stdin().lock().lines().map_while(Result::ok) {
        println!("{}", counter.swap(0, Ordering::Relaxed));
    }
    Ok(())
}

/// What arrives within the window, from the first byte on.
fn drain(mut stream: TcpStream, window: Duration) {
    let mut buffer = vec![0; BUFFER];
    let Ok(n @ 1..) = stream.read(&mut buffer) else {
        return;
    };
    // A stream that has come to a halt must not make the window longer.
    let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
    let (start, mut total) = (Instant::now(), n);
    while start.elapsed() < window {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => total += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    println!("{total} {}", start.elapsed().as_nanos());
}

fn dial(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends until nobody takes it.
fn send(to: SocketAddr) -> io::Result<()> {
    let (mut stream, buffer) = (dial(to)?, vec![0; BUFFER]);
    while stream.write_all(&buffer).is_ok() {}
    Ok(())
}

fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}

/// Sends a byte and waits for one, so many times; says the median and the 99th percentile in us.
fn ask(to: SocketAddr, times: usize) -> io::Result<()> {
    let mut stream = dial(to)?;
    stream.set_nodelay(true)?;
    let mut took = Vec::with_capacity(times);
    // The first tenth warms up.
    for round in 0..times + times / 10 {
        let start = Instant::now();
        exchange(&mut stream)?;
        if round >= times / 10 {
            took.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    took.sort_by(f64::total_cmp);
    let percentile = |p: usize| took.get(took.len() * p / 100).copied().unwrap_or(f64::NAN);
    println!("{} {}", percentile(50), percentile(99));
    Ok(())
}

/// The same, each time on a connection of its own; says the mean.
fn connect(to: SocketAddr, times: usize) -> io::Result<()> {
    let start = Instant::now();
    for _ in 0..times {
        exchange(&mut dial(to)?)?;
    }
    println!("{}", start.elapsed().as_secs_f64() * 1e6 / times as f64);
    Ok(())
}

/// Sends datagrams, so many a second; says how many it were and the nanoseconds.
fn datagrams(to: SocketAddr, size: usize, pace: f64, seconds: f64) -> io::Result<()> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    let bytes = vec![0; size];
    let burst = (pace * BURST.as_secs_f64()).max(1.0).floor();
    let every = Duration::from_secs_f64(burst / pace);
    let start = Instant::now();
    let (mut sent, mut due, window) = (0_u64, Duration::ZERO, Duration::from_secs_f64(seconds));
    while due < window {
        while start.elapsed() < due {
            std::hint::spin_loop();
        }
        for _ in 0..burst as u64 {
            // What can't be sent counts as lost.
            let _ = socket.send(&bytes);
            sent += 1;
        }
        due += every;
        // A sender that can't keep the pace doesn't send for longer.
        if start.elapsed() > window {
            break;
        }
    }
    println!("{sent} {}", start.elapsed().as_nanos());
    Ok(())
}

/// Opens connections, at most so many in at most so long, and keeps them; says how many.
fn hold(flows: usize, seconds: f64, to: &[&str]) -> io::Result<()> {
    let (start, mut streams) = (Instant::now(), Vec::with_capacity(flows));
    for to in to.iter().cycle().take(flows) {
        match TcpStream::connect_timeout(&read(to), PATIENCE) {
            Ok(stream) => streams.push(stream),
            // It is full, or stuck.
            Err(_) => break,
        }
        if start.elapsed().as_secs_f64() > seconds {
            break;
        }
    }
    println!("{}", streams.len());
    // Until the process that started this closes its end.
    let _ = stdin().read(&mut [0]);
    Ok(())
}

/// Relays each stream, one after the other at each port. A route is the first of the ports to
/// listen on, the first of those to call, and where, in IPv4 and IPv6.
fn relay(routes: &[&str]) -> io::Result<()> {
    for route in routes {
        let fields: Vec<&str> = route.split(',').collect();
        let (first, to): (u16, u16) = (read(fields[0]), read(fields[1]));
        let [v4, v6]: [IpAddr; 2] = [read(fields[2]), read(fields[3])];
        for port in service::STREAMS {
            let mut buffer = vec![0; BUFFER];
            each_stream(first + port, move |client| {
                let peer = client.peer_addr().map(|peer| peer.ip().to_canonical());
                let host = if matches!(peer, Ok(IpAddr::V6(_))) {
                    v6
                } else {
                    v4
                };
                // An end that is lost ends the connection, as it should.
                let _ = pass(client, SocketAddr::new(host, to + port), &mut buffer);
            })?;
        }
    }
    println!("ready");
    let _ = stdin().read(&mut [0]);
    Ok(())
}

/// Passes on what either end says until both have ended. It waits while the other doesn't take it,
/// which is all right as long as only one of them says much.
fn pass(client: TcpStream, to: SocketAddr, buffer: &mut [u8]) -> io::Result<()> {
    let mut ends = [client, dial(to)?];
    for end in &ends {
        end.set_nodelay(true)?;
    }
    let mut ended = [false; 2];
    while ended != [true; 2] {
        let mut waited = [0, 1].map(|i| libc::pollfd {
            // One that has ended is not waited for.
            fd: if ended[i] { -1 } else { ends[i].as_raw_fd() },
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: the pointer and the length are those of an array that outlives the call.
        unsafe { libc::poll(waited.as_mut_ptr(), 2, -1) };
        for i in [0, 1] {
            if waited[i].revents == 0 {
                continue;
            }
            let n = ends[i].read(buffer)?;
            ends[1 - i].write_all(&buffer[..n])?;
            if n == 0 {
                ends[1 - i].shutdown(Shutdown::Write)?;
                ended[i] = true;
            }
        }
    }
    Ok(())
}
