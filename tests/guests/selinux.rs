//! A root under SELinux, enforcing: Debian with the reference policy.

use peapod_tests::{Manifest, Vm, image, overlay};

use super::BOOT;
use super::life::said;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEVuZHM7IE5vd2hlcmUgZWxzZSE= anna@home";
/// The modules whose files have labels of their own, and a script that has to be allowed its work.
const USER_DATA: &str = "#cloud-config\n\
    users: [{name: anna, ssh_authorized_keys: ['KEY'], passwd: '$6$x$y', lock_passwd: false}]\n\
    write_files: [{path: /etc/cron.d/tidy, content: ''}, {path: /srv/www/index.html, content: hi}]\n\
    runcmd: ['id -Z', 'systemctl is-system-running --wait || true', 'echo written >/srv/by-runcmd']\n";

/// What a shell of the guest's prints.
fn run(script: &str) -> String {
    said(&["exec", "selinux", "--", "sh", "-c", script])
}

#[test]
#[ignore = "slow: make test-all"]
fn under_an_enforcing_policy_the_agent_does_its_work_and_labels_what_it_writes() {
    let directory = tempfile::tempdir().unwrap();
    let disk = image("selinux.img");
    assert!(
        disk.exists(),
        "selinux.img is not there: only root can make it"
    );
    let (root, base) = overlay(directory.path(), "selinux.img", "raw");
    let manifest = Manifest::new("selinux", "")
        .root(&root)
        .cores(2)
        .memory("1Gi");
    let manifest = manifest.user_data(&USER_DATA.replace("KEY", KEY));
    let mut words = [
        "--format",
        "root=qcow2",
        "--append",
        "security=selinux enforcing=1",
    ]
    .map(std::path::PathBuf::from)
    .to_vec();
    words.extend(["--backing-dir".into(), base]);
    let mut vm = Vm::run(&manifest.write(directory.path()), words);
    vm.wait_log("ready", 4 * BOOT);
    assert_eq!(run("cat /sys/fs/selinux/enforce"), "1");
    let domain = run("ps -eo label,args | grep 'peapod/agent servic[e]'");
    assert!(domain.contains(":initrc_t:"), "{domain}");
    let log = run("cat /var/log/cloud-init-output.log");
    assert!(log.contains(":initrc_t:"), "{log}");
    assert_eq!(run("cat /srv/by-runcmd"), "written\n");
    // What has another label than the policy's is named.
    let places = "/etc /home /root /srv /var/lib/cloud /var/log";
    assert_eq!(run(&format!("restorecon -Rnv {places}")), "");
    let labels = run("ls -Z /etc/shadow /etc/cron.d/tidy /home/anna/.ssh/authorized_keys");
    for kind in ["shadow_t", "system_cron_spool_t", "ssh_home_t"] {
        assert!(labels.contains(kind), "{labels}");
    }
    // The server has the keys that were made, and not those that it came up with.
    let served = run("ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | cut -d' ' -f3");
    let key = run("cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub");
    assert!(!key.is_empty() && served == key, "{served:?} {key:?}");
    let status = run("cloud-init status --long");
    assert!(status.contains("status: done"), "{status}");
    vm.signal(libc::SIGTERM);
    assert_eq!(vm.wait(BOOT), 0);
}
