//! Rust of the .proto files, without a protoc: protox reads them.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/cmd.proto",
        "proto/cmd_info.proto",
        "proto/notify.proto",
        "proto/notify_info.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    // Whoever connects brings the connection.
    tonic_prost_build::configure()
        .build_transport(false)
        // A call that a server leaves out is refused by its name.
        .generate_default_stubs(true)
        .compile_fds(descriptors)?;
    Ok(())
}
