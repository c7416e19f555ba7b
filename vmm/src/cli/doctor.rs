//! `peapod doctor`: prints what the host offers.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::run::{self, read_manifest};
use crate::doctor::{Report, examine};
use crate::plan;

/// Arguments of `peapod doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A manifest: look at its ports and its memory as well
    pub manifest: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Examines the host, for a machine if one is given.
pub fn report(args: &Args) -> Result<Report, run::Error> {
    let machine = args.manifest.as_deref().map(read_manifest).transpose()?;
    let forwards = machine
        .as_ref()
        .map(|m| plan::forwards(m, &[], &[Ipv4Addr::LOCALHOST.into()]))
        .unwrap_or_default();
    Ok(examine(&forwards))
}

/// Prints the report to standard output.
pub fn print(report: &Report, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, report)?;
        return writeln!(out);
    }
    for check in &report.checks {
        writeln!(out, "{check}")?;
    }
    Ok(())
}
