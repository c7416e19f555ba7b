//! KubeVirt's gRPC between virt-handler, one a node, and virt-launcher, one a VM: messages, clients
//! and servers, generated from `proto/`. Names and numbers there are KubeVirt's.

#![allow(missing_docs, clippy::all, reason = "generated")]

/// Which versions of [`cmd`] a launcher has.
pub mod cmd_info {
    tonic::include_proto!("kubevirt.cmd.info");
}

/// What virt-handler asks of a launcher.
pub mod cmd {
    tonic::include_proto!("kubevirt.cmd.v1");
}

/// Which versions of [`notify`] virt-handler has.
pub mod notify_info {
    tonic::include_proto!("kubevirt.notify.info");
}

/// What a launcher tells virt-handler.
pub mod notify {
    tonic::include_proto!("kubevirt.notify.v1");
}

/// The one version of both that there is.
pub const VERSION: u32 = 1;
