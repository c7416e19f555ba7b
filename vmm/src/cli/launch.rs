//! `peapod launch`: the entry of a compute container, with the arguments that KubeVirt gives
//! virt-launcher.

mod flags;
mod given;
mod last;
mod sidecar;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use netdev::pod::Pod;

use super::run::{self, Error, Options, Place};
use crate::api::door::Door;
use crate::kubevirt;
use crate::plan::{Offered, Plan};
use crate::vmi::Machine;

pub use flags::Ignored;
pub use last::LastWord;
pub use sidecar::quit as quit_sidecar;

/// KubeVirt's own: where its virt-launcher takes a VMI without a cluster.
const STANDALONE: &str = "STANDALONE_VMI";
/// In the private directory, below the VMI's UID.
const CONSOLE: &str = "virt-serial0";

/// Arguments of `peapod launch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A VirtualMachineInstance, YAML or JSON [default: the text in STANDALONE_VMI, else what
    /// virt-handler gives]
    pub manifest: Option<PathBuf>,
    /// The VMI's name
    #[arg(long)]
    pub name: Option<String>,
    /// The VMI's namespace
    #[arg(long)]
    pub namespace: Option<String>,
    /// The VMI's UID, under which its console's socket is
    #[arg(long)]
    pub uid: Option<String>,
    /// What is shared with virt-handler: in sockets/, the one where it asks, and beside it the one
    /// where it is told
    #[arg(long, value_name = "DIR", default_value = kubevirt::SHARE)]
    pub kubevirt_share_dir: PathBuf,
    /// How long virt-handler may take to give a VMI, as 4m or 240s
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = given::duration)]
    pub qemu_timeout: Duration,
    /// Where each VMI of this pod has a directory of its own, under its UID
    #[arg(long, value_name = "DIR", default_value = kubevirt::PRIVATE)]
    pub private_dir: PathBuf,
    /// For sockets, unpacked kernels and what the guest writes to ephemeral disks
    #[arg(
        long,
        value_name = "DIR",
        default_value = kubevirt::EPHEMERAL_DISKS
    )]
    pub ephemeral_disk_dir: PathBuf,
    /// Where container images are mounted under their volumes' names, or virt-handler mounts
    /// their disks as disk_<index>.img
    #[arg(
        long,
        value_name = "DIR",
        default_value = kubevirt::CONTAINER_DISKS
    )]
    pub container_disk_dir: PathBuf,
    /// A file to make once all has been checked and opened
    #[arg(long, value_name = "FILE")]
    pub readiness_file: Option<PathBuf>,
    /// How long a clean stop may take before force is used [default: the manifest's
    /// terminationGracePeriodSeconds]
    #[arg(long, value_name = "SECONDS")]
    pub grace_period_seconds: Option<u32>,
    /// Where to leave the reason of the end
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log")]
    pub termination_log: PathBuf,
    /// What there is to say of any VM.
    #[command(flatten)]
    pub vm: Options,
    /// Of virt-launcher's arguments those that mean nothing here.
    #[command(flatten)]
    pub ignored: Ignored,
}

/// Process 1 of a container gets the children of processes that ended, as of an exec's: the kernel
/// is to bury them. We have none of our own.
pub fn reap_orphans() {
    // SAFETY: no handler is installed and no memory is touched.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Checks everything and makes the plan; opens virt-handler's door, by which the VMI comes where it
/// is not here yet. Nothing, where a signal to stop came first.
pub fn prepare(args: &Args) -> Result<Option<(Plan, Option<Door>)>, Error> {
    args.ignored.tell();
    args.vm.network.refuse_proxy().map_err(Error::Proxy)?;
    let here = match &args.manifest {
        Some(path) => Some((path.display().to_string(), run::read_manifest(path)?)),
        None => match std::env::var(STANDALONE) {
            Ok(text) => {
                let machine = run::parse_manifest(STANDALONE, text.as_bytes())?;
                Some((STANDALONE.to_owned(), machine))
            }
            Err(_) => None,
        },
    };
    let uid = args.uid.as_deref().unwrap_or_default();
    let door = Door::open(&args.kubevirt_share_dir, uid);
    let Some((file, machine)) = here else {
        let door = door.map_err(|why| Error::NoVmi(STANDALONE, why))?;
        return given::wait(args, door);
    };
    let plan = plan(args, file, machine)?;
    let door = door.inspect_err(|why| tracing::info!("no door for virt-handler: {why}"));
    Ok(Some((plan, door.ok())))
}

fn plan(args: &Args, file: String, mut machine: Machine) -> Result<Plan, Error> {
    same("name", args.name.as_ref(), &machine.name);
    same("namespace", args.namespace.as_ref(), &machine.namespace);
    if let Some(seconds) = args.grace_period_seconds {
        machine.termination_grace = Duration::from_secs(seconds.into());
    }
    let place = Place {
        images: run::image_dirs(),
        cache: args.ephemeral_disk_dir.join("cache"),
        mounted: Some(args.container_disk_dir.clone()),
        addresses: everywhere(&args.vm, &machine)?,
        state_dir: Some(args.ephemeral_disk_dir.join(kubevirt::STATE)),
        offered: Offered {
            console: console(args, &machine),
            readiness: args.readiness_file.clone(),
        },
        dry_run: false,
    };
    run::plan(&args.vm, file, machine, place)
}

/// What the pod says of its VMI and what the manifest does may differ; the manifest is right.
fn same(what: &str, said: Option<&String>, is: &str) {
    if let Some(said) = said.filter(|said| *said != is) {
        tracing::warn!("--{what} {said}: the manifest's {what} is {is}, which is taken");
    }
}

/// A pod's ports are for all who can reach the pod, in the families that it and its guest have.
fn everywhere(options: &run::Options, machine: &Machine) -> Result<Vec<IpAddr>, Error> {
    let pod = Pod::open().map_err(Error::Pod)?;
    let binding = machine
        .interface
        .as_ref()
        .map(|interface| interface.binding);
    let (v4, v6) = options.addresses.families(binding);
    let v6 = v6 && pod.has_route(true);
    let v4 = v4 && (pod.has_route(false) || !v6);
    let v4 = v4.then_some(Ipv4Addr::UNSPECIFIED.into());
    let v6 = v6.then_some(Ipv6Addr::UNSPECIFIED.into());
    Ok(v4.into_iter().chain(v6).collect())
}

/// Where `virtctl console` looks for the console, by virt-handler.
fn console(args: &Args, machine: &Machine) -> Option<PathBuf> {
    let own = args.uid.as_deref().unwrap_or(&machine.uuid);
    let plain = !own.is_empty() && !own.contains('/') && !own.starts_with('.');
    let folder = args.private_dir.join(plain.then_some(own)?);
    match std::fs::create_dir_all(&folder) {
        Ok(()) => Some(folder.join(CONSOLE)),
        Err(error) => {
            let shown = Path::display(&folder);
            tracing::info!("no socket for the console: cannot make {shown}: {error}");
            None
        }
    }
}
