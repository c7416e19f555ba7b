//! `peapod validate`: what is wrong with manifests, and nothing is started.

use std::path::PathBuf;

use super::{complain, run, status};

/// Arguments of `peapod validate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// VirtualMachineInstances and VirtualMachines, YAML or JSON
    #[arg(required = true)]
    pub manifests: Vec<PathBuf>,
}

/// Says every problem of every file, a line each; the exit status.
pub fn validate(args: &Args) -> u8 {
    let results = args.manifests.iter().map(|path| run::read_manifest(path));
    let bad = results
        .filter_map(Result::err)
        .inspect(|error| complain(error))
        .count();
    match bad {
        0 => status::OK,
        _ => status::BAD_INPUT,
    }
}
