//! A guest's packets against real sockets of the host.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::EpollEvent;

use super::connection::ROOM;
use super::packet::{HEADER, HOST_CID, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM};
use super::*;

const SERVICE: u32 = 1024;
const GUEST_PORT: u32 = 700;
const GUEST_ROOM: u32 = 4096;

/// One service; it keeps the host's ends of what was connected to it.
#[derive(Clone, Default)]
struct Service(Arc<Mutex<Vec<UnixStream>>>);

impl Ports for Service {
    fn connect(&mut self, port: u32, _: u32) -> io::Result<UnixStream> {
        if port != SERVICE {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        self.0.lock().unwrap().push(theirs);
        Ok(ours)
    }
}

struct Guest {
    mux: Mux,
    epoll: Arc<Epoll>,
    service: Service,
}

impl Guest {
    fn new(listener: Option<UnixListener>) -> Self {
        let epoll = Arc::new(Epoll::new().unwrap());
        let service = Service::default();
        let mux = Mux::new(
            GUEST_CID,
            Box::new(service.clone()),
            listener,
            epoll.clone(),
        );
        Self {
            mux,
            epoll,
            service,
        }
    }

    fn header(op: Op, port: u32, len: usize) -> Header {
        Header {
            source_cid: GUEST_CID,
            destination_cid: HOST_CID,
            source_port: GUEST_PORT,
            destination_port: port,
            len: len as u32,
            kind: STREAM,
            op: Some(op),
            flags: 0,
            buf_alloc: GUEST_ROOM,
            fwd_cnt: 0,
        }
    }

    fn send(&mut self, header: &Header, data: &mut [u8]) {
        // SAFETY: the slice is used during the call only, while `data` is borrowed.
        let slice = unsafe { VolatileSlice::new(data.as_mut_ptr(), data.len()) };
        self.mux.packet(header, vec![slice]);
    }

    fn say(&mut self, op: Op, data: &[u8]) {
        self.send(&Self::header(op, SERVICE, data.len()), &mut data.to_vec());
    }

    /// The next packet for the guest, after what epoll has to tell.
    fn hear(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut events = [EpollEvent::default(); 16];
        let count = self.epoll.wait(0, &mut events).unwrap();
        for event in &events[..count] {
            self.mux.event(event.data(), event.event_set());
        }
        let mut buffer = vec![0; HEADER + 65536];
        // SAFETY: as in `send`.
        let slice = unsafe { VolatileSlice::new(buffer.as_mut_ptr(), buffer.len()) };
        let len = self.mux.next(&vec![slice])?;
        let header = Header::from_bytes(buffer[..HEADER].try_into().unwrap());
        assert_eq!((header.source_cid, header.destination_cid), (2, GUEST_CID));
        Some((header, buffer[HEADER..len].to_vec()))
    }

    fn hears(&mut self, op: Op) -> Header {
        let (header, _) = self.hear().expect("a packet");
        assert_eq!(header.op, Some(op));
        header
    }

    /// Connects to the service; the host's end.
    fn connect(&mut self) -> UnixStream {
        self.say(Op::Request, b"");
        let header = self.hears(Op::Response);
        assert_eq!(
            (header.source_port, header.destination_port),
            (SERVICE, GUEST_PORT)
        );
        assert_eq!(header.buf_alloc, ROOM);
        self.service.0.lock().unwrap().pop().unwrap()
    }
}

#[test]
fn data_goes_both_ways() {
    let mut guest = Guest::new(None);
    let mut host = guest.connect();
    guest.say(Op::Data, b"ping");
    let mut bytes = [0; 4];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
    host.write_all(b"pong").unwrap();
    let (header, data) = guest.hear().unwrap();
    assert_eq!(
        (header.op, header.fwd_cnt, &data[..]),
        (Some(Op::Data), 4, &b"pong"[..])
    );
    assert_eq!(guest.hear(), None);
}

#[test]
fn a_port_where_nobody_listens_and_a_connection_that_is_not_there_are_reset() {
    let mut guest = Guest::new(None);
    guest.send(&Guest::header(Op::Request, 1, 0), &mut []);
    guest.hears(Op::Reset);
    guest.say(Op::Data, b"x");
    guest.hears(Op::Reset);
    guest.say(Op::Reset, b"");
    assert_eq!(guest.hear(), None);
    let mut datagram = Guest::header(Op::Data, SERVICE, 0);
    datagram.kind = 3;
    guest.send(&datagram, &mut []);
    guest.hears(Op::Reset);
}

#[test]
fn the_host_s_data_waits_until_the_guest_has_room() {
    let mut guest = Guest::new(None);
    let mut host = guest.connect();
    host.write_all(&[7; GUEST_ROOM as usize + 10]).unwrap();
    let (_, data) = guest.hear().unwrap();
    assert_eq!(data.len(), GUEST_ROOM as usize);
    assert_eq!(guest.hear(), None);
    let mut credit = Guest::header(Op::CreditUpdate, SERVICE, 0);
    credit.fwd_cnt = 100;
    guest.send(&credit, &mut []);
    assert_eq!(guest.hear().unwrap().1, [7; 10]);
}

#[test]
fn what_the_host_does_not_read_is_kept_up_to_the_room_and_then_the_guest_breaks_its_word() {
    let mut guest = Guest::new(None);
    let mut host = guest.connect();
    let block = vec![1; 64 << 10];
    for _ in 0..ROOM / (64 << 10) {
        guest.say(Op::Data, &block);
    }
    // The socket took some of it, and the guest is told how much once it is half of the room.
    guest.say(Op::CreditRequest, b"");
    let taken = guest.hears(Op::CreditUpdate).fwd_cnt;
    assert!(taken > 0 && taken < ROOM, "{taken}");
    let mut read = 0;
    while read < ROOM as usize {
        let mut bytes = vec![0; 64 << 10];
        read += host.read(&mut bytes).unwrap();
        assert!(
            guest
                .hear()
                .is_none_or(|(h, _)| h.op == Some(Op::CreditUpdate))
        );
    }
    guest.say(Op::CreditRequest, b"");
    assert_eq!(guest.hears(Op::CreditUpdate).fwd_cnt, ROOM);

    for _ in 0..=2 * ROOM / (64 << 10) {
        guest.say(Op::Data, &block);
    }
    while guest.hear().expect("a reset").0.op != Some(Op::Reset) {}
    assert_eq!(guest.hear(), None);
}

#[test]
fn each_side_may_end_its_direction_first() {
    let mut guest = Guest::new(None);
    let mut host = guest.connect();
    let mut shutdown = Guest::header(Op::Shutdown, SERVICE, 0);
    shutdown.flags = SHUTDOWN_SEND;
    guest.say(Op::Data, b"last");
    guest.send(&shutdown, &mut []);
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"last");
    host.write_all(b"answer").unwrap();
    drop(host);
    assert_eq!(guest.hear().unwrap().1, b"answer");
    let end = guest.hears(Op::Shutdown);
    assert_eq!(end.flags, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    guest.hears(Op::Reset);

    let host = guest.connect();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(guest.hears(Op::Shutdown).flags, SHUTDOWN_SEND);
    guest.say(Op::Data, b"still");
    let mut bytes = [0; 5];
    (&host).read_exact(&mut bytes).unwrap();
    shutdown.flags = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;
    guest.send(&shutdown, &mut []);
    guest.hears(Op::Reset);
}

#[test]
fn a_client_of_the_host_says_where_it_wants_to_go() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let fd = listener.as_raw_fd();
    let mut guest = Guest::new(Some(listener));
    guest
        .epoll
        .ctl(
            vmm_sys_util::epoll::ControlOperation::Add,
            fd,
            EpollEvent::new(EventSet::IN, LISTENER),
        )
        .unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"CONNECT 22\nhello").unwrap();
    assert_eq!(guest.hear(), None);
    let request = guest.hears(Op::Request);
    assert_eq!(request.destination_port, 22);
    let mut response = Guest::header(Op::Response, request.source_port, 0);
    response.source_port = 22;
    guest.send(&response, &mut []);
    let (_, data) = guest.hear().unwrap();
    assert_eq!(data, b"hello");
    let mut line = [0; 14];
    client.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"OK 1073741824\n");

    let mut liar = UnixStream::connect(&path).unwrap();
    liar.write_all(b"CONNECT me to somebody who is there please\n")
        .unwrap();
    assert_eq!(guest.hear(), None);
    assert_eq!(guest.hear(), None);
    assert_eq!(liar.read(&mut line).unwrap_or(0), 0);
}

#[test]
fn a_guest_that_connects_without_end_is_refused_at_the_limit() {
    let mut guest = Guest::new(None);
    let mut refused = 0;
    for port in 0..600 {
        let mut header = Guest::header(Op::Request, SERVICE, 0);
        header.source_port = port;
        guest.send(&header, &mut []);
        refused += usize::from(guest.hear().unwrap().0.op == Some(Op::Reset));
    }
    assert_eq!(refused, 600 - 512);
}

proptest! {
    #[test]
    fn no_packets_panic_or_grow_without_bound(
        packets in prop::collection::vec((0u16..9, 0u32..3, 1022u32..1026, any::<u32>(), any::<u32>(), 0usize..9000), 0..64)
    ) {
        let mut guest = Guest::new(None);
        for (op, source, port, room, taken, len) in packets {
            let mut header = Guest::header(Op::Data, port, len);
            let mut bytes = header.bytes();
            bytes[30..32].copy_from_slice(&op.to_le_bytes());
            header = Header { source_port: source, buf_alloc: room, fwd_cnt: taken, flags: taken, ..Header::from_bytes(&bytes) };
            guest.send(&header, &mut vec![0; len]);
            if room % 3 == 0 {
                guest.hear();
            }
        }
        for _ in 0..200 {
            guest.hear();
        }
    }
}
