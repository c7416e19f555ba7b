//! Peapod's VMM: a KubeVirt VirtualMachineInstance booted by one small process.

pub mod agent;
pub mod api;
pub mod boot;
pub mod changes;
pub mod checks;
pub mod cli;
pub mod console;
pub mod containerdisk;
pub mod devices;
pub mod disks;
pub mod doctor;
pub mod domain;
pub mod host;
pub mod kubevirt;
pub mod launch;
pub mod log;
pub mod machine;
pub mod plan;
pub mod pod;
pub mod power;
pub mod registry;
mod resident;
pub mod running;
pub mod sandbox;
pub mod seed;
pub mod vfat;
pub mod vmi;
