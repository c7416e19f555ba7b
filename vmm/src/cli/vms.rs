//! The subcommands about VMs that run: each a call of a VM's API.

use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::time::Duration;

use axum::http::Method;
use guest_agent::protocol;
use netdev::publish::{Publish, SPEC};
use netdev::requests::{Action, Request, show};
use serde_json::{Value, json};

use super::terminal::Raw;
use crate::agent::session::{self, Session};
use crate::api::{self, Client};
use crate::registry::{self, Found};
use crate::snapshot::directory;
use crate::vmi::parse_quantity;

/// Ends `peapod console`: Ctrl-], as telnet and virtctl have it.
const LEAVE: u8 = 0x1d;

/// How long a process that broke off its answer may take to end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such VM.
    #[error(transparent)]
    Find(#[from] registry::Error),
    /// The VM did not do it.
    #[error("{0}: {1}")]
    Call(String, #[source] api::Error),
    /// Something here failed.
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
    /// A file here.
    #[error("{0}: {1}")]
    File(String, io::Error),
    /// The guest's agent did not do it.
    #[error("{0}: {1}")]
    Agent(String, #[source] session::Error),
    /// No snapshot of it could be made.
    #[error(transparent)]
    Snapshot(#[from] directory::Error),
    /// A terminal was asked for.
    #[error("-t: standard input is no terminal; without -t a program has three streams")]
    NoTerminal,
    /// A copy within one side.
    #[error("one of the two is in a guest, VM:PATH, and the other is not")]
    Sides,
}

/// A VM.
#[derive(Debug, clap::Args)]
pub struct Vm {
    /// The VM: its name, the number of its process, or the path of its state directory
    #[arg(value_name = "VM")]
    name: String,
}

impl Vm {
    fn find(&self) -> Result<Found, Error> {
        Ok(registry::find(&registry::home(), &self.name)?)
    }

    pub(super) fn call<T>(
        &self,
        call: impl FnOnce(&Client) -> Result<T, api::Error>,
    ) -> Result<T, Error> {
        let client = self.client()?;
        call(&client).map_err(|error| self.failed(error))
    }

    /// As [`Self::call`], where the guest's agent is asked.
    pub(super) fn call_agent<T>(
        &self,
        call: impl FnOnce(&Client) -> Result<T, api::Error>,
    ) -> Result<T, Error> {
        let client = self.client()?.patient();
        call(&client).map_err(|error| self.failed(error))
    }

    fn client(&self) -> Result<Client, Error> {
        let socket = self.find()?.socket();
        Client::new(&socket).map_err(|error| Error::Io("cannot ask", error))
    }

    /// The one of this name.
    pub(super) fn called(name: &str) -> Self {
        Self {
            name: name.to_owned(),
        }
    }

    /// A session with its agent.
    pub(super) fn session(&self, request: &protocol::Request) -> Result<Session, Error> {
        let socket = self.find()?.vsock();
        Session::open(&socket, request).map_err(|error| self.said(error))
    }

    /// What came of it.
    pub(super) fn said(&self, error: session::Error) -> Error {
        Error::Agent(self.name.clone(), error)
    }

    fn failed(&self, error: api::Error) -> Error {
        Error::Call(self.name.clone(), error)
    }
}

/// A VM, and whether programs read the answer.
#[derive(Debug, clap::Args)]
pub struct Asked {
    #[command(flatten)]
    pub(super) vm: Vm,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Lists the VMs that run.
pub fn ps(json: bool) -> Result<(), Error> {
    let home = registry::home();
    let all = registry::running(&home).map_err(|e| registry::Error::Read(home, e))?;
    let asked = all.iter().filter_map(|found| {
        let client = Client::new(&found.socket()).ok()?;
        match client.get("/v1/vm") {
            Ok(status) => Some(status),
            Err(error) => {
                tracing::warn!("{error}");
                None
            }
        }
    });
    let all: Vec<_> = asked.collect();
    if json {
        return print(&pretty(&Value::Array(all)));
    }
    print(&show::table(
        &all,
        &[
            ("NAME", "name"),
            ("NAMESPACE", "namespace"),
            ("PID", "pid"),
            ("STATUS", "status"),
            ("READY", "ready"),
            ("UPTIME", "uptime_seconds"),
            ("VCPUS", "vcpus"),
        ],
    ))
}

/// Tells all about one.
pub fn status(vm: &Vm) -> Result<(), Error> {
    print(&pretty(&vm.call(|client| client.get("/v1/vm"))?))
}

/// Arguments of `stop`.
#[derive(Debug, clap::Args)]
pub struct Stop {
    #[command(flatten)]
    vm: Vm,
    /// How long the guest may take, before it is ended by force [default: the manifest's
    /// terminationGracePeriodSeconds]
    #[arg(short, long, value_name = "SECONDS")]
    time: Option<u32>,
}

/// Powers a guest off and waits for the end.
pub fn stop(args: &Stop) -> Result<(), Error> {
    let query = args
        .time
        .map_or(String::new(), |s| format!("?grace_seconds={s}"));
    end(&args.vm, &format!("/v1/vm/stop{query}"))
}

/// Ends a VM by force and waits until it is gone.
pub fn kill(vm: &Vm) -> Result<(), Error> {
    end(vm, "/v1/vm/kill")
}

fn end(vm: &Vm, path: &str) -> Result<(), Error> {
    let found = vm.find()?;
    match vm.call(|client| client.json(Method::POST, path, None)) {
        Err(refused @ Error::Call(_, api::Error::Refused(..))) => Err(refused),
        // It may be gone before it has said so.
        Err(unheard) if !found.ends_within(LAST_WORDS) => Err(unheard),
        _ => found
            .wait()
            .map_err(|error| Error::Io("cannot wait", error)),
    }
}

/// Stops its vCPUs where they are.
pub fn pause(vm: &Vm) -> Result<(), Error> {
    vm.call(|client| client.json(Method::POST, "/v1/vm/pause", None).map(drop))
}

/// Lets them go on.
pub fn resume(vm: &Vm) -> Result<(), Error> {
    vm.call(|client| client.json(Method::POST, "/v1/vm/resume", None).map(drop))
}

/// Arguments of `balloon`.
#[derive(Debug, clap::Args)]
pub struct Balloon {
    #[command(flatten)]
    asked: Asked,
    /// What the guest is to make do with, such as 512Mi: at most what its manifest gives it
    #[arg(value_name = "SIZE", value_parser = size)]
    size: Option<u64>,
}

fn size(text: &str) -> Result<u64, &'static str> {
    parse_quantity(text).ok_or("expected a quantity such as 512Mi or 2Gi")
}

/// Says what of its memory a guest has and uses, and has it give some back or take it again.
pub fn balloon(args: &Balloon) -> Result<(), Error> {
    const MEMORY: &str = "/v1/vm/memory";
    let vm = &args.asked.vm;
    let answer = vm.call(|client| match args.size {
        None => client.get(MEMORY),
        Some(size) => client.json(Method::PUT, MEMORY, Some(json!({ "target": size }))),
    })?;
    if args.asked.json {
        return print(&pretty(&answer));
    }
    let figure = |at| answer.pointer(at).cloned().unwrap_or_default();
    let row = json!({
        "size": figure("/size"),
        "target": figure("/target"),
        "actual": figure("/actual"),
        "free": figure("/guest/free"),
        "available": figure("/guest/available"),
        "caches": figure("/guest/caches"),
    });
    print(&show::table(
        &[row],
        &[
            ("SIZE", "size"),
            ("TARGET", "target"),
            ("ACTUAL", "actual"),
            ("FREE", "free"),
            ("AVAILABLE", "available"),
            ("CACHES", "caches"),
        ],
    ))
}

/// Joins the terminal to the serial console.
pub fn console(vm: &Vm) -> Result<(), Error> {
    let client = vm.client()?;
    let raw = Raw::set().map_err(|error| Error::Io("cannot set the terminal", error))?;
    if raw.is_some() {
        eprint!("the console of {}; Ctrl-] leaves it\r\n", vm.name);
    }
    let joined = client.console(LEAVE);
    drop(raw);
    client.leave();
    joined.map_err(|error| vm.failed(error))
}

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
pub struct Logs {
    #[command(flatten)]
    vm: Vm,
    /// Go on until the VM ends
    #[arg(short, long)]
    follow: bool,
}

/// Prints what the console has shown.
pub fn logs(args: &Logs) -> Result<(), Error> {
    let path = format!("/v1/vm/log?follow={}", args.follow);
    let copied = args
        .vm
        .call(|client| client.copy(Method::GET, &path, &mut io::stdout().lock()));
    match copied {
        // Whoever closed the pipe has read enough.
        Err(Error::Call(_, api::Error::Output(e))) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// What `port` does.
#[derive(Debug, clap::Subcommand)]
pub enum Port {
    /// List the published ports
    Ls(Asked),
    /// Publish one more port of the guest, or a range; on 127.0.0.1 where no address is said
    Add(Published),
    /// Publish a port no longer; its connections go on
    Rm(Published),
}

/// A VM and a port of it.
#[derive(Debug, clap::Args)]
pub struct Published {
    #[command(flatten)]
    asked: Asked,
    /// The port
    #[arg(value_name = SPEC)]
    publish: Publish,
}

/// Lists, adds and removes published ports.
pub fn port(port: &Port) -> Result<(), Error> {
    const PORTS: &str = "/v1/network/ports";
    match port {
        Port::Ls(asked) => ask(asked, &Request::Forwards, Method::GET, PORTS, None),
        Port::Add(Published { asked, publish }) => {
            let publish = publish.to_string();
            let body = json!({ "publish": publish });
            ask(
                asked,
                &Request::Add { publish },
                Method::POST,
                PORTS,
                Some(body),
            )
        }
        Port::Rm(Published { asked, publish }) => {
            let publish = publish.to_string();
            let path = format!(
                "{PORTS}?publish={}",
                publish.replace('[', "%5B").replace(']', "%5D")
            );
            ask(
                asked,
                &Request::Remove { publish },
                Method::DELETE,
                &path,
                None,
            )
        }
    }
}

/// Arguments of `flows`.
#[derive(Debug, clap::Args)]
pub struct Flows {
    #[command(flatten)]
    asked: Asked,
    /// So many of them at most
    #[arg(long, value_name = "COUNT")]
    most: Option<usize>,
}

/// Lists a network's flows.
pub fn flows(args: &Flows) -> Result<(), Error> {
    let most = args.most;
    let query = most.map_or(String::new(), |most| format!("?most={most}"));
    let path = format!("/v1/network/flows{query}");
    ask(
        &args.asked,
        &Request::Flows { most },
        Method::GET,
        &path,
        None,
    )
}

/// What `capture` does.
#[derive(Debug, clap::Subcommand)]
pub enum Capture {
    /// Begin; the file is pcapng, and must not be there yet
    Start {
        /// The VM.
        #[command(flatten)]
        asked: Asked,
        /// The file, which the VM makes
        file: PathBuf,
        /// The most bytes of each frame
        #[arg(long, value_name = "BYTES")]
        snaplen: Option<u32>,
        /// The most bytes of the file [default: 1 GiB]
        #[arg(long, value_name = "BYTES")]
        max_bytes: Option<u64>,
    },
    /// End
    Stop(Asked),
    /// Say how far it is
    Status(Asked),
}

/// Begins, ends and tells of a capture of frames.
pub fn capture(capture: &Capture) -> Result<(), Error> {
    const CAPTURE: &str = "/v1/network/capture";
    let about = Request::capture(Action::Status);
    match capture {
        Capture::Start {
            asked,
            file,
            snaplen,
            max_bytes,
        } => {
            // The VM's process is in another directory.
            let path =
                std::path::absolute(file).map_err(|e| Error::Io("cannot name the file", e))?;
            let body = json!({ "path": path, "snaplen": snaplen, "max_bytes": max_bytes });
            ask(asked, &about, Method::PUT, CAPTURE, Some(body))
        }
        Capture::Stop(asked) => ask(asked, &about, Method::DELETE, CAPTURE, None),
        Capture::Status(asked) => ask(asked, &about, Method::GET, CAPTURE, None),
    }
}

/// Shows a VM's figures.
pub fn metrics(asked: &Asked) -> Result<(), Error> {
    if asked.json {
        return print(&pretty(
            &asked.vm.call(|client| client.get("/v1/network/counters"))?,
        ));
    }
    print(&asked.vm.call(|client| client.text("/metrics"))?)
}

/// Asks the network, and prints the answer as `request`'s are printed.
fn ask(
    asked: &Asked,
    request: &Request,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<(), Error> {
    let answer = asked.vm.call(|client| client.json(method, path, body))?;
    print(&if asked.json {
        pretty(&answer)
    } else {
        show::show(request, &answer)
    })
}

pub(super) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

pub(super) fn print(text: &str) -> Result<(), Error> {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever closed the pipe has read enough.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::Io("cannot write", error))
        }
        _ => Ok(()),
    }
}
