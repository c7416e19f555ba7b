use std::io::Write;

use proptest::prelude::*;

use super::*;

fn none(address: &str, _: bool) -> Result<Vec<u8>, String> {
    match address {
        "http://one/" => Ok(b"#!/bin/sh\n1".to_vec()),
        "http://again/" => Ok(b"#include\nhttp://again/\n".to_vec()),
        _ => Err("no".to_owned()),
    }
}

fn kinds(data: &[u8]) -> (Vec<(Kind, String)>, Vec<String>) {
    let mut errors = Vec::new();
    let parts = unpack("user-data", data, &none, &mut errors);
    let parts = parts.into_iter().map(|part| (part.kind, part.name));
    (parts.collect(), errors)
}

fn zipped(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_part_is_what_it_begins_with() {
    for (data, kind) in [
        ("\n\n#!/bin/sh", Kind::Script),
        ("#Cloud-Config\n", Kind::Config),
        ("#cloud-config-archive\n- x", Kind::Config),
        ("#cloud-boothook\n#!/bin/sh", Kind::Boothook),
        ("## template: jinja\n#cloud-config", Kind::Jinja),
        ("#part-handler\n", Kind::PartHandler),
        ("hello", Kind::Other("text/x-not-multipart".to_owned())),
    ] {
        let one = vec![(kind.clone(), "part-001".to_owned())];
        assert_eq!(kinds(data.as_bytes()).0, one, "{data}");
        assert_eq!(kinds(&zipped(data.as_bytes())).0, one, "{data}");
    }
}

#[test]
fn a_multipart_message_is_its_parts() {
    let text = "Content-Type: multipart/mixed; boundary=\"=b\"\nMIME-Version: 1.0\n\n\
        --=b\nContent-Type: text/cloud-config\nMerge-Type: list(append)+dict()\n\n#cloud-config\na: 1\n\
        --=b\nContent-Type: text/x-shellscript; charset=\"utf-8\"\nContent-Transfer-Encoding: base64\n\
        Content-Disposition: attachment; filename=\"x.sh\"\n\nIyEvYmluL3NoCmVjaG8gaGkK\n\
        --=b\nContent-Type: text/plain\n\n#include\nhttp://one/\nhttp://two/\n--=b--\n";
    let mut errors = Vec::new();
    let parts = unpack("user-data", text.as_bytes(), &none, &mut errors);
    assert_eq!(parts.len(), 3, "{parts:?}");
    assert_eq!(parts[0].merge.as_deref(), Some("list(append)+dict()"));
    assert_eq!((&parts[1].kind, &*parts[1].name), (&Kind::Script, "x.sh"));
    assert_eq!(parts[1].content, b"#!/bin/sh\necho hi\n");
    assert_eq!(parts[1].place, "user-data/x.sh");
    assert_eq!(parts[2].content, b"#!/bin/sh\n1");
    assert_eq!(errors, ["user-data: #include http://two/: no"]);
}

#[test]
fn an_include_of_itself_ends() {
    let (parts, errors) = kinds(b"#include http://again/");
    assert!(parts.is_empty());
    assert_eq!(errors, ["user-data: includes lie too deep in one another"]);
}

#[test]
fn a_bomb_of_gzip_is_refused() {
    let bomb = zipped(&vec![0; (MAX_UNPACKED + 1) as usize]);
    let (parts, errors) = kinds(&bomb);
    assert!(parts.is_empty());
    assert!(errors[0].contains("bytes when unpacked"), "{errors:?}");
}

proptest! {
    #[test]
    fn nothing_panics(text in "(MIME-Version: 1\\.0\n)?(Content-Type: multipart/mixed; boundary=b\n)?[-b\n:;=/a-z \"]{0,200}") {
        kinds(text.as_bytes());
    }
}
