use super::*;
use crate::topology::Topology;

const KUBECTL: &str = include_str!("testdata/kubectl-get.yaml");
const DETAILS: &str = include_str!("../../../examples/bookinfo/details.yaml");

/// A small manifest with one line each that a test replaces.
const SMALL: &str = "\
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata:
  name: small
spec:
  domain:
    cpu: {cores: 1}
    memory: {guest: 128Mi}
    devices:
      disks:
      - {name: root, disk: {bus: virtio}}
      interfaces:
      - {name: net, masquerade: {}, ports: [{port: 80}]}
  networks:
  - {name: net, pod: {}}
  volumes:
  - {name: root, hostDisk: {path: /root.img, type: Disk}}
";

fn replaced(from: &str, to: &str) -> Result<Parsed, Invalid> {
    assert!(SMALL.contains(from), "{from}");
    parse("vm.yaml", SMALL.replacen(from, to, 1).as_bytes())
}

#[test]
fn what_kubectl_prints_for_a_running_vmi_is_accepted() {
    let parsed = parse("x", KUBECTL.as_bytes()).unwrap();
    let machine = parsed.machine;
    assert_eq!(parsed.warnings, Vec::<String>::new());
    assert_eq!(
        (machine.name.as_str(), machine.namespace.as_str()),
        ("details-v1", "bookinfo")
    );
    assert_eq!(machine.uuid, "5b9d3a2e-3f0c-5f7b-8f3a-1a52f3f2c0de");
    assert_eq!((machine.topology.vcpus(), machine.memory), (2, 1 << 30));
    assert_eq!(machine.termination_grace.as_secs(), 30);
    assert_eq!(machine.reboot_policy, RebootPolicy::Reboot);
    let interface = machine.interface.clone().unwrap();
    assert_eq!(interface.binding, Binding::Masquerade);
    assert_eq!(interface.mac, Some([2, 0x7c, 0x1e, 0, 0, 0xb]));
    assert_eq!(
        (interface.ports[0].port, interface.ports[0].protocol),
        (9080, Protocol::Tcp)
    );
    assert_eq!(machine.root_disk(), Some(0));
    assert!(machine.disks[1].readonly);
    let Source::Seed {
        form: SeedForm::NoCloud,
        user_data,
        network_data: None,
        ..
    } = &machine.disks[1].source
    else {
        panic!("{:?}", machine.disks[1])
    };
    assert_eq!(user_data, b"#!/bin/bash\nruby details.rb 9080 &\n");
}

#[test]
fn a_config_drive_is_a_seed_of_the_other_form() {
    let text = DETAILS.replace("cloudInitNoCloud", "cloudInitConfigDrive");
    let machine = parse("x", text.as_bytes()).unwrap().machine;
    let is = |disk: &Disk| {
        matches!(
            disk.source,
            Source::Seed {
                form: SeedForm::ConfigDrive,
                ..
            }
        )
    };
    assert_eq!(machine.disks.iter().filter(|disk| is(disk)).count(), 1);
}

#[test]
fn a_config_map_or_a_secret_is_a_disk_of_its_keys() {
    let volumes = "  volumes:\n    - {name: conf, configMap: {name: app}}\n    \
        - {name: keys, secret: {secretName: keys, optional: true, volumeLabel: keys}}\n";
    let text = DETAILS.replace("  volumes:\n", volumes);
    let beside = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: app}\n\
        data: {a.conf: 'x=1'}\nbinaryData: {b: AAE=}\n";
    let parsed = parse("x", format!("{text}{beside}").as_bytes()).unwrap();
    assert_eq!(parsed.warnings, [""; 0]);
    let find = |name: &str| {
        let mut disks = parsed.machine.disks.iter();
        disks.find(|disk| disk.name == name).unwrap().clone()
    };
    let conf = find("conf");
    assert!(conf.readonly);
    let files = [
        ("a.conf".to_owned(), b"x=1".to_vec()),
        ("b".to_owned(), vec![0, 1]),
    ];
    assert_eq!(
        conf.source,
        Source::Keys {
            volume: "conf".to_owned(),
            of: Keyed::ConfigMap,
            name: "app".to_owned(),
            optional: false,
            label: "cfgdata".to_owned(),
            fields: serde_json::Value::Null,
            files: Some(files.into()),
        }
    );
    let keys = find("keys").source;
    assert!(matches!(
        keys,
        Source::Keys {
            of: Keyed::Secret,
            optional: true,
            files: None,
            ..
        }
    ));
    let root = parsed.machine.root_disk().unwrap();
    assert_eq!(parsed.machine.disks[root].name, "root");
}

#[test]
fn the_example_is_accepted_as_yaml_and_as_json() {
    let yaml = parse("x", DETAILS.as_bytes()).unwrap();
    let value: serde_json::Value = serde_saphyr::from_str(DETAILS).unwrap();
    let json = parse(
        "x",
        serde_json::to_string_pretty(&value).unwrap().as_bytes(),
    )
    .unwrap();
    assert_eq!(yaml, json);
    assert_eq!(yaml.machine.memory, 512 << 20);
}

#[test]
fn each_bad_manifest_ends_in_one_line_with_its_place() {
    let cases = [
        (
            "cores: 1",
            "corez: 1",
            "vm.yaml:7:11: spec.domain.cpu.corez: unknown field; did you mean `cores`?",
        ),
        (
            "devices:",
            "devcies:",
            "vm.yaml:9:5: spec.domain.devcies: unknown field; did you mean `devices`?\n\
          vm.yaml:7:5: spec.domain: `devices` is required",
        ),
        (
            "  networks:",
            "  xyzzy: 1\n  networks:",
            "vm.yaml:14:3: spec.xyzzy: unknown field",
        ),
        (
            "    devices:\n",
            "    devices:\n      gpus: [{name: a}]\n",
            "vm.yaml:10:7: spec.domain.devices.gpus: not supported; leave it out: no device of the node's is passed through",
        ),
        (
            "masquerade: {}",
            "bridge: {}",
            "vm.yaml:13:21: spec.domain.devices.interfaces[0].bridge: not supported; use `masquerade: {}`",
        ),
        (
            "hostDisk: {path: /root.img, type: Disk}",
            "sysprep: {}",
            "vm.yaml:17:18: spec.volumes[0].sysprep: not supported; it is for Windows, which does not run here",
        ),
        (
            "pod: {}",
            "pod: {vmNetworkCIDR: 10.9.0.0/31}",
            "vm.yaml:15:38: spec.networks[0].pod.vmNetworkCIDR: not a network such as 10.0.2.0/24, of a prefix of at most 30 bits",
        ),
        (
            "cores: 1",
            "cores: one",
            "vm.yaml:7:18: spec.domain.cpu.cores: expected a whole number, found a string",
        ),
        (
            "cores: 1",
            "cores: 0",
            "vm.yaml:7:18: spec.domain.cpu.cores: must be from 1 to 64",
        ),
        (
            "128Mi",
            "128MB",
            "vm.yaml:8:21: spec.domain.memory.guest: not a quantity (such as 512Mi, 1G or 1073741824)",
        ),
        (
            "port: 80",
            "port: 65536",
            "vm.yaml:13:52: spec.domain.devices.interfaces[0].ports[0].port: must be from 1 to 65535",
        ),
        (
            "port: 80",
            "port: 80, protocol: SCTP",
            "vm.yaml:13:66: spec.domain.devices.interfaces[0].ports[0].protocol: must be TCP or UDP",
        ),
        (
            "bus: virtio",
            "bus: floppy",
            "vm.yaml:11:34: spec.domain.devices.disks[0].disk.bus: must be virtio, sata, scsi or usb",
        ),
        (
            "name: root, disk",
            "name: rot, disk",
            "vm.yaml:11:9: spec.domain.devices.disks[0]: `spec.volumes` has no volume named `rot`",
        ),
        (
            "VirtualMachineInstance",
            "VirtualMachinePool",
            "vm.yaml:2:7: kind: `VirtualMachinePool` is not supported, only VirtualMachineInstance, VirtualMachine",
        ),
        (
            "kubevirt.io/v1",
            "v1",
            "vm.yaml:1:13: apiVersion: `v1` is not supported, only kubevirt.io/v1, kubevirt.io/v1alpha3, kubevirt.io/v1alpha2",
        ),
        (
            "name: small",
            "name: Small!",
            "vm.yaml:4:9: metadata.name: `Small!` is not a DNS name in lower case",
        ),
        (
            "  domain:\n",
            "  livenessProbe: {exec: {}}\n  domain:\n",
            "vm.yaml:6:25: spec.livenessProbe.exec: `command` is required",
        ),
        (
            "  domain:\n",
            "  readinessProbe: {tcpSocket: {port: 80}, guestAgentPing: {}}\n  domain:\n",
            "vm.yaml:6:19: spec.readinessProbe: expected one of httpGet, tcpSocket, exec and guestAgentPing",
        ),
        (
            "  domain:\n",
            "  readinessProbe: {tcpSocket: {port: 80000}}\n  domain:\n",
            "vm.yaml:6:38: spec.readinessProbe.tcpSocket.port: must be from 1 to 65535",
        ),
        (
            "  domain:\n",
            "  readinessProbe: {guestAgentPing: {}, periodSeconds: 0}\n  domain:\n",
            "vm.yaml:6:55: spec.readinessProbe.periodSeconds: must be from 1 to 2147483647",
        ),
        (
            "memory: {guest: 128Mi}",
            "memory: {hugepages: {pageSize: 4Mi}, guest: 1Gi}",
            "vm.yaml:8:36: spec.domain.memory.hugepages.pageSize: must be 2Mi or 1Gi",
        ),
        (
            "memory: {guest: 128Mi}",
            "memory: {hugepages: {pageSize: 1Gi}, guest: 1536Mi}",
            "vm.yaml:8:36: spec.domain.memory.hugepages.pageSize: the guest's memory is no multiple of it",
        ),
        (
            "memory: {guest: 128Mi}",
            "memory: {}",
            "vm.yaml:7:5: spec.domain: `memory.guest` is required (or a memory request in `resources`)",
        ),
        (
            "    cpu: {cores: 1}\n",
            "    machine: {type: microvm}\n",
            "vm.yaml:7:21: spec.domain.machine.type: `microvm` is not supported, only q35",
        ),
    ];
    for (from, to, want) in cases {
        let got = replaced(from, to).unwrap_err();
        // A missing parent's place comes before its child's: compare without regard to order.
        let mut got: Vec<_> = got.to_string().lines().map(str::to_owned).collect();
        let mut want: Vec<_> = want.lines().map(str::to_owned).collect();
        got.sort();
        want.sort();
        assert_eq!(got, want, "{from} -> {to}");
    }
}

#[test]
fn several_problems_are_a_line_each_in_the_order_of_the_file_and_bounded() {
    let ports: Vec<String> = (0..15).map(|_| "{port: 0}".to_owned()).collect();
    let text = replaced("{port: 80}", &ports.join(", "))
        .unwrap_err()
        .to_string();
    assert_eq!(text.lines().count(), 11);
    assert_eq!(text.lines().last(), Some("vm.yaml: and 5 more"));
}

#[test]
fn what_asks_for_what_is_so_anyway_is_accepted() {
    for (from, to) in [
        (
            "cores: 1",
            "cores: 1, maxSockets: 4, model: host-passthrough, dedicatedCpuPlacement: false",
        ),
        (
            "    devices:\n",
            "    features: {acpi: {}, smm: {enabled: false}}\n    devices:\n",
        ),
        (
            "    devices:\n",
            "    clock: {utc: {}, timer: {hpet: {present: false}}}\n    devices:\n",
        ),
        (
            "    devices:\n",
            "    devices:\n      autoattachGraphicsDevice: false\n      gpus: []\n",
        ),
        ("pod: {}", "pod: {vmNetworkCIDR: 10.0.2.0/24}"),
        (
            "  domain:\n",
            "  evictionStrategy: LiveMigrate\n  hostname: null\n  domain:\n",
        ),
        (
            "  domain:\n",
            "  dnsPolicy: ClusterFirst\n  affinity: {anything: [1]}\n  domain:\n",
        ),
        ("    cpu: {cores: 1}\n", "    machine: {type: ''}\n"),
    ] {
        assert!(
            replaced(from, to).is_ok(),
            "{to}: {}",
            replaced(from, to).unwrap_err()
        );
    }
}

/// As KubeVirt 0.10's examples were written, in 2018.
const OLD: &str = "\
apiVersion: kubevirt.io/v1alpha2
kind: VirtualMachineInstance
metadata:
  creationTimestamp: null
  labels: {special: vmi-slirp}
  name: vmi-slirp
spec:
  domain:
    devices:
      disks:
      - {disk: {bus: virtio}, name: registrydisk, volumeName: registryvolume}
      - {disk: {bus: virtio}, name: cloudinitdisk, volumeName: cloudinitvolume}
      interfaces:
      - {name: testSlirp, model: e1000, slirp: {}, ports: [{name: http, port: 80, protocol: TCP}]}
    machine: {type: ''}
    resources: {requests: {memory: 1024M}}
  networks:
  - {name: testSlirp, pod: {}}
  terminationGracePeriodSeconds: 0
  volumes:
  - {name: registryvolume, registryDisk: {image: 'kubevirt/fedora:devel'}}
  - {name: cloudinitvolume, cloudInitNoCloud: {userData: '#!/bin/sh'}}
status: {}
";

#[test]
fn a_manifest_of_2018_is_the_machine_that_a_new_one_would_be() {
    let parsed = parse("old", OLD.as_bytes()).unwrap();
    assert_eq!(parsed.warnings.len(), 1, "{:?}", parsed.warnings);
    let old = parsed.machine;
    let names: Vec<&str> = old.disks.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["registrydisk", "cloudinitdisk"]);
    let mut text = OLD.to_owned();
    for (from, to) in [
        ("kubevirt.io/v1alpha2", "kubevirt.io/v1"),
        ("registryDisk:", "containerDisk:"),
        (", volumeName: registryvolume", ""),
        (", volumeName: cloudinitvolume", ""),
        ("name: registryvolume", "name: registrydisk"),
        ("name: cloudinitvolume", "name: cloudinitdisk"),
    ] {
        text = text.replace(from, to);
    }
    let mut new = parse("new", text.as_bytes()).unwrap().machine;
    // But for the volume's own name.
    if let Source::ContainerDisk { volume, .. } = &mut new.disks[0].source {
        volume.0 = "registryvolume".to_owned();
    }
    assert_eq!(new, old);
}

#[test]
fn empty_disks_and_claims_are_read_and_no_empty_disk_is_booted_from() {
    let text = SMALL.replace(
        "- {name: root, hostDisk: {path: /root.img, type: Disk}}",
        "- {name: scratch, emptyDisk: {capacity: 2Gi}}\n  \
         - {name: root, ephemeral: {persistentVolumeClaim: {claimName: base, readOnly: true}}}\n  \
         - {name: data, persistentVolumeClaim: {claimName: mine}}",
    );
    let text = text.replace(
        "- {name: root, disk: {bus: virtio}}",
        "- {name: scratch, disk: {}}\n      - {name: root, disk: {}}",
    );
    let machine = parse("x", text.as_bytes()).unwrap().machine;
    assert_eq!(machine.root_disk(), Some(1));
    let sources: Vec<Source> = machine.disks.into_iter().map(|d| d.source).collect();
    let claim = |volume: &str, claim: &str, ephemeral| Source::Claim {
        volume: volume.to_owned(),
        claim: claim.to_owned(),
        ephemeral,
    };
    assert_eq!(
        sources,
        [
            Source::EmptyDisk { capacity: 2 << 30 },
            claim("root", "base", true),
            claim("data", "mine", false),
        ]
    );
    for (from, to, want) in [
        ("2Gi", "0", "emptyDisk.capacity: must not be 0"),
        (
            ", readOnly: true",
            ", readonly: true",
            "did you mean `readOnly`?",
        ),
        ("{claimName: mine}", "{}", "`claimName` is required"),
    ] {
        let error = parse("x", text.replace(from, to).as_bytes()).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    }
}

#[test]
fn what_smbios_tells_is_read_and_kept_to_what_it_can_hold() {
    let told = |text: &str| replaced("    cpu: {cores: 1}\n", &format!("    {text}\n"));
    let machine = told("firmware: {serial: s-1}\n    chassis: {asset: rack 7, sku: k}")
        .unwrap()
        .machine;
    assert_eq!(machine.serial.as_deref(), Some("s-1"));
    assert_eq!(
        (&machine.chassis.asset[..], &machine.chassis.sku[..]),
        ("rack 7", "k")
    );
    let error = told("chassis: {serial: \"a\\nb\"}")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("domain.chassis.serial: must be at most 255 printable"),
        "{error}"
    );
}

#[test]
fn a_kernel_in_a_container_image_is_read() {
    let boot = |text: &str| replaced("    cpu: {cores: 1}\n", &format!("    firmware: {text}\n"));
    let container =
        "container: {image: k, kernelPath: /vmlinuz, initrdPath: /initrd, imagePullPolicy: Always}";
    let parsed = boot(&format!(
        "{{kernelBoot: {{kernelArgs: 'console=ttyS0', {container}}}}}"
    ));
    let want = KernelBoot {
        image: "k".to_owned(),
        kernel: "/vmlinuz".to_owned(),
        initrd: Some("/initrd".to_owned()),
        arguments: "console=ttyS0".to_owned(),
    };
    assert_eq!(parsed.unwrap().machine.kernel_boot, Some(want));
    for (loader, efi) in [("bios: {}", false), ("efi: {secureBoot: false}", true)] {
        let parsed = boot(&format!("{{bootloader: {{{loader}}}}}"));
        assert_eq!(parsed.unwrap().machine.efi, efi);
    }
    for (text, said) in [
        ("{kernelBoot: {kernelArgs: x}}", "`container` is required"),
        (
            "{kernelBoot: {container: {image: k}}}",
            "`kernelPath` is required",
        ),
        (
            "{bootloader: {efi: {}}}",
            "bootloader.efi: set `secureBoot: false`",
        ),
        (
            "{bootloader: {efi: {secureBoot: true}}}",
            "efi.secureBoot: set `secureBoot: false`",
        ),
        (
            "{bootloader: {efi: {secureBoot: false, persistent: true}}}",
            "efi.persistent: not supported; leave it out",
        ),
        (
            "{bootloader: {bios: {}, efi: {secureBoot: false}}}",
            "bootloader: has both `bios` and `efi`",
        ),
    ] {
        let error = boot(text).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_pod_s_token_and_fields_are_disks_of_files_and_a_data_volume_is_its_claim() {
    let text = SMALL.replace(
        "  - {name: root, hostDisk",
        "  - {name: token, serviceAccount: {serviceAccountName: books}}\n  \
         - {name: pod, downwardAPI: {fields: [{path: labels, fieldRef: {fieldPath: \
         metadata.labels}}]}}\n  - {name: data, dataVolume: {name: filled}}\n  - {name: root, hostDisk",
    );
    let machine = parse("x", text.as_bytes()).unwrap().machine;
    assert_eq!(machine.service_account(), Some("books"));
    let source = |name: &str| {
        let mut disks = machine.disks.iter();
        disks.find(|disk| disk.name == name).unwrap().source.clone()
    };
    assert!(source("token").is_readonly());
    let Source::Keys {
        of: Keyed::DownwardApi,
        fields,
        ..
    } = source("pod")
    else {
        panic!()
    };
    assert_eq!(fields[0]["fieldRef"]["fieldPath"], "metadata.labels");
    let claim = Source::Claim {
        volume: "data".to_owned(),
        claim: "filled".to_owned(),
        ephemeral: false,
    };
    assert_eq!(source("data"), claim);
}

#[test]
fn public_keys_go_into_the_seed_of_their_kind() {
    let with = |method: &str| {
        let text = DETAILS.replace(
            "\nspec:\n",
            &format!(
                "\nspec:\n  accessCredentials:\n  - sshPublicKey:\n      source: {{secret: \
                 {{secretName: mine}}}}\n      propagationMethod: {{{method}}}\n"
            ),
        );
        let secret = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: mine}\n\
             stringData: {a: ssh-ed25519 A}\n";
        parse("x", format!("{text}{secret}").as_bytes())
    };
    let machine = with("noCloud: {}").unwrap().machine;
    let keys: Vec<_> = machine.ssh_keys().collect();
    assert_eq!(keys[0].files.as_ref().unwrap()["a"], b"ssh-ed25519 A");
    for (method, want) in [
        ("configDrive: {}", "there is no seed of that kind"),
        ("qemuGuestAgent: {users: [root]}", "use `noCloud: {}`"),
    ] {
        let error = with(method).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn what_becomes_virtio_or_masquerade_is_said() {
    for (from, to, want) in [
        (
            "bus: virtio",
            "bus: sata",
            "the bus of disk `root` is virtio, not sata",
        ),
        (
            "disk: {bus: virtio}",
            "cdrom: {bus: sata}",
            "`root` is a disk that is only read, not a CD drive",
        ),
        (
            "masquerade: {}",
            "masquerade: {}, model: e1000e",
            "the interface's model is virtio, not e1000e",
        ),
        (
            "  domain:\n",
            "  evictionStrategy: LiveMigrate\n  domain:\n",
            "a drain of the node shuts the guest down",
        ),
    ] {
        let parsed = replaced(from, to).unwrap();
        let [warning] = &parsed.warnings[..] else {
            panic!("{to}: {:?}", parsed.warnings)
        };
        assert!(warning.contains(want), "{warning}");
    }
    let machine = replaced("disk: {bus: virtio}", "cdrom: {}")
        .unwrap()
        .machine;
    assert!(machine.disks[0].readonly);
}

#[test]
fn a_network_has_the_addresses_that_it_asks_for() {
    let own = "pod: {vmNetworkCIDR: 10.9.0.0/16, vmIPv6NetworkCIDR: 'fd77::/64'}";
    let machine = replaced("pod: {}", own).unwrap().machine;
    let cidrs = machine.interface.unwrap().cidrs;
    assert_eq!(cidrs.v4, ([10, 9, 0, 0].into(), 16));
    assert_eq!(cidrs.v6, ("fd77::".parse().unwrap(), 64));
    let slirp = SMALL.replace("masquerade", "slirp").replace("pod: {}", own);
    let error = parse("x", slirp.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("slirp has QEMU's addresses"), "{error}");
}

#[test]
fn a_disk_and_a_volume_are_each_of_one_other_only() {
    for (from, to, want) in [
        (
            "volumeName: cloudinitvolume",
            "volumeName: registryvolume",
            "another disk has the volume `registryvolume`",
        ),
        (
            "name: cloudinitdisk",
            "name: registrydisk",
            "a second disk is named `registrydisk`",
        ),
        (
            "volumeName: registryvolume",
            "volumeName: none",
            "`spec.volumes` has no volume named `none`",
        ),
    ] {
        let error = parse("x", OLD.replace(from, to).as_bytes()).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    }
}

#[test]
fn vcpus_and_memory_come_from_the_resources_where_nothing_else_says_them() {
    let resources = "resources: {requests: {memory: 1024M, cpu: 1500m}, limits: {memory: 2G}}";
    let text = SMALL
        .replace("    cpu: {cores: 1}\n", "")
        .replace("memory: {guest: 128Mi}", resources);
    let machine = parse("x", text.as_bytes()).unwrap().machine;
    assert_eq!(
        (machine.topology.vcpus(), machine.memory),
        (2, 1_024_000_000)
    );
    assert_eq!(machine.topology.sockets, 2);
    let error = parse("x", text.replace("1500m", "300").as_bytes()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("more than 64 vCPUs are asked for"),
        "{error}"
    );
}

#[test]
fn a_topology_is_what_it_says_and_its_product_is_bounded() {
    let cpu = |cpu: &str| replaced("cpu: {cores: 1}", &format!("cpu: {cpu}"));
    let machine = cpu("{sockets: 2, cores: 3, threads: 2}").unwrap().machine;
    assert_eq!(machine.topology.vcpus(), 12);
    let topology = Topology {
        sockets: 2,
        cores: 3,
        threads: 2,
    };
    assert_eq!(machine.topology, topology);
    let error = cpu("{sockets: 33, cores: 2}").unwrap_err().to_string();
    assert!(
        error.contains("vm.yaml:7:10: spec.domain.cpu: more than 64 vCPUs"),
        "{error}"
    );
}

#[test]
fn a_machine_keeps_its_uuid_and_no_other_has_it() {
    let uuid = |name: &str| {
        replaced("name: small", &format!("name: {name}"))
            .unwrap()
            .machine
            .uuid
    };
    assert_eq!(uuid("small"), uuid("small"));
    assert_ne!(uuid("small"), uuid("other"));
    assert_eq!(uuid("small").len(), 36);
    assert_eq!(uuid("small").as_bytes()[14], b'8');
}

#[test]
fn the_boot_disk_is_the_lowest_boot_order_else_the_first_that_is_no_seed() {
    let two = SMALL.replace(
        "- {name: root, hostDisk: {path: /root.img, type: Disk}}",
        "- {name: seed, cloudInitNoCloud: {userDataBase64: IyEvYmluL3NoCg==}}\n  \
         - {name: root, hostDisk: {path: /root.img, type: Disk}}",
    );
    let machine = parse("x", two.as_bytes()).unwrap().machine;
    assert_eq!(
        machine.root_disk().map(|i| machine.disks[i].name.as_str()),
        Some("root")
    );
    let first = two.replace(
        "- {name: root, disk: {bus: virtio}}",
        "- {name: seed, disk: {}}\n      - {name: root, disk: {}}",
    );
    assert_eq!(
        parse("x", first.as_bytes()).unwrap().machine.root_disk(),
        Some(1)
    );
}

#[test]
fn alias_bombs_large_files_and_text_that_is_no_yaml_are_refused_quickly() {
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 10].join(",");
        bomb += &format!("a{i}: &a{i} [{refs}]\n");
    }
    let deep = "[".repeat(100_000);
    let large = " ".repeat((1 << 20) + 1);
    for text in [
        bomb.as_str(),
        &deep,
        &large,
        "a: [",
        "a: b: c",
        "\t- x",
        "",
        "- 1",
        "null",
        "a: 1\na: 2",
    ] {
        let error = parse("vm.yaml", text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("vm.yaml:"), "{error}");
        println!("{error}");
    }
    assert!(parse("x", b"\xff\xfe").is_err());
}

#[test]
fn an_interface_without_a_binding_is_taken_with_a_warning() {
    let parsed = replaced("masquerade: {}, ports: [{port: 80}]", "model: virtio").unwrap();
    assert_eq!(parsed.warnings.len(), 1);
    assert_eq!(
        parsed.machine.interface.unwrap().binding,
        Binding::Masquerade
    );
    let slirp = replaced("masquerade", "slirp")
        .unwrap()
        .machine
        .interface
        .unwrap();
    assert_eq!(slirp.binding, Binding::Slirp);
    for passt in ["passt: {}", "passtBinding: {}", "binding: {name: passt}"] {
        let parsed = replaced("masquerade: {}", passt).unwrap();
        assert_eq!(parsed.warnings, [""; 0], "{passt}");
        assert_eq!(parsed.machine.interface.unwrap().binding, Binding::Passt);
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(at in 0usize..600, with in ".{0,12}") {
        let mut text = DETAILS.as_bytes().to_vec();
        let at = at.min(text.len());
        text.splice(at..(at + 3).min(text.len()), with.bytes());
        let _ = parse("x", &text);
    }
}

/// As one writes it for kubectl: what belongs to the VM in the same file.
const FILE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: details}
spec: {ports: [{port: 9080}], selector: {app: details}}
---
apiVersion: v1
kind: Secret
metadata: {name: set-up}
stringData: {userdata: '#!/bin/sh'}
data: {networkData: dmVyc2lvbjog
  Mgo=}
---
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: details, namespace: books}
spec:
  running: false
  template:
    metadata: {labels: {app: details}}
    spec:
      domain:
        memory: {guest: 128Mi}
        devices: {}
      volumes:
      - {name: root, hostDisk: {path: /root.img, type: Disk}}
      - {name: seed, cloudInitNoCloud: {secretRef: {name: set-up}, networkDataSecretRef: {name: set-up}}}
";

#[test]
fn a_virtual_machine_is_found_among_documents_and_its_secret_beside_it() {
    let parsed = parse("x", FILE.as_bytes()).unwrap();
    assert_eq!(
        parsed.warnings,
        [
            "left alone: Service details",
            "`running` is false; it is started all the same"
        ]
    );
    let machine = parsed.machine;
    assert_eq!(
        (&machine.name[..], &machine.namespace[..]),
        ("details", "books")
    );
    assert_eq!(machine.for_pod.labels["app"], "details");
    let Source::Seed {
        user_data,
        network_data,
        ..
    } = &machine.disks[1].source
    else {
        panic!("{:?}", machine.disks[1])
    };
    assert_eq!(user_data, b"#!/bin/sh");
    assert_eq!(network_data.as_deref(), Some(&b"version: 2\n"[..]));
}

#[test]
fn what_is_wrong_among_documents_is_one_line_with_its_place() {
    for (from, to, wanted) in [
        (
            "name: set-up}\nstringData",
            "name: other}\nstringData",
            "Secret `set-up` is not in this file",
        ),
        (
            "{userdata: ",
            "{user: ",
            "Secret `set-up` has no `userdata` or `userData`",
        ),
        (
            "kind: VirtualMachine\n",
            "kind: Deployment\n",
            "no document is a VirtualMachineInstance",
        ),
        (
            "kind: Service",
            "kind: VirtualMachine",
            "a second VirtualMachine; a file has one",
        ),
        (
            "running: false",
            "runStrategy: Sometimes",
            "spec.runStrategy: must be Always",
        ),
        ("dmVyc2lvbjog", "*", "data.networkData: "),
    ] {
        let text = FILE.replacen(from, to, 1);
        assert_ne!(text, FILE, "{from}");
        let error = parse("x", text.as_bytes()).unwrap_err().to_string();
        let first = error.lines().next().unwrap();
        let place = first.strip_prefix("x:").unwrap().split(':').next().unwrap();
        assert!(place.parse::<u32>().is_ok_and(|line| line > 0), "{error}");
        assert!(
            error.contains(wanted) || wanted.starts_with("data."),
            "{wanted}: {error}"
        );
    }
}

/// Each key of good manifests misspelt, and each value made what it cannot be.
#[test]
fn every_mutation_of_a_good_manifest_is_told_with_its_line_and_starts_nothing() {
    let mut told = 0;
    for good in [KUBECTL, DETAILS, FILE] {
        let lines: Vec<_> = good.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let name = key.trim_start_matches([' ', '-']);
            if name.is_empty()
                || !name.bytes().all(|b| b.is_ascii_alphabetic())
                || line.contains('#')
            {
                continue;
            }
            let misspelt = format!("{key}x:{value}");
            let mut mutants = vec![misspelt];
            if !value.trim().is_empty() && !value.contains(['{', '|']) {
                mutants.push(format!("{key}: [[]]"));
            }
            for mutant in mutants {
                let mut text = lines.clone();
                text[at] = &mutant;
                let Err(error) = parse("x", text.join("\n").as_bytes()) else {
                    // Labels and a Service's fields are anybody's to choose.
                    continue;
                };
                let error = error.to_string();
                told += 1;
                for line in error.lines() {
                    let mut parts = line.splitn(4, ':');
                    assert_eq!(parts.next(), Some("x"), "{mutant}: {error}");
                    let numbers = [parts.next(), parts.next()].map(|n| n.unwrap().parse::<u32>());
                    assert!(numbers.iter().all(Result::is_ok), "{mutant}: {error}");
                }
            }
        }
    }
    assert!(told >= 100, "{told}");
}

#[test]
fn a_balloon_is_there_unless_told_otherwise_and_a_watchdog_where_asked_for() {
    let machine = |devices: &str| {
        let to = format!("    devices:\n{devices}");
        replaced("    devices:\n", &to).map(|parsed| parsed.machine)
    };
    let plain = machine("").unwrap();
    assert_eq!((plain.balloon, plain.watchdog), (true, None));
    let without = machine("      autoattachMemBalloon: false\n").unwrap();
    assert!(!without.balloon);
    // What it would give back is kept for it all the same.
    let huge = "memory: {guest: 128Mi, hugepages: {pageSize: 2Mi}}";
    let huge = replaced("memory: {guest: 128Mi}", huge).unwrap().machine;
    let of_2_mib = Some(super::HugePages::Of2Mi);
    assert_eq!((huge.huge_pages, huge.balloon), (of_2_mib, false));
    for (device, action) in [
        ("{}", WatchdogAction::Reset),
        ("{action: reset}", WatchdogAction::Reset),
        ("{action: poweroff}", WatchdogAction::PowerOff),
        ("{action: shutdown}", WatchdogAction::Shutdown),
    ] {
        let text = format!("      watchdog: {{name: dog, i6300esb: {device}}}\n");
        assert_eq!(machine(&text).unwrap().watchdog, Some(action), "{device}");
    }
    for (text, said) in [
        (
            "{name: dog, i6300esb: {action: bark}}",
            "action: must be reset",
        ),
        ("{name: dog}", "`i6300esb` is required"),
        (
            "{name: dog, i6300esb: {}, diag288: {}}",
            "diag288: not supported; use `i6300esb`",
        ),
        ("{i6300esb: {}}", "`name` is required"),
    ] {
        let error = machine(&format!("      watchdog: {text}\n")).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}
