//! KubeVirt manifests: a `VirtualMachineInstance` (kubevirt.io/v1, YAML or JSON) read into a
//! [`Machine`]. Pure: bytes in, plain data or a list of problems with their places out.
//!
//! Three rules decide about every field. One that KubeVirt's schema does not know is refused with
//! the nearest known name; one that it knows and Peapod cannot do yet is refused by name; one that
//! asks for what is so anyway, or that only a control plane reads, is accepted. The field lists are
//! those of `kubevirt.io/api/core/v1` (`schema.go`, `types.go`) and are kept in [`schema`].

mod credentials;
mod devices;
mod documents;
mod error;
mod explain;
mod fields;
mod instead;
mod kubernetes;
mod machine;
mod object;
mod probes;
mod quantity;
mod read;
mod schema;
#[cfg(test)]
mod tests;
mod volumes;
mod yaml;

pub use devices::MAX_DISKS;
pub use error::{Invalid, Problem};
pub use explain::{explain, schema};
pub use kubernetes::ForPod;
pub use machine::{
    Binding, Chassis, Cidrs, Disk, HostDiskType, HugePages, Interface, KernelBoot, Keyed, Machine,
    Port, Protocol, RebootPolicy, SeedForm, Source, SshKeys, WatchdogAction,
};
pub use probes::{Handler, Probe};
pub use quantity::parse as parse_quantity;
pub use read::{Parsed, parse};
