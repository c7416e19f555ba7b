//! `peapod-net` as it is used: its processes, sockets and exit statuses.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;

const PROGRAM: &str = env!("CARGO_BIN_EXE_peapod-net");
const PATIENCE: Duration = Duration::from_secs(10);

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        sleep(Duration::from_millis(5));
    }
}

/// A port of loopback that nobody has.
fn free() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap()
}

/// Ends a process as a supervisor does, and returns its status.
fn terminate(child: &mut Child) -> Option<i32> {
    kill(child.id(), "-TERM");
    child.wait().unwrap().code()
}

fn kill(pid: u32, signal: &str) {
    let status = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status();
    assert!(status.unwrap().success());
}

/// A network for VMMs, with a control socket.
struct Net {
    dir: TempDir,
    child: Child,
}

impl Net {
    fn start(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (vmm, control) = (dir.path().join("vmm"), dir.path().join("control"));
        let mut child = Command::new(PROGRAM)
            .arg("--vhost-user")
            .arg(vmm)
            .arg("--control")
            .arg(control)
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        is_ready(&mut child);
        Self { dir, child }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A VMM that has asked what there is.
    fn vmm(&self) -> Frontend {
        let socket = UnixStream::connect(self.path("vmm")).unwrap();
        let frontend = Frontend::from_stream(socket, 2);
        frontend.get_features().unwrap();
        frontend
    }

    /// What is answered to a request, which may be any line.
    fn say(&self, line: &str) -> Value {
        let mut stream = UnixStream::connect(self.path("control")).unwrap();
        // What is too long is answered, and the connection closed, before it has ended.
        let _ = stream.write_all(format!("{line}\n").as_bytes());
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    fn ask(&self, request: &Value) -> Value {
        self.say(&request.to_string())
    }

    /// `peapod-net control`.
    fn control(&self, words: &[&str]) -> Output {
        let mut command = Command::new(PROGRAM);
        command.arg("control").arg(self.path("control")).args(words);
        command.output().unwrap()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_ready(child: &mut Child) {
    let mut line = String::new();
    let stdout = child.stdout.as_mut().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn bad_input_is_one_line_and_status_2_and_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let file = file.to_str().unwrap();
    let socket = dir.path().join("socket");
    for (options, wrong) in [
        (vec!["--addresses", "vmware"], "vmware"),
        (vec!["--publish", "80"], "HOSTPORT"),
        (vec!["--publish", "1-5000:1-5000"], "more than 4096 ports"),
        (
            vec!["--publish", &format!("127.0.0.1:{port}:80")],
            "already in use",
        ),
        (
            vec!["-4", "--publish", "[::1]:8080:80"],
            "which has no such address",
        ),
        (
            vec!["--address", "10.0.0.2/8", "--prefix", "9"],
            "number of bits already",
        ),
        (
            vec!["--address", "127.0.0.1"],
            "cannot be the guest's address",
        ),
        (vec!["--control", file], "there is a file"),
        (vec!["--control", "/nowhere/socket"], "/nowhere/socket"),
        (vec!["--interface", "eth0"], "--interface"),
    ] {
        let mut command = Command::new(PROGRAM);
        command.arg("--vhost-user").arg(&socket).args(&options);
        let output = command.output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{options:?}: {error}");
        assert!(
            error.starts_with("peapod-net: ") && error.contains(wrong),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(output.stdout.is_empty() && !socket.exists());
    }
    for (target, wrong) in [("/nowhere", "/nowhere"), ("4194305", "of process 4194305")] {
        let output = Command::new(PROGRAM).args(["--netns", target]).output();
        let output = output.unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(
            error.contains(wrong) && error.lines().count() == 1,
            "{error}"
        );
    }
}

#[test]
fn it_does_not_run_as_istio_s_proxy_unless_told() {
    let dir = tempfile::tempdir().unwrap();
    // A socket where nobody can make one: it has to get as far as that.
    let socket = dir.path().join("none").join("socket");
    for (ids, allow, wrong) in [
        (["--map-user=1337", "--map-group=0"], false, "Istio's proxy"),
        (["--map-user=0", "--map-group=1337"], false, "Istio's proxy"),
        (
            ["--map-user=1337", "--map-group=1337"],
            true,
            "No such file",
        ),
    ] {
        let mut command = Command::new("unshare");
        command
            .args(ids)
            .arg(PROGRAM)
            .arg("--vhost-user")
            .arg(&socket);
        command.args(allow.then_some("--allow-proxy-uid"));
        let output = command.output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(wrong), "{error}");
    }
}

#[test]
fn vmms_come_one_after_another_until_sigterm_and_the_sockets_go() {
    let mut net = Net::start(&[]);
    for _ in 0..3 {
        drop(net.vmm());
    }
    let connected = net.vmm();
    assert_eq!(terminate(&mut net.child), Some(0));
    drop(connected);
    assert!(!net.path("vmm").exists() && !net.path("control").exists());
}

#[test]
fn a_second_network_does_not_take_the_first_one_s_socket() {
    let net = Net::start(&[]);
    let mut command = Command::new(PROGRAM);
    let output = command.arg("--vhost-user").arg(net.path("vmm")).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("somebody listens there"));
    net.vmm();
}

#[test]
fn forwards_are_listed_added_and_removed_at_the_control_socket() {
    let first = free();
    let net = Net::start(&["--publish", &format!("{first}:80")]);
    let mode = std::fs::metadata(net.path("control")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    let forwards = net.ask(&json!({ "command": "forwards" }));
    assert_eq!(
        forwards["forwards"],
        json!([{
            "transport": "tcp", "bind": first.to_string(), "guest_port": 80, "listens": false,
            "connections": 0, "refused": 0, "bytes_in": 0, "bytes_out": 0,
        }])
    );
    let second = free();
    let spec = format!("127.0.0.1:{0}:53/udp", second.port());
    let added = net.ask(&json!({ "command": "add", "publish": spec }));
    let one = json!([{ "transport": "udp", "bind": second.to_string(), "guest_port": 53 }]);
    assert_eq!(added["forwards"], one);
    assert!(std::net::UdpSocket::bind(second).is_err());
    let again = net.ask(&json!({ "command": "add", "publish": spec }));
    assert!(again["error"].as_str().unwrap().contains("already in use"));
    // All or none.
    let port = second.port() - 1;
    let range = format!("127.0.0.1:{port}-{}:1-2/udp", port + 1);
    let partly = net.ask(&json!({ "command": "add", "publish": range }));
    assert!(partly["error"].is_string(), "{partly}");
    let listed = net.ask(&json!({ "command": "forwards" }));
    assert_eq!(listed["forwards"].as_array().unwrap().len(), 2);
    let removed = net.ask(&json!({ "command": "remove", "publish": spec }));
    assert_eq!(removed["forwards"], one);
    let missing = net.ask(&json!({ "command": "remove", "publish": spec }));
    assert_eq!(missing["error"], format!("no udp forward at {second}"));
    std::net::UdpSocket::bind(second).unwrap();
}

#[test]
fn counters_metrics_and_captures_are_there_without_a_guest_and_flows_are_not() {
    let net = Net::start(&[]);
    let flows = net.ask(&json!({ "command": "flows" }));
    assert_eq!(flows["error"], "the network is not running");
    let counters = net.ask(&json!({ "command": "counters" }));
    assert_eq!(counters["counters"]["dropped_malformed"], 0);
    let metrics = net.ask(&json!({ "command": "metrics" }));
    let metrics = metrics["metrics"].as_str().unwrap();
    assert!(metrics.contains("peapod_net_refused_total{reason=\"access\"} 0\n"));
    let path = net.path("capture");
    let capture = |action: &str, path: Option<&Path>| {
        let mut request = json!({ "command": "capture", "action": action });
        if let Some(path) = path {
            request["path"] = path.to_str().unwrap().into();
        }
        net.ask(&request)
    };
    assert_eq!(capture("status", None)["capture"], Value::Null);
    let started = capture("start", Some(&path));
    assert_eq!(started["capture"]["frames"], 0, "{started}");
    assert!(capture("start", Some(&path))["error"].is_string());
    let stopped = capture("stop", None);
    let len = std::fs::metadata(&path).unwrap().len();
    assert_eq!(stopped["capture"]["bytes"], len);
    assert_eq!(capture("stop", None)["error"], "nothing is captured");
}

#[test]
fn what_is_no_request_is_answered_and_nothing_there_grows() {
    let net = Net::start(&[]);
    for line in [
        "",
        "x",
        "{}",
        "[]",
        "{\"command\":\"shutdown\"}",
        "{\"command\":\"add\"}",
        "{\"command\":\"flows\",\"most\":-1}",
        "{\"command\":\"flows\",\"least\":1}",
        "{\"command\":\"add\",\"publish\":\"80\"}",
        "{\"command\":\"capture\",\"action\":\"start\"}",
    ] {
        let answer = net.say(line);
        assert!(answer["error"].is_string(), "{line}: {answer}");
    }
    let long = net.say(&"x".repeat(70_000));
    assert_eq!(long["error"], "the request is too long");
    // Several requests on one connection.
    let mut stream = UnixStream::connect(net.path("control")).unwrap();
    let request = json!({ "command": "forwards" });
    stream
        .write_all(format!("{request}\n{request}\n").as_bytes())
        .unwrap();
    let mut lines = BufReader::new(&stream).lines();
    for _ in 0..2 {
        assert_eq!(lines.next().unwrap().unwrap(), "{\"forwards\":[]}");
    }
    drop(stream);
    let all: Vec<_> = (0..16)
        .map(|_| UnixStream::connect(net.path("control")).unwrap())
        .collect();
    wait_for("a connection is turned away", || {
        net.ask(&request)["error"] == "too many connections"
    });
    drop(all);
    wait_for("there is room again", || {
        net.ask(&request)["error"].is_null()
    });
}

#[test]
fn the_client_shows_tables_and_what_the_network_refuses() {
    let bind = free();
    let net = Net::start(&[]);
    let spec = format!("{bind}:8080");
    let output = net.control(&["add", &spec]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = net.control(&["forwards"]);
    let lines: Vec<_> = text(&output.stdout).lines().map(str::to_owned).collect();
    assert!(lines[0].starts_with("TRANSPORT  BIND"));
    let cells: Vec<_> = lines[1].split_whitespace().collect();
    let port = bind.to_string();
    assert_eq!(cells, ["tcp", &port, "8080", "no", "0", "0", "0", "0"]);
    let output = net.control(&["--json", "forwards"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["forwards"][0]["guest_port"], 8080);
    for (words, wrong, status) in [
        (&["add", &spec][..], "already in use", 1),
        (
            &["remove", "127.0.0.1:1:1"],
            "no tcp forward at 127.0.0.1:1",
            1,
        ),
        (&["flows"], "the network is not running", 1),
        (&["add", "80"], "HOSTPORT", 2),
    ] {
        let output = net.control(words);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{error}");
        assert!(
            error.starts_with("peapod-net: ") && error.contains(wrong),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let output = net.control(&["metrics"]);
    assert!(text(&output.stdout).starts_with("# HELP peapod_net_"));
    let output = Command::new(PROGRAM)
        .args(["control", "/nowhere", "forwards"])
        .output();
    assert_eq!(output.unwrap().status.code(), Some(1));
}

/// `peapod-net` under passt's name, in a directory that goes.
fn passt(dir: &Path, options: &[&str]) -> Command {
    let program = dir.join("passt");
    if !program.exists() {
        symlink(PROGRAM, &program).unwrap();
    }
    let mut command = Command::new(program);
    command
        .current_dir(dir)
        .args(["--socket", "socket", "--vhost-user"]);
    // No machine that this runs on need have a default route.
    command
        .args(["--address", "10.9.0.7", "--gateway", "10.9.0.1", "-4"])
        .args(options);
    command
}

#[test]
fn called_as_passt_it_serves_one_vmm_in_the_background_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let bind = free().port();
    let ports = format!("127.0.0.1/{bind}:80");
    let options = [
        "--one-off",
        "--pid",
        "pid",
        "--log-file",
        "log",
        "--tcp-ports",
        &ports,
    ];
    let output = passt(dir.path(), &options).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty() && output.stderr.is_empty());
    let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
    let process = PathBuf::from(format!("/proc/{}", pid.trim()));
    // It serves what its parent bound.
    assert!(TcpListener::bind(("127.0.0.1", bind)).is_err());
    let stat = std::fs::read_to_string(process.join("stat")).unwrap();
    let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3);
    assert_eq!(session, Some(pid.trim()), "a session of its own");
    let socket = dir.path().join("socket");
    let frontend = Frontend::from_stream(UnixStream::connect(&socket).unwrap(), 2);
    frontend.get_features().unwrap();
    drop(frontend);
    wait_for("it ends with the VMM", || !process.join("exe").exists());
    assert!(!socket.exists());
}

#[test]
fn called_as_passt_in_the_foreground_it_ends_with_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = passt(dir.path(), &["-f", "-P", "pid"]).spawn().unwrap();
    wait_for("the pid file", || {
        let pid = std::fs::read_to_string(dir.path().join("pid"));
        pid.is_ok_and(|pid| pid.trim() == child.id().to_string())
    });
    wait_for("the socket", || {
        UnixStream::connect(dir.path().join("socket")).is_ok()
    });
    assert_eq!(terminate(&mut child), Some(0));
}

#[test]
fn called_as_passt_it_refuses_what_it_does_not_know_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (options, wrong) in [
        (&["--pcap", "x"][..], "--pcap"),
        (&["--repair-path", "none"], "--repair-path"),
        (&["-t", "auto"], "auto"),
        (&["-i", "none"], "there is no interface `none`"),
        (&["-t", "1-6000"], "more than 4096 ports"),
        (&["-P", "/nowhere/pid"], "/nowhere/pid"),
    ] {
        let output = passt(dir.path(), options).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.starts_with("passt: ") && error.contains(wrong),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(!dir.path().join("socket").exists());
    }
}

/// A network namespace, with a process that keeps it.
struct Space(Child);

impl Space {
    fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["-rn", "sh", "-c", "echo made; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut byte = [0; 5];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut byte)
            .unwrap();
        Self(child)
    }

    /// This very program in there, as the test [`role`].
    fn role(&self, role: &str, port: u16) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--preserve-credentials", "-U", "-n", "-t"]);
        command.arg(self.0.id().to_string());
        command.arg(std::env::current_exe().unwrap());
        command.args(["--exact", "role", "--nocapture"]);
        command.env(ROLE, format!("{role} {port}"));
        command
    }
}

const ROLE: &str = "ROLE_IN_A_NAMESPACE";

/// What programs in a guest do; nothing, where no test asks for it.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let (role, port) = role.split_once(' ').unwrap();
    let port: u16 = port.parse().unwrap();
    if role == "fetch" {
        let mut stream = TcpStream::connect(("10.0.2.1", port)).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        println!("fetched {}", bytes.len());
        return;
    }
    for client in TcpListener::bind(("0.0.0.0", port)).unwrap().incoming() {
        let mut client = client.unwrap();
        let mut bytes = [0; 100];
        while let Ok(n @ 1..) = client.read(&mut bytes) {
            let _ = client.write_all(&bytes[..n].to_ascii_uppercase());
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that sends every client so many bytes.
fn server(len: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let bytes = vec![b'x'; len];
            std::thread::spawn(move || {
                let _ = client.unwrap().write_all(&bytes);
            });
        }
    });
    port
}

#[test]
fn a_namespace_s_kernel_is_a_guest_that_is_counted_captured_and_held_to_its_rate() {
    const LEN: usize = 1_000_000;
    let (space, port, dir) = (Space::new(), server(LEN), tempfile::tempdir().unwrap());
    let control = dir.path().join("control");
    let mut child = Command::new(PROGRAM)
        .args(["--netns", &space.0.id().to_string(), "--config-net", "-4"])
        .args(["--open-loopback", &port.to_string(), "--rate-in", "1000000"])
        .arg("--control")
        .arg(&control)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    is_ready(&mut child);
    let net = Net { dir, child };
    let path = net.path("capture");
    net.ask(&json!({ "command": "capture", "action": "start", "path": path }));
    let start = Instant::now();
    let output = space.role("fetch", port).output().unwrap();
    let elapsed = start.elapsed();
    let fetched = format!("fetched {LEN}\n");
    assert!(text(&output.stdout).contains(&fetched), "{output:?}");
    assert!(elapsed > Duration::from_millis(900), "{elapsed:?}");
    assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
    let counters = net.ask(&json!({ "command": "counters" }));
    assert_eq!(counters["counters"]["tcp_out"], 1);
    let capture = net.ask(&json!({ "command": "capture", "action": "stop" }));
    let len = std::fs::metadata(&path).unwrap().len();
    assert!(
        len > LEN as u64 && capture["capture"]["bytes"] == len,
        "{capture}"
    );
    assert_eq!(capture["capture"]["lost"], 0);
    let metrics = net.control(&["metrics"]);
    let metrics = text(&metrics.stdout);
    let bytes = metrics.lines().find_map(|line| {
        line.strip_prefix("peapod_net_bytes_total{protocol=\"tcp\",direction=\"in\"} ")
    });
    assert!(bytes.unwrap().parse::<usize>().unwrap() > LEN);
}

#[test]
fn a_port_that_is_published_while_it_runs_is_the_guest_s() {
    let (space, bind) = (Space::new(), free());
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(PROGRAM)
        .args(["--netns", &space.0.id().to_string(), "--config-net", "-4"])
        .arg("--control")
        .arg(dir.path().join("control"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    is_ready(&mut child);
    let net = Net { dir, child };
    let mut guest = space.role("serve", 80).spawn().unwrap();
    let added = net.control(&["add", &format!("{bind}:80")]);
    assert!(added.status.success(), "{}", text(&added.stderr));
    // It listens once the guest's kernel has been asked.
    let mut client = None;
    wait_for("the port opens", || {
        client = TcpStream::connect(bind).ok();
        client.is_some()
    });
    let mut client = client.unwrap();
    client.write_all(b"hello").unwrap();
    let mut bytes = [0; 5];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"HELLO");
    let flows = net.ask(&json!({ "command": "flows" }));
    let flow = flows["flows"]
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["forwarded"] == true);
    let flow = flow.unwrap();
    assert_eq!(
        (&flow["state"], &flow["guest_port"]),
        (&json!("open"), &json!(80))
    );
    assert_eq!(
        (&flow["bytes_in"], &flow["bytes_out"]),
        (&json!(5), &json!(5))
    );
    let _ = guest.kill();
    let _ = guest.wait();
}
