//! `virt-probe`: a kubelet's probe that asks the guest's agent, by the launcher's socket.

use std::path::PathBuf;

use crate::api::door::probe::{self, Ended};

/// Arguments of `virt-probe`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The launcher's
    #[arg(
        long,
        value_name = "SOCKET",
        default_value = "/var/run/kubevirt/sockets/launcher-sock"
    )]
    socket: PathBuf,
    /// The domain, NAMESPACE_NAME: a launcher has one
    #[arg(long = "domainName", value_name = "NAME", default_value = "")]
    domain: String,
    /// How long the guest may take
    #[arg(long = "timeoutSeconds", value_name = "SECONDS", default_value_t = 1)]
    seconds: i32,
    /// Ask the agent to answer, and nothing else
    #[arg(
        long = "guestAgentPing",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value_t = false,
        action = clap::ArgAction::Set
    )]
    ping: bool,
    /// A program of the guest
    #[arg(long, default_value = "")]
    command: String,
    /// Its arguments
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// The status of the guest's program; of a ping nothing, where it was answered.
pub fn ask(args: &Args) -> Result<Ended, String> {
    let domain = args.domain.clone();
    if args.ping {
        return probe::ping(&args.socket, domain, args.seconds);
    }
    let mut argv = vec![args.command.clone()];
    argv.extend(args.arguments.iter().cloned());
    probe::exec(&args.socket, domain, argv, args.seconds)
}
