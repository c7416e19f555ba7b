//! How the agent is linked: what is to be moved when it starts, packed to a twentieth. A static
//! program does it by its own C library (glibc of 2.36), whatever is in the guest.

fn main() {
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    println!("cargo:rerun-if-changed=build.rs");
}
