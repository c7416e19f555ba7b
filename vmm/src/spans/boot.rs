//! A boot, from the process' start to the end of the guest's set-up, in OTLP's messages.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

use super::asked::Asked;
use crate::agent::timeline::Timeline;
use crate::running::Running;

/// When this process came how far.
#[derive(Debug, Clone)]
pub struct Times {
    /// It looked at its manifest.
    pub begun: SystemTime,
    /// All was found, and it opened devices, sockets and KVM.
    pub launched: SystemTime,
    /// Its vCPUs began to run.
    pub entered: OnceLock<SystemTime>,
}

/// A piece of the boot; the first is all of it.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    name: String,
    start: SystemTime,
    end: SystemTime,
    failure: Option<String>,
}

/// What is sent of a boot that is over.
pub fn request(asked: &Asked, running: &Running) -> ExportTraceServiceRequest {
    let timeline = running.agent.timeline();
    let (pieces, moments) = pieces(&running.times, &timeline, SystemTime::now());
    let attributes = vec![
        text("peapod.vm.name", &running.name),
        text("peapod.vm.namespace", &running.namespace),
        text("peapod.vm.uuid", &running.uuid),
        text("peapod.vm.boots", &running.boots),
        number("peapod.vm.vcpus", running.vcpus.into()),
        number("peapod.vm.memory", running.memory),
    ];
    message(asked, pieces, moments, attributes)
}

fn pieces(
    times: &Times,
    timeline: &Timeline,
    now: SystemTime,
) -> (Vec<Piece>, Vec<(String, SystemTime)>) {
    let piece = |name: &str, start: SystemTime, end: SystemTime| Piece {
        name: name.to_owned(),
        start,
        // Clocks are set, and a guest says what it likes.
        end: end.max(start),
        failure: None,
    };
    let ready = timeline.ready_at().unwrap_or(now);
    let mut pieces = vec![
        piece("boot", times.begun, ready),
        piece("prepare", times.begun, times.launched),
    ];
    let mut moments = Vec::new();
    if let Some(entered) = times.entered.get().copied() {
        pieces.push(piece("open", times.launched, entered));
        if let Some(word) = timeline.first_word {
            pieces.push(piece("kernel", entered, word));
        }
    }
    for span in timeline.spans() {
        match (span.start, span.failure) {
            (None, None) => moments.push((span.name, span.end)),
            (start, failure) => pieces.push(Piece {
                failure,
                ..piece(&span.name, start.unwrap_or(span.end), span.end)
            }),
        }
    }
    (pieces, moments)
}

fn message(
    asked: &Asked,
    pieces: Vec<Piece>,
    moments: Vec<(String, SystemTime)>,
    attributes: Vec<KeyValue>,
) -> ExportTraceServiceRequest {
    // Zero is no number.
    let id = |index: u64| {
        asked
            .first
            .wrapping_add(index)
            .max(1)
            .to_be_bytes()
            .to_vec()
    };
    let mut spans: Vec<Span> = (0..)
        .zip(pieces)
        .map(|(index, piece)| Span {
            trace_id: asked.trace.to_be_bytes().to_vec(),
            span_id: id(index),
            parent_span_id: match index {
                0 => asked
                    .parent
                    .map_or(Vec::new(), |span| span.to_be_bytes().to_vec()),
                _ => id(0),
            },
            name: piece.name,
            kind: SpanKind::Internal.into(),
            start_time_unix_nano: nanoseconds(piece.start),
            end_time_unix_nano: nanoseconds(piece.end),
            status: piece.failure.map(|message| Status {
                message,
                code: StatusCode::Error.into(),
            }),
            ..Span::default()
        })
        .collect();
    if let Some(boot) = spans.first_mut() {
        boot.attributes = attributes;
        boot.events = moments
            .into_iter()
            .map(|(name, at)| Event {
                name,
                time_unix_nano: nanoseconds(at),
                ..Event::default()
            })
            .collect();
    }
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![text("service.name", &asked.service)],
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: "peapod".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    ..InstrumentationScope::default()
                }),
                spans,
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: u64) -> KeyValue {
    attribute(key, Value::IntValue(value.try_into().unwrap_or(i64::MAX)))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn nanoseconds(at: SystemTime) -> u64 {
    let since: Duration = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_is_below_the_boot_and_that_below_who_asked_for_it() {
        let at = |ms| UNIX_EPOCH + Duration::from_millis(ms);
        let times = Times {
            begun: at(10),
            launched: at(12),
            entered: OnceLock::from(at(15)),
        };
        let (pieces, moments) = pieces(&times, &Timeline::default(), at(9));
        let found: Vec<_> = pieces.iter().map(|p| (&*p.name, p.start, p.end)).collect();
        // The clock was set back.
        let expected = [
            ("boot", at(10), at(10)),
            ("prepare", at(10), at(12)),
            ("open", at(12), at(15)),
        ];
        assert_eq!((found, moments.len()), (expected.to_vec(), 0));
        let mut asked = Asked {
            url: "http://x/v1/traces".parse().unwrap(),
            host: "x".to_owned(),
            port: 4318,
            headers: Vec::new(),
            service: "peapod".to_owned(),
            trace: u128::MAX,
            parent: None,
            first: u64::MAX,
        };
        let spans = |asked: &Asked| {
            let pieces = pieces_of(&times);
            let mut message = message(asked, pieces, Vec::new(), Vec::new());
            std::mem::take(&mut message.resource_spans[0].scope_spans[0].spans)
        };
        let own = spans(&asked);
        assert_eq!(own[0].trace_id, [0xff; 16]);
        assert_eq!(own[0].parent_span_id, [0; 0]);
        assert_eq!(own[1].parent_span_id, own[0].span_id);
        assert_ne!(own[1].span_id, [0; 8]);
        asked.trace = u128::from_be_bytes([1; 16]);
        asked.parent = Some(u64::from_be_bytes([2; 8]));
        let below = spans(&asked);
        assert_eq!(
            (&*below[2].trace_id, &*below[0].parent_span_id),
            (&[1; 16][..], &[2; 8][..])
        );
        assert_eq!(below[2].start_time_unix_nano, 12_000_000);
    }

    fn pieces_of(times: &Times) -> Vec<Piece> {
        pieces(times, &Timeline::default(), UNIX_EPOCH).0
    }
}
