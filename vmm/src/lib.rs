//! Peapod's VMM: a KubeVirt VirtualMachineInstance booted by one small process.

pub mod boot;
pub mod devices;
pub mod machine;
pub mod power;
