//! Tests of a guest's network in a service mesh: pods and guests are network namespaces, the
//! proxies are Envoy, the rules are the meshes' own. They run on this host, as root, and leave
//! nothing behind.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod bookinfo;
mod faults;
mod others;
mod pod;
mod safety;
mod seed;
mod sidecar;
mod site;
mod traffic;

use std::process::ExitCode;

use libtest_mimic::Trial;
use peapod_tests::mesh::bookinfo::{SERVICE, serve};
use peapod_tests::mesh::is_vm;
use peapod_tests::{harness, trials};

/// With a VM as the guest: the rest is `make test-all`'s.
const QUICK: [&str; 4] = [
    "pod::what_is_printed_is_ready_three_of_three_with_the_injected_sidecar",
    "sidecar::the_guest_calls_a_service_by_each_of_its_names_through_the_sidecar",
    "bookinfo::what_the_guest_says_comes_out_at_the_gateway_and_in_one_trace",
    "seed::what_is_outside_the_ranges_is_installed_and_cloned_directly",
];

fn trials() -> Vec<Trial> {
    let mut trials = trials! {
        sidecar:
            a_port_of_a_service_comes_in_through_the_sidecar
            a_port_of_no_service_comes_in_through_the_sidecar_too
            an_excluded_port_comes_in_directly
            what_is_the_pod_s_own_comes_from_the_gateway
            kubelet_s_probes_are_answered_by_the_guest
            the_guest_calls_a_service_by_each_of_its_names_through_the_sidecar
            what_is_outside_the_ranges_goes_directly
            what_is_in_no_service_goes_through_the_sidecar_where_all_does
            an_excluded_port_goes_directly
            the_guest_reaches_itself_by_its_service
            what_the_registry_lacks_is_refused_at_once
            names_are_looked_up_at_the_sidecar
            by_tproxy_the_guest_sees_its_client_s_own_address,
        faults:
            a_guest_may_come_before_its_sidecar_or_after_it
            a_sidecar_that_restarts_amid_traffic_leaves_nothing_behind
            a_network_that_is_killed_leaves_no_port_open_and_comes_back
            no_request_is_lost_while_the_guest_s_service_is_replaced
            a_request_is_lost_only_where_each_time_that_it_is_tried_is_cut_off
            while_the_guest_or_its_service_is_away_each_request_is_answered_at_once
            a_pod_whose_address_goes_and_comes_back_goes_on,
        safety:
            no_spelling_of_an_address_leads_to_the_pod_s_loopback_or_the_node_s_metadata,
        others:
            in_ambient_mode_the_guest_is_called_and_calls_through_ztunnel_s_sockets
            by_a_tunnel_between_ztunnels_the_guest_sees_its_client_s_own_address
            beside_linkerd_s_proxy_the_guest_is_called_and_calls,
        bookinfo:
            what_the_guest_says_comes_out_at_the_gateway_and_in_one_trace,
    };
    if is_vm() {
        // Which have a disk and a script.
        trials.extend(trials! {
            pod:
                what_is_printed_is_ready_three_of_three_with_the_injected_sidecar,
            seed:
                what_is_outside_the_ranges_is_installed_and_cloned_directly
                where_all_goes_through_the_sidecar_it_is_installed_and_cloned_too,
        });
        // Each boots a VM and its proxies in the lab.
        trials = harness::slow_but(&QUICK, trials);
    }
    trials
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(SERVICE) {
        serve(&words.next().unwrap_or_default());
    }
    harness::run("mesh", trials())
}
