//! Programs and files of a guest by its agent, as a person at the host's shell has them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use peapod_tests::peapod;

use super::shared;

/// The status of a program whose guest went amid it.
const GONE: i32 = 125;
/// The VM that tests share, by its name.
const VM: &str = "shared";

/// What comes of `peapod` with these words and this input.
fn run(words: &[&str], input: &[u8]) -> Output {
    let output = shared::peapod(words, input).wait_with_output().unwrap();
    if output.status.code() == Some(GONE) {
        // Whether it is the VM itself shows in a moment.
        std::thread::sleep(std::time::Duration::from_secs(2));
        let _ = shared::vm();
    }
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_program_of_the_guest_has_its_streams_its_place_and_its_status() {
    let script = "echo $GREETING from $(pwd); cat; echo oh >&2; exit 3";
    let words = [
        "exec",
        "-i",
        "-e",
        "GREETING=hello",
        "-w",
        "/etc",
        VM,
        "--",
        "sh",
        "-c",
        script,
    ];
    let output = run(&words, b"typed");
    assert_eq!(text(&output.stdout), "hello from /etc\ntyped");
    assert_eq!(text(&output.stderr), "oh\n");
    assert_eq!(output.status.code(), Some(3));
    let killed = run(&["exec", VM, "sh", "-c", "kill -9 $$"], b"");
    assert_eq!(killed.status.code(), Some(137));
    // Nobody's input without -i, so this ends.
    let unread = run(&["exec", VM, "cat"], b"typed");
    assert_eq!((unread.status.code(), &*unread.stdout), (Some(0), &b""[..]));
}

#[test]
fn a_program_that_is_not_there_and_a_vm_that_is_not_are_told_of() {
    let output = run(&["exec", VM, "no-such-program"], b"");
    assert_eq!(output.status.code(), Some(125));
    let said = text(&output.stderr);
    assert!(said.contains("no-such-program: No such file"), "{said}");
    let output = run(&["exec", "no-such-vm", "true"], b"");
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("no-such-vm"));
}

#[test]
fn a_program_on_a_terminal_has_one_of_the_same_size() {
    shared::vm().wait_log("the guest is ready", super::BOOT);
    let peapod = peapod();
    let command = format!(
        "stty rows 7 columns 33; {} exec -it {VM} -- sh -c 'tty; stty size; exit 4'",
        peapod.display()
    );
    let output = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = text(&output.stdout);
    assert!(said.contains("/dev/pts/"), "{said}");
    assert!(said.contains("7 33"), "{said}");
    assert_eq!(output.status.code(), Some(4), "{said}");
    let none = run(&["exec", "-it", VM, "sh"], b"");
    assert_eq!(none.status.code(), Some(125));
    assert!(text(&none.stderr).contains("no terminal"));
}

#[test]
fn what_goes_through_a_program_of_the_guest_comes_back_whole() {
    let bytes: Vec<u8> = (0..8_000_000u32)
        .map(|n| (n.wrapping_mul(n) >> 7) as u8)
        .collect();
    let output = run(&["exec", "-i", VM, "cat"], &bytes);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
}

#[test]
fn a_file_goes_into_the_guest_and_out_of_it_with_its_mode() {
    let directory = tempfile::tempdir().unwrap();
    let here = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::write(here("file"), "content").unwrap();
    fs::set_permissions(here("file"), fs::Permissions::from_mode(0o640)).unwrap();
    let there = format!("{VM}:/root/copied");
    let copy = |from: &str, to: &str| {
        let output = run(&["cp", from, to], b"piped");
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let done = (Some(0), String::new(), String::new());
    assert_eq!(copy(&here("file"), &there), done);
    let back = here("back");
    assert_eq!(copy(&there, &back), done);
    let mode = fs::metadata(&back).unwrap().permissions().mode() & 0o777;
    assert_eq!((&*fs::read(&back).unwrap(), mode), (&b"content"[..], 0o640));
    // By its own name into a directory of either side, and by the streams.
    assert_eq!(copy(&there, &here("")), done);
    assert_eq!(fs::read(here("copied")).unwrap(), b"content");
    assert_eq!(copy(&here("file"), &format!("{VM}:/root/")), done);
    assert_eq!(copy("-", &format!("{VM}:/root/file")), done);
    let (_, out, _) = copy(&format!("{VM}:/root/file"), "-");
    assert_eq!(out, "piped");

    let (status, _, said) = copy(&format!("{VM}:/no/such"), &here("none"));
    assert_eq!(status, Some(1));
    assert!(said.contains("/no/such: No such file"), "{said}");
    let (status, _, said) = copy(&here(""), &there);
    assert_eq!(status, Some(1));
    assert!(said.contains("tar -c"), "{said}");
    assert_eq!(copy("a", "b").0, Some(2));
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 3, "{left:?}");
}
