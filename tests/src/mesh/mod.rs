//! A cluster in network namespaces: a node with kube-proxy's rules and a DNS server, pods as a CNI
//! connects them, the redirections of meshes, the real Envoy, and guests behind pods.

pub mod application;
mod authority;
pub mod bookinfo;
mod collector;
mod config;
mod envoy;
mod forge;
mod guest;
mod http;
mod injector;
mod machine;
mod namespace;
mod node;
mod pod;
mod redirect;
mod services;

pub use authority::Authority;
pub use collector::Collector;
pub use config::{Gateway, Identity, Sidecar, Tracing, linkerd, spiffe, ztunnel};
pub use envoy::{ADMIN, Envoy};
pub use forge::Forge;
pub use guest::{Guest, is_vm};
pub use http::{Probers, SEEN, Server, agent, seen};
pub use injector::inject;
pub use node::{Node, WORLD};
pub use pod::{Pod, User};
pub use redirect::Redirect;
pub use services::Service;
