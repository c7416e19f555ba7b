//! A cluster in network namespaces: a node with kube-proxy's rules and a DNS server, pods as a CNI
//! connects them, the redirections of meshes, the real Envoy, and guests behind pods.

mod config;
mod envoy;
mod guest;
mod http;
mod node;
mod pod;
mod redirect;
mod services;

pub use config::{Identity, Sidecar, Tracing};
pub use envoy::{ADMIN, Envoy};
pub use guest::Guest;
pub use http::{SEEN, Server, agent, seen};
pub use node::{Node, WORLD};
pub use pod::{Pod, User};
pub use redirect::Redirect;
pub use services::Service;
