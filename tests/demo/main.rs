//! `make demo`: Bookinfo to look at, in a mesh of Envoys in network namespaces, with its details
//! in a VM. Until Ctrl-C, then nothing of it is left.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use peapod_tests::mesh::application::{Bookinfo, DETAILS, GATEWAY};
use peapod_tests::mesh::bookinfo::{SERVICE, serve};
use peapod_tests::space::{Space, enclose};

/// Where the gateway listens in its pod.
const GATEWAY_PORT: u16 = 8080;
const SECOND: Duration = Duration::from_secs(1);

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_signal: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

/// Signals that end it, to be heard by `action`.
fn on_signals(action: libc::sighandler_t) {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler stores to an atomic, which is all that it does.
        unsafe { libc::signal(signal, action) };
    }
}

/// Gives on what comes at `listener` to the gateway, as a cloud's load balancer does.
fn balance(listener: TcpListener, space: Arc<Space>, gateway: SocketAddr) {
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let call = || TcpStream::connect(gateway);
            let Ok(Ok(server)) = space.inside(call) else {
                continue;
            };
            if let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) {
                thread::spawn(move || copy(from, to));
                thread::spawn(move || copy(server, client));
            }
        }
    });
}

/// What flows a second, as who sees it: the head of the live line's columns.
const HEAD: [&str; 2] = [
    "         requests/s by Envoy    and by us:   connections/s and bytes/s by us:",
    "   gateway  details' sidecar     in the VM   to the VM   to the VM    from it",
];
/// How wide each of them is.
const WIDTHS: [usize; 6] = [10, 18, 14, 12, 12, 11];

/// What was counted so far, column by column.
fn counted(site: &Bookinfo) -> [u64; 6] {
    let served = format!(
        "cluster.{}.upstream_rq_completed",
        site.services[3].outbound()
    );
    let called = "cluster.inbound|9080||.upstream_rq_completed";
    let forwarded = |name: &str, label: &str| site.guest.forwarded(name, 9080, label);
    [
        site.gateway.counter(&served),
        site.details_proxy.counter(called),
        site.guest.answered(),
        forwarded("connections_total", ""),
        forwarded("bytes_total", "direction=\"in\""),
        forwarded("bytes_total", "direction=\"out\""),
    ]
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(SERVICE) {
        serve(&words.next().unwrap_or_default());
    }
    // The other process that this becomes is to end first.
    on_signals(libc::SIG_IGN);
    if let Err(error) = enclose() {
        eprintln!("demo: {error}");
        return ExitCode::from(2);
    }
    on_signals(stop as *const () as libc::sighandler_t);
    let at = std::env::var("PEAPOD_DEMO").unwrap_or("127.0.0.1:8080".to_owned());
    let listener = match TcpListener::bind(&at) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("demo: {at}: {error}: PEAPOD_DEMO=127.0.0.1:PORT takes another");
            return ExitCode::from(2);
        }
    };
    eprintln!(
        "==> starting Bookinfo: six pods with an Envoy each, a gateway, and a VM for details"
    );
    let begin = Instant::now();
    let site = Bookinfo::start(DETAILS);
    let gateway = site.edge.at(GATEWAY_PORT);
    balance(listener, site.client.space(), gateway);
    let port = at.rsplit(':').next().unwrap_or_default();
    eprintln!(
        "==> up after {:.0} s: http://127.0.0.1:{port}/productpage; Ctrl-C ends it",
        begin.elapsed().as_secs_f64()
    );
    show(&site);
    eprintln!("\n==> ending");
    ExitCode::SUCCESS
}

/// A visitor a second, and a line of what flows, until it is stopped.
fn show(site: &Bookinfo) {
    for line in HEAD {
        eprintln!("{line}");
    }
    let (mut before, mut at) = (counted(site), Instant::now());
    while !STOP.load(Ordering::Relaxed) {
        let visit = format!("curl -s -o /dev/null --max-time 20 http://{GATEWAY}/productpage");
        let _ = site.client.attempt(&visit);
        thread::sleep(SECOND);
        let (now, elapsed) = (counted(site), at.elapsed().as_secs_f64());
        let rates: Vec<f64> = now
            .iter()
            .zip(before)
            .map(|(now, before)| now.saturating_sub(before) as f64 / elapsed)
            .collect();
        let line: String = rates
            .iter()
            .zip(WIDTHS)
            .map(|(rate, width)| format!("{rate:width$.1}"))
            .collect();
        eprint!("\r{line}");
        let _ = io::stderr().flush();
        (before, at) = (now, Instant::now());
    }
}
