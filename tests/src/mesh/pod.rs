//! A pod: a network namespace with a veth pair to its node, and the names that kubelet gives it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;

use super::Node;
use super::node::{DNS, DOMAIN, NODE, ROUTER};
use crate::space::Space;

/// Who a process of a pod runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// The container's own.
    Root,
    /// Istio's proxy.
    Istio,
    /// Istio's proxy where it intercepts by TPROXY: root, for it needs CAP_NET_ADMIN.
    IstioTransparent,
    /// Linkerd's proxy.
    Linkerd,
}

impl User {
    fn ids(self) -> Option<(u32, u32)> {
        match self {
            Self::Root => None,
            Self::Istio => Some((1337, 1337)),
            Self::IstioTransparent => Some((0, 1337)),
            Self::Linkerd => Some((2102, 2102)),
        }
    }
}

/// A pod; ends with this.
#[derive(Debug)]
pub struct Pod {
    /// As its workload is called.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    pub(super) space: Arc<Space>,
    /// The node's end of its link.
    link: String,
    node: Arc<Space>,
}

impl Pod {
    pub(super) fn new(node: &Node, name: &str, address: Ipv4Addr) -> Self {
        let space = Arc::new(Space::new("pod").unwrap());
        let link = format!("cali{}", space.name);
        let file = resolver(&space);
        let names = format!(
            "nameserver {DNS}\nsearch {DOMAIN} svc.cluster.local cluster.local\noptions ndots:5\n"
        );
        fs::write(file, names).unwrap();
        node.shell(&format!(
            "ip link add {link} type veth peer name eth0 netns {}
             ip link set {link} up",
            space.name
        ));
        let pod = Self {
            name: name.to_owned(),
            address,
            space,
            link,
            node: Arc::clone(&node.space),
        };
        pod.connect();
        pod
    }

    /// Gives it its address and routes, as a CNI does: of its link it knows the router only.
    pub fn connect(&self) {
        let (address, link) = (self.address, &self.link);
        self.shell(&format!(
            "ip link set eth0 up; ip address add {address}/32 dev eth0
             ip route add {ROUTER} dev eth0; ip route add default via {ROUTER}"
        ));
        self.node
            .shell(&format!("ip route replace {address} dev {link} src {NODE}"))
            .unwrap();
    }

    /// Takes its address, and with it its routes.
    pub fn disconnect(&self) {
        self.shell("ip address flush dev eth0");
    }

    /// Its network.
    pub fn space(&self) -> Arc<Space> {
        Arc::clone(&self.space)
    }

    /// A port of it.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address.into(), port)
    }

    /// A program of the pod's, that looks up names as kubelet has it.
    pub fn command(&self, user: User, program: &str) -> Command {
        let mut command = with_names(&self.space);
        if let Some((uid, gid)) = user.ids() {
            command.args(["setpriv", "--reuid", &uid.to_string(), "--regid"]);
            command.args([&gid.to_string(), "--clear-groups"]);
        }
        command.arg(program);
        command
    }

    /// What a script prints; it has to succeed.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let (said, success) = self.attempt(script);
        assert!(success, "{}: {script}: {said}", self.name);
        said
    }

    /// What a script prints, and whether it succeeded.
    pub fn attempt(&self, script: &str) -> (String, bool) {
        attempt(self.command(User::Root, "timeout"), script)
    }

    /// What a request is answered, by curl with these arguments.
    #[track_caller]
    pub fn curl(&self, arguments: &str) -> String {
        self.run(&format!("curl -sS --max-time 20 {arguments}"))
    }

    /// Runs a script that has to succeed.
    #[track_caller]
    pub fn shell(&self, script: &str) {
        self.space.shell(script).unwrap();
    }

    /// Loads rules for this pod's packets.
    pub fn load(&self, rules: &str) {
        let file = format!("/run/{}.rules", self.space.name);
        fs::write(&file, rules).unwrap();
        self.shell(&format!("iptables-restore {file}"));
    }

    /// How many processes are in the pod's network.
    pub fn processes(&self) -> usize {
        let mut command = Command::new("ip");
        let output = command.args(["netns", "pids", &self.space.name]).output();
        String::from_utf8_lossy(&output.unwrap().stdout)
            .lines()
            .count()
    }

    /// Does `work` in the pod's network.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.space.inside(work).unwrap()
    }
}

/// What `script` prints, by `timeout`, and whether it succeeded; it is given up in the end.
pub(super) fn attempt(mut timeout: Command, script: &str) -> (String, bool) {
    let script = format!("exec 2>&1\n{script}");
    let output = timeout.args(["60", "bash", "-c", &script]).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (said, output.status.success())
}

/// Where the names of a namespace are.
pub(super) fn resolver(space: &Space) -> String {
    format!("/run/{}.resolv", space.name)
}

/// A command in a namespace that sees that one's /etc/resolv.conf.
pub(super) fn with_names(space: &Space) -> Command {
    let mut command = space.command("unshare").unwrap();
    let script = format!(
        "mount --bind {} /etc/resolv.conf; exec \"$@\"",
        resolver(space)
    );
    command.args(["--mount", "sh", "-ec", &script, "sh"]);
    command
}
