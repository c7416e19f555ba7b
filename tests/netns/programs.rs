//! Programs that nobody here wrote: their clients run in the guest, their servers in the world. The guest
//! may be a VM too.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use peapod_tests::sides::{Family, GATEWAY};
use peapod_tests::space::{Process, Space};
use serde_json::Value;
use tempfile::TempDir;

use crate::content::{Content, MIB};
use crate::site::{NOWHERE, Setup, Site, output, sh};
use crate::sockets::{call, until};

/// Where the guest calls.
const WORLD: &str = crate::site::WORLD[0];
const WORLD6: &str = crate::site::WORLD[1];

/// Where the world gives a VM its copy of the folder.
const SHARED: u16 = 9098;
const SHARE: &str = "server = TCPServer.new('::', ARGV[0])
    loop { peer = server.accept; system(*%w[tar -C / -c], ARGV[1], out: peer, err: File::NULL); peer.close }";

/// A site, and a folder that all of it sees: a VM fetches it before each of its scripts, and what it
/// changes there the world does not see.
pub struct Stage {
    pub site: Site,
    folder: TempDir,
    /// Where the pod finds the world.
    from: &'static str,
    _share: Option<Process>,
}

impl Stage {
    fn new(arguments: &str) -> Self {
        Self::of(Setup {
            arguments,
            ..Setup::default()
        })
    }

    pub fn of(setup: Setup<'_>) -> Self {
        let (site, folder) = (setup.site(), folder());
        let share = site.is_vm().then(|| {
            let folder = folder.path().display();
            let script = format!("exec ruby -rsocket -e \"{SHARE}\" {SHARED} {folder}");
            serve(&site.world, &script, SHARED)
        });
        Self {
            site,
            folder,
            from: match setup.only {
                Some(Family::V6) => WORLD6,
                _ => WORLD,
            },
            _share: share,
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What a script in the guest prints, which has to succeed.
    #[track_caller]
    pub fn guest(&self, script: &str) -> String {
        if self.site.is_vm() {
            let fetch = format!("tar -C / -x </dev/tcp/{}/{SHARED}", self.from);
            self.site.run(&format!("{fetch}\n{script}"))
        } else {
            self.site.run(script)
        }
    }

    /// What a script in the world prints, which has to succeed.
    #[track_caller]
    fn world(&self, script: &str) -> String {
        output(&self.site.world, script)
    }

    /// A server in the guest, as soon as somebody there can call it. In a VM it ends with that.
    fn serve(&self, script: &str, port: u16) -> Option<Process> {
        if !self.site.is_vm() {
            return Some(serve(&self.site.guest, script, port));
        }
        self.guest(&format!(
            "cat >/run/server <<'end-of-server'\n{script}\nend-of-server
             setsid bash -e /run/server </dev/null >/dev/null 2>&1 &
             until (: </dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.1; done"
        ));
        None
    }
}

/// A folder that is gone with the tests' own /run.
fn folder() -> TempDir {
    tempfile::tempdir_in("/run").unwrap()
}

/// A server in `space`, as soon as somebody there can call it.
fn serve(space: &Space, script: &str, port: u16) -> Process {
    let mut command = space.command("bash").unwrap();
    let server = Process::start(command.args(["-ec", script])).unwrap();
    let to = SocketAddr::new([127, 0, 0, 1].into(), port);
    drop(call(space, to));
    server
}

/// A file of so many bytes, each of which tells where it is.
fn blob(path: &Path, len: usize) {
    let bytes: Vec<u8> = (0..len)
        .step_by(MIB / 4)
        .flat_map(|at| Content::new(len).bytes(at, len - at).to_vec())
        .collect();
    std::fs::write(path, bytes).unwrap();
}

/// nginx with `folder`'s www on 80, and on 443 by TLS and HTTP/2.
fn nginx(space: &Space, folder: &Path) -> Process {
    let here = folder.display();
    let config = format!(
        "daemon off; master_process off; pid {here}/pid; error_log {here}/log;
         events {{ worker_connections 2048; }}
         http {{
             access_log off; root {here}/www; sendfile on; default_type text/plain;
             client_body_temp_path {here}/body; proxy_temp_path {here}/proxy;
             fastcgi_temp_path {here}/fast; uwsgi_temp_path {here}/u; scgi_temp_path {here}/s;
             ssl_certificate {here}/certificate; ssl_certificate_key {here}/key;
             server {{ listen 80; listen [::]:80; listen 443 ssl http2; listen [::]:443 ssl http2; }}
         }}"
    );
    std::fs::create_dir_all(folder.join("www")).unwrap();
    std::fs::write(folder.join("nginx.conf"), config).unwrap();
    sh(
        space,
        &format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
             -subj /CN=world -keyout {here}/key -out {here}/certificate 2>/dev/null"
        ),
    );
    serve(
        space,
        &format!("exec nginx -e {here}/log -c {here}/nginx.conf"),
        80,
    )
}

/// What iperf3 found out somewhere.
fn iperf3(run: impl Fn(&str) -> String, words: &str) -> Value {
    until("the server is always busy", || {
        let text = run(&format!("iperf3 -J {words} || true"));
        let report: Value = serde_json::from_str(&text).unwrap();
        // It may not have ended the last one's measurement.
        let error = report["error"].as_str().unwrap_or("none");
        if error.starts_with("the server is busy") {
            return None;
        }
        assert_eq!(error, "none", "{words}");
        Some(report)
    })
}

pub fn iperf3_measures_each_way() {
    let stage = Stage::new("-p 5201:5201 -p 5201:5201/udp");
    let site = &stage.site;
    let _world = serve(&site.world, "exec iperf3 -s >/dev/null 2>&1", 5201);
    let _guest = stage.serve("exec iperf3 -s >/dev/null 2>&1", 5201);
    let pod = site.address(Family::V4);
    let pod6 = site.address(Family::V6);
    drop(call(&site.world, SocketAddr::new(pod6, 5201)));
    let guest: &dyn Fn(&str) -> String = &|script| stage.guest(script);
    let world: &dyn Fn(&str) -> String = &|script| stage.world(script);
    for (from, words) in [
        (guest, format!("-c {WORLD} -n 64M")),
        (guest, format!("-c {WORLD} -n 64M -R")),
        (guest, format!("-c {WORLD6} -n 64M -P 8")),
        (guest, format!("-c {WORLD} -t 1 --bidir")),
        (world, format!("-c {pod} -n 64M")),
        (world, format!("-c {pod6} -n 64M -R -P 4")),
    ] {
        let report = iperf3(from, &words);
        for sum in ["sum_sent", "sum_received"] {
            let bytes = report["end"][sum]["bytes"].as_f64().unwrap();
            assert!(bytes > MIB as f64, "{words}: {bytes} bytes");
        }
    }
    site.nothing_sent_again();
    for (from, words) in [
        (guest, format!("-c {WORLD} -R")),
        (guest, format!("-c {WORLD}")),
        (world, format!("-c {pod}")),
        (world, format!("-c {pod6} -R")),
    ] {
        let report = iperf3(from, &format!("{words} -u -b 10M -l 1200 -t 1"));
        let sum = &report["end"]["sum"];
        assert!(sum["packets"].as_u64().unwrap() > 500, "{words}: {sum}");
        // None, but where the machine is busy with something else for longer than buffers last.
        let lost = sum["lost_percent"].as_f64().unwrap();
        assert!(lost < 50.0, "{words}: {lost} % lost");
    }
}

pub fn curl_gets_by_http_1_1_and_2_and_in_ranges() {
    let stage = Stage::new("");
    let here = stage.path().display();
    let _nginx = nginx(&stage.site.world, stage.path());
    blob(&stage.path().join("www/blob"), 20 * MIB);
    for host in [WORLD, &format!("[{WORLD6}]")] {
        stage.guest(
            &format!(
                "cd {here}; mkdir got; curl='curl -sS -k --fail --max-time 30'
                 said=$($curl --http1.1 -o got/1 -w '%{{http_version}}' http://{host}/blob)
                 test $said = 1.1; cmp got/1 www/blob
                 said=$($curl --http2 -o got/2 -w '%{{http_version}}' https://{host}/blob)
                 test $said = 2; cmp got/2 www/blob
                 # Many streams of one connection.
                 $curl -Z --parallel-max 20 --no-progress-meter --http2 -o 'got/many-#1' 'https://{host}/blob?[1-5]'
                 for i in 1 2 3 4 5; do cmp got/many-$i www/blob; done
                 # A piece from the midst, and the rest of a file that was cut short.
                 $curl -r 1000000-1999999 -o got/piece http://{host}/blob
                 tail -c +1000001 www/blob | head -c 1000000 | cmp - got/piece
                 head -c 7777777 www/blob >got/rest
                 $curl -C - -o got/rest http://{host}/blob; cmp got/rest www/blob
                 rm -r got"
            ),
        );
    }
    stage.site.nothing_sent_again();
}

pub fn wrk_gets_no_error_from_many_connections() {
    let stage = Stage::new("");
    let _nginx = nginx(&stage.site.world, stage.path());
    blob(&stage.path().join("www/small"), 1000);
    let said = stage.guest(&format!("wrk -t 2 -c 200 -d 2 http://{WORLD}/small"));
    assert!(
        !said.contains("errors") && !said.contains("Non-2xx"),
        "{said}"
    );
    let requests = said.split_once(" requests in").unwrap().0;
    let requests: u32 = requests.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(requests > 200, "{said}");
}

pub fn apt_updates_and_installs() {
    let stage = Stage::new("");
    let here = stage.path().display();
    let _nginx = nginx(&stage.site.world, stage.path());
    blob(&stage.path().join("content"), 5 * MIB);
    stage.world(&format!(
        "cd {here}; mkdir -p hello/DEBIAN hello/usr/share www/debian root/var/lib/dpkg \
                 apt/lists/partial apt/cache/archives/partial
             cp content hello/usr/share/hello
             printf '%s\n' 'Package: hello-peapod' 'Version: 1.0' 'Architecture: all' \
                 'Maintainer: nobody <nobody@example.com>' 'Description: says hello' \
                 >hello/DEBIAN/control
             dpkg-deb -Znone --build hello www/debian/hello.deb >/dev/null
             {{ cat hello/DEBIAN/control; echo Filename: ./hello.deb
                echo Size: $(stat -c %s www/debian/hello.deb)
                echo SHA256: $(sha256sum <www/debian/hello.deb | cut -d' ' -f1); }} \
                 >www/debian/Packages
             echo 'deb [trusted=yes] http://{WORLD}/debian ./' >apt/sources.list
             touch root/var/lib/dpkg/status"
    ));
    stage.guest(&format!(
        "cd {here}; apt() {{ apt-get -qq -o Dir::Etc={here}/apt -o Dir::State={here}/apt \
                 -o Dir::State::status={here}/root/var/lib/dpkg/status \
                 -o Dir::Cache={here}/apt/cache -o Dir::Log={here}/apt -o APT::Sandbox::User= \
                 -o DPkg::Options::=--root={here}/root -o DPkg::Options::=--force-not-root \
                 -o DPkg::Options::=--log=/dev/null \"$@\"; }}
             export DEBIAN_FRONTEND=noninteractive
             apt update; apt install -y hello-peapod >/dev/null
             cmp content root/usr/share/hello"
    ));
}

/// Makes keys in a folder; how a server is started that has them, and how its client is called.
fn ssh(stage: &Stage) -> (String, String) {
    let here = stage.path().display();
    stage.world(&format!(
        "cd {here}; dropbearkey -t ed25519 -f host >/dev/null 2>&1
         ssh-keygen -q -t ed25519 -N '' -f client"
    ));
    // The home that it finds its keys in is nobody's but its own.
    let server = format!(
        "exec unshare --mount bash -ec \"mount -t tmpfs -o mode=700 none /root
         mkdir -m 700 /root/.ssh; cp {here}/client.pub /root/.ssh/authorized_keys
         exec dropbear -F -s -m -r {here}/host -P {here}/pid -p 22\""
    );
    let client = format!(
        "ssh -F none -i {here}/client -o BatchMode=yes -o StrictHostKeyChecking=no \
         -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=20"
    );
    (server, client)
}

pub fn ssh_runs_commands_and_carries_streams() {
    let stage = Stage::new("-p 2222:22");
    let here = stage.path().display();
    // In the lab a VM encrypts a few MiB a second.
    let mib = if stage.site.is_vm() { 10 } else { 50 };
    blob(&stage.path().join("blob"), mib * MIB);
    let (server, client) = ssh(&stage);
    let world = serve(&stage.site.world, &server, 22);
    stage.guest(&format!(
        "test \"$({client} root@{WORLD} 'echo hello; exit 7' || echo $?)\" = $'hello\n7'
         {client} root@{WORLD} cat <{here}/blob | cmp - {here}/blob
         {client} root@{WORLD6} cat {here}/blob | cmp - {here}/blob"
    ));
    drop(world);
    // And the other way round.
    let _guest = stage.serve(&server, 22);
    let pod = stage.site.address(Family::V4);
    drop(call(&stage.site.world, SocketAddr::new(pod, 2222)));
    let client = format!("{client} -p 2222");
    stage.world(&format!(
        "{client} root@{pod} cat <{here}/blob | cmp - {here}/blob"
    ));
    stage.site.nothing_sent_again();
}

pub fn git_clones_by_ssh_and_by_http() {
    let stage = Stage::new("");
    let here = stage.path().display();
    let _nginx = nginx(&stage.site.world, stage.path());
    let (server, client) = ssh(&stage);
    let _ssh = serve(&stage.site.world, &server, 22);
    let git = format!(
        "export HOME={here} GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b \
             GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b"
    );
    blob(&stage.path().join("blob"), 10 * MIB);
    stage.world(&format!(
        "{git}; cd {here}; git init -q work; cd work
         for i in $(seq 200); do echo $i >file-$i; done; cp ../blob .
         git add .; git commit -qm first; git rm -q file-7; git commit -qm second
         git clone -q --bare . ../www/work.git; git -C ../www/work.git update-server-info"
    ));
    let pushed = stage.guest(&format!(
        "{git}; cd {here}; export GIT_SSH_COMMAND='{client}'
         git clone -q ssh://root@{WORLD}{here}/www/work.git by-ssh
         git clone -q http://{WORLD}/work.git by-http
         for clone in by-ssh by-http; do
             git -C $clone fsck --strict --no-progress
             test $(git -C $clone rev-parse HEAD) = $(git -C work rev-parse HEAD)
             cmp blob $clone/blob
         done
         cd by-ssh; cp ../blob again; git add again; git commit -qm third; git push -q
         git rev-parse HEAD"
    ));
    let arrived = stage.world(&format!("{git}; git -C {here}/www/work.git rev-parse HEAD"));
    assert_eq!(pushed, arrived);
}

const WEBSOCKET_SERVER: &str = "
import asyncio, websockets
async def echo(socket):
    async for message in socket:
        await socket.send(message)
async def serve():
    async with websockets.serve(echo, None, 8000, max_size=None):
        await asyncio.Future()
asyncio.run(serve())
";

const WEBSOCKET_CLIENT: &str = "
import asyncio, sys, websockets
async def talk():
    async with websockets.connect(sys.argv[1], max_size=None) as socket:
        for size in [0, 1, 125, 126, 65535, 65536, 3000000] + 500 * [1000]:
            message = bytes(i % 251 for i in range(size))
            await socket.send(message)
            assert await socket.recv() == message, size
        await (await socket.ping())
    assert socket.close_code == 1000
asyncio.run(talk())
";

pub fn a_websocket_carries_messages() {
    let stage = Stage::new("");
    let script = format!("exec /usr/bin/python3 -c '{WEBSOCKET_SERVER}'");
    let _server = serve(&stage.site.world, &script, 8000);
    for host in [WORLD, &format!("[{WORLD6}]")] {
        let script = format!("/usr/bin/python3 -c '{WEBSOCKET_CLIENT}' ws://{host}:8000/");
        stage.guest(&script);
    }
}

pub fn a_postgres_session_keeps_what_it_is_told() {
    let (stage, data) = (Stage::new(""), folder());
    let (site, here, data) = (&stage.site, stage.path().display(), data.path().display());
    // It doesn't run as root.
    let nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups env HOME=/";
    let programs = "$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)";
    sh(
        &site.world,
        &format!(
            "chown 65534:65534 {data}; cd /
             {nobody} {programs}/initdb -D {data} -U peapod --auth=trust -N >/dev/null
             echo 'host all all all trust' >>{data}/pg_hba.conf"
        ),
    );
    let script = format!(
        "cd /; exec {nobody} {programs}/postgres -D {data} -c listen_addresses='*' \
         -c unix_socket_directories= -c fsync=off -c logging_collector=off 2>{data}/log"
    );
    let _server = serve(&site.world, &script, 5432);
    for host in [WORLD, WORLD6] {
        let said = stage.guest(&format!(
            "for i in $(seq 100000); do echo $i some words of row $i; done >{here}/rows
                 psql='psql -X -q -v ON_ERROR_STOP=1 -h {host} -U peapod -d postgres -At'
                 $psql <<'E'
DROP TABLE IF EXISTS rows;
CREATE TABLE rows (n int PRIMARY KEY, words text);
BEGIN;
\\copy rows FROM PROGRAM 'sed \"s/ /\\t/\" {here}/rows'
COMMIT;
BEGIN;
DELETE FROM rows WHERE n < 50000;
ROLLBACK;
UPDATE rows SET words = upper(words) WHERE n % 1000 = 0;
E
                 for i in $(seq 20); do
                     $psql -c \"SELECT pg_sleep(0.05), count(*) FROM rows\" >/dev/null &
                 done; wait
                 $psql -c 'SELECT count(*), sum(n), sum(length(words)) FROM rows'
                 $psql -c '\\copy (SELECT * FROM rows WHERE n % 1000 > 0 ORDER BY n) TO stdout' |
                     cmp - <(grep -v '^[0-9]*000 ' {here}/rows | sed 's/ /\\t/')"
        ));
        let length: u64 = (1..=100_000_u64)
            .map(|n| format!("some words of row {n}").len() as u64)
            .sum();
        assert_eq!(said, format!("100000|5000050000|{length}\n"));
    }
}

pub fn dig_asks_by_udp_and_by_tcp() {
    // More than 512 bytes: such an answer comes by UDP only to who asks for more.
    let many: String = (1..=60)
        .map(|n| format!(" --host-record=many.peapod.test,198.51.100.{n}"))
        .collect();
    let dnsmasq = |listen: &str| {
        format!(
            "exec dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts \
             --pid-file= --user=root --bind-interfaces {listen} \
             --address=/one.peapod.test/203.0.113.7 {many}"
        )
    };
    let ask = |site: &Site, servers: &[&str]| {
        for server in servers {
            for (words, count) in [
                ("one.peapod.test", 1),
                ("+tcp one.peapod.test", 1),
                ("+noedns many.peapod.test", 60),
                ("+noedns +ignore many.peapod.test", 0),
                ("+tcp many.peapod.test", 60),
                ("+bufsize=4096 many.peapod.test", 60),
            ] {
                let script = format!("dig +short +tries=1 +time=5 @{server} {words} A");
                let said = site.run(&script);
                let lines = said.lines().filter(|line| !line.starts_with(';'));
                let lines = lines.count();
                // An answer that was cut short may have some.
                let fits = lines == count || count == 0 && lines < 60;
                assert!(fits, "{script}: {said}");
            }
        }
    };
    let site = Setup {
        resolver: &format!("nameserver {WORLD}"),
        ..Setup::default()
    }
    .site();
    let _server = serve(&site.world, &dnsmasq(""), 53);
    ask(&site, &[GATEWAY[0], GATEWAY[1], WORLD, WORLD6]);
    // One that only the pod itself reaches.
    let site = Setup {
        resolver: "nameserver 127.0.0.53",
        ..Setup::default()
    }
    .site();
    let listens = |at: &str| dnsmasq(&format!("--listen-address={at},127.0.0.1"));
    let server = serve(&site.pod, &listens("127.0.0.53"), 53);
    ask(&site, &GATEWAY);
    // Another is in the file now, behind one that the guest reaches itself.
    drop(server);
    let file = format!("/run/{}.resolv", site.pod.name);
    sh(
        &site.pod,
        &format!("printf 'nameserver {WORLD}\\nnameserver 127.0.0.54\\n' >{file}"),
    );
    let _server = serve(&site.pod, &listens("127.0.0.54"), 53);
    // The file is looked at once a second at most.
    sleep(Duration::from_secs(1));
    ask(&site, &GATEWAY);
}

/// How many of the guest's three pings were answered.
fn pings(site: &Site, to: IpAddr, words: &str) -> usize {
    // It fails if there is no answer.
    let script = format!("ping -n -c 3 -i 0.2 -W 1 {words} {to} || true");
    let said = site.run(&script);
    let received = said.split_once(" received").unwrap().0;
    received.rsplit(' ').next().unwrap().parse().unwrap()
}

pub fn ping_is_answered_by_who_is_asked_or_by_nobody() {
    let site = Site::new("");
    // The pod may not ping (icmp(7)), so nobody says that the world answered.
    sh(&site.pod, "echo 1 0 >/proc/sys/net/ipv4/ping_group_range");
    for family in Family::BOTH {
        assert_eq!(pings(&site, family.of(GATEWAY), ""), 3);
        assert_eq!(pings(&site, family.of([WORLD, WORLD6]), ""), 0);
    }
    sh(
        &site.pod,
        "echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range",
    );
    for family in Family::BOTH {
        for words in ["", "-s 0", "-s 1400 -p 5ca1ab1e"] {
            let answered = pings(&site, family.of([WORLD, WORLD6]), words);
            assert_eq!(answered, 3, "{family} {words}");
        }
        assert_eq!(pings(&site, family.of(NOWHERE), ""), 0);
    }
    // At once, and each its own.
    let script = format!(
        "for i in 1 2 3 4 5; do ping -n -q -c 10 -i 0.01 -W 1 -p 0$i {WORLD} & ids=\"$ids $!\"; done
         for id in $ids; do wait $id; done"
    );
    let said = site.run(&script);
    assert_eq!(said.matches("10 received").count(), 5, "{said}");
}
