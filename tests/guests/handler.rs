//! A launcher without a VMI, and a virt-handler that brings one.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use kubevirt_rpc::cmd::cmd_client::CmdClient;
use kubevirt_rpc::cmd::{EmptyRequest, ExecRequest, FreezeRequest, GuestPingRequest};
use peapod_tests::handler::{Handler, about};
use peapod_tests::{Vm, image, peapod, until};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::transport::Channel;

use super::{BOOT, SOON};

const UID: &str = "0c2a6cf5-1a27-4d2f-9b3e-2f6a1b7f3c11";

/// That file systems are to stand still, for longer than any test takes.
fn for_ten_minutes() -> FreezeRequest {
    FreezeRequest {
        unfreeze_timeout_seconds: 600,
        ..FreezeRequest::default()
    }
}

/// A launcher as KubeVirt starts it, and its directories.
fn launcher(directory: &Path, disk: &str) -> Vm {
    for folder in ["share", "private", "ephemeral", "disks"] {
        std::fs::create_dir(directory.join(folder)).unwrap();
    }
    // As virt-handler mounts the disk of the first volume's image.
    let disk = image(disk).canonicalize().unwrap();
    symlink(disk, directory.join("disks/disk_0.img")).unwrap();
    let at = |flag: &str, folder: &str| format!("--{flag}={}", directory.join(folder).display());
    let mut command = Command::new(peapod());
    command
        .args(["launch", "--qemu-timeout", "5m", "--name", "details"])
        .args(["--namespace", "shop", "--uid", UID, "--hook-sidecars", "0"])
        .args(["--grace-period-seconds", "75", "--run-as-nonroot", "-v"])
        .arg(at("kubevirt-share-dir", "share"))
        .arg(at("private-dir", "private"))
        .arg(at("ephemeral-disk-dir", "ephemeral"))
        .arg(at("container-disk-dir", "disks"))
        .env_remove("STANDALONE_VMI");
    Vm::start(&mut command)
}

fn begin() -> (TempDir, Vm, Handler) {
    begin_with("details.ext4")
}

fn begin_with(disk: &str) -> (TempDir, Vm, Handler) {
    let directory = tempfile::tempdir().unwrap();
    let vm = launcher(directory.path(), disk);
    let handler = Handler::start(&directory.path().join("share"));
    (directory, vm, handler)
}

/// A VMI as virt-handler has it from the cluster: with the defaults that virt-api wrote, and a status;
/// without its kind, which Go's clients leave out.
fn vmi(image: &str) -> Value {
    json!({
        "metadata": {
            "name": "details",
            "namespace": "shop",
            "uid": UID,
            "resourceVersion": "4711",
            "generation": 9,
            "creationTimestamp": "2026-11-01T08:00:00Z",
            "annotations": { "kubevirt.io/latest-observed-api-version": "v1" },
            "labels": { "kubevirt.io/nodeName": "node01" },
            "finalizers": ["foregroundDeleteVirtualMachine"],
            "managedFields": [{ "manager": "virt-controller", "operation": "Update" }],
        },
        "spec": {
            "architecture": "amd64",
            "domain": {
                "cpu": { "cores": 1, "sockets": 1, "threads": 1, "maxSockets": 4, "model": "host-model" },
                "memory": { "guest": "512Mi", "maxGuest": "2Gi" },
                "resources": { "requests": { "memory": "512Mi" } },
                "machine": { "type": "q35" },
                "firmware": { "uuid": "5d307ca9-b3ef-428c-8861-06e72d69f223" },
                "features": { "acpi": { "enabled": true } },
                "devices": {
                    "disks": [
                        { "name": "root", "disk": { "bus": "virtio" } },
                        { "name": "seed", "disk": { "bus": "virtio" } },
                    ],
                    "interfaces": [{ "name": "default", "masquerade": {} }],
                },
            },
            "evictionStrategy": "None",
            "networks": [{ "name": "default", "pod": {} }],
            "terminationGracePeriodSeconds": 60,
            "volumes": [
                { "name": "root", "containerDisk": { "image": image, "imagePullPolicy": "IfNotPresent" } },
                { "name": "seed", "cloudInitNoCloud": { "userData": "#!/bin/sh\ntrue\n" } },
            ],
        },
        "status": {
            "phase": "Scheduled",
            "nodeName": "node01",
            "activePods": { "f2a5": "node01" },
            "qosClass": "Burstable",
        },
    })
}

/// What a kubelet's probe gets.
fn probe(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(peapod());
    command.arg0("virt-probe").arg("--socket");
    command.arg(directory.join("share/sockets/launcher-sock"));
    let who = ["--domainName", "shop_details", "--timeoutSeconds", "30"];
    command.args(who).args(arguments).output().unwrap()
}

/// The domain, as the launcher has it when it is asked.
fn domain_now(handler: &Handler, client: &mut CmdClient<Channel>) -> Value {
    let domain = handler.call(client.get_domain(EmptyRequest {}));
    serde_json::from_str(&domain.unwrap().into_inner().domain).unwrap()
}

/// What the launcher says that the guest is and has.
fn guest_info(handler: &Handler, client: &mut CmdClient<Channel>) -> Value {
    let info = handler.call(client.get_guest_info(EmptyRequest {}));
    serde_json::from_str(&info.unwrap().into_inner().guest_info_response).unwrap()
}

fn status(domain: &Value) -> (&str, &str) {
    let status = &domain["Status"];
    let text = |name: &str| status[name].as_str().unwrap_or_default();
    (text("Status"), text("Reason"))
}

#[test]
fn virt_handler_brings_a_vmi_leads_it_through_its_life_and_hears_of_all() {
    let (directory, mut vm, handler) = begin();
    let mut client = handler.client();
    let vmi = vmi("registry.example/details:v1");

    let synced = handler.call(client.sync_virtual_machine(about(&vmi)));
    let synced = synced.unwrap().into_inner();
    assert!(synced.success, "{}", synced.message);
    let first = handler.wait("that it runs", SOON, |kind, _| kind == "ADDED");
    assert_eq!(status(&first), ("Running", "Unknown"));
    assert_eq!(first["ObjectMeta"]["name"], "details");
    assert_eq!(first["ObjectMeta"]["namespace"], "shop");
    assert_eq!(first["Spec"]["Metadata"]["KubeVirt"]["UID"], UID);
    assert_eq!(
        first["Spec"]["Devices"]["Disks"][0]["Alias"]["Name"],
        "root"
    );
    // It goes on reconciling.
    let again = handler.call(client.sync_virtual_machine(about(&vmi)));
    assert!(again.unwrap().into_inner().success);

    let is_booted = |_: &str, domain: &Value| {
        let agent = &domain["Spec"]["Devices"]["Channels"][0]["Target"]["State"];
        agent == "connected" && domain["Status"]["OSInfo"]["Id"] == "debian"
    };
    handler.wait("which system the guest has", BOOT, is_booted);
    let domain = domain_now(&handler, &mut client);
    assert!(is_booted("", &domain), "{domain:#}");
    let card = &domain["Status"]["Interfaces"][0];
    assert_eq!(card["Ip"], "10.0.2.2", "{domain:#}");
    let mac = &domain["Spec"]["Devices"]["Interfaces"][0]["MAC"]["MAC"];
    assert_eq!(&card["Mac"], mac, "{domain:#}");

    let paused = handler.call(client.pause_virtual_machine(about(&vmi)));
    assert!(paused.unwrap().into_inner().success);
    let is = |state: &'static str| move |_: &str, domain: &Value| status(domain).0 == state;
    handler.wait("that it is paused", SOON, is("Paused"));
    let resumed = handler.call(client.unpause_virtual_machine(about(&vmi)));
    assert!(resumed.unwrap().into_inner().success);

    let name = "shop_details".to_owned();
    let ping = GuestPingRequest {
        domain_name: name.clone(),
        timeout_seconds: 30,
    };
    handler.call(client.guest_ping(ping)).unwrap();
    let exec = |script: &str| ExecRequest {
        domain_name: name.clone(),
        command: "sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        timeout_seconds: 30,
    };
    let ended = handler.call(client.exec(exec("hostname; exit 3"))).unwrap();
    let ended = ended.into_inner();
    assert_eq!((ended.exit_code, &*ended.std_out), (3, "details\n"));
    let slow = ExecRequest {
        timeout_seconds: 1,
        ..exec("sleep 600")
    };
    let late = handler.call(client.exec(slow)).unwrap_err();
    assert!(late.message().ends_with("did not answer in time"), "{late}");

    let ping = probe(directory.path(), &["--guestAgentPing"]);
    assert_eq!(ping.status.code(), Some(0), "{ping:?}");
    let script = ["--command", "sh", "--", "-c", "echo by virt-probe; exit 4"];
    let ended = probe(directory.path(), &script);
    assert_eq!(ended.status.code(), Some(4), "{ended:?}");
    assert_eq!(ended.stdout, b"by virt-probe\n");

    let stats = handler.call(client.get_domain_stats(EmptyRequest {}));
    let stats: Value = serde_json::from_str(&stats.unwrap().into_inner().domain_stats).unwrap();
    assert_eq!(stats["Name"], "shop_details");
    assert!(stats["Cpu"]["Time"].as_u64() > Some(0), "{stats}");
    assert!(stats["Net"][0]["TxPkts"].as_u64() > Some(0), "{stats}");
    assert_eq!(stats["Block"][0]["Name"], "vda", "{stats}");
    assert!(stats["Block"][0]["RdBytes"].as_u64() > Some(0), "{stats}");
    let info = guest_info(&handler, &mut client);
    assert_eq!(info["hostname"], "details");
    assert_eq!(info["os"]["id"], "debian");
    let mounted = handler.call(client.get_filesystems(EmptyRequest {}));
    let mounted = mounted.unwrap().into_inner().guest_filesystems_response;
    let mounted: Value = serde_json::from_str(&mounted).unwrap();
    let mut root = mounted.as_array().unwrap().iter();
    let root = root.rfind(|one| one["mountPoint"] == "/");
    assert!(root.unwrap()["totalBytes"].as_u64() > Some(0), "{mounted}");
    let users = handler.call(client.get_users(EmptyRequest {})).unwrap();
    assert_eq!(users.into_inner().guest_user_list_response, "[]");

    let frozen = handler.call(client.freeze_virtual_machine(for_ten_minutes()));
    assert!(frozen.unwrap().into_inner().success);
    handler.wait("that it stands still", SOON, |_, domain| {
        domain["Status"]["FSFreezeStatus"]["Status"] == "frozen"
    });
    let thawed = handler.call(client.unfreeze_virtual_machine(about(&vmi)));
    assert!(thawed.unwrap().into_inner().success);
    let domain = domain_now(&handler, &mut client);
    assert_eq!(domain["Status"]["FSFreezeStatus"]["Status"], "thawed");

    let reset = handler.call(client.reset_virtual_machine(about(&vmi)));
    assert!(reset.unwrap().into_inner().success);
    vm.wait_console("peapod-agent: userspace", 2, BOOT);
    let ended = until("nobody is there again", || {
        handler.call(client.exec(exec("exit 5"))).ok()
    });
    assert_eq!(ended.into_inner().exit_code, 5);

    let down = handler.call(client.shutdown_virtual_machine(about(&vmi)));
    assert!(down.unwrap().into_inner().success);
    handler.wait("since when it is to end", SOON, |_, domain| {
        domain["Spec"]["Metadata"]["KubeVirt"]["GracePeriod"]["DeletionTimestamp"].is_string()
    });
    let off = handler.wait("that it is off", SOON, is("Shutoff"));
    assert_eq!(status(&off), ("Shutoff", "Shutdown"));
    let deleted = handler.call(client.delete_virtual_machine(about(&vmi)));
    assert!(deleted.unwrap().into_inner().success);
    handler.wait("that it is gone", SOON, |kind, domain| {
        kind == "MODIFIED" && domain["ObjectMeta"]["deletionTimestamp"].is_string()
    });
    assert_eq!(vm.wait(SOON), 0);
    let kinds = handler.kinds();
    assert_eq!(kinds.iter().filter(|kind| *kind == "ADDED").count(), 1);
}

#[test]
fn a_vmi_that_will_not_do_is_answered_with_the_reason_and_a_better_one_is_taken() {
    let (directory, mut vm, handler) = begin();
    let mut client = handler.client();
    let good = vmi("registry.example/details:v1");
    let mut bad = good.clone();
    bad["spec"]["domain"]["devices"]["interfaces"][0] = json!({"name": "default", "bridge": {}});
    let refused = handler.call(client.sync_virtual_machine(about(&bad)));
    let refused = refused.unwrap().into_inner();
    assert!(
        !refused.success && refused.message.contains("bridge"),
        "{}",
        refused.message
    );
    assert_eq!(refused.message.lines().count(), 1);
    let taken = handler.call(client.sync_virtual_machine(about(&good)));
    let taken = taken.unwrap().into_inner();
    assert!(taken.success, "{}", taken.message);
    let killed = handler.call(client.kill_virtual_machine(about(&good)));
    assert!(killed.unwrap().into_inner().success);
    let off = handler.wait("that it is off", SOON, |_, domain| {
        status(domain).0 == "Shutoff"
    });
    assert_eq!(status(&off), ("Shutoff", "Destroyed"));
    handler
        .call(client.delete_virtual_machine(about(&good)))
        .unwrap();
    assert_eq!(vm.wait(SOON), 4);
    drop(directory);
}

#[test]
fn a_container_disk_stays_until_its_socket_is_taken_away_or_a_signal_comes() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("0c2a/disk_0.sock");
    let start = || {
        let mut command = Command::new(peapod());
        command.arg0("/usr/bin/container-disk").arg("--copy-path");
        let disk = Vm::start(command.arg(socket.with_extension("")));
        until("nobody listens", || UnixStream::connect(&socket).ok());
        disk
    };
    let mut disk = start();
    std::fs::remove_file(&socket).unwrap();
    assert_eq!(disk.wait(SOON), 0);
    let mut disk = start();
    disk.signal(libc::SIGTERM);
    assert_eq!(disk.wait(SOON), 0);
    assert!(!socket.exists());
}

#[test]
fn a_launcher_that_nobody_gives_a_vmi_ends_on_sigterm() {
    let (_directory, mut vm, handler) = begin();
    let _ = handler.client();
    vm.signal(libc::SIGTERM);
    assert_eq!(vm.wait(SOON), 0);
}

/// Has UEFI start the disk; the VMI.
fn start_by_uefi(handler: &Handler) -> Value {
    let mut vmi = vmi("registry.example/efi:v1");
    vmi["spec"]["domain"]["firmware"]["bootloader"] = json!({ "efi": { "secureBoot": false } });
    let synced = handler.call(handler.client().sync_virtual_machine(about(&vmi)));
    assert!(synced.unwrap().into_inner().success);
    vmi
}

/// UEFI starts the disk's own GRUB, and no agent of Peapod's can be there: the disk has QEMU's.
#[test]
fn a_guest_that_uefi_boots_is_asked_and_stopped_by_the_qemu_guest_agent_that_it_has() {
    let (directory, mut vm, handler) = begin_with("efi.img");
    let vmi = start_by_uefi(&handler);
    let mut client = handler.client();
    let domain = handler.wait("an agent, and what runs there", BOOT, |_, event| {
        let state = &event["Spec"]["Devices"]["Channels"][0]["Target"]["State"];
        state == "connected" && event["Status"]["OSInfo"]["Id"] == "debian"
    });
    assert_eq!(status(&domain), ("Running", "Unknown"), "{domain:#}");
    let log = vm.log();
    let loader = "booting disk `root`'s partition 1 (vfat): /EFI/BOOT/BOOTX64.EFI by ";
    assert!(
        log.contains(loader) && log.contains("without the agent"),
        "{log}"
    );
    assert!(vm.console().contains(" 1 BOOT_IMAGE=/boot/vmlinuz-"));
    let pinged = probe(directory.path(), &["--guestAgentPing"]);
    assert!(pinged.status.success(), "{pinged:?}");
    let program = [
        "--command",
        "/bin/sh",
        "--",
        "-c",
        "echo from the guest; exit 3",
    ];
    let ran = probe(directory.path(), &program);
    assert_eq!(ran.status.code(), Some(3), "{ran:?}");
    let info = guest_info(&handler, &mut client);
    assert_eq!(info["os"]["id"], "debian", "{info:#}");
    let disks = info["fsInfo"]["disks"].as_array().unwrap();
    assert!(
        disks.iter().any(|disk| disk["mountPoint"] == "/"),
        "{info:#}"
    );
    let frozen = handler.call(client.freeze_virtual_machine(for_ten_minutes()));
    assert!(frozen.unwrap().into_inner().success);
    let info = guest_info(&handler, &mut client);
    assert_eq!(info["fsFreezeStatus"], "frozen", "{info:#}");
    let thawed = handler.call(client.unfreeze_virtual_machine(about(&vmi)));
    assert!(thawed.unwrap().into_inner().success);
    vm.signal(libc::SIGTERM);
    assert_eq!(vm.wait(BOOT), 0);
    let told = "told to: shutdown -h -P +0";
    assert!(vm.console().contains(told));
}

/// Its firmware is entered again, as a machine's is that was switched on.
#[test]
#[ignore = "slow: make test-all"]
fn a_guest_that_uefi_boots_reboots_by_it() {
    let (directory, mut vm, handler) = begin_with("efi.img");
    start_by_uefi(&handler);
    let answers = || {
        let end = Instant::now() + BOOT;
        while !probe(directory.path(), &["--guestAgentPing"])
            .status
            .success()
        {
            assert!(Instant::now() < end, "no agent");
            std::thread::sleep(Duration::from_secs(1));
        }
    };
    answers();
    // Nobody is left to tell how that ended.
    let reboot = ["--command", "/bin/sh", "--", "-c", "busybox reboot -f"];
    probe(directory.path(), &reboot);
    vm.wait_console(" 2 BOOT_IMAGE=/boot/vmlinuz-", 1, BOOT);
    vm.wait_log("the guest reboots", SOON);
    answers();
    vm.signal(libc::SIGTERM);
    assert_eq!(vm.wait(BOOT), 0);
}
