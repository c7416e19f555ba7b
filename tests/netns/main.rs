//! Tests of `peapod-net --netns`, of which the Linux kernel of a network namespace is the guest.
//! They run on this host, as root, and leave nothing behind. Those whose guest's side is a program run with
//! VMs too, where KVM works and `PEAPOD_GUEST` says so.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod addresses;
mod bound;
mod content;
mod datagrams;
mod ends;
mod forwards;
mod machine;
mod programs;
mod refused;
mod site;
mod soak;
mod sockets;
mod streams;
mod trouble;

use std::process::ExitCode;

use libtest_mimic::Trial;
use machine::Kind;
use peapod_tests::{harness, trials};

/// With VMs, what `make test` has time for.
const QUICK: [&str; 2] = [
    "programs::curl_gets_by_http_1_1_and_2_and_in_ranges",
    "ends::each_side_may_end_and_go_on_listening",
];

fn trials() -> Vec<Trial> {
    let with_vms = trials! {
        programs:
            iperf3_measures_each_way
            curl_gets_by_http_1_1_and_2_and_in_ranges
            wrk_gets_no_error_from_many_connections
            apt_updates_and_installs
            ssh_runs_commands_and_carries_streams
            git_clones_by_ssh_and_by_http
            a_websocket_carries_messages
            a_postgres_session_keeps_what_it_is_told
            dig_asks_by_udp_and_by_tcp
            ping_is_answered_by_who_is_asked_or_by_nobody,
        ends:
            much_arrives_whole_each_way_by_each_family
            both_ways_at_once_arrive_whole
            a_thousand_connections_at_once_keep_their_bytes_apart
            each_side_may_end_and_go_on_listening
            a_reset_reaches_the_other_side
            a_dead_port_refuses_the_guest_at_once
            a_pod_with_ipv6_only_carries_that_and_refuses_the_other_at_once
            a_narrow_path_carries_connections
            a_slow_reader_makes_nobody_send_again
            a_reader_that_stops_stops_no_other_flow,
    };
    if Kind::asked() != Kind::Namespace {
        return harness::slow_but(&QUICK, with_vms);
    }
    let mut trials = trials! {
        addresses:
            a_guest_that_asks_by_dhcp_has_what_it_needs
            a_guest_with_the_kernel_s_ipv6_and_a_client_of_dhcpv6_has_what_it_needs,
        streams:
            a_gibibyte_each_way_arrives_whole_by_ipv4
            a_gibibyte_each_way_arrives_whole_by_ipv6
            a_gibibyte_each_way_arrives_whole_by_ipv4_in_long_packets
            a_gibibyte_each_way_arrives_whole_by_ipv6_in_long_packets
            both_ways_at_once_arrive_whole
            a_thousand_connections_at_once_keep_their_bytes_apart
            each_side_may_end_and_go_on_listening
            a_reset_reaches_the_other_side
            a_slow_reader_makes_nobody_send_again
            a_reader_that_stops_stops_no_other_flow,
        refused:
            a_dead_port_refuses_the_guest_at_once
            what_is_unreachable_is_so_for_the_guest_as_for_the_pod
            a_pod_of_one_family_gives_its_guest_that_one_and_a_clear_no
            the_pod_s_loopback_and_metadata_are_closed
            a_guest_that_sends_from_another_address_gets_no_answer,
        forwards:
            a_port_is_open_only_while_the_guest_s_is
            a_port_of_one_address_or_family_is_open_there_only
            an_eager_port_is_open_and_resets_who_calls_in_vain
            two_guests_talk_to_each_other
            a_guest_reaches_itself_by_its_pod_s_address
            datagrams_come_by_a_forwarded_port_and_their_answers_go_back,
        datagrams:
            datagrams_of_every_size_come_back
            long_datagrams_come_back_where_every_mtu_is_as_long
            a_datagram_longer_than_the_mtu_reaches_the_guest_and_the_guest_s_own_is_an_error
            a_burst_arrives_in_its_order
            datagrams_that_the_card_has_to_cut_arrive_cut
            many_flows_of_datagrams_at_once_are_kept_apart
            the_guest_s_port_is_the_pod_s_towards_everybody
            a_datagram_that_is_too_long_for_the_path_is_an_error_of_the_next,
        trouble:
            a_connection_outlives_the_pod_s_link
            a_connection_outlives_the_guest_s_link
            a_guest_whose_network_ends_resets_its_peers
            a_narrow_path_carries_connections
            descriptors_that_run_out_refuse_what_is_new_until_some_are_free
            flows_at_their_limit_refuse_what_is_new_until_some_have_ended
            connections_that_nobody_reads_take_bounded_memory_and_lose_nothing
            a_pod_with_the_memory_that_its_limits_want_is_never_killed,
        soak:
            connections_one_after_another_leave_nothing_behind
            connections_that_end_in_any_way_lose_nothing_before
            streams_between_slow_ends_on_a_starved_core_never_stall
            peers_that_vanish_are_forgotten
            a_guest_that_vanishes_is_forgotten,
    };
    trials.extend(with_vms);
    trials
}

fn main() -> ExitCode {
    let status = harness::run("netns", trials());
    machine::end();
    status
}
