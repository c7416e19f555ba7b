//! The door, held against the published service by its calls.

use kubevirt_rpc::cmd::cmd_client::CmdClient;
use kubevirt_rpc::cmd::{EmptyRequest, Unread, Vmi, VmiRequest};
use tonic::Code;

use super::wire::Wire;
use super::*;

const PROTO: &str = include_str!("../../../rpc/proto/cmd.proto");
/// Calls that have an answer, as `cmd.rs` gives it.
const ANSWERED: [&str; 17] = [
    "SyncVirtualMachine",
    "PauseVirtualMachine",
    "UnpauseVirtualMachine",
    "ResetVirtualMachine",
    "ShutdownVirtualMachine",
    "KillVirtualMachine",
    "DeleteVirtualMachine",
    "Ping",
    "GetDomain",
    "GetDomainStats",
    "GuestPing",
    "Exec",
    "GetGuestInfo",
    "GetUsers",
    "GetFilesystems",
    "FreezeVirtualMachine",
    "UnfreezeVirtualMachine",
];

#[test]
fn every_call_is_answered_or_refused_with_a_reason() {
    let calls = PROTO.lines().filter_map(|line| {
        let call = line.trim().strip_prefix("rpc ")?;
        call.split_once('(').map(|(name, _)| name)
    });
    let calls: Vec<_> = calls.collect();
    assert_eq!(calls.len(), 36);
    for call in calls {
        let answered = ANSWERED.contains(&call);
        assert_ne!(answered, cmd::refusal(call).is_some(), "{call}");
    }
}

/// A descriptor that is never to be read.
fn no_signals() -> OwnedFd {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    // It stays open, or its end would be something to read.
    std::mem::forget(theirs);
    ours.into()
}

/// Asks the door at `share` from another thread, as virt-handler does.
fn asked<T: Send + 'static, F: Future<Output = T>>(
    share: &Path,
    ask: impl FnOnce(CmdClient<Wire>) -> F + Send + 'static,
) -> JoinHandle<T> {
    let socket = share.join(SOCKETS).join(READY);
    std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let wire = Wire::connect(&socket).await.unwrap();
            ask(CmdClient::with_origin(wire, Wire::origin())).await
        })
    })
}

fn request(json: &str) -> VmiRequest {
    VmiRequest {
        vmi: Some(Vmi {
            vmi_json: json.as_bytes().to_vec(),
        }),
    }
}

#[test]
fn a_vmi_that_will_not_do_is_refused_and_the_next_one_is_waited_for() {
    let share = tempfile::tempdir().unwrap();
    let mut door = Door::open(share.path(), "").unwrap();
    assert!(!share.path().join(SOCKETS).join(UNREADY).exists());
    let handler = asked(share.path(), |mut cmd| async move {
        cmd.ping(EmptyRequest {}).await.unwrap();
        let before = cmd.get_domain(EmptyRequest {}).await.unwrap().into_inner();
        assert!(before.response.unwrap().success && before.domain.is_empty());
        let paused = cmd.pause_virtual_machine(request("{}")).await.unwrap();
        assert_eq!(paused.into_inner().message, "there is no VM yet");
        let unknown = cmd.migrate_virtual_machine(Unread {}).await.unwrap_err();
        assert_eq!(unknown.code(), Code::Unimplemented);
        assert_eq!(
            unknown.message(),
            "MigrateVirtualMachine: a VM stays where it was started"
        );
        let first = r#"{"metadata":{"uid":"first"}}"#;
        let answer = cmd.sync_virtual_machine(request(first)).await.unwrap();
        let answer = answer.into_inner();
        assert_eq!((answer.success, &*answer.message), (false, "no such disk"));
        let second = r#"{"metadata":{"uid":"second"}}"#;
        // It is given, and nobody answers any more.
        let _ = cmd.sync_virtual_machine(request(second)).await;
    });
    let long = Duration::from_secs(60);
    let came = door.wait(no_signals(), long).unwrap();
    assert!(matches!(came, Came::Vmi(vmi) if vmi.ends_with(b"\"first\"}}")));
    assert_eq!(door.uid(), "first");
    door.refuse("no such disk");
    assert!(matches!(
        door.wait(no_signals(), long).unwrap(),
        Came::Vmi(_)
    ));
    assert_eq!(door.uid(), "second");
    drop(door);
    handler.join().unwrap();
}

#[test]
fn waiting_ends_with_a_signal_and_in_time() {
    let share = tempfile::tempdir().unwrap();
    let mut door = Door::open(share.path(), "").unwrap();
    let soon = Duration::from_millis(1);
    assert_eq!(door.wait(no_signals(), soon).unwrap(), Came::Nobody);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(theirs);
    let long = Duration::from_secs(60);
    assert_eq!(door.wait(ours.into(), long).unwrap(), Came::Stop);
}
