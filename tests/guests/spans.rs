//! A boot's spans, at a collector that reads them by OpenTelemetry's own messages.

use std::net::TcpListener;
use std::process::Command;
use std::sync::mpsc;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use peapod_tests::mesh::Server;
use peapod_tests::{Manifest, Vm, peapod};
use prost::Message;

use super::{BOOT, SOON};

fn length(span: &Span) -> u64 {
    let nanoseconds = span
        .end_time_unix_nano
        .checked_sub(span.start_time_unix_nano);
    nanoseconds.expect("a span ends after it begins")
}

#[test]
fn a_boot_is_a_part_of_the_trace_of_who_asked_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let manifest = Manifest::new("traced", "sleep 1\n").write(directory.path());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://localhost:{}", listener.local_addr().unwrap().port());
    let (sender, requests) = mpsc::channel();
    let keep = async move |headers: HeaderMap, body: Bytes| {
        sender.send((headers, body)).unwrap();
        StatusCode::OK
    };
    let _server = Server::start(listener, Router::new().route("/v1/traces", post(keep)));
    let mut command = Command::new(peapod());
    command
        .arg("run")
        .arg(&manifest)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=books")
        .env(
            "TRACEPARENT",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        );
    let vm = Vm::start(&mut command);
    vm.wait_log("the guest is ready", BOOT);
    let (headers, body) = requests.recv_timeout(SOON).unwrap();
    assert_eq!(headers["x-tenant"], "books");
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let spans = &request.resource_spans[0].scope_spans[0].spans;
    let span = |name: &str| {
        let found = spans.iter().find(|span| span.name == name);
        found.unwrap_or_else(|| panic!("no span {name}: {spans:#?}"))
    };
    let boot = span("boot");
    assert_eq!(boot.trace_id[..2], [0x0a, 0xf7]);
    assert_eq!(boot.parent_span_id[..2], [0xb7, 0xad]);
    let own = boot.attributes.iter().find(|a| a.key == "peapod.vm.name");
    assert!(format!("{own:?}").contains("traced"), "{own:?}");
    // The script slept for a second of it.
    assert!(length(span("user-data")) >= 1_000_000_000);
    for name in ["prepare", "open", "kernel", "user-data"] {
        let part = span(name);
        assert_eq!(part.parent_span_id, boot.span_id, "{name}");
        assert!(length(part) <= length(boot), "{name}");
    }
    assert!(boot.events.iter().any(|event| event.name == "root"));
}

#[test]
fn a_collector_that_is_not_there_costs_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let manifest = Manifest::new("lost", "").write(directory.path());
    let mut command = Command::new(peapod());
    command.arg("run").arg(&manifest);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9");
    let vm = Vm::start(&mut command);
    vm.wait_log(
        "the boot's spans did not reach http://127.0.0.1:9/v1/traces",
        BOOT,
    );
}
