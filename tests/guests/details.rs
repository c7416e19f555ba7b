//! The main job: the details service answers on its pod's port.

use std::process::Command;

use super::shared;

/// Status and body of a GET, by curl, tried until the server is there.
fn get(path: &str) -> (String, String) {
    shared::run("true");
    let output = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--retry",
            "60",
            "--retry-all-errors",
        ])
        .args([
            "--retry-delay",
            "1",
            "--max-time",
            "120",
            "--write-out",
            "\n%{http_code}",
        ])
        .arg(format!("http://127.0.0.1:9080{path}"))
        .output()
        .expect("curl");
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

#[test]
fn a_book_s_details_are_answered_as_bookinfo_does() {
    let (status, body) = get("/details/0");
    assert_eq!(status, "200");
    assert_eq!(
        body,
        r#"{"id":0,"author":"William Shakespeare","year":1595,"type":"paperback","pages":200,"publisher":"PublisherA","language":"English","ISBN-10":"1234567890","ISBN-13":"123-1234567890"}"#
    );
}

#[test]
fn ids_are_ruby_integers_and_anything_else_is_refused() {
    let (status, body) = get("/details/0x10");
    assert_eq!(status, "200");
    assert!(body.starts_with(r#"{"id":16,"#), "{body}");
    let (status, body) = get("/details/moby");
    assert_eq!(
        (&*status, &*body),
        ("400", r#"{"error":"please provide numeric product id"}"#)
    );
}

#[test]
fn health_is_answered_and_other_paths_are_not_found() {
    assert_eq!(
        get("/health"),
        (
            "200".to_owned(),
            r#"{"status":"Details is healthy"}"#.to_owned()
        )
    );
    assert_eq!(get("/nothing").0, "404");
}
