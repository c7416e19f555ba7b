//! `peapod snapshot` and `peapod restore`.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::http::Method;
use clap::Parser;
use netdev::publish::{self, Publish};

use super::run::{self, Place};
use super::vms::{self, Vm};
use super::{Cli, Command, called_as};
use crate::api;
use crate::plan::Plan;
use crate::snapshot::directory::{self, Restored, Writer};

/// Arguments of `peapod snapshot`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    vm: Vm,
    /// The directory to make for it, which nobody else may read: it has all that the guest knows
    directory: PathBuf,
    /// End the VM when its snapshot is whole, and never let it go on in between
    #[arg(long)]
    stop: bool,
}

/// Arguments of `peapod restore`.
#[derive(Debug, clap::Args)]
pub struct Restore {
    /// What `peapod snapshot` made
    directory: PathBuf,
    /// Call the VM so [default: as the one that was saved]
    #[arg(long)]
    name: Option<String>,
    /// Publish these ports instead of those that were; may be repeated
    #[arg(short, long, value_name = publish::SPEC)]
    publish: Vec<Publish>,
    /// Answer probes at this address instead of where they were answered
    #[arg(long, value_name = "IP:PORT")]
    probes: Option<SocketAddr>,
    /// Directory for sockets and what the guest writes to ephemeral disks [default: a new one]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Read the whole snapshot first, and refuse one that is damaged anywhere
    #[arg(long)]
    verify: bool,
}

/// Why no VM was restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The snapshot.
    #[error(transparent)]
    Snapshot(#[from] directory::Error),
    /// It cannot be started as it was.
    #[error("{directory}: it was taken of `{line}`, and {why}", directory = .directory.display())]
    Line {
        /// The snapshot.
        directory: PathBuf,
        /// How the VM was started.
        line: String,
        /// What is wrong with that.
        why: String,
    },
    /// What it needs is not there.
    #[error(transparent)]
    Run(#[from] run::Error),
}

/// Takes a snapshot. The VM stands still meanwhile, and goes on unless it is to stop.
pub fn snapshot(args: &Args) -> Result<(), vms::Error> {
    let vm = &args.vm;
    let mut writer = Writer::create(&args.directory)?;
    let resumes = args.stop && !is_paused(vm)?;
    if resumes {
        vms::pause(vm)?;
    }
    let path = format!("/v1/vm/snapshot?last={}", args.stop);
    let copied = vm.call(|client| client.copy(Method::POST, &path, &mut writer));
    let taken = match copied {
        Err(vms::Error::Call(name, api::Error::Output(why))) => Err(vms::Error::File(
            format!("{name}: {}", args.directory.display()),
            why,
        )),
        other => other.and_then(|()| Ok(writer.finish()?)),
    };
    match taken {
        Ok(()) if args.stop => vms::kill(vm),
        Ok(()) => Ok(()),
        Err(error) => {
            if resumes {
                vms::resume(vm)?;
            }
            Err(error)
        }
    }
}

fn is_paused(vm: &Vm) -> Result<bool, vms::Error> {
    let status = vm.call(|client| client.get("/v1/vm"))?;
    Ok(status.get("status").is_some_and(|word| word == "Paused"))
}

/// Makes the plan of a VM that begins where the snapshot's stood.
pub fn restore(args: &Restore) -> Result<Plan, Error> {
    let restored = Restored::open(&args.directory, args.verify)?;
    let line = restored.snapshot.line.clone();
    let wrong = |why: String| Error::Line {
        directory: args.directory.clone(),
        line: line.words.join(" "),
        why,
    };
    let words = called_as(line.words.iter().map(Into::into));
    let cli = Cli::try_parse_from(words).map_err(|error| wrong(error.to_string()))?;
    let Command::Run(mut run) = cli.command else {
        return Err(wrong("that runs no VM".to_owned()));
    };
    // What it named it named from there.
    let there = std::env::set_current_dir(&line.directory);
    there.map_err(|error| wrong(format!("{}: {error}", line.directory.display())))?;
    run.vm.network.refuse_proxy().map_err(run::Error::Proxy)?;
    if !args.publish.is_empty() {
        run.vm.publish.clone_from(&args.publish);
    }
    run.vm.probes = args.probes.or(run.vm.probes);
    let file = run.manifest.display().to_string();
    let mut machine = run::parse_manifest(&file, line.manifest.as_bytes())?;
    if let Some(name) = &args.name {
        machine.name.clone_from(name);
    }
    let snapshot = &restored.snapshot;
    let then = (snapshot.machine.vcpus.len(), snapshot.memory);
    if (machine.topology.vcpus() as usize, machine.memory) != then {
        return Err(wrong("this Peapod makes another machine of it".to_owned()));
    }
    let place = Place::own(args.state_dir.clone(), false);
    let mut plan = run::plan(&run.vm, file, machine, place)?;
    restored.use_up()?;
    plan.line = Some(line);
    plan.restored = Some(restored);
    Ok(plan)
}
