//! What to do about a field of KubeVirt's that Peapod has no answer to.

/// Paths below a VMI, and what to do. The first that fits is said, so a part comes before its whole.
const INSTEAD: &[(&str, &str)] = &[
    (
        "spec.accessCredentials.sshPublicKey.propagationMethod.qemuGuestAgent",
        "use `noCloud: {}` or `configDrive: {}`: the seed carries the keys",
    ),
    (
        "spec.instancetype",
        "write what it says into `template.spec.domain`",
    ),
    (
        "spec.preference",
        "write what it says into `template.spec.domain`",
    ),
    (
        "spec.accessCredentials.userPassword",
        "set it by `chpasswd` of the user-data",
    ),
    ("spec.domain.cpu.dedicatedCpuPlacement", PODS_CPUS),
    ("spec.domain.cpu.isolateEmulatorThread", PODS_CPUS),
    ("spec.domain.cpu.numa", PODS_CPUS),
    ("spec.domain.cpu.realtime", PODS_CPUS),
    ("spec.domain.cpu.features", NODES_CPU),
    ("spec.domain.cpu.model", NODES_CPU),
    ("spec.domain.machine", "leave it out: there is one machine"),
    (
        "spec.domain.firmware.bootloader.efi.persistent",
        "leave it out: UEFI's variables have no store",
    ),
    ("spec.domain.firmware.acpi", "leave it out"),
    (
        "spec.domain.features.hyperv",
        "leave it out: it is for Windows, which does not run here",
    ),
    ("spec.domain.features", "leave it out"),
    (
        "spec.domain.clock",
        "leave it out: the guest has kvm-clock, and UTC",
    ),
    (
        "spec.domain.launchSecurity",
        "leave it out: the guest's memory is not encrypted",
    ),
    ("spec.domain.devices.gpus", NO_PASSING),
    ("spec.domain.devices.hostDevices", NO_PASSING),
    ("spec.domain.devices.clientPassthrough", NO_PASSING),
    ("spec.domain.devices.interfaces.bridge", MASQUERADE),
    ("spec.domain.devices.interfaces.sriov", MASQUERADE),
    ("spec.domain.devices.interfaces.macvtap", MASQUERADE),
    ("spec.domain.devices.interfaces.binding", MASQUERADE),
    (
        "spec.domain.devices.interfaces.model",
        "use virtio, or leave it out",
    ),
    (
        "spec.domain.devices.interfaces.dhcpOptions",
        "set it in the guest, by networkData",
    ),
    (
        "spec.domain.devices.interfaces.state",
        "leave the interface out",
    ),
    ("spec.domain.devices.interfaces.tag", UNTAGGED),
    (
        "spec.domain.devices.interfaces",
        "leave it out: the card is always in one place",
    ),
    ("spec.domain.devices.disks.lun", "use `disk: {}`"),
    (
        "spec.domain.devices.disks.shareable",
        "a disk has one writer; use `ephemeral`, or a file share",
    ),
    ("spec.domain.devices.disks.tag", UNTAGGED),
    ("spec.domain.devices.disks", "leave it out"),
    (
        "spec.domain.devices.filesystems",
        "use a disk: configMap, secret or a claim; or a share over the network",
    ),
    (
        "spec.domain.devices.downwardMetrics",
        "read them by `peapod metrics`",
    ),
    (
        "spec.domain.devices.panicDevices",
        "leave it out: a kernel's panic is noticed always, by pvpanic",
    ),
    ("spec.domain.devices.watchdog.diag288", "use `i6300esb`"),
    ("spec.domain.devices.tpm", "leave it out: there is none"),
    ("spec.domain.devices.autoattachGraphicsDevice", NO_SCREEN),
    ("spec.domain.devices.video", NO_SCREEN),
    ("spec.domain.devices.inputs", NO_SCREEN),
    ("spec.domain.devices.sound", NO_SCREEN),
    ("spec.domain.devices.autoattachInputDevice", NO_SCREEN),
    ("spec.domain.devices", "leave it out"),
    (
        "spec.networks.multus",
        "use `pod: {}`: there is the pod's network",
    ),
    (
        "spec.networks.resourceClaim",
        "use `pod: {}`: there is the pod's network",
    ),
    (
        "spec.volumes.sysprep",
        "it is for Windows, which does not run here",
    ),
    (
        "spec.volumes.downwardMetrics",
        "read them by `peapod metrics`",
    ),
    ("spec.volumes.memoryDump", "leave it out"),
    (
        "spec.volumes.persistentVolumeClaim.readOnly",
        "set `readonly` of the disk",
    ),
    (
        "spec.volumes",
        "a disk is there from the start, or not at all",
    ),
    ("spec.architecture", "use amd64"),
    ("spec.resourceClaims", NO_PASSING),
    ("spec.utilityVolumes", "leave it out"),
    ("spec.startStrategy", "leave it out, and `peapod pause` it"),
];
const PODS_CPUS: &str = "leave it out: the CPUs are the pod's, as Kubernetes gives them";
const NODES_CPU: &str = "leave it out: the CPU is the node's, as host-model has it";
const NO_PASSING: &str = "leave it out: no device of the node's is passed through";
const MASQUERADE: &str = "use `masquerade: {}`";
const UNTAGGED: &str = "leave it out: there is no metadata service";
const NO_SCREEN: &str = "leave it out: the serial console is the guest's only one";

/// What to do about the field at `path`, which has indexes where it goes through lists.
pub(super) fn of(path: &str) -> Option<&'static str> {
    let plain = plain(path);
    let found = INSTEAD.iter().find(|(known, _)| {
        let rest = plain.strip_prefix(known);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    });
    found.map(|(_, instead)| *instead)
}

/// Without indexes, and below the VMI where it is in a VM.
fn plain(path: &str) -> String {
    let path = path.strip_prefix("spec.template.").unwrap_or(path);
    let mut plain = String::new();
    let mut inside = false;
    for c in path.chars() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            c if !inside => plain.push(c),
            _ => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_said_before_its_whole_in_a_vmi_and_in_a_vm() {
        for path in [
            "spec.domain.devices.interfaces[0].bridge",
            "spec.template.spec.domain.devices.interfaces[12].bridge",
        ] {
            assert_eq!(of(path), Some(MASQUERADE));
        }
        assert_eq!(
            of("spec.domain.devices.interfacesX"),
            of("spec.domain.devices.x")
        );
        assert_eq!(of("spec.domainX"), None);
    }

    #[test]
    fn none_is_hidden_by_one_before_it() {
        for (at, (path, instead)) in INSTEAD.iter().enumerate() {
            assert_eq!(of(path), Some(*instead), "{at}: {path}");
        }
    }
}
