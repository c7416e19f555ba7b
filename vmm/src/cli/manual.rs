//! The command line for shells and for man(1), as clap knows it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;

/// Arguments of `peapod completions`.
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// For which shell
    pub shell: Shell,
}

/// Arguments of `peapod man`.
#[derive(Debug, clap::Args)]
pub struct Man {
    /// A directory, which is made
    pub directory: PathBuf,
}

/// Prints what a shell is to source.
pub fn completions(args: &Completions) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "peapod", &mut script);
    io::stdout().lock().write_all(&script)
}

/// Writes a page for the program and one for each subcommand; a line that names the directory and
/// what was wrong.
pub fn man(args: &Man) -> Result<(), String> {
    let why = |error: io::Error| format!("{}: {error}", Path::display(&args.directory));
    std::fs::create_dir_all(&args.directory).map_err(why)?;
    clap_mangen::generate_to(Cli::command(), &args.directory).map_err(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subcommand_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("man");
        man(&Man {
            directory: directory.clone(),
        })
        .unwrap();
        for page in ["peapod.1", "peapod-run.1", "peapod-launch.1"] {
            let text = std::fs::read_to_string(directory.join(page)).unwrap();
            assert!(text.contains(".SH SYNOPSIS"), "{page}");
        }
    }
}
