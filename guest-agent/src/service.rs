//! The agent as a service of a root that has systemd.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
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
const SERVICE: &str = "peapod-agent.service";
/// Before whatever brings the network up.
const NETWORK: &str = "peapod-network.service";

/// Puts this program, which lies at `from`, and its units below `run`, the runtime folder: nothing
/// of it is on the disk.
pub fn install(run: &Path, from: &Path) -> io::Result<()> {
    let program = run.join(PROGRAM);
    if let Some(folder) = program.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let program = program.display();
    // What a script leaves in the background outlives the agent: KillMode=process.
    let service = format!(
        "[Unit]\n\
         Description=Peapod's agent\n\
         After=peapod-network.service network.target\n\
         [Service]\n\
         ExecStart={program} service\n\
         KillMode=process\n\
         TasksMax=infinity\n\
         StandardOutput=journal+console\n\
         StandardError=journal+console\n"
    );
    // The place of cloud-init-local.service: netplan starts what it needs only until sysinit.target.
    let network = format!(
        "[Unit]\n\
         Description=Peapod's agent: the network's configuration\n\
         DefaultDependencies=no\n\
         RequiresMountsFor=/var/lib/cloud\n\
         Wants=network-pre.target\n\
         After=systemd-remount-fs.service systemd-udevd.service\n\
         Before=network-pre.target systemd-networkd.service NetworkManager.service\n\
         Before=networking.service sysinit.target shutdown.target\n\
         Conflicts=shutdown.target\n\
         [Service]\n\
         Type=oneshot\n\
         ExecStart={program} network\n\
         StandardOutput=journal+console\n\
         StandardError=journal+console\n"
    );
    let units = run.join(UNITS);
    for (name, text, target) in [
        (SERVICE, service, "multi-user.target.wants"),
        (NETWORK, network, "sysinit.target.wants"),
    ] {
        let wanted = units.join(target);
        fs::create_dir_all(&wanted)?;
        fs::write(units.join(name), text)?;
        match symlink(units.join(name), wanted.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Does what the seed asks for, then says that the guest is ready.
pub fn set_up(voice: &Voice) {
    if let Err(error) = cli::install() {
        voice.failed("cloud-init", &error.to_string());
    }
    userdata::run(voice);
    voice.ready();
}

/// Runs as the service, until systemd ends it.
pub fn run() -> ExitCode {
    let signals = Signals::block(&[libc::SIGCHLD]);
    freeze::mend();
    let voice = Voice::start(Role::Service);
    session::serve();
    qga::serve();
    ports::watch(&voice);
    thread::spawn(move || set_up(&voice));
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
        for (name, role, target) in [
            (SERVICE, " service", "multi-user.target.wants"),
            (NETWORK, " network", "sysinit.target.wants"),
        ] {
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
