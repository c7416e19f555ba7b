//! The API and its description, held against each other by calls over a real socket.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Instant, SystemTime};

use axum::http::Method;
use guest_agent::protocol::{self, Event, Reply, Request};
use netdev::config::{Config, Network};
use netdev::engine::Engine;
use netdev::socket::Listener;
use serde_json::Value;

use super::*;
use crate::agent::Agent;
use crate::console::{Console, Port};
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::trouble::Complaints;
use crate::launch::Stopper;
use crate::power::{Outcome, Power};
use crate::resident::Resident;
use crate::spans::Times;

/// A VM without a machine, whose network has no guest yet.
struct Vm {
    running: Arc<Running>,
    client: Client,
    dir: tempfile::TempDir,
    _api: Api,
    _engine: Engine,
}

fn vm() -> Vm {
    let engine = Engine::new(Config {
        v4: Some(Network::<std::net::Ipv4Addr>::MASQUERADE),
        v6: None,
        mtu: 1500,
        hostname: "vm".to_owned(),
        resolver: Default::default(),
        forwards: Vec::new(),
        eager: false,
        open_loopback: Vec::new(),
        max_flows: 10,
        memory: 128 << 20,
        policy: Default::default(),
    })
    .unwrap();
    let (agent, streams) = Agent::new();
    agent.listen_to(streams).unwrap();
    let running = Arc::new(Running {
        name: "details".to_owned(),
        namespace: "default".to_owned(),
        uuid: "u".to_owned(),
        vcpus: 2,
        boots: "Peapod's kernel".to_owned(),
        memory: 1 << 30,
        started: Instant::now(),
        times: Times {
            begun: SystemTime::now(),
            launched: SystemTime::now(),
            entered: Default::default(),
        },
        stopper: Stopper::start(agent.clone(), None).unwrap(),
        has_agent: true,
        agent,
        qga: None,
        console: Console::default(),
        network: Some(engine.control()),
        balloon: Some(Balloon::new(1 << 30).unwrap().control()),
        disks: vec![("root".to_owned(), Arc::default())],
        resident: Resident::open().unwrap(),
        complaints: vec![Complaints::new("block", "root")],
        exits: Arc::default(),
        power: Mutex::default(),
        source: Default::default(),
        errands: Default::default(),
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SOCKET);
    let listener = Listener::bind(&path, true).unwrap();
    let api = Api::start(running.clone(), listener.get(), None, None).unwrap();
    // Its file stays for the test's clients.
    std::mem::forget(listener);
    Vm {
        running,
        client: Client::new(&path).unwrap(),
        dir,
        _api: api,
        _engine: engine,
    }
}

impl Vm {
    fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Error> {
        self.client.json(method, path, body)
    }

    fn refused(&self, method: Method, path: &str, body: Option<Value>) -> (u16, String) {
        match self.call(method, path, body) {
            Err(Error::Refused(status, why)) => (status.as_u16(), why),
            other => panic!("{other:?}"),
        }
    }
}

fn description() -> Value {
    serde_saphyr::from_str(include_str!("../../../docs/api.yaml")).unwrap()
}

/// Follows a reference within the description.
fn at<'a>(root: &'a Value, value: &'a Value) -> &'a Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(to) => root.pointer(to.trim_start_matches('#')).unwrap(),
        None => value,
    }
}

/// The schema of what a call answers with `status`.
fn answer_schema(root: &Value, path: &str, method: &str, status: &str) -> Value {
    let path = path.split('?').next().unwrap();
    let response = &root["paths"][path][method]["responses"][status];
    assert!(
        response.is_object(),
        "{method} {path}: {status} is not described"
    );
    let schema = &at(root, response)["content"]["application/json"]["schema"];
    let mut schema = at(root, schema).clone();
    schema["components"] = root["components"].clone();
    schema
}

#[test]
fn what_is_described_is_what_there_is() {
    let root = description();
    let mut described = BTreeSet::new();
    for (path, methods) in root["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            described.insert((method.to_uppercase(), path.clone()));
        }
    }
    let vm = vm();
    let mut served = BTreeSet::new();
    for (path, _) in all() {
        // A method that is not a path's is answered by those that are (RFC 9110, 15.5.6).
        let path = path.to_owned();
        for method in allowed(&vm, &path) {
            served.insert((method, path.clone()));
        }
    }
    assert_eq!(served, described);
}

/// The methods of a path, in the words of the answer to one that is not.
fn allowed(vm: &Vm, path: &str) -> Vec<String> {
    let mut stream = UnixStream::connect(vm.dir.path().join(SOCKET)).unwrap();
    write!(
        stream,
        "BREW {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    let allow = answer.lines().find_map(|line| line.strip_prefix("allow: "));
    let methods = allow.unwrap().split(',').map(str::to_owned);
    methods.filter(|method| method != "HEAD").collect()
}

#[test]
fn every_answer_is_as_it_is_described() {
    let root = description();
    let vm = vm();
    let file = vm.dir.path().join("frames.pcapng");
    let capture = json!({ "path": file });
    let port = Some(json!({ "publish": "127.0.0.1:0:80" }));
    let free = free_port();
    let publish = Some(json!({ "publish": format!("{free}:80") }));
    let removed = format!("/v1/network/ports?publish={free}:80");
    let (method, status) = (Method::GET, 409);
    assert_eq!(vm.refused(method, "/v1/guest", None).0, status);
    with_agent(&vm);
    let password = Some(json!({ "user": "anna", "password": "x" }));
    let keys = Some(json!({ "user": "anna", "keys": ["ssh-rsa AAAA"] }));
    let less = Some(json!({ "target": 512 << 20 }));
    let too_much = Some(json!({ "target": 2_u64 << 30 }));
    for (method, path, body, status) in [
        (Method::GET, "/v1/vm", None, 200),
        (Method::GET, "/v1/guest", None, 200),
        (Method::POST, "/v1/guest/freeze", None, 200),
        (Method::POST, "/v1/guest/freeze?seconds=9", None, 200),
        (Method::POST, "/v1/guest/thaw", None, 200),
        (Method::PUT, "/v1/guest/password", password, 200),
        (Method::GET, "/v1/guest/keys?user=anna", None, 200),
        (Method::GET, "/v1/guest/keys?user=bob", None, 409),
        (Method::POST, "/v1/guest/keys", keys.clone(), 200),
        (Method::DELETE, "/v1/guest/keys", keys, 200),
        (Method::POST, "/v1/vm/resume", None, 200),
        (Method::GET, "/v1/vm/memory", None, 200),
        (Method::PUT, "/v1/vm/memory", less, 200),
        (Method::PUT, "/v1/vm/memory", too_much, 400),
        (Method::GET, "/v1/network/ports", None, 200),
        (Method::POST, "/v1/network/ports", publish.clone(), 200),
        (Method::POST, "/v1/network/ports", publish, 409),
        (Method::POST, "/v1/network/ports", port, 400),
        (Method::GET, "/v1/network/ports", None, 200),
        (Method::DELETE, &removed, None, 200),
        (Method::DELETE, &removed, None, 409),
        (Method::GET, "/v1/network/counters", None, 200),
        (Method::GET, "/v1/network/flows", None, 409),
        (Method::GET, "/v1/network/capture", None, 200),
        (Method::DELETE, "/v1/network/capture", None, 409),
        (
            Method::PUT,
            "/v1/network/capture",
            Some(capture.clone()),
            200,
        ),
        (Method::PUT, "/v1/network/capture", Some(capture), 409),
        (Method::GET, "/v1/network/capture", None, 200),
        (Method::DELETE, "/v1/network/capture", None, 200),
        (Method::GET, "/v1/vm/console", None, 426),
        (Method::POST, "/v1/vm/snapshot", None, 409),
        (Method::POST, "/v1/vm/kill", None, 202),
        (Method::POST, "/v1/vm/pause", None, 409),
        (Method::GET, "/v1/vm", None, 200),
    ] {
        let answer = match vm.call(method.clone(), path, body) {
            Ok(answer) => answer,
            Err(Error::Refused(code, why)) => {
                assert_eq!(code, status, "{method} {path}: {why}");
                json!({ "error": why })
            }
            Err(error) => panic!("{method} {path}: {error}"),
        };
        let name = method.as_str().to_lowercase();
        let schema = answer_schema(&root, path, &name, &status.to_string());
        let faults: Vec<_> = jsonschema::validator_for(&schema)
            .unwrap()
            .iter_errors(&answer)
            .map(|fault| fault.to_string())
            .collect();
        assert!(faults.is_empty(), "{method} {path}: {answer}: {faults:?}");
    }
}

/// What an agent answers to a request; of the guest it tells what this machine is.
fn answer(request: &Request) -> Reply {
    let keys = || vec!["ssh-rsa AAAA".to_owned()];
    match request {
        Request::GuestInfo => Reply::GuestInfo(Box::new(guest_agent::guest::info())),
        Request::Freeze { seconds } => Reply::Frozen(seconds.unwrap_or(1)),
        Request::Thaw => Reply::Thawed(2),
        Request::AuthorizedKeys { user } if user == "anna" => Reply::AuthorizedKeys(keys()),
        Request::AuthorizedKeys { .. } => Reply::Error("there is no such user".to_owned()),
        _ => Reply::Ok,
    }
}

/// An agent that has come.
fn with_agent(vm: &Vm) {
    let mut stream = vm.running.agent.connect(1023).unwrap();
    let hello = Event::Hello {
        version: 1,
        software: "test".to_owned(),
        role: None,
    };
    protocol::write(&mut stream, &hello.frame()).unwrap();
    std::thread::spawn(move || {
        while let Ok(Some(frame)) = protocol::read(&mut stream) {
            if frame.kind == protocol::Kind::Request {
                let request = serde_json::from_slice(&frame.payload).unwrap();
                let reply = answer(&request).frame(frame.number);
                protocol::write(&mut stream, &reply).unwrap();
            }
        }
    });
    while !vm.running.agent.is_connected() {
        std::thread::yield_now();
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn a_port_without_an_address_is_published_on_the_loopback_alone() {
    let vm = vm();
    let port = free_port();
    let publish = json!({ "publish": format!("{port}:80") });
    let added = vm.call(Method::POST, "/v1/network/ports", Some(publish));
    let bind = &added.unwrap()["forwards"][0]["bind"];
    assert_eq!(bind, &json!(format!("127.0.0.1:{port}")));
    let wrong = Some(json!({ "publish": "80" }));
    let (status, why) = vm.refused(Method::POST, "/v1/network/ports", wrong);
    assert_eq!(status, 400);
    assert!(why.starts_with("expected [IP:]HOSTPORT"), "{why}");
}

#[test]
fn probes_tell_why_a_vm_is_not_ready_and_metrics_are_text() {
    let vm = vm();
    assert_eq!(vm.client.text("/healthz").unwrap(), "ok\n");
    let Err(Error::Refused(status, why)) = vm.client.text("/readyz") else {
        panic!();
    };
    assert_eq!(
        (status.as_u16(), &*why),
        (503, "the guest's set-up is not over")
    );
    vm.running.complaints[0].malformed.add();
    let metrics = vm.client.text("/metrics").unwrap();
    for line in [
        "peapod_ready 0",
        "peapod_vcpus 2",
        "peapod_net_flows 0",
        "peapod_balloon_actual_bytes 1073741824",
        "peapod_disk_requests_total{disk=\"root\",kind=\"read\"} 0",
        "peapod_disk_bytes_total{disk=\"root\",kind=\"write\"} 0",
        "peapod_device_malformed_total{device=\"block\",name=\"root\"} 1",
        "peapod_device_broken_total{device=\"block\",name=\"root\"} 0",
    ] {
        assert!(
            metrics.lines().any(|other| other == line),
            "{line}: {metrics}"
        );
    }
}

#[test]
fn the_console_is_read_followed_and_typed_at() {
    let vm = vm();
    let mut screen = vm.running.console.screen(Port::Serial, std::io::sink());
    screen.write_all(b"boot\n").unwrap();
    assert_eq!(vm.client.text("/v1/vm/log").unwrap(), "boot\n");
    let mut follower = UnixStream::connect(vm.dir.path().join(SOCKET)).unwrap();
    write!(
        follower,
        "GET /v1/vm/log?follow=true HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    .unwrap();
    until(&mut follower, "boot\n");
    screen.write_all(b"more\n").unwrap();
    until(&mut follower, "more\n");

    let mut terminal = UnixStream::connect(vm.dir.path().join(SOCKET)).unwrap();
    write!(
        terminal,
        "GET /v1/vm/console HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: {}\r\n\r\n",
        client::CONSOLE
    )
    .unwrap();
    until(&mut terminal, "\r\n\r\n");
    terminal.write_all(b"root\n").unwrap();
    let mut keyboard = vm.running.console.keyboard(Port::Serial);
    let mut typed = Vec::new();
    while typed.len() < 5 {
        typed.extend(keyboard.take(16));
        std::thread::yield_now();
    }
    assert_eq!(typed, b"root\n");
    screen.write_all(b"password:").unwrap();
    until(&mut terminal, "password:");
}

/// Reads until what came ends so.
fn until(stream: &mut UnixStream, end: &str) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut all, mut buffer) = (String::new(), [0; 1024]);
    while !all
        .trim_end_matches("\r\n")
        .ends_with(end.trim_end_matches("\r\n"))
    {
        let count = stream.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "{all}");
        all.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
}

#[test]
fn a_kill_ends_the_machine_that_is_there_now() {
    let vm = vm();
    let power = Power::default();
    vm.running.stopper.watch(power.clone(), PATIENCE);
    vm.call(Method::POST, "/v1/vm/kill", None).unwrap();
    assert_eq!(power.duty(), crate::power::Duty::End(Outcome::Stopped));
}

#[test]
fn a_vm_that_is_gone_is_told_in_a_line() {
    let client = Client::new(Path::new("/nonexistent/api.sock")).unwrap();
    let error = client.get("/v1/vm").unwrap_err().to_string();
    assert!(
        error.starts_with("/nonexistent/api.sock: the VM does not answer: "),
        "{error}"
    );
}
