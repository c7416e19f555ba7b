//! Each test that is confined runs again as a process of its own: what it does to that process
//! cannot be undone.

use std::process::{Command, Output};

use super::*;

const AGAIN: &str = "PEAPOD_TEST_SANDBOX";

/// Runs `test` of this file in a process of its own, which finds `word` in the environment.
fn again(test: &str, word: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", &format!("sandbox::tests::{test}")])
        .env(AGAIN, word)
        .output()
        .unwrap()
}

/// The same where nothing may go wrong in there.
fn again_well(test: &str, word: &str) {
    let output = again(test, word);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

fn word() -> Option<String> {
    std::env::var(AGAIN).ok()
}

fn call(number: i64) -> i64 {
    // SAFETY: every argument is nothing, which every call that is made here refuses.
    unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) }
}

/// One that somebody who has got hold of the thread would want, and that some other thread has.
fn wanted(kind: Kind) -> &'static [(i64, &'static str)] {
    const EXEC: (i64, &str) = (libc::SYS_execve, "execve");
    const OPEN: (i64, &str) = (libc::SYS_openat, "openat");
    const SOCKET: (i64, &str) = (libc::SYS_socket, "socket");
    const CLONE: (i64, &str) = (libc::SYS_clone, "clone");
    match kind {
        Kind::Vcpu | Kind::Block | Kind::Rng | Kind::Balloon | Kind::Console | Kind::Watchdog => {
            &[EXEC, OPEN, SOCKET, CLONE]
        }
        Kind::Vsock | Kind::Agent | Kind::Signals => &[EXEC, OPEN, CLONE, SOCKET],
        Kind::Net => &[EXEC, CLONE],
        Kind::Api => &[EXEC, (libc::SYS_ptrace, "ptrace")],
    }
}

#[test]
fn a_call_that_a_thread_has_no_need_of_ends_the_process_with_a_line_that_names_both() {
    let Some(word) = word() else {
        for kind in Kind::ALL {
            for (number, name) in wanted(kind) {
                let test = "a_call_that_a_thread_has_no_need_of_ends_the_process_with_a_line_that_names_both";
                let output = again(test, &format!("{} {number}", kind.name()));
                let said = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.status.code(), Some(6), "{kind:?} {name}: {said}");
                let line = format!(
                    "peapod: sandbox: the thread {} wanted to make a system call that is not its \
                     to make: {name}; nothing was done",
                    kind.name()
                );
                assert!(said.contains(&line), "{said}");
            }
        }
        return;
    };
    let (name, number) = word.split_once(' ').unwrap();
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| kind.name() == name)
        .unwrap();
    let number = number.parse().unwrap();
    enter(&Files::default()).unwrap();
    spawn(kind, move || call(number)).unwrap().join().unwrap();
}

#[test]
fn a_thread_works_and_starts_others_by_the_one_that_may() {
    let Some(_) = word() else {
        return again_well("a_thread_works_and_starts_others_by_the_one_that_may", "go");
    };
    enter(&Files::default()).unwrap();
    let sum = spawn_named(Kind::Vcpu, "vcpu0", || {
        let inner = spawn(Kind::Rng, || {
            let mut bytes = vec![0u8; 1 << 20];
            // SAFETY: the buffer is as long as it is said to be.
            unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), 256, 0) };
            bytes.len()
        });
        inner.unwrap().join().unwrap()
    });
    assert_eq!(sum.unwrap().join().unwrap(), 1 << 20);
}

#[test]
fn a_thread_that_gives_memory_back_opens_nothing() {
    let Some(_) = word() else {
        return again_well("a_thread_that_gives_memory_back_opens_nothing", "go");
    };
    enter(&Files::default()).unwrap();
    let given = spawn(Kind::Vsock, give_memory_back);
    given.unwrap().join().unwrap();
}

#[test]
fn the_thread_of_a_disk_may_enter_a_ring() {
    let Some(_) = word() else {
        return again_well("the_thread_of_a_disk_may_enter_a_ring", "go");
    };
    enter(&Files::default()).unwrap();
    // There is none to enter.
    let entered = spawn(Kind::Block, || call(libc::SYS_io_uring_enter));
    assert_eq!(entered.unwrap().join().unwrap(), -1);
}

#[test]
fn only_the_files_that_were_named_can_be_opened() {
    let Some(word) = word() else {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("state")).unwrap();
        std::fs::write(directory.path().join("other"), "other").unwrap();
        let path = directory.path().to_str().unwrap();
        return again_well("only_the_files_that_were_named_can_be_opened", path);
    };
    let directory = std::path::PathBuf::from(word);
    let (other, state) = (directory.join("other"), directory.join("state"));
    let files = Files {
        write: vec![state.clone()],
        tidied: Some(directory.clone()),
    };
    if enter(&files).unwrap() == Strength::NoLandlock {
        println!("this kernel has no Landlock");
        return;
    }
    std::fs::read_to_string("/etc/resolv.conf").unwrap();
    std::fs::write(state.join("new"), "new").unwrap();
    std::fs::remove_file(state.join("new")).unwrap();
    let denied = |result: io::Result<()>| {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    };
    denied(std::fs::read(&other).map(drop));
    denied(std::fs::write(&other, "worse"));
    denied(std::fs::write(directory.join("new"), "new"));
    std::fs::remove_dir(state).unwrap();
}
