//! TLS for https, by rustls: whom the root that the guest runs trusts, the agent trusts.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use ureq::Error;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// Where distributions keep the authorities that they trust, in one file: the first that is there
/// counts. Debian, Ubuntu, Alpine and Arch; Fedora and its kin, old and new; SUSE; others.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Beyond what any of them has.
const MOST: u64 = 8 << 20;

/// What a client of this root goes by: read anew each time, for ca_certs changes it.
pub fn config() -> TlsConfig {
    TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(authorities())))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

/// This root's file of authorities, and where it is.
fn bundle() -> Option<(&'static str, File)> {
    BUNDLES
        .into_iter()
        .find_map(|path| Some((path, File::open(path).ok()?)))
}

fn authorities() -> Vec<Certificate<'static>> {
    let Some((_, file)) = bundle() else {
        return Vec::new();
    };
    let mut text = Vec::new();
    // What could be read of it counts.
    let _ = file.take(MOST).read_to_end(&mut text);
    parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect()
}

/// What to do where a server's certificate is not believed, which no second try changes.
pub fn distrusted(error: &Error) -> Option<String> {
    let Error::Rustls(rustls::Error::InvalidCertificate(why)) = error else {
        return None;
    };
    Some(match why {
        rustls::CertificateError::UnknownIssuer => format!(
            "the server's certificate is by nobody whom this root trusts ({}): install \
             ca-certificates, or name its authority in ca_certs",
            bundle().map_or("it has no file of authorities", |(path, _)| path)
        ),
        _ => format!("the server's certificate is not valid: {why}"),
    })
}
