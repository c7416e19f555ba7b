//! What comes late, ends and comes back: the guest, its network, its sidecar, its pod's address.

use std::thread;
use std::time::Instant;

use peapod_tests::mesh::{Envoy, Guest, Redirect, is_vm};
use peapod_tests::until;

use crate::site::{DETAILS, RATINGS, Site, at_once, request, serving, told};
use crate::traffic::Traffic;

/// The status that the service's client is answered, which it is at once.
#[track_caller]
fn asked(site: &Site) -> String {
    let start = Instant::now();
    let said = asked_for(site, "/");
    assert!(start.elapsed() < at_once(), "{said}: {:?}", start.elapsed());
    said
}

/// The status that it is answered in the end.
fn asked_for(site: &Site, path: &str) -> String {
    let status = "curl -s -o /dev/null -w '%{http_code}'";
    let script = format!("{status} --max-time 50 http://{DETAILS}:9080{path}");
    site.ratings.attempt(&script).0
}

/// Until the client is answered so: for a moment after a change it may not be.
#[track_caller]
fn becomes(site: &Site, status: &str) {
    until(&format!("the client is not answered {status}"), || {
        (asked(site) == status).then_some(())
    });
}

/// Programs that listen at the guest's ports in its pod.
fn listeners(site: &Site) -> String {
    site.details.run("ss -Hltn 'sport = 9080 or sport = 9090'")
}

/// The guest's call of the other service.
fn calls(guest: &Guest) -> bool {
    let start = Instant::now();
    let (head, _) = request(guest, "ratings", 9080, "/");
    assert!(start.elapsed() < at_once(), "{head}: {:?}", start.elapsed());
    head.starts_with("HTTP/1.1 200")
}

pub fn a_guest_may_come_before_its_sidecar_or_after_it() {
    let site = Site::new(&Redirect::ISTIO);
    let sidecar = site.sidecar(&Redirect::ISTIO);
    let first = site.envoy(&sidecar);
    // Nobody is behind the port, and it is not open.
    assert_eq!(listeners(&site), "");
    assert_eq!(asked(&site), "503");
    let guest = site.guest();
    becomes(&site, "200");
    assert!(calls(&guest));
    drop(first);
    // Nothing is taken by the pod in its sidecar's place.
    assert_eq!(asked(&site), "000");
    assert!(!calls(&guest));
    let _second = site.envoy(&sidecar);
    becomes(&site, "200");
    assert!(calls(&guest));
}

/// What the guest's network holds: descriptors, flows; and the processes of its pod.
fn held(site: &Site, guest: &Guest) -> [u64; 3] {
    let (descriptors, processes) = (guest.descriptors(), site.details.processes());
    [descriptors as u64, guest.flows(), processes as u64]
}

pub fn a_sidecar_that_restarts_amid_traffic_leaves_nothing_behind() {
    let site = Site::new(&Redirect::ISTIO);
    let sidecar = site.sidecar(&Redirect::ISTIO);
    let guest = site.guest();
    let connections = || {
        let script = "ss -Htnp state established | grep -c peapod || true";
        site.details.run(script).trim().parse::<u32>().unwrap()
    };
    let before = until("something is left of its start", || {
        let held = held(&site, &guest);
        (held[1] == 0).then_some(held)
    });
    // Answered by 200, if anybody were to wait so long.
    let long = format!("/held/{}", at_once().as_secs() + 5);
    for _ in 0..3 {
        let envoy = site.envoy(&sidecar);
        // Connections of both directions that last until the sidecar goes, and a request by each.
        guest.run(&format!(
            "for i in 1 2 3 4 5 6 7 8; do
                 setsid bash -c 'exec 3<>/dev/tcp/{RATINGS}/9080 && exec cat <&3' >/dev/null 2>&1 &
             done"
        ));
        until("the guest's connections are not there", || {
            (connections() >= 8).then_some(())
        });
        becomes(&site, "200");
        thread::scope(|scope| {
            let inward = scope.spawn(|| asked_for(&site, &long));
            let outward = scope.spawn(|| request(&guest, RATINGS, 9080, &long).0);
            for cluster in ["inbound|9080||", &site.services[1].outbound()] {
                until("a request is not on its way", || {
                    let active = envoy.counter(&format!("cluster.{cluster}.upstream_rq_active"));
                    (active == 1).then_some(())
                });
            }
            let start = Instant::now();
            drop(envoy);
            assert_eq!(inward.join().unwrap(), "000");
            let head = outward.join().unwrap();
            assert!(!head.contains("HTTP/1.1"), "{head}");
            assert!(start.elapsed() < at_once(), "{:?}", start.elapsed());
        });
        until("connections are left", || {
            (connections() == 0).then_some(())
        });
    }
    // What the guest answers in the end goes nowhere.
    until("something is left", || {
        let now = held(&site, &guest);
        let left = now.iter().zip(&before).any(|(now, before)| now > before);
        (!left).then_some(())
    });
    let envoy = site.envoy(&sidecar);
    assert!(calls(&guest));
    becomes(&site, "200");
    assert!(envoy.counter("cluster.inbound|9080||.upstream_rq_200") >= 1);
}

pub fn a_network_that_is_killed_leaves_no_port_open_and_comes_back() {
    let site = Site::new(&Redirect::ISTIO);
    let _envoy = site.envoy(&site.sidecar(&Redirect::ISTIO));
    let processes = || site.details.processes();
    let before = processes();
    let mut guest = site.guest();
    becomes(&site, "200");
    for _ in 0..3 {
        guest.crash();
        assert_eq!(listeners(&site), "");
        assert_eq!(processes(), before);
        assert_eq!(asked(&site), "503");
        // The guest's programs have gone on.
        guest.connect(&site.details);
        becomes(&site, "200");
        assert!(calls(&guest));
    }
}

/// A program for the guest that shares its port with others of its kind, and answers after a moment
/// how often it was asked; but the first TIMES that /reset/TIMES/... is asked for end in a reset.
const SHARED: &str = r#"
require 'json'
require 'socket'
socket = Socket.new(:INET6, :STREAM)
socket.setsockopt(:SOCKET, :REUSEADDR, true)
socket.setsockopt(:SOCKET, :REUSEPORT, true)
socket.bind(Addrinfo.tcp('::', ARGV[0]))
socket.listen(64)
asked = Hash.new(0)
loop do
  Thread.new(socket.accept[0]) do |client|
    while (line = client.gets)
      path = line.split[1]
      nil until client.gets.to_s.strip.empty?
      times = asked[path] += 1
      if path =~ %r{\A/reset/(\d)/} && times <= $1.to_i
        client.setsockopt(Socket::Option.linger(true, 0))
        break
      end
      sleep 0.02
      body = { path: path, times: times }.to_json
      client.write("HTTP/1.1 200 OK\r\nContent-Length: #{body.bytesize}\r\n\r\n#{body}")
    end
  ensure
    client.close
  end
end
"#;

/// Starts one more, and waits for it.
fn serve(guest: &mut Guest) {
    let before = serving(guest);
    guest.serve(SHARED, "9080");
    until("it does not serve", || {
        (serving(guest).len() > before.len()).then_some(())
    });
}

/// A guest that serves by that program: its sidecar, and its client's own.
fn start(site: &Site) -> (Envoy, Envoy, Guest) {
    let envoy = site.envoy(&site.sidecar(&Redirect::ISTIO));
    let client = site.client();
    let mut guest = Guest::start(&site.details, &[9080]);
    serve(&mut guest);
    becomes(site, "200");
    (envoy, client, guest)
}

pub fn no_request_is_lost_while_the_guest_s_service_is_replaced() {
    let site = Site::new(&Redirect::ISTIO);
    let (_envoy, client, mut guest) = start(&site);
    let retried = format!("cluster.{}.upstream_rq_retry", site.services[0].outbound());
    // In the lab a service takes seconds to start.
    let enough = if is_vm() { 1 } else { 5 };
    let traffic = Traffic::start(&site.ratings);
    until("too little is cut off", || {
        traffic.becomes(200);
        let old = serving(&guest);
        serve(&mut guest);
        // Whatever it was about to answer, and whoever it has not accepted yet.
        guest.run(&format!("kill -9 {old}"));
        (client.counter(&retried) >= enough).then_some(())
    });
    traffic.becomes(200);
    let calls = traffic.stop();
    let lost: Vec<_> = calls.iter().filter(|call| call.status != 200).collect();
    assert!(lost.is_empty(), "of {}: {lost:?}", calls.len());
}

pub fn a_request_is_lost_only_where_each_time_that_it_is_tried_is_cut_off() {
    let site = Site::new(&Redirect::ISTIO);
    let (_envoy, _client, _guest) = start(&site);
    for number in 0..10 {
        // Istio has it tried three times.
        for cut in 0..=3 {
            let path = format!("/reset/{cut}/{number}");
            let said = site.ratings.curl(&format!(
                "-w '\\n%{{http_code}}' http://{DETAILS}:9080{path}"
            ));
            let (body, status) = said.rsplit_once('\n').unwrap();
            if cut == 3 {
                assert_eq!(status, "503", "{said}");
                continue;
            }
            assert_eq!(status, "200", "{said}");
            assert_eq!(told(body)["times"], cut + 1);
        }
        // Nor is it tried once more.
        let path = format!("/reset/3/{number}");
        let said = site.ratings.curl(&format!("http://{DETAILS}:9080{path}"));
        assert_eq!(told(&said)["times"], 4);
    }
}

pub fn while_the_guest_or_its_service_is_away_each_request_is_answered_at_once() {
    let site = Site::new(&Redirect::ISTIO);
    let (_envoy, client, mut guest) = start(&site);
    let cluster = site.services[0].outbound();
    let given_up = format!("cluster.{cluster}.upstream_rq_retry_limit_exceeded");
    let before = client.counter(&given_up);
    let traffic = Traffic::start(&site.ratings);
    traffic.becomes(200);
    let mut away = Vec::new();
    for _ in 0..2 {
        // Envoy tries three times within a tenth of a second; that is longer.
        let start = Instant::now();
        guest.run(&format!("kill -9 {}", serving(&guest)));
        traffic.becomes(503);
        serve(&mut guest);
        traffic.becomes(200);
        away.push(start..Instant::now());
        let start = Instant::now();
        guest.crash();
        traffic.becomes(503);
        guest.connect(&site.details);
        traffic.becomes(200);
        away.push(start..Instant::now());
    }
    let calls = traffic.stop();
    let lost: Vec<_> = calls.iter().filter(|call| call.status == 503).collect();
    for call in &lost {
        let excused = away
            .iter()
            .any(|away| call.start < away.end && away.start < call.end);
        assert!(excused, "{call:?}");
    }
    // Each of them was tried as often as may be.
    assert_eq!(client.counter(&given_up) - before, lost.len() as u64);
}

pub fn a_pod_whose_address_goes_and_comes_back_goes_on() {
    let site = Site::new(&Redirect::ISTIO);
    let _envoy = site.envoy(&site.sidecar(&Redirect::ISTIO));
    let guest = site.guest();
    assert!(calls(&guest));
    site.details.disconnect();
    // Whoever looks up a name now waits for it; an address has no way, which is known at once.
    let start = Instant::now();
    let (head, _) = request(&guest, "203.0.113.9", 9080, "/");
    assert!(!head.contains("200"), "{head}");
    assert!(start.elapsed() < at_once(), "{:?}", start.elapsed());
    site.details.connect();
    becomes(&site, "200");
    until("the guest cannot call", || calls(&guest).then_some(()));
    let said = site.ratings.curl(&format!("http://{DETAILS}:9080/"));
    assert!(told(&said)["peer"].is_string());
}
