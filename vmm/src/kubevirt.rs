//! Where a pod of KubeVirt's has what its compute container looks for. Whoever makes a pod and
//! whoever runs in one have to agree.

/// What virt-handler shares with a pod.
pub const SHARE: &str = "/var/run/kubevirt";
/// Container images under their volumes' names, or their disks as `disk_<index>.img`.
pub const CONTAINER_DISKS: &str = "/var/run/kubevirt/container-disks";
/// In that, behind a volume's name, the socket of the image's own container.
pub const HANDED: &str = ".sock";
/// In that, the image of `firmware.kernelBoot`.
pub const KERNEL_BOOT: &str = "kernel-boot";
/// What a guest writes to ephemeral disks, and sockets.
pub const EPHEMERAL_DISKS: &str = "/var/run/kubevirt-ephemeral-disks";
/// In that, the VM's state directory.
pub const STATE: &str = "vm";
/// Sockets for virt-handler, in a directory for each VMI.
pub const PRIVATE: &str = "/var/run/kubevirt-private";
/// Claims that are file systems, under their volumes' names.
pub const CLAIMS: &str = "/var/run/kubevirt-private/vmi-disks";
/// The keys of ConfigMaps as files, under their volumes' names.
pub const CONFIG_MAPS: &str = "/var/run/kubevirt-private/config-map";
/// The same of the pod's own fields.
pub const DOWNWARD_APIS: &str = "/var/run/kubevirt-private/downwardapi";
/// The token of the pod's service account, where Kubernetes puts it.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The same of Secrets.
pub const SECRETS: &str = "/var/run/kubevirt-private/secret";
/// In that, what is added to the name of one that has access credentials.
pub const CREDENTIALS: &str = "-access-cred";
