//! What a guest says that is no QEMU guest agent, to who asks it.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use peapod::agent::qga::Qga;
use peapod::changes::Changes;

libfuzzer_sys::fuzz_target!(|said: &[u8]| {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let open = Arc::new(AtomicBool::new(true));
    let qga = Qga::new(ours, open, Changes::default()).unwrap();
    let guest = thread::spawn({
        let said = said.to_vec();
        move || {
            // The number that both are to know, so that what follows is taken for an answer.
            let (mut question, mut byte) = (Vec::new(), [0]);
            while !question.ends_with(b"\n") {
                (&theirs).read_exact(&mut byte).unwrap();
                question.push(byte[0]);
            }
            let question = String::from_utf8_lossy(&question);
            let id: String = question.chars().filter(char::is_ascii_digit).collect();
            let _ = writeln!(&theirs, "{{\"return\": {id}}}");
            let _ = (&theirs).write_all(&said);
            let _ = theirs.shutdown(Shutdown::Write);
        }
    });
    let _ = qga.run(&["true".to_owned()], Duration::from_secs(1), 100);
    let _ = qga.info();
    guest.join().unwrap();
});
