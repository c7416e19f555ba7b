//! What the environment asks for.

use std::io;

use hyper::Uri;

use crate::host;

/// Where traces go below an endpoint that is for all signals.
const PATH: &str = "/v1/traces";
/// OTLP's port for HTTP.
const PORT: u16 = 4318;
const PROTOCOL: &str = "http/protobuf";
const SERVICE: &str = "peapod";

/// Why no spans are sent though somebody asked for them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No address.
    #[error(
        "{0}: {1:?} is no http://HOST[:PORT][/PATH], which is all that is spoken; spans are not sent"
    )]
    Endpoint(&'static str, String),
    /// Another protocol.
    #[error("{0}: {1} is not spoken; set it to {PROTOCOL}; spans are not sent")]
    Protocol(&'static str, String),
    /// No headers.
    #[error("{0}: expected NAME=VALUE,...; spans are not sent")]
    Headers(&'static str),
    /// No random numbers.
    #[error("/dev/urandom: {0}; spans are not sent")]
    Random(#[from] io::Error),
}

/// Where spans go, and as what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The collector, with its path.
    pub url: Uri,
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What goes with a request.
    pub headers: Vec<(String, String)>,
    /// `service.name`.
    pub service: String,
    /// The trace that the boot is a part of: its own, or that of who started it.
    pub trace: u128,
    /// The span of theirs that it is below (W3C Trace Context, section 3.2).
    pub parent: Option<u64>,
    /// What the spans' numbers are counted from.
    pub first: u64,
}

impl Asked {
    /// What this process' environment asks for.
    pub fn from_environment() -> Result<Option<Self>, Error> {
        Self::from(&|name| std::env::var(name).ok())
    }

    fn from(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, Error> {
        let set = |name: &'static str| variable(name).filter(|value| !value.is_empty());
        // What is for traces goes before what is for all.
        let first = |names: [&'static str; 2]| names.into_iter().find_map(|n| Some((n, set(n)?)));
        if set("OTEL_SDK_DISABLED").is_some_and(|is| is.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let of_traces = set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let of_all = set("OTEL_EXPORTER_OTLP_ENDPOINT");
        let (name, url) = match (of_traces, of_all) {
            (Some(url), _) => ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url),
            (None, Some(url)) => {
                let url = format!("{}{PATH}", url.trim_end_matches('/'));
                ("OTEL_EXPORTER_OTLP_ENDPOINT", url)
            }
            (None, None) => return Ok(None),
        };
        if let Some((name, protocol)) = first([
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ]) && protocol != PROTOCOL
        {
            return Err(Error::Protocol(name, protocol));
        }
        let wrong = || Error::Endpoint(name, url.clone());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let host = match (uri.scheme_str(), uri.host()) {
            (Some("http"), Some(host)) => host.to_owned(),
            _ => return Err(wrong()),
        };
        let headers = match first([
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
            "OTEL_EXPORTER_OTLP_HEADERS",
        ]) {
            Some((name, text)) => headers(&text).ok_or(Error::Headers(name))?,
            None => Vec::new(),
        };
        let parent = set("TRACEPARENT").as_deref().and_then(parent);
        let own = u128::from_be_bytes(host::random()?);
        Ok(Some(Self {
            port: uri.port_u16().unwrap_or(PORT),
            host,
            url: uri,
            headers,
            service: set("OTEL_SERVICE_NAME").unwrap_or_else(|| SERVICE.to_owned()),
            trace: parent.map_or(own, |(trace, _)| trace),
            parent: parent.map(|(_, span)| span),
            first: u64::from_be_bytes(host::random()?),
        }))
    }
}

fn headers(text: &str) -> Option<Vec<(String, String)>> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        Some((name.trim().to_owned(), value.trim().to_owned()))
    };
    text.split(',').map(pair).collect()
}

/// The trace and the span of `00-TRACE-SPAN-FLAGS`; what is not that is none, as the recommendation has it.
fn parent(text: &str) -> Option<(u128, u64)> {
    let mut parts = text.trim().split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let whole = version == "00" && flags.len() == 2 && parts.next().is_none();
    let span = u64::try_from(number(span, 16)?).ok()?;
    whole.then_some((number(trace, 32)?, span))
}

/// A number of so many digits, which is not zero.
fn number(hex: &str, digits: usize) -> Option<u128> {
    let lower = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let whole = hex.len() == digits && hex.chars().all(lower);
    let number = u128::from_str_radix(hex, 16).ok()?;
    (whole && number != 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(variables: &[(&str, &str)]) -> Result<Option<Asked>, Error> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Asked::from(&variable)
    }

    #[test]
    fn nothing_is_sent_unless_somebody_says_where_to() {
        assert_eq!(asked(&[]).unwrap(), None);
        assert_eq!(asked(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).unwrap(), None);
        let off = ("OTEL_SDK_DISABLED", "true");
        let at = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector");
        assert_eq!(asked(&[off, at]).unwrap(), None);
    }

    #[test]
    fn what_is_for_traces_goes_before_what_is_for_all() {
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector/");
        let found = asked(&[all]).unwrap().unwrap();
        assert_eq!(found.url, "http://collector/v1/traces");
        assert_eq!((&*found.host, found.port), ("collector", 4318));
        assert_eq!((&*found.service, found.parent), ("peapod", None));
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://jaeger:1/x");
        let more = [
            all,
            own,
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=b, c=d=e"),
            ("OTEL_SERVICE_NAME", "details"),
            (
                "TRACEPARENT",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
        ];
        let found = asked(&more).unwrap().unwrap();
        assert_eq!(found.url, "http://jaeger:1/x");
        assert_eq!((&*found.host, found.port), ("jaeger", 1));
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(found.headers, [pair("a", "b"), pair("c", "d=e")]);
        assert_eq!(found.service, "details");
        assert_eq!(found.parent, Some(0xb7ad6b7169203331));
        assert_eq!(found.trace >> 112, 0x0af7);
    }

    #[test]
    fn what_cannot_be_done_is_said_with_its_variable() {
        let at = |url| ("OTEL_EXPORTER_OTLP_ENDPOINT", url);
        for (variables, why) in [
            (vec![at("https://x")], "is no http://"),
            (vec![at("collector:4318")], "is no http://"),
            (
                vec![at("http://x"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
                "OTEL_EXPORTER_OTLP_PROTOCOL: grpc is not spoken",
            ),
            (
                vec![at("http://x"), ("OTEL_EXPORTER_OTLP_HEADERS", "x")],
                "OTEL_EXPORTER_OTLP_HEADERS: expected",
            ),
        ] {
            let said = asked(&variables).unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
        for text in [
            "",
            "00-0-0-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        ] {
            assert_eq!(parent(text), None, "{text}");
        }
    }
}
