//! Answers as people read them.

use serde_json::Value;

use super::Request;

/// The answer for people.
pub fn show(request: &Request, answer: &Value) -> String {
    let list = |name: &str| match answer.get(name) {
        Some(Value::Array(list)) => list.clone(),
        _ => Vec::new(),
    };
    match request {
        Request::Forwards => table(
            &list("forwards"),
            &[
                ("TRANSPORT", "transport"),
                ("BIND", "bind"),
                ("GUEST PORT", "guest_port"),
                ("LISTENS", "listens"),
                ("CONNECTIONS", "connections"),
                ("REFUSED", "refused"),
                ("BYTES IN", "bytes_in"),
                ("BYTES OUT", "bytes_out"),
            ],
        ),
        Request::Add { .. } | Request::Remove { .. } => table(
            &list("forwards"),
            &[
                ("TRANSPORT", "transport"),
                ("BIND", "bind"),
                ("GUEST PORT", "guest_port"),
            ],
        ),
        Request::Flows { .. } => {
            let flows = list("flows");
            let table = table(
                &flows,
                &[
                    ("TRANSPORT", "transport"),
                    ("GUEST PORT", "guest_port"),
                    ("REMOTE", "remote"),
                    ("FORWARDED", "forwarded"),
                    ("STATE", "state"),
                    ("AGE", "age_seconds"),
                    ("BYTES IN", "bytes_in"),
                    ("BYTES OUT", "bytes_out"),
                ],
            );
            let total = answer.get("total").and_then(Value::as_u64).unwrap_or(0);
            let shown = flows.len() as u64;
            if shown < total {
                format!("{table}{shown} of {total} flows\n")
            } else {
                table
            }
        }
        Request::Counters => {
            let counters = answer.get("counters").and_then(Value::as_object);
            let lines = counters.into_iter().flatten();
            let rows = lines.map(|(name, value)| vec![printable(name), text(value)]);
            align(&rows.collect::<Vec<_>>())
        }
        Request::Metrics => answer.get("metrics").map_or(String::new(), text),
        Request::Capture { .. } => match answer.get("capture") {
            Some(capture @ Value::Object(_)) => table(
                std::slice::from_ref(capture),
                &[
                    ("FILE", "path"),
                    ("FRAMES", "frames"),
                    ("BYTES", "bytes"),
                    ("LOST", "lost"),
                    ("ENDED", "ended"),
                ],
            ),
            _ => "nothing is captured\n".to_owned(),
        },
    }
}

/// Rows of the values of some keys, below their headings.
pub fn table(rows: &[Value], columns: &[(&str, &str)]) -> String {
    let headings = columns.iter().map(|(heading, _)| (*heading).to_owned());
    let mut lines = vec![headings.collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|row| {
        let cells = columns
            .iter()
            .map(|(_, key)| row.get(key).map_or(String::new(), text));
        cells.collect()
    }));
    align(&lines)
}

/// Cells in columns, two spaces apart.
pub fn align(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..count).map(width).collect();
    let mut all = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let line: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        all.push_str(line.join("  ").trim_end());
        all.push('\n');
    }
    all
}

/// A value for people: no quotes, and no control characters of anybody's.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Null => String::new(),
        Value::Number(number) => match number.as_u64() {
            Some(whole) => whole.to_string(),
            None => format!("{:.1}", number.as_f64().unwrap_or_default()),
        },
        other => printable(&other.to_string()),
    }
}

fn printable(text: &str) -> String {
    let shown = |c: &char| !c.is_control() || *c == '\n';
    text.chars().filter(shown).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_a_table_for_people() {
        let answer = json!({ "total": 3, "flows": [
            { "transport": "tcp", "guest_port": 80, "remote": "192.0.2.1:40000", "forwarded": true,
              "state": "open", "age_seconds": 1.25, "bytes_in": 10, "bytes_out": 20_000 },
            { "transport": "udp", "guest_port": 5353, "remote": "[2001:db8::1]:53",
              "forwarded": false, "state": "open", "age_seconds": 0.0, "bytes_in": 1, "bytes_out": 2 },
        ]});
        let shown = show(&Request::Flows { most: None }, &answer);
        assert_eq!(
            shown,
            "TRANSPORT  GUEST PORT  REMOTE            FORWARDED  STATE  AGE  BYTES IN  BYTES OUT\n\
             tcp        80          192.0.2.1:40000   yes        open   1.2  10        20000\n\
             udp        5353        [2001:db8::1]:53  no         open   0.0  1         2\n\
             2 of 3 flows\n"
        );
    }

    #[test]
    fn no_answer_speaks_to_the_terminal() {
        assert_eq!(text(&json!("a\u{1b}[2Jb")), "a[2Jb");
        assert_eq!(text(&json!(["\u{9b}2J"])), "[\"2J\"]");
        let answer = json!({ "counters": { "a\u{1b}[2J": 1 } });
        assert_eq!(show(&Request::Counters, &answer), "a[2J  1\n");
    }
}
