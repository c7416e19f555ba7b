//! Where the tests happen: a world with servers in it, pods before it, and behind each pod a
//! guest, which is a network namespace with peapod-net's tap in it.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::Duration;

use peapod_tests::sides::{Family, Way};
use peapod_tests::space::{Process, Space};
use peapod_tests::{Resent, peapod_net};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::bound::Bound;
use crate::machine::{self, Kind, Machine};
use crate::sockets::{PATIENCE, accept, call, dial, listen, port, until, wait_for};

/// The world's own addresses, which no pod has on its link.
pub const WORLD: [&str; 2] = ["203.0.113.1", "2001:db8::1"];
/// Addresses that the world has no way to.
pub const NOWHERE: [&str; 2] = ["198.18.0.1", "2001:db8:dead::1"];

/// A port of the world's.
pub fn world(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(family.of(WORLD), port)
}

/// A pod with its guest, before a world that it may share with others. Ends with this.
pub struct Site {
    /// peapod-net, or a VM that has the network in it.
    pub network: Process,
    /// The guest, where it is a VM.
    machine: Option<Machine>,
    arguments: String,
    /// The guest, where it is not.
    pub guest: Space,
    pub pod: Space,
    pub world: Arc<Space>,
    addresses: [String; 2],
    /// What brings the world's link to the pod up.
    link: String,
}

/// How a site is other than usual.
#[derive(Clone, Copy, Default)]
pub struct Setup<'a> {
    /// peapod-net's further arguments.
    pub arguments: &'a str,
    /// The only family that the pod has.
    pub only: Option<Family>,
    /// What the pod's /etc/resolv.conf says.
    pub resolver: &'a str,
    /// The most descriptors that peapod-net may have.
    pub files: Option<u32>,
    /// The control group that it is in.
    pub group: Option<&'a Bound>,
    /// The guest has to ask for its addresses.
    pub asks: bool,
}

impl Site {
    pub fn new(arguments: &str) -> Self {
        Setup {
            arguments,
            ..Setup::default()
        }
        .site()
    }

    /// Another pod with a guest, in the same world.
    pub fn neighbour(&self, arguments: &str) -> Self {
        let setup = Setup {
            arguments,
            ..Setup::default()
        };
        Self::start(Arc::clone(&self.world), setup)
    }

    fn start(world: Arc<Space>, setup: Setup<'_>) -> Self {
        // The world tells its pods apart by number.
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (pod, guest) = (space("pod"), space("guest"));
        let net = number % 250 + 1;
        let addresses = [format!("192.0.2.{net}"), format!("2001:db8:{number:x}::1")];
        let [v4, v6] = &addresses;
        let ([world4, world6], name) = (WORLD, &pod.name);
        sh(
            &world,
            &format!(
                "ip link add to-{name} type veth peer name eth0 netns {name}
                 ip address add 192.0.2.254/32 dev to-{name}"
            ),
        );
        // It answers from the address that it was called at.
        let link = format!(
            "ip link set to-{name} up
             ip address add 2001:db8:{number:x}::fe/64 dev to-{name} noprefixroute nodad
             ip route add {v4} dev to-{name} src {world4}
             ip route add 2001:db8:{number:x}::/64 dev to-{name} src {world6}"
        );
        sh(&world, &link);
        let has = |family| setup.only.is_none_or(|only| only == family);
        sh(&pod, "ip link set eth0 up");
        if has(Family::V4) {
            sh(
                &pod,
                &format!(
                    "ip address add {v4}/32 dev eth0
                     ip route add 192.0.2.254 dev eth0; ip route add default via 192.0.2.254"
                ),
            );
        }
        if has(Family::V6) {
            sh(
                &pod,
                &format!(
                    "ip address add {v6}/64 dev eth0 nodad
                     ip route add default via 2001:db8:{number:x}::fe"
                ),
            );
        }
        for family in Family::BOTH.into_iter().filter(|family| has(*family)) {
            wait_for(&pod, family.of(WORLD));
        }
        let (network, machine) = match Kind::asked() {
            Kind::Namespace => (setup.network(&pod, &guest), None),
            kind => {
                let wrapped = |program: &Command| setup.inside(&pod, program);
                let (network, machine) = Machine::start(kind, &pod, setup.arguments, wrapped);
                (network, Some(machine))
            }
        };
        Self {
            network,
            machine,
            arguments: setup.arguments.to_owned(),
            guest,
            pod,
            world,
            addresses,
            link,
        }
    }

    /// A port of the pod's.
    pub fn pod(&self, family: Family, port: u16) -> SocketAddr {
        let [v4, v6] = &self.addresses;
        SocketAddr::new(family.of([v4, v6]), port)
    }

    /// The pod's address.
    pub fn address(&self, family: Family) -> IpAddr {
        self.pod(family, 0).ip()
    }

    /// Takes the world's link to the pod down for a while.
    pub fn interrupt(&self, time: Duration) {
        self.cut();
        sleep(time);
        sh(&self.world, &self.link);
    }

    /// Takes the world's link to the pod down.
    pub fn cut(&self) {
        let down = format!("ip link set to-{} down", self.pod.name);
        sh(&self.world, &down);
    }

    /// Ends the network and starts it anew.
    pub fn restart(&mut self) {
        let id = Pid::from_raw(self.network.id() as i32).unwrap();
        kill_process(id, Signal::TERM).unwrap();
        assert!(self.network.wait().unwrap().success());
        let arguments = &self.arguments;
        let setup = Setup {
            arguments,
            ..Setup::default()
        };
        self.network = setup.network(&self.pod, &self.guest);
    }

    /// One connection, both of its ends. By a forwarded port it is from 8080 to 80.
    pub fn connect(&self, way: Way, family: Family) -> Ends {
        match way {
            Way::Out => {
                let listener = listen(&self.world, 0);
                let guest = dial(&self.guest, world(family, port(&listener)));
                Ends {
                    guest,
                    world: accept(&listener),
                }
            }
            Way::In => {
                let listener = listen(&self.guest, 80);
                let world = call(&self.world, self.pod(family, 8080));
                Ends {
                    guest: accept(&listener),
                    world,
                }
            }
        }
    }

    /// Another network, behind a narrow link of the world's.
    pub fn far(&self) -> (Space, [&'static str; 2]) {
        let far = space("far");
        sh(
            &self.world,
            &format!(
                "ip link add far mtu 1300 type veth peer name eth0 mtu 1300 netns {}
                 ip link set far up; ip address add 198.51.100.254/24 dev far
                 ip address add 2001:db8:fa::fe/64 dev far nodad",
                far.name
            ),
        );
        sh(
            &far,
            "ip link set eth0 up; ip address add 198.51.100.1/24 dev eth0
             ip address add 2001:db8:fa::1/64 dev eth0 nodad
             ip route add default via 198.51.100.254; ip route add default via 2001:db8:fa::fe",
        );
        let addresses = ["198.51.100.1", "2001:db8:fa::1"];
        for family in Family::BOTH {
            wait_for(&self.pod, family.of(addresses));
        }
        (far, addresses)
    }

    /// What the network has counted by that name.
    pub fn counter(&self, name: &str) -> u64 {
        let mut command = Command::new(peapod_net());
        command.args(["control", "--json", &control(&self.pod), "counters"]);
        let answer: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        answer["counters"][name].as_u64().expect(name)
    }

    /// Whether the guest is a VM.
    pub fn is_vm(&self) -> bool {
        self.machine.is_some()
    }

    /// What a script in the guest prints, which has to succeed.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        match self.machine {
            Some(_) => machine::output(&self.pod, script),
            None => output(&self.guest, script),
        }
    }

    /// Expects that the guest's kernel has sent no segment again, or in a VM only by its clock.
    #[track_caller]
    pub fn nothing_sent_again(&self) {
        let said = self.run(&format!("{}ip -s link show eth0", Resent::TELL));
        let resent = Resent::read(&said).expect(&said);
        let count = if self.is_vm() {
            resent.but_for_probes()
        } else {
            resent.segments
        };
        assert_eq!(count, 0, "{said}");
    }

    /// Descriptors that the network has open.
    pub fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.network.id());
        std::fs::read_dir(path).unwrap().count()
    }

    /// Those that it has open for longer than a moment.
    pub fn kept_descriptors(&self) -> usize {
        let (mut last, mut times) = (self.descriptors(), 0);
        until("descriptors come and go", || {
            let now = self.descriptors();
            times = if now == last { times + 1 } else { 0 };
            last = now;
            (times > 20).then_some(now)
        })
    }

    /// Bytes of the network that are in memory.
    pub fn resident(&self) -> usize {
        let path = format!("/proc/{}/statm", self.network.id());
        let text = std::fs::read_to_string(path).unwrap();
        let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
        pages * rustix::param::page_size()
    }
}

/// Where the network of `pod` is asked.
fn control(pod: &Space) -> String {
    format!("/run/{}.control", pod.name)
}

impl Setup<'_> {
    /// A world with one pod like that.
    pub fn site(self) -> Site {
        let world = space("world");
        let [v4, v6] = WORLD;
        sh(
            &world,
            &format!(
                "echo 1 >/proc/sys/net/ipv4/ip_forward
                 echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
                 echo 0 >/proc/sys/net/ipv4/icmp_ratelimit
                 echo 0 >/proc/sys/net/ipv6/icmp/ratelimit
                 ip address add {v4}/32 dev lo; ip address add {v6}/128 dev lo nodad"
            ),
        );
        Site::start(Arc::new(world), self)
    }

    /// The program, to be run as a process of `pod`.
    fn inside(&self, pod: &Space, program: &Command) -> Command {
        // Of its mount namespace it sees /etc/resolv.conf only. Of limits it raises the soft one.
        let mut script = format!(
            "printf '%s\\n' '{}' >/run/{name}.resolv
             mount --bind /run/{name}.resolv /etc/resolv.conf\n",
            self.resolver,
            name = pod.name
        );
        if let Some(files) = self.files {
            script += &format!("ulimit -n {files}\n");
        }
        if let Some(group) = self.group {
            script += &format!("echo 0 >{}\n", group.processes());
        }
        script += "exec \"$@\"";
        let mut command = pod.command("unshare").unwrap();
        command.args(["--mount", "sh", "-ec", &script, "sh"]);
        command.arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        command
    }

    /// Starts peapod-net in `pod` for `guest`.
    fn network(self, pod: &Space, guest: &Space) -> Process {
        let mut command = Command::new(peapod_net());
        command.args(["--netns", &guest.path(), "--control", &control(pod)]);
        if !self.asks {
            command.arg("--config-net");
        }
        command.args(self.arguments.split_whitespace());
        let process = Process::start(&mut self.inside(pod, &command)).unwrap();
        assert_eq!(process.line(PATIENCE).unwrap(), "ready");
        // What the guest sends again was lost: the machine may be too busy to answer at once.
        sh(
            guest,
            "for family in -4 -6; do
                 route=$(ip $family route show default proto dhcp)
                 [ -z \"$route\" ] || ip $family route change $route rto_min 2s
             done",
        );
        settle(guest);
        process
    }
}

/// Waits until the guest has its IPv6 addresses: for a moment after they were given to it, it
/// neither takes in what is for them nor sends from them.
pub fn settle(guest: &Space) {
    sh(
        guest,
        "for address in $(ip -o -6 address show dev eth0 scope global | sed 's/.*inet6 //; s,/.*,,')
         do until ip -6 route show table local | grep -qF $address; do sleep 0.01; done; done",
    );
}

/// Both ends of a connection.
pub struct Ends {
    pub guest: TcpStream,
    pub world: TcpStream,
}

pub fn space(role: &str) -> Space {
    Space::new(role).unwrap()
}

/// Runs a script in `space`, which has to succeed.
#[track_caller]
pub fn sh(space: &Space, script: &str) {
    space.shell(script).unwrap();
}

/// What a script in `space` prints, which has to succeed.
#[track_caller]
pub fn output(space: &Space, script: &str) -> String {
    let mut command = space.command("timeout").unwrap();
    command.arg(format!("{}", 2 * PATIENCE.as_secs()));
    let output = command.args(["bash", "-ec", script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    let status = output.status;
    assert!(status.success(), "{script}: {status}\n{said}{complaint}");
    said
}
