//! Forwarded ports: a client finds there what it would find in the guest.

use std::io::ErrorKind;
use std::thread::{self, sleep};
use std::time::Duration;

use peapod_tests::sides::{Family, GATEWAY, Way};

use crate::content::{Content, expect_end, pass};
use crate::site::Site;
use crate::sockets::{
    accept, call, datagrams, datagrams_to, expect_nobody, listen, receive, try_dial, until,
};

pub fn a_port_is_open_only_while_the_guest_s_is() {
    thread::scope(|scope| {
        for family in Family::BOTH {
            scope.spawn(move || open_while_the_guest_s_is(family));
        }
    });
}

fn open_while_the_guest_s_is(family: Family) {
    let site = Site::new("-p 8080:80");
    let to = site.pod(family, 8080);
    for _ in 0..2 {
        sleep(Duration::from_millis(300));
        let error = try_dial(&site.world, to).expect_err("open before the guest listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let listener = listen(&site.guest, 80);
        let client = call(&site.world, to);
        let server = accept(&listener);
        assert_eq!(
            server.peer_addr().unwrap().ip().to_canonical(),
            client.local_addr().unwrap().ip()
        );
        // It was asked meanwhile whether it listens.
        sleep(Duration::from_millis(1500));
        expect_nobody(&listener);
        drop(listener);
        until("it stays open", || match try_dial(&site.world, to) {
            // Until the next question the guest resets what comes.
            Ok(_) => None,
            Err(error) => (error.kind() == ErrorKind::ConnectionRefused).then_some(()),
        });
        // What came before goes on.
        pass(&client, &server, 1000);
    }
}

pub fn a_port_of_one_address_or_family_is_open_there_only() {
    // The addresses are those of the pod, whatever they are.
    let site = Site::new("-p 0.0.0.0:8080:80 -p [::]:8081:81 -p 127.0.0.1:8082:82");
    let _listeners = [80, 81, 82].map(|port| listen(&site.guest, port));
    drop(call(&site.world, site.pod(Family::V4, 8080)));
    drop(call(&site.world, site.pod(Family::V6, 8081)));
    for to in [
        site.pod(Family::V6, 8080),
        site.pod(Family::V4, 8081),
        site.pod(Family::V4, 8082),
    ] {
        let error = try_dial(&site.world, to).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
    }
    drop(call(&site.pod, "127.0.0.1:8082".parse().unwrap()));
}

pub fn an_eager_port_is_open_and_resets_who_calls_in_vain() {
    let site = Site::new("--eager -p 8080:80");
    let to = site.pod(Family::V4, 8080);
    let mut client = call(&site.world, to);
    let error = std::io::Read::read(&mut client, &mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let ends = site.connect(Way::In, Family::V4);
    pass(&ends.world, &ends.guest, 1000);
}

pub fn two_guests_talk_to_each_other() {
    let one = Site::new("-p 8080:80");
    let other = one.neighbour("-p 8080:80 -p 8080:80/udp --mtu 65520");
    for (caller, callee) in [(&one, &other), (&other, &one)] {
        for family in Family::BOTH {
            let listener = listen(&callee.guest, 80);
            let to = callee.pod(family, 8080);
            let client = call(&caller.guest, to);
            let server = accept(&listener);
            // Of another pod it sees that pod.
            let seen = server.peer_addr().unwrap().ip().to_canonical();
            assert_eq!(seen, caller.address(family));
            const LEN: usize = 32 << 20;
            thread::scope(|scope| {
                scope.spawn(|| pass(&client, &server, LEN));
                pass(&server, &client, LEN);
            });
            drop(server);
            expect_end(&client);
        }
    }
    for family in Family::BOTH {
        let server = datagrams(&other.guest, family.any(80));
        let client = datagrams_to(&one.guest, other.pod(family, 8080));
        client.send(b"hello").unwrap();
        let mut bytes = [0; 9];
        let (got, from) = receive(&server, &mut bytes);
        server.send_to(got, from).unwrap();
        assert_eq!(receive(&client, &mut bytes).0, b"hello");
    }
}

pub fn a_guest_reaches_itself_by_its_pod_s_address() {
    let site = Site::new("-p 8080:80");
    for family in Family::BOTH {
        let listener = listen(&site.guest, 80);
        let to = site.pod(family, 8080);
        let client = call(&site.guest, to);
        let server = accept(&listener);
        // Its own address would never come to the gateway again.
        let seen = server.peer_addr().unwrap().ip().to_canonical();
        assert_eq!(seen, family.of(GATEWAY));
        pass(&server, &client, 100_000);
    }
}

pub fn datagrams_come_by_a_forwarded_port_and_their_answers_go_back() {
    let site = Site::new("-p 8080:80/udp");
    let mut bytes = [0; 2000];
    for family in Family::BOTH {
        let server = datagrams(&site.guest, family.any(80));
        let to = site.pod(family, 8080);
        let clients: Vec<_> = (0..50).map(|_| datagrams_to(&site.world, to)).collect();
        for (number, client) in clients.iter().enumerate() {
            let question = Content::new(number).bytes(0, 10 * number);
            client.send(question).unwrap();
            let (got, from) = receive(&server, &mut bytes);
            assert_eq!(got, question);
            let local = client.local_addr().unwrap();
            assert_eq!(from.port(), local.port());
            assert_eq!(from.ip().to_canonical(), local.ip());
            server
                .send_to(Content::new(number).bytes(1, 1000), from)
                .unwrap();
        }
        for (number, client) in clients.iter().enumerate() {
            let (got, _) = receive(client, &mut bytes);
            assert_eq!(got, Content::new(number).bytes(1, 1000));
        }
    }
}
