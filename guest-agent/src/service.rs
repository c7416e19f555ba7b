//! The agent as a service of a root that has systemd.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use crate::guest::freeze;
use crate::protocol::Role;
use crate::signals::Signals;
use crate::voice::Voice;
use crate::{children, cli, ports, qga, session, userdata};

/// Below /run, which survives the switch to the root.
const PROGRAM: &str = "peapod/agent";
const UNITS: &str = "systemd/system";
/// Each with its text, the same as the Debian package's, and who wants it.
const SERVICE: (&str, &str, &str) = (
    "peapod-agent.service",
    include_str!("../units/peapod-agent.service"),
    "multi-user.target.wants",
);
/// Before whatever brings the network up.
const NETWORK: (&str, &str, &str) = (
    "peapod-network.service",
    include_str!("../units/peapod-network.service"),
    "sysinit.target.wants",
);

/// Where this program is below the runtime folder.
pub fn program(run: &Path) -> PathBuf {
    run.join(PROGRAM)
}

/// Puts this program, which lies at `from`, and its units below `run`, the runtime folder: nothing
/// of it is on the disk.
pub fn install(run: &Path, from: &Path) -> io::Result<()> {
    let program = program(run);
    if let Some(folder) = program.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let program = program.display().to_string();
    let units = run.join(UNITS);
    for (name, text, target) in [SERVICE, NETWORK] {
        let wanted = units.join(target);
        fs::create_dir_all(&wanted)?;
        fs::write(units.join(name), text.replace("@PROGRAM@", &program))?;
        match symlink(units.join(name), wanted.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Does what the seed asks for, to the network too where nobody else does, then says that the guest
/// is ready.
pub fn set_up(voice: &Voice, network: Option<userdata::Network>) {
    if let Err(error) = cli::install() {
        voice.failed("cloud-init", &error.to_string());
    }
    userdata::run(voice, network);
    voice.ready();
    // At rest it has no use for what that took.
    netdev::trim_heap();
}

/// Runs as the service, until systemd ends it.
pub fn run() -> ExitCode {
    let signals = Signals::block(&[libc::SIGCHLD]);
    freeze::mend();
    let voice = Voice::start(Role::Service);
    session::serve();
    qga::serve();
    ports::watch(&voice);
    thread::spawn(move || set_up(&voice, None));
    loop {
        signals.wait();
        let _ = children::reap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_units_start_the_program_that_lies_beside_them() {
        let run = tempfile::tempdir().unwrap();
        let from = Path::new("/proc/self/exe");
        install(run.path(), from).unwrap();
        install(run.path(), from).unwrap();
        let units = run.path().join(UNITS);
        for ((name, _, target), role) in [(SERVICE, " service"), (NETWORK, " network")] {
            let unit = fs::read_to_string(units.join(name)).unwrap();
            let program = unit
                .lines()
                .find_map(|line| line.strip_prefix("ExecStart="))
                .and_then(|line| line.strip_suffix(role))
                .unwrap();
            let mode = fs::metadata(program).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o755);
            let link = units.join(target).join(name);
            assert_eq!(fs::read_link(link).unwrap(), units.join(name));
        }
    }
}
