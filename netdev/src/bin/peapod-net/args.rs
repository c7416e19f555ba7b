//! What `peapod-net` is told.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use netdev::addresses::{self, Style};
use netdev::netns::Target;
use netdev::options::Options;

use netdev::publish::{Publish, SPEC};

/// Gives another network namespace, or another VMM's guest, a network made of ordinary sockets of
/// this one.
#[derive(Debug, Parser)]
#[command(version, name = "peapod-net", args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What else than to be a network.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The network.
    #[command(flatten)]
    pub network: Network,
}

/// What else than to be a network.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask or change a network that runs with --control
    Control(Control),
}

/// What to ask of a network that runs.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = false)]
pub struct Control {
    /// The network's --control
    pub socket: PathBuf,
    /// Print the network's answer as it is, in JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What.
    #[command(subcommand)]
    pub question: Question,
}

/// What to ask of a network that runs.
#[derive(Debug, Subcommand)]
pub enum Question {
    /// List the published ports
    Forwards,
    /// Publish one more port, or a range
    Add {
        /// As for --publish
        #[arg(value_name = SPEC)]
        publish: Publish,
    },
    /// Publish a port no longer; its connections go on
    Remove {
        /// As for --publish
        #[arg(value_name = SPEC)]
        publish: Publish,
    },
    /// List the connections and other flows there are now
    Flows {
        /// So many of them at most
        #[arg(long, value_name = "COUNT")]
        most: Option<usize>,
    },
    /// Show every counter
    Counters,
    /// Show every counter as Prometheus reads it
    Metrics,
    /// Write every frame to a file
    #[command(subcommand, arg_required_else_help = false)]
    Capture(Capture),
}

/// What to do about a capture.
#[derive(Debug, Subcommand)]
pub enum Capture {
    /// Begin; the file is pcapng, and must not be there yet
    Start {
        /// The file, which the network makes
        file: PathBuf,
        /// The most bytes of each frame
        #[arg(long, value_name = "BYTES")]
        snaplen: Option<u32>,
        /// The most bytes of the file [default: 1 GiB]
        #[arg(long, value_name = "BYTES")]
        max_bytes: Option<u64>,
    },
    /// End
    Stop,
    /// Say how far it is
    Status,
}

/// A network.
#[derive(Debug, clap::Args)]
pub struct Network {
    /// Whom it is for.
    #[command(flatten)]
    pub side: Side,
    /// The interface to make in the namespace [default: eth0]
    #[arg(long, value_name = "NAME", conflicts_with = "vhost_user")]
    pub interface: Option<String>,
    /// Give that interface its addresses and routes, as DHCP would
    #[arg(long, conflicts_with = "vhost_user")]
    pub config_net: bool,
    /// Publish a port of the guest, or a range, on every address, or on one; may be repeated
    #[arg(short, long, value_name = SPEC)]
    pub publish: Vec<Publish>,
    /// Whose addresses the guest and its gateway have
    #[arg(long, value_enum, default_value_t = Style::Masquerade)]
    pub addresses: Style,
    /// Which, where they are others.
    #[command(flatten)]
    pub own: addresses::Options,
    /// The guest's host name
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// What else it may do, and how.
    #[command(flatten)]
    pub options: Options,
    /// Answer `peapod-net control` at this socket
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
}

/// Whom a network is for.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Side {
    /// A network namespace: its file, or a process in it
    #[arg(long, value_name = "PATH|PID")]
    pub netns: Option<Target>,
    /// VMMs that connect to this vhost-user socket, one after another
    #[arg(long, value_name = "SOCKET")]
    pub vhost_user: Option<PathBuf>,
}
