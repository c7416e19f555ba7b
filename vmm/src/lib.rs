//! Peapod's VMM: a KubeVirt VirtualMachineInstance booted by one small process.

pub mod devices;
