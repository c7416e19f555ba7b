//! How the agent is linked: what is to be moved when it starts, packed to a twentieth (a static
//! program does it by its own C library, glibc of 2.36, whatever is in the guest), and without what
//! need not be there, so that there is room for TLS.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=unwind.ld");
    let link = |argument| println!("cargo:rustc-link-arg-bins=-Wl,{argument}");
    link("-z,pack-relative-relocs");
    // Where it is made small (Cargo.toml's profile), a panic aborts: nobody unwinds.
    if env::var("OPT_LEVEL").as_deref() == Ok("z") {
        link("--icf=all");
        link("--no-eh-frame-hdr");
        link(concat!("-T", env!("CARGO_MANIFEST_DIR"), "/unwind.ld"));
    }
}
