//! What a script will be started from, read by the kernel before it is asked for: a guest's first shell
//! otherwise waits for its disk as many times as it has pages that are not there.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Advice, Mode, OFlags, fadvise, open};

/// What runs those items that are no lists.
const SHELL: &str = "/bin/sh";
/// What nearly every program is loaded by and with; a root has some of them.
const COMMON: [&str; 3] = [
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib64/libc.so.6",
];

/// Has the kernel read what a script names as its interpreter.
pub fn script(text: &[u8]) {
    let Some(line) = text.strip_prefix(b"#!") else {
        return;
    };
    let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    if let Some(program) = words.next() {
        read(Path::new(OsStr::from_bytes(program)));
    }
}

/// Has the kernel read the shell.
pub fn shell() {
    read(Path::new(SHELL));
}

fn read(program: &Path) {
    for path in [program].into_iter().chain(COMMON.map(Path::new)) {
        // One that is not there, or no file, is not read: nothing is lost but time.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        if let Ok(file) = open(path, flags, Mode::empty()) {
            let _ = fadvise(&file, 0, None, Advice::WillNeed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_script_s_first_line_is_nobody_waits() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RWXU).unwrap();
        let of_fifo = format!("#! {} -x", fifo.display());
        for text in [
            "",
            "#!",
            "#!\n/bin/sh",
            "#! /bin/sh -e\ntrue",
            "#!/\0",
            &of_fifo,
        ] {
            script(text.as_bytes());
        }
        shell();
    }
}
