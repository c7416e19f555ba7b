use proptest::prelude::*;

use super::*;

fn json(text: &str) -> serde_json::Value {
    read("f", text).unwrap().json()
}

#[test]
fn plain_scalars_mean_what_pyyaml_takes_them_for() {
    let text = "[yes, Off, on, 0644, 0x1f, 0b11, 1_000, 1:30, 08, 1.5, 1e3, 1.0e+3, ~, .5, +7, null, n, 2024-01-01, '1', \"yes\", 1.2.3]";
    let expected = serde_json::json!([
        true,
        false,
        true,
        420,
        31,
        3,
        1000,
        90,
        "08",
        1.5,
        "1e3",
        1000.0,
        null,
        0.5,
        7,
        null,
        "n",
        "2024-01-01",
        "1",
        "yes",
        "1.2.3"
    ]);
    assert_eq!(json(text), expected);
}

#[test]
fn anchors_merge_keys_tags_and_doubled_keys() {
    let text = "base: &b {a: 1, b: 2}\nuse:\n  <<: *b\n  b: 3\n  b: 4\nraw: !!binary aGk=\ntext: !!str 12\n";
    let expected = serde_json::json!({
        "base": {"a": 1, "b": 2}, "use": {"b": 4, "a": 1}, "raw": "hi", "text": "12"
    });
    assert_eq!(json(text), expected);
}

#[test]
fn an_error_says_the_line() {
    for (text, expected) in [
        ("a: 1\nb: [1, 2\n", "f:2:4: "),
        ("a: 1\n---\nb: 2\n", "f:2: a second document"),
        ("a: 1\nb: !!python/object x\n", "f:2: the tag "),
    ] {
        let why = read("f", text).unwrap_err();
        assert!(why.starts_with(expected), "{why}");
    }
    let node = read("f", "a: 1\nb:\n  - c\n  - d\n").unwrap();
    let second = &node.get("b").unwrap().list().unwrap()[1];
    assert_eq!(second.wrong("b[1]", "bad"), "f:4: b[1]: bad");
}

#[test]
fn a_bomb_of_aliases_is_refused() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let before = format!("*a{}, ", level - 1).repeat(10);
        text += &format!("a{level}: &a{level} [{before}]\n");
    }
    assert!(read("f", &text).unwrap_err().contains("too many values"));
    let deep = "[".repeat(1000);
    read("f", &deep).unwrap_err();
}

#[test]
fn what_is_written_reads_the_same() {
    let text = "network:\n  version: 2\n  list: [a, 'yes', '012', 'a: b', '', 1.5, true, null]\n  empty: {}\n";
    let node = read("f", text).unwrap();
    let again = read("f", &write(&node)).unwrap();
    assert_eq!(node.json(), again.json());
}

proptest! {
    #[test]
    fn nothing_panics(text in "[-a:\\[\\]{}&*!|> \n#'\"0-9<]{0,200}") {
        let _ = read("f", &text);
    }
}
