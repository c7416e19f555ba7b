//! QEMU's guest agent's protocol, spoken by a client that is not ours, under Debian's stock QEMU.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use peapod_tests::Boot;
use qapi::{Command, Qga, Stream, qga};

use super::{BOOT, Killed, SOON};

const MEMORY_MIB: u64 = 512;
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEVuZHM7IE5vd2hlcmUgZWxzZSE= anna@home";

type Client = Qga<Stream<BufReader<UnixStream>, UnixStream>>;

fn client(stream: &UnixStream) -> Client {
    let reader = BufReader::new(stream.try_clone().unwrap());
    Qga::new(Stream::new(reader, stream.try_clone().unwrap()))
}

fn ask<C: Command>(client: &mut Client, command: C) -> C::Ok {
    client
        .execute(&command)
        .unwrap_or_else(|error| panic!("{}: {error}", C::NAME))
}

/// Runs a program to its end: its status, and what it printed.
fn run(client: &mut Client, path: &str, arguments: &[&str], input: &str) -> (i64, String) {
    let started = ask(
        client,
        qga::guest_exec {
            path: path.to_owned(),
            arg: Some(arguments.iter().map(|word| (*word).to_owned()).collect()),
            env: None,
            input_data: Some(input.as_bytes().to_vec()),
            capture_output: Some(qga::GuestExecCaptureOutput::flag(true)),
        },
    );
    let start = Instant::now();
    loop {
        let status = ask(client, qga::guest_exec_status { pid: started.pid });
        if status.exited {
            let output = status.out_data.unwrap_or_default();
            return (status.exitcode.unwrap(), String::from_utf8(output).unwrap());
        }
        assert!(start.elapsed() < SOON, "{path} does not end");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn under_qemu_the_agent_answers_as_qemu_s_own_would() {
    let boot = Boot::new("#!/bin/sh\necho set up\n", MEMORY_MIB, &[]);
    let socket = boot.path("qga.sock");
    let chardev = format!("socket,id=q,path={},server=on,wait=off", socket.display());
    let mut qemu = boot.qemu(&[
        "-netdev",
        "user,id=n",
        "-device",
        "virtio-serial-pci",
        "-chardev",
        &chardev,
        "-device",
        "virtserialport,chardev=q,name=org.qemu.guest_agent.0",
        "-no-reboot",
    ]);
    let console = boot.path("console");
    qemu.stdin(Stdio::null())
        .stdout(File::create(&console).unwrap());
    let mut qemu = Killed(qemu.spawn().unwrap());
    let start = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(error) => assert!(start.elapsed() < SOON, "{error}"),
        }
        thread::sleep(Duration::from_millis(20));
    };
    stream.set_read_timeout(Some(BOOT)).unwrap();

    // As libvirt begins: a mark, whatever came before it.
    stream
        .write_all(b"{\"execute\": \"gue\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":7}}\n")
        .unwrap();
    let mut answer = [0; 14];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"\xff{\"return\":7}\n");

    let mut client = client(&stream);
    client.guest_sync(77).unwrap();
    ask(&mut client, qga::guest_ping {});
    let info = ask(&mut client, qga::guest_info {});
    // What KubeVirt asks for before it calls an agent one.
    for name in [
        "guest-ping",
        "guest-get-time",
        "guest-info",
        "guest-shutdown",
        "guest-network-get-interfaces",
        "guest-get-fsinfo",
        "guest-get-host-name",
        "guest-get-users",
        "guest-get-timezone",
        "guest-get-osinfo",
    ] {
        let known = info
            .supported_commands
            .iter()
            .find(|known| known.name == name);
        assert!(known.is_some_and(|known| known.enabled), "{name}");
    }
    let os = ask(&mut client, qga::guest_get_osinfo {});
    assert_eq!(os.id.as_deref(), Some("debian"));
    let links = ask(&mut client, qga::guest_network_get_interfaces {});
    let addresses = links
        .iter()
        .flat_map(|link| link.ip_addresses.iter().flatten());
    let addresses: Vec<_> = addresses.map(|address| &*address.ip_address).collect();
    assert!(addresses.contains(&"10.0.2.15"), "{addresses:?}");
    let filesystems = ask(&mut client, qga::guest_get_fsinfo {});
    let root = filesystems
        .iter()
        .find(|one| one.mountpoint == "/")
        .unwrap();
    assert_eq!((&*root.name, &*root.type_), ("vda", "ext4"));
    assert!(root.total_bytes > root.used_bytes, "{root:?}");
    assert!(
        !ask(&mut client, qga::guest_get_host_name {})
            .host_name
            .is_empty()
    );
    assert_eq!(ask(&mut client, qga::guest_get_timezone {}).offset, 0);
    assert!(ask(&mut client, qga::guest_get_users {}).is_empty());
    assert_eq!(ask(&mut client, qga::guest_get_vcpus {}).len(), 1);

    let set = 1_000_000_000_000_000_000;
    ask(&mut client, qga::guest_set_time { time: Some(set) });
    let since = ask(&mut client, qga::guest_get_time {}) - set;
    assert!((0..3_600_000_000_000).contains(&since), "{since}");
    ask(&mut client, qga::guest_set_time { time: None });
    assert!(ask(&mut client, qga::guest_get_time {}) > 1_600_000_000_000_000_000);

    let (status, output) = run(&mut client, "/bin/sh", &["-c", "cat; exit 3"], "typed");
    assert_eq!((status, &*output), (3, "typed"));

    let path = "/root/written".to_owned();
    let mode = Some("w+".to_owned());
    let handle = ask(&mut client, qga::guest_file_open { path, mode });
    let buf_b64 = b"content".to_vec();
    let write = qga::guest_file_write {
        handle,
        buf_b64,
        count: None,
    };
    assert_eq!(ask(&mut client, write).count, 7);
    ask(&mut client, qga::guest_file_flush { handle });
    let whence = qga::GuestFileWhence::name(qga::QGASeek::set);
    let seek = qga::guest_file_seek {
        handle,
        offset: 3,
        whence,
    };
    assert_eq!(ask(&mut client, seek).position, 3);
    let count = Some(100);
    let read = ask(&mut client, qga::guest_file_read { handle, count });
    assert!(read.eof && read.count == 4, "{read:?}");
    assert_eq!(read.buf_b64, b"tent");
    ask(&mut client, qga::guest_file_close { handle });
    assert!(client.execute(&qga::guest_file_close { handle }).is_err());

    let status = |client: &mut Client| ask(client, qga::guest_fsfreeze_status {});
    assert_eq!(status(&mut client), qga::GuestFsfreezeStatus::thawed);
    assert_eq!(ask(&mut client, qga::guest_fsfreeze_freeze {}), 1);
    assert_eq!(status(&mut client), qga::GuestFsfreezeStatus::frozen);
    assert_eq!(ask(&mut client, qga::guest_fsfreeze_thaw {}), 1);
    assert_eq!(status(&mut client), qga::GuestFsfreezeStatus::thawed);

    let username = || "root".to_owned();
    let keys = || vec![KEY.to_owned()];
    let add = qga::guest_ssh_add_authorized_keys {
        username: username(),
        keys: keys(),
        reset: Some(true),
    };
    ask(&mut client, add);
    let get = || qga::guest_ssh_get_authorized_keys {
        username: username(),
    };
    assert_eq!(ask(&mut client, get()).keys, keys());
    let remove = qga::guest_ssh_remove_authorized_keys {
        username: username(),
        keys: keys(),
    };
    ask(&mut client, remove);
    assert!(ask(&mut client, get()).keys.is_empty());

    let password = qga::guest_set_user_password {
        username: username(),
        password: b"Secret 1".to_vec(),
        crypted: false,
    };
    ask(&mut client, password);
    let (_, line) = run(&mut client, "/bin/grep", &["^root:", "/etc/shadow"], "");
    assert!(line.starts_with("root:$6$"), "{line}");

    client
        .write_command(&qga::guest_shutdown { mode: None })
        .unwrap();
    let start = Instant::now();
    while qemu.0.try_wait().unwrap().is_none() {
        let said = std::fs::read_to_string(&console).unwrap();
        assert!(start.elapsed() < SOON, "it is not off: {said}");
        thread::sleep(Duration::from_millis(100));
    }
}
