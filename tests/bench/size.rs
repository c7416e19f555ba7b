//! `ci/bench size`: the compute container's image beside what Debian would download for QEMU under
//! libvirt, on which KubeVirt's virt-launcher is built too.

#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::path::Path;

use peapod_tests::bench::{Record, report};

const MIB: f64 = 1048576.0;

fn main() {
    let mut words = std::env::args().skip(1);
    let (image, peer) = (words.next(), words.next());
    let image = image.expect("usage: bench-size IMAGE PEER'S_BYTES");
    let ours = std::fs::metadata(&image).expect("the image").len();
    let peer: f64 = peer.and_then(|p| p.parse().ok()).expect("the peer's bytes");
    let directory = std::env::var_os("PEAPOD_BENCH").expect("PEAPOD_BENCH is not set");
    let record = Record::new(
        "compute container, as it is pulled",
        "MiB",
        &[ours as f64 / MIB],
        ("Debian's QEMU and libvirt, packed", &[peer / MIB]),
        None,
    );
    report(Path::new(&directory), "size", &[record]).unwrap();
}
