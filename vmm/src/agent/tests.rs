//! An agent's words, spoken by the test.

use std::io::Write;

use guest_agent::protocol::{Frame, read, write};

use super::*;

fn start() -> Agent {
    let (agent, streams) = Agent::new();
    agent.listen_to(streams).unwrap();
    agent
}

fn hello() -> Frame {
    Event::Hello {
        version: 1,
        software: "test".to_owned(),
        role: Some(Role::Init),
    }
    .frame()
}

fn ready() -> Frame {
    let outcome = Outcome::Done;
    let uptime_ms = 5;
    Event::Ready { outcome, uptime_ms }.frame()
}

fn until(what: impl Fn() -> bool) {
    for _ in 0..1000 {
        if what() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("it did not come to pass");
}

fn connect(agent: &Agent) -> UnixStream {
    let mut stream = agent.connect(1023).unwrap();
    let greeting = read(&mut stream).unwrap().unwrap();
    assert_eq!(greeting.kind, Kind::Event);
    stream
}

#[test]
fn an_agent_says_that_the_guest_is_ready_and_is_forgotten_when_it_goes() {
    let agent = start();
    let mut stream = connect(&agent);
    write(&mut stream, &hello()).unwrap();
    write(&mut stream, &ready()).unwrap();
    until(|| agent.is_ready());
    drop(stream);
    until(|| !agent.is_ready());
    connect(&agent);
}

#[test]
fn power_off_is_asked_once_the_agent_has_spoken() {
    let agent = start();
    agent.power_off();
    let mut stream = connect(&agent);
    write(&mut stream, &hello()).unwrap();
    let frame = read(&mut stream).unwrap().unwrap();
    assert_eq!(frame, Request::PowerOff.frame(1));
}

#[test]
fn only_root_s_ports_and_only_one_agent() {
    let agent = start();
    assert!(agent.connect(1024).is_err());
    let _stream = connect(&agent);
    assert!(agent.connect(1022).is_err());
}

#[test]
fn nonsense_ends_the_connection_or_is_passed_over() {
    let agent = start();
    let mut stream = connect(&agent);
    for payload in [&b"{"[..], b"\xff", br#"{"event":"ready"}"#] {
        for kind in [Kind::Event, Kind::Reply, Kind::Data, Kind::Unknown(77)] {
            let payload = payload.to_vec();
            write(
                &mut stream,
                &Frame {
                    kind,
                    number: 3,
                    payload,
                },
            )
            .unwrap();
        }
    }
    write(&mut stream, &ready()).unwrap();
    until(|| agent.is_ready());
    stream.write_all(&[0xff; 16]).unwrap();
    until(|| !agent.is_ready());
}

#[test]
fn a_guest_that_cannot_go_on_ends_its_machine() {
    let agent = start();
    let machine = Power::default();
    agent.watch(machine.clone());
    let mut stream = connect(&agent);
    let reason = "no root\x1b[2J".to_owned();
    write(&mut stream, &Event::Fatal { reason }.frame()).unwrap();
    let said = "no root\\u{1b}[2J".to_owned();
    assert_eq!(
        machine.duty(),
        power::Duty::End(power::Outcome::GaveUp(said))
    );
}

/// An agent that has said hello.
fn greeted(agent: &Agent) -> UnixStream {
    let mut stream = connect(agent);
    write(&mut stream, &hello()).unwrap();
    until(|| agent.is_connected());
    stream
}

#[test]
fn who_asks_gets_the_answer_to_its_own_question_whatever_the_order() {
    let agent = start();
    assert_eq!(agent.ask(&Request::Ping), Err(Unanswered::NoAgent));
    let mut stream = greeted(&agent);
    let asks = [Request::GuestInfo, Request::Thaw].map(|request| {
        let agent = agent.clone();
        std::thread::spawn(move || agent.ask(&request))
    });
    let mut frames = [(); 2].map(|()| read(&mut stream).unwrap().unwrap());
    frames.sort_by_key(|frame| frame.payload == Request::GuestInfo.frame(0).payload);
    let [thaw, info] = frames;
    write(&mut stream, &Reply::Thawed(3).frame(thaw.number)).unwrap();
    let json = br#"{"guest-info":{"hostname":"a\u001b[2Jb","later":{"more":1}}}"#;
    let reply = Frame {
        kind: Kind::Reply,
        number: info.number,
        payload: json.to_vec(),
    };
    write(&mut stream, &reply).unwrap();
    let [info, thawed] = asks.map(|ask| ask.join().unwrap().unwrap());
    assert_eq!(thawed, Reply::Thawed(3));
    let Reply::GuestInfo(info) = info else {
        panic!("{info:?}");
    };
    assert_eq!(info.hostname, "a\u{fffd}[2Jb");
}

#[test]
fn a_refusal_and_an_end_are_answers_too() {
    let agent = start();
    let mut stream = greeted(&agent);
    let asked = {
        let agent = agent.clone();
        std::thread::spawn(move || agent.guest_info())
    };
    let number = read(&mut stream).unwrap().unwrap().number;
    let refusal = Reply::Error("a request that is not known here".to_owned());
    write(&mut stream, &refusal.frame(number)).unwrap();
    let refused = Unanswered::Refused("a request that is not known here".to_owned());
    assert_eq!(asked.join().unwrap(), Err(refused));
    let asked = {
        let agent = agent.clone();
        std::thread::spawn(move || agent.guest_info())
    };
    read(&mut stream).unwrap().unwrap();
    drop(stream);
    assert_eq!(asked.join().unwrap(), Err(Unanswered::Gone));
}

#[test]
fn answers_that_never_come_are_not_waited_for_without_bound() {
    let agent = start();
    let _stream = greeted(&agent);
    for _ in 0..100 {
        agent.ask_then(&Request::Ping, drop).unwrap();
    }
    assert_eq!(agent.state().waiting.len(), 64);
}
