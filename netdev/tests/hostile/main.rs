//! A hostile guest: whatever it sends, the network does not panic, keeps to its limits, and still
//! answers afterwards.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod drive;
mod floods;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, max_shrink_iters: 10, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_guest_does_the_network_outlives_it(
        bytes in prop::collection::vec(any::<u8>(), 0..6000),
    ) {
        drive::drive(&bytes);
    }
}
