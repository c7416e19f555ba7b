//! The story of 2018, in its own words: a VM whose script installs Ruby, clones Bookinfo and serves
//! its details, beside a sidecar, started as KubeVirt starts it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use peapod_tests::mesh::{Forge, Redirect, User};
use peapod_tests::{Vm, image, peapod};

use crate::sidecar::{PASSED, RANGES};
use crate::site::Site;

/// What all of it may take: in the lab a second is worth a tenth of one.
const LONG: Duration = Duration::from_secs(600);
/// A root's certificates.
const TRUSTED: &str = "/etc/ssl/certs/ca-certificates.crt";

pub fn what_is_outside_the_ranges_is_installed_and_cloned_directly() {
    assert_eq!(tell(&RANGES), 0);
}

pub fn where_all_goes_through_the_sidecar_it_is_installed_and_cloned_too() {
    assert!(tell(&Redirect::ISTIO) >= 2);
}

/// The story, and how many connections to nowhere in the mesh went through Envoy.
fn tell(redirect: &Redirect) -> u64 {
    let site = Site::new(redirect);
    let envoy = site.envoy(&site.sidecar(redirect));
    let forge = Forge::start(&site.node);
    let folder = tempfile::tempdir().unwrap();
    root(folder.path(), &forge.authority());
    let vm = launch(&site, folder.path());

    let start = Instant::now();
    let book = loop {
        let curl = "curl -sf --max-time 20 http://details:9080/details/0";
        let (said, served) = site.ratings.attempt(curl);
        if served {
            break said;
        }
        if start.elapsed() > LONG || vm.console().contains("script failed") {
            panic!("details are not served");
        }
        std::thread::sleep(Duration::from_secs(1));
    };
    assert!(book.contains(r#""author":"William Shakespeare""#), "{book}");
    assert!(envoy.counter("cluster.inbound|9080||.upstream_rq_200") >= 1);

    // By the guest, which is the pod for all the world.
    let log = forge.log();
    let address = site.details.address.to_string();
    for request in [
        "GET /ruby.rpm ",
        "GET /git.rpm ",
        "POST /istio/istio.git/git-upload-pack ",
    ] {
        let mut lines = log.lines().filter(|line| line.contains(request));
        let line = lines.next().unwrap_or_else(|| panic!("{request}: {log}"));
        assert!(
            line.starts_with(&address) && line.contains(" 200 "),
            "{line}"
        );
    }
    let password =
        "import crypt,spwd; h=spwd.getspnam('fedora').sp_pwdp; print(crypt.crypt('fedora',h)==h)";
    let output = Command::new(peapod())
        .arg("exec")
        .arg(folder.path().join("disks/vm"))
        .args(["--", "python3", "-c", password])
        .output();
    let output = output.unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "True\n",
        "{output:?}"
    );
    envoy.counter(PASSED)
}

/// The disk where virt-handler mounts it, which trusts the tests' authority.
fn root(folder: &Path, authority: &Path) {
    let disks = folder.join("container-disks");
    fs::create_dir(&disks).unwrap();
    let disk = disks.join("disk_0.img");
    let script = format!(
        "cp --sparse=always --dereference {root} {disk}
         debugfs -R 'cat {TRUSTED}' {disk} >trusted; cat {authority} >>trusted
         printf 'rm {TRUSTED}\\nwrite trusted {TRUSTED}\\n' | debugfs -w -f - {disk}",
        root = image("yum.ext4").display(),
        disk = disk.display(),
        authority = authority.display(),
    );
    let script = format!("exec >debugfs.log 2>&1\n{script}");
    let mut command = Command::new("sh");
    command.args(["-ec", &script]).current_dir(folder);
    assert!(command.status().unwrap().success());
}

/// By virt-launcher's arguments, as KubeVirt gave them then.
fn launch(site: &Site, folder: &Path) -> Vm {
    let manifest = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/bookinfo/details-2018.yaml"
    );
    let mut command = site.details.command(User::Root, peapod().to_str().unwrap());
    command.args(
        "launch --qemu-timeout 5m --name vmi-details --uid 5ea9 --namespace default".split(' '),
    );
    command.args("--grace-period-seconds 15 --hook-sidecars 0 --use-emulation".split(' '));
    for (flag, path) in [
        ("--kubevirt-share-dir", "share"),
        ("--readiness-file", "healthy"),
        ("--private-dir", "private"),
        ("--ephemeral-disk-dir", "disks"),
        ("--container-disk-dir", "container-disks"),
    ] {
        command.arg(flag).arg(folder.join(path));
    }
    Vm::start(command.arg(manifest))
}
