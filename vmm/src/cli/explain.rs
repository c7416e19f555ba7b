//! `peapod explain` and `peapod schema`: what a manifest may have.

use std::io::{self, Write};

use crate::vmi;

/// Arguments of `peapod explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A field's path, such as spec.domain.devices.disks [default: all of a VMI]
    #[arg(default_value = "", hide_default_value = true)]
    field: String,
}

/// The page about it.
pub fn page(args: &Args) -> Result<String, String> {
    vmi::explain(&args.field)
}

/// Prints it.
pub fn print(page: &str) -> io::Result<()> {
    io::stdout().lock().write_all(page.as_bytes())
}

/// Prints the JSON schema of manifests.
pub fn schema() -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &vmi::schema())?;
    writeln!(out)
}
