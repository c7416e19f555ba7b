//! The command line: a file a subcommand, thin: parse, call, print.

pub mod boot_entries;
pub mod cp;
pub mod doctor;
pub mod exec;
pub mod explain;
pub mod guest;
pub mod launch;
pub mod manual;
pub mod pod;
pub mod programs;
pub mod run;
pub mod snapshot;
mod terminal;
pub mod validate;
pub mod vms;

use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::path::Path;

use clap::{ArgAction, Parser, Subcommand};
use tracing::level_filters::LevelFilter;

use crate::plan::Outcome;

/// Shown at the end of `--help`; docs/exit-status.md says the same at length.
const EXIT_STATUSES: &str = "\
Exit status of `run` and `launch`:
  0  the guest powered off, of itself or on SIGTERM
  1  internal failure
  2  bad input: nothing was started
  3  the guest rebooted, and the manifest's rebootPolicy is Terminate
  4  ended by force: the guest was not off within its grace period
  5  the guest crashed
  6  the sandbox stopped a system call that was not a thread's to make
  7  the guest's kernel panicked

Exit status of the commands about a running VM: 0 done, 1 the VM could not do it, 2 no such VM
Exit status of `exec`: the program's, or 128 and its signal; 125 where it could not be run
Exit status of `pod`: 0 printed, 1 not, 2 bad input
Exit status of `validate`: 0 all good, 2 something is wrong
Exit status of `explain`: 0 printed, 2 no such field
Exit status of `boot-entries`: 0 something is there to be booted, 2 bad input, or nothing is

Exit status of `doctor`: 0 all that is needed is there, 1 something needed is missing, 2 bad input

Environment:
  PEAPOD_IMAGES  directory of kernel, initramfs and container disks
                 (default: $XDG_DATA_HOME/peapod, then /usr/share/peapod)
  OTEL_EXPORTER_OTLP_ENDPOINT
                 http://HOST[:PORT] of a collector for the boot's spans
  RUST_LOG       log filter, over -v and -q";

/// A KubeVirt VirtualMachineInstance booted by one small process.
#[derive(Debug, Parser)]
#[command(name = "peapod", version, after_help = EXIT_STATUSES)]
pub struct Cli {
    /// Log more: -v for debug, -vv for everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Log errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot the machine that a manifest describes, and stay until it ends
    Run(Box<run::Args>),
    /// The same as the entry of a compute container, called as KubeVirt calls virt-launcher
    Launch(Box<launch::Args>),
    /// Print the Kubernetes objects that run a VMI without an operator
    Pod(pod::Args),
    /// Say every problem of manifests, a line each; start nothing
    Validate(validate::Args),
    /// Say what a field of a manifest is for, or what to use instead
    Explain(explain::Args),
    /// Print the JSON schema of manifests, for editors
    Schema,
    /// List what a disk's own boot loader would start
    BootEntries(boot_entries::Args),
    /// List the VMs that run
    Ps {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell all about a VM, in JSON
    Status(vms::Vm),
    /// Power a guest off, by force if it takes too long, and wait until its VM is gone
    Stop(vms::Stop),
    /// End a VM by force
    Kill(vms::Vm),
    /// Stop a VM's vCPUs where they are
    Pause(vms::Vm),
    /// Let a paused VM go on
    Resume(vms::Vm),
    /// Save a VM as it is in a directory, memory and all; it stands still meanwhile
    Snapshot(snapshot::Args),
    /// Start a VM where the one stood that a snapshot was taken of, and stay until it ends
    Restore(Box<snapshot::Restore>),
    /// Say what of its memory a guest has and uses, or have it make do with less
    Balloon(vms::Balloon),
    /// Run a program in a guest, by its agent; no ssh, no network
    Exec(exec::Args),
    /// Copy a file into a guest or out of it, by its agent
    Cp(cp::Args),
    /// Tell what a guest is and has, by its agent: system, load, disks, addresses, users
    GuestInfo(vms::Asked),
    /// Have a guest's file systems stand still, for a snapshot of its disks
    Freeze(guest::Freeze),
    /// Have a guest's file systems go on
    Thaw(vms::Vm),
    /// Set a password of a guest's user, list, add and remove its SSH keys
    #[command(subcommand, arg_required_else_help = false)]
    Credentials(guest::Credentials),
    /// Type at a VM's serial console; Ctrl-] leaves it
    Console(vms::Vm),
    /// Print what a VM's console has shown, its last MiB
    Logs(vms::Logs),
    /// List, add and remove the published ports of a VM
    #[command(subcommand, arg_required_else_help = false)]
    Port(vms::Port),
    /// List the connections and other flows of a VM's network
    Flows(vms::Flows),
    /// Write every frame of a VM's network to a file
    #[command(subcommand, arg_required_else_help = false)]
    Capture(vms::Capture),
    /// Show a VM's figures as Prometheus reads them
    Metrics(vms::Asked),
    /// Print what a shell completes words with
    Completions(manual::Completions),
    /// Write a manual page for each command
    Man(manual::Man),
    /// Say what of this host will work, and what to do about the rest
    Doctor(doctor::Args),
    /// Ask the guest's agent as a kubelet's probe does, in a pod that KubeVirt made
    #[command(hide = true)]
    VirtProbe(programs::probe::Args),
    /// Print a log as it grows, in a pod that KubeVirt made
    #[command(hide = true)]
    VirtTail(programs::tail::Args),
    /// Keep an image's container alive, in a pod that KubeVirt made
    #[command(hide = true)]
    ContainerDisk(programs::container_disk::Args),
    /// Copy a file of this container, in a pod that KubeVirt made
    #[command(hide = true)]
    CopyFile(programs::copy::Args),
}

/// The names under which a pod that KubeVirt made calls us in place of its own programs, and the
/// subcommands that they stand for.
const PROGRAMS: [(&str, &str); 6] = [
    ("virt-launcher", "launch"),
    ("virt-launcher-monitor", "launch"),
    ("virt-probe", "virt-probe"),
    ("virt-tail", "virt-tail"),
    ("container-disk", "container-disk"),
    ("cp", "copy-file"),
];

/// The command line, with the subcommand that the program's name stands for.
pub fn called_as(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<_> = words.collect();
    let name = words.first().and_then(|word| Path::new(word).file_name());
    let program = name.and_then(|name| PROGRAMS.iter().find(|(program, _)| name == *program));
    if let Some((_, subcommand)) = program {
        words.insert(1, subcommand.into());
    }
    words
}

/// Exit statuses of the program.
pub mod status {
    /// Did its job.
    pub const OK: u8 = 0;
    /// Internal failure; `doctor`: something needed is missing.
    pub const FAILURE: u8 = 1;
    /// Bad input; nothing was started.
    pub const BAD_INPUT: u8 = 2;
    /// The guest rebooted under `rebootPolicy: Terminate`.
    pub const REBOOTED: u8 = 3;
    /// The grace period ended first.
    pub const FORCED: u8 = 4;
    /// The guest crashed.
    pub const CRASHED: u8 = 5;
    /// `exec`: the program could not be run.
    pub const NOT_RUN: u8 = 125;
    /// The guest's kernel panicked. (6 is the sandbox's.)
    pub const PANICKED: u8 = 7;
}

/// The exit status that tells how a machine ended.
pub fn exit_status(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::PoweredOff => status::OK,
        Outcome::Rebooted => status::REBOOTED,
        Outcome::Forced => status::FORCED,
        Outcome::Crashed(_) => status::CRASHED,
        Outcome::Panicked(_) => status::PANICKED,
    }
}

/// Starts the log as much of it as was asked for.
pub fn start_log(cli: &Cli) {
    let level = match (cli.quiet, cli.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::INFO,
        (false, 1) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    };
    crate::log::start(level);
}

/// Says why the program ends: `peapod: ...`, a line a problem.
pub fn complain(problem: &dyn fmt::Display) {
    let mut err = std::io::stderr().lock();
    for line in problem.to_string().lines() {
        // Nobody is left to hear of a closed standard error.
        let _ = writeln!(err, "peapod: {line}");
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_its_help_tells_the_exit_statuses() {
        Cli::command().debug_assert();
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("5  the guest crashed"), "{help}");
    }

    #[test]
    fn every_outcome_has_its_own_status() {
        let crashed = Outcome::Crashed(String::new());
        let all = [
            Outcome::PoweredOff,
            Outcome::Rebooted,
            Outcome::Forced,
            crashed,
            Outcome::Panicked(String::new()),
        ];
        assert_eq!(all.map(|o| exit_status(&o)), [0, 3, 4, 5, 7]);
    }

    /// As KubeVirt's templates have it, of 0.10 and of today.
    #[test]
    fn a_launcher_s_name_and_arguments_are_taken() {
        let old = "/usr/bin/virt-launcher --qemu-timeout 5m --name details --uid 1234 --namespace \
             default --kubevirt-share-dir /var/run/kubevirt --ephemeral-disk-dir \
             /var/run/kubevirt-ephemeral-disks --readiness-file /var/run/kubevirt-infra/healthy \
             --grace-period-seconds 45 --hook-sidecars 0 --use-emulation";
        let new = "/usr/bin/virt-launcher-monitor --qemu-timeout 244s --name details --uid 1234 \
             --namespace default --kubevirt-share-dir /var/run/kubevirt --ephemeral-disk-dir \
             /var/run/kubevirt-ephemeral-disks --container-disk-dir \
             /var/run/kubevirt/container-disks --grace-period-seconds 45 --hook-sidecars 0 \
             --ovmf-path /usr/share/OVMF --disk-memory-limit 2097152000 --hypervisor kvm \
             --run-as-nonroot --allow-emulation=true";
        for line in [old, new] {
            let words = line.split_whitespace().map(OsString::from);
            let cli = Cli::try_parse_from(called_as(words)).unwrap();
            let Command::Launch(args) = cli.command else {
                panic!("{line}")
            };
            assert_eq!(args.grace_period_seconds, Some(45));
            assert_eq!(args.uid.as_deref(), Some("1234"));
        }
    }

    /// As KubeVirt's templates call them.
    #[test]
    fn the_other_programs_names_and_arguments_are_taken() {
        let parse = |line: &str| {
            let words = line.split_whitespace().map(OsString::from);
            Cli::try_parse_from(called_as(words)).map(|cli| cli.command)
        };
        for line in [
            "virt-probe --domainName shop_details --timeoutSeconds 5 --command ls -- -l /",
            "virt-probe --domainName shop_details --timeoutSeconds 1 --guestAgentPing",
        ] {
            assert!(matches!(parse(line), Ok(Command::VirtProbe(_))), "{line}");
        }
        let disk = "/usr/bin/container-disk --copy-path /var/run/kubevirt-ephemeral-disks/\
             container-disk-data/0c2a/disk_0";
        for line in [disk, "/usr/bin/container-disk --no-op"] {
            let command = parse(line);
            assert!(matches!(command, Ok(Command::ContainerDisk(_))), "{line}");
        }
        assert!(parse("container-disk").is_err());
        let log = "/usr/bin/virt-tail --logfile /var/run/kubevirt-private/0c2a/virt-serial0-log";
        assert!(matches!(parse(log), Ok(Command::VirtTail(_))));
        let copy = "/usr/bin/cp /usr/bin/container-disk /init/usr/bin/container-disk";
        assert!(matches!(parse(copy), Ok(Command::CopyFile(_))));
        assert!(matches!(parse("peapod cp a:/b ."), Ok(Command::Cp(_))));
    }

    #[test]
    fn run_takes_podmans_publish_several_times() {
        let cli = Cli::parse_from(["peapod", "run", "-p", "8080:80", "--publish=53:53/udp", "x"]);
        let Command::Run(args) = cli.command else {
            panic!()
        };
        assert_eq!(args.vm.publish.len(), 2);
        assert!(Cli::try_parse_from(["peapod", "run", "-p", "80", "x"]).is_err());
    }
}
