//! The configuration that the disk brings: /etc/cloud/cloud.cfg and cloud.cfg.d, or where it brings
//! none what cloud-init's packages would.

use std::fs;
use std::path::{Path, PathBuf};

use super::merge::How;
use super::report::Report;
use crate::os::{Family, Os};
use crate::yaml::{self, Node};

const FILE: &str = "/etc/cloud/cloud.cfg";

/// What a disk without cloud-init is taken to say.
const DEFAULT: &str = "
users: [default]
disable_root: true
preserve_hostname: false
cloud_init_modules: [seed_random, bootcmd, write_files, growpart, resizefs, disk_setup, mounts,
  set_hostname, update_hostname, update_etc_hosts, ca_certs, rsyslog, users_groups, ssh, set_passwords]
cloud_config_modules: [snap, ssh_import_id, keyboard, locale, grub_dpkg, apt_pipelining,
  apt_configure, yum_add_repo, ntp, timezone, disable_ec2_metadata, runcmd, byobu]
cloud_final_modules: [package_update_upgrade_install, fan, landscape, lxd, write_files_deferred,
  puppet, chef, ansible, mcollective, salt_minion, reset_rmc, scripts_vendor, scripts_per_once,
  scripts_per_boot, scripts_per_instance, scripts_user, ssh_authkey_fingerprints, keys_to_console,
  install_hotplug, phone_home, final_message, power_state_change]
";
const DEFAULT_DEBIAN: &str = "
apt: {preserve_sources_list: true}
system_info:
  distro: debian
  default_user:
    name: debian
    lock_passwd: true
    gecos: Debian
    groups: [adm, audio, cdrom, dialout, dip, floppy, netdev, plugdev, sudo, video]
    sudo: ['ALL=(ALL) NOPASSWD:ALL']
    shell: /bin/bash
";
const DEFAULT_REDHAT: &str = "
system_info:
  distro: rhel
  default_user:
    name: cloud-user
    lock_passwd: true
    gecos: Cloud User
    groups: [adm, systemd-journal, wheel]
    sudo: ['ALL=(ALL) NOPASSWD:ALL']
    shell: /bin/bash
";
/// Beneath everything, whoever wrote the rest (cloud-init's settings.py).
const BUILTIN: &str = "
vendor_data: {enabled: true, prefix: []}
";

/// The disk's own configuration; what cannot be read of it is told.
pub fn of_disk(report: &Report) -> Node {
    let mut files = vec![PathBuf::from("/run/cloud-init/cloud.cfg")];
    let mut below: Vec<PathBuf> = fs::read_dir(format!("{FILE}.d"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cfg"))
        .collect();
    below.sort_unstable_by(|a, b| b.cmp(a));
    files.append(&mut below);
    files.push(FILE.into());
    let mut config = Node::empty();
    let how = How::sources();
    for file in &files {
        match read(file) {
            Ok(Some(node)) => config = how.merge(config, node),
            Ok(None) => {}
            Err(why) => report.failed("cloud.cfg", &why),
        }
    }
    if !Path::new(FILE).exists() {
        for text in [default_of(&Os::of_this_root()), DEFAULT] {
            config = how.merge(config, written_here(text));
        }
    }
    how.merge(config, written_here(BUILTIN))
}

fn default_of(os: &Os) -> &'static str {
    match os.family {
        Family::RedHat => DEFAULT_REDHAT,
        _ => DEFAULT_DEBIAN,
    }
}

fn written_here(text: &str) -> Node {
    // A test reads each of them.
    yaml::read("cloud.cfg", text).unwrap_or_default()
}

fn read(file: &Path) -> Result<Option<Node>, String> {
    let name = file.display().to_string();
    if !file.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(file).map_err(|error| format!("{name}: {error}"))?;
    let node = yaml::read(&name, &text)?;
    match node.map() {
        Some(_) => Ok(Some(node)),
        None if node.is_something() => Err(node.wrong("", "not a mapping")),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_can_be_read() {
        for text in [DEFAULT, DEFAULT_DEBIAN, DEFAULT_REDHAT, BUILTIN] {
            assert!(yaml::read("f", text).unwrap().map().is_some());
        }
    }
}
