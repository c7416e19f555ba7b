//! `## template: jinja`: rendered by minijinja with what is known of the instance.

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};

/// What cloud-init puts where a variable is missing.
const MISSING: &str = "CI_MISSING_JINJA_VAR/";

/// How much a template may do before it is stopped.
const FUEL: u64 = 1_000_000;

/// Whether text begins as a template does.
pub fn is_template(text: &str) -> bool {
    let first = text.lines().next().unwrap_or_default();
    let first = first.trim_start_matches('#').trim();
    let engine = first.strip_prefix("template:").map(str::trim);
    text.starts_with("##") && engine.is_some_and(|engine| engine.eq_ignore_ascii_case("jinja"))
}

/// Renders text without its first line; and the names that are missing. An error says the line.
pub fn render(
    place: &str,
    text: &str,
    variables: &serde_json::Value,
) -> Result<(String, Vec<String>), String> {
    // The first line stays as an empty one, so that lines are the file's own.
    let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    // As cloud-init has Jinja2.
    let syntax = SyntaxConfig::builder().trim_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| error.to_string())?);
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    let failed = |error: minijinja::Error| {
        // The template lacks the file's first line.
        let line = error.line().map_or(1, |line| line + 1);
        let detail = error.detail().map(|detail| format!(": {detail}"));
        format!(
            "{place}:{line}: {}{}",
            error.kind(),
            detail.unwrap_or_default()
        )
    };
    let template = environment.template_from_str(rest).map_err(failed)?;
    let all = template.undeclared_variables(true);
    let globals: Vec<String> = environment
        .globals()
        .map(|(name, _)| name.to_owned())
        .collect();
    let known = |name: &str| {
        if globals.iter().any(|global| global == name) {
            return true;
        }
        let mut at = Some(variables);
        for part in name.split('.') {
            at = at.and_then(|value| value.get(part));
        }
        at.is_some()
    };
    let mut missing: Vec<String> = all.into_iter().filter(|name| !known(name)).collect();
    missing.sort_unstable();
    let names = missing.clone();
    let mut environment = environment.clone();
    environment.set_formatter(move |out, state, value| {
        if value.is_undefined() {
            let name = match &*names {
                [name] => name,
                _ => "",
            };
            return Ok(write!(out, "{MISSING}{name}")?);
        }
        minijinja::escape_formatter(out, state, value)
    });
    let template = environment.template_from_str(rest).map_err(failed)?;
    let mut text = template.render(value(variables)).map_err(failed)?;
    if rest.ends_with('\n') {
        text.push('\n');
    }
    missing.retain(|name| text.contains(&format!("{MISSING}{name}")) || text.contains(MISSING));
    Ok((text, missing))
}

fn value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(truth) => Value::from(*truth),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::from(number),
            None => Value::from(number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => Value::from(&**text),
        Json::Array(list) => Value::from_iter(list.iter().map(value)),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(key, json)| (&**key, value(json)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_rendered_and_what_is_missing_is_named() {
        let variables = serde_json::json!({"v1": {"name": "box"}, "n": 2});
        let text = "## template: jinja\n#!/bin/sh\n{% for i in range(n) %}\n{{ i }} {{ v1.name }}\n{% endfor %}\n{{ x.y }}\n";
        assert!(is_template(text));
        assert!(!is_template("#!/bin/sh\n## template: jinja\n"));
        let (text, missing) = render("f", text, &variables).unwrap();
        assert_eq!(text, "#!/bin/sh\n0 box\n1 box\nCI_MISSING_JINJA_VAR/x.y\n");
        assert_eq!(missing, ["x.y"]);
    }

    #[test]
    fn an_error_says_the_line_and_a_loop_ends() {
        let none = serde_json::json!({});
        let why = render("f", "## template: jinja\na\n{{ b\n", &none).unwrap_err();
        assert!(why.starts_with("f:3: "), "{why}");
        let endless = "## template: jinja\n{% for i in range(10000) %}{% for j in range(10000) %}x{% endfor %}{% endfor %}";
        render("f", endless, &none).unwrap_err();
    }
}
