//! The fields KubeVirt knows (`kubevirt.io/api/core/v1`, v1.9, and `metav1.ObjectMeta`), an object
//! a list. What is not descended into is not listed. `volumeName` and `registryDisk` are of v1alpha2.

/// A list of field names.
pub(super) type Fields = &'static [&'static str];

#[rustfmt::skip]
mod lists {
    use super::Fields;

    pub const VMI: Fields = &["apiVersion", "kind", "metadata", "spec", "status"];
    pub const VM_SPEC: Fields = &[
        "dataVolumeTemplates", "instancetype", "preference", "runStrategy", "running", "template",
        "updateVolumesStrategy",
    ];
    pub const TEMPLATE: Fields = &["metadata", "spec"];
    pub const SECRET: Fields = &[
        "apiVersion", "data", "immutable", "kind", "metadata", "stringData", "type",
    ];
    pub const SECRET_REF: Fields = &["name"];
    pub const METADATA: Fields = &[
        "annotations", "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp",
        "finalizers", "generateName", "generation", "labels", "managedFields", "name", "namespace",
        "ownerReferences", "resourceVersion", "selfLink", "uid",
    ];
    pub const SPEC: Fields = &[
        "accessCredentials", "affinity", "architecture", "dnsConfig", "dnsPolicy", "domain",
        "evictionStrategy", "hostname", "livenessProbe", "networks", "nodeSelector",
        "priorityClassName", "readinessProbe", "resourceClaims", "schedulerName",
        "serviceAccountName", "startStrategy", "subdomain", "terminationGracePeriodSeconds",
        "tolerations", "topologySpreadConstraints", "utilityVolumes", "volumes",
    ];
    pub const DOMAIN: Fields = &[
        "chassis", "clock", "cpu", "devices", "features", "firmware", "ioThreads",
        "ioThreadsPolicy", "launchSecurity", "machine", "memory", "rebootPolicy", "resources",
    ];
    pub const CHASSIS: Fields = &["asset", "manufacturer", "serial", "sku", "version"];
    pub const CPU: Fields = &[
        "cores", "dedicatedCpuPlacement", "features", "isolateEmulatorThread", "maxSockets",
        "model", "numa", "realtime", "sockets", "threads",
    ];
    pub const MEMORY: Fields = &["guest", "hugepages", "maxGuest"];
    pub const HUGEPAGES: Fields = &["pageSize"];
    pub const RESOURCES: Fields = &["limits", "overcommitGuestOverhead", "requests"];
    pub const RESOURCE_LIST: Fields = &["cpu", "memory"];
    pub const MACHINE: Fields = &["type"];
    pub const FIRMWARE: Fields = &["acpi", "bootloader", "kernelBoot", "serial", "uuid"];
    pub const BOOTLOADER: Fields = &["bios", "efi"];
    pub const EFI: Fields = &["persistent", "secureBoot"];
    pub const KERNEL_BOOT: Fields = &["container", "kernelArgs"];
    pub const KERNEL_BOOT_CONTAINER: Fields = &[
        "image", "imagePullPolicy", "imagePullSecret", "initrdPath", "kernelPath",
    ];
    pub const CLOCK: Fields = &["timer", "timezone", "utc"];
    pub const UTC: Fields = &["offsetSeconds"];
    pub const TIMER: Fields = &["hpet", "hyperv", "kvm", "pit", "rtc"];
    pub const FEATURES: Fields = &[
        "acpi", "apic", "hyperv", "hypervPassthrough", "kvm", "pvspinlock", "smm",
    ];
    pub const DEVICES: Fields = &[
        "autoattachGraphicsDevice", "autoattachInputDevice", "autoattachMemBalloon",
        "autoattachPodInterface", "autoattachSerialConsole", "autoattachVSOCK", "blockMultiQueue",
        "clientPassthrough", "disableHotplug", "disks", "downwardMetrics", "filesystems", "gpus",
        "hostDevices", "inputs", "interfaces", "logSerialConsole", "networkInterfaceMultiqueue",
        "panicDevices", "rng", "sound", "tpm", "useVirtioTransitional", "video", "watchdog",
    ];
    pub const WATCHDOG: Fields = &["diag288", "i6300esb", "name"];
    pub const I6300ESB: Fields = &["action"];
    pub const DISK: Fields = &[
        "blockSize", "bootOrder", "cache", "cdrom", "changedBlockTracking", "dedicatedIOThread",
        "disk", "errorPolicy", "io", "lun", "name", "serial", "shareable", "tag", "volumeName",
    ];
    pub const DISK_TARGET: Fields = &["bus", "pciAddress", "readonly"];
    pub const CDROM: Fields = &["bus", "readonly", "tray"];
    pub const INTERFACE: Fields = &[
        "acpiIndex", "binding", "bootOrder", "bridge", "dhcpOptions", "macAddress", "macvtap",
        "masquerade", "model", "name", "passt", "passtBinding", "pciAddress", "ports", "slirp",
        "sriov", "state", "tag",
    ];
    pub const PORT: Fields = &["name", "port", "protocol"];
    pub const NETWORK: Fields = &["multus", "name", "pod", "resourceClaim"];
    pub const POD_NETWORK: Fields = &["vmIPv6NetworkCIDR", "vmNetworkCIDR"];
    pub const VOLUME: Fields = &[
        "cloudInitConfigDrive", "cloudInitNoCloud", "configMap", "containerDisk", "dataVolume",
        "downwardAPI", "downwardMetrics", "emptyDisk", "ephemeral", "hostDisk", "memoryDump",
        "name", "persistentVolumeClaim", "registryDisk", "secret", "serviceAccount", "sysprep",
    ];
    pub const HOST_DISK: Fields = &["capacity", "path", "shared", "type"];
    pub const CONTAINER_DISK: Fields = &["image", "imagePullPolicy", "imagePullSecret", "path"];
    pub const EMPTY_DISK: Fields = &["capacity"];
    pub const CLAIM: Fields = &["claimName", "hotpluggable", "readOnly"];
    pub const EPHEMERAL: Fields = &["persistentVolumeClaim"];
    pub const CONFIG_MAP_VOLUME: Fields = &["name", "optional", "volumeLabel"];
    pub const SECRET_VOLUME: Fields = &["optional", "secretName", "volumeLabel"];
    pub const CONFIG_MAP: Fields = &[
        "apiVersion", "binaryData", "data", "immutable", "kind", "metadata",
    ];
    pub const NO_CLOUD: Fields = &[
        "networkData", "networkDataBase64", "networkDataSecretRef", "secretRef", "userData",
        "userDataBase64",
    ];
    pub const SERVICE_ACCOUNT_VOLUME: Fields = &["serviceAccountName"];
    pub const DOWNWARD_API: Fields = &["fields", "volumeLabel"];
    pub const DATA_VOLUME: Fields = &["hotpluggable", "name"];
    pub const ACCESS_CREDENTIAL: Fields = &["sshPublicKey", "userPassword"];
    pub const SSH_PUBLIC_KEY: Fields = &["propagationMethod", "source"];
    pub const KEY_SOURCE: Fields = &["secret"];
    pub const KEY_SECRET: Fields = &["secretName"];
    pub const PROPAGATION: Fields = &["configDrive", "noCloud", "qemuGuestAgent"];
    pub const BINDING: Fields = &["name"];
    pub const PROBE: Fields = &[
        "exec", "failureThreshold", "guestAgentPing", "httpGet", "initialDelaySeconds",
        "periodSeconds", "successThreshold", "tcpSocket", "timeoutSeconds",
    ];
    pub const HTTP_GET: Fields = &["host", "httpHeaders", "path", "port", "scheme"];
    pub const TCP_SOCKET: Fields = &["host", "port"];
    pub const EXEC: Fields = &["command"];
    /// An object without fields.
    pub const EMPTY: Fields = &[];
}

pub(super) use lists::*;
