//! One operation of a JSON patch (RFC 6902) on a configuration.

use crate::yaml::{Node, Value};

/// Applies it.
pub fn apply(operation: &Node, config: &mut Node) -> Result<(), String> {
    let word = |key: &str| {
        let word = operation.get(key).and_then(Node::scalar);
        word.ok_or_else(|| format!("an operation lacks {key:?}"))
    };
    let value = || {
        let value = operation.entry("value").cloned();
        value.ok_or_else(|| "an operation lacks \"value\"".to_owned())
    };
    let path = word("path")?;
    match &*word("op")? {
        "add" => add(config, &path, value()?),
        "remove" => remove(config, &path).map(drop),
        "replace" => {
            remove(config, &path)?;
            add(config, &path, value()?)
        }
        "move" => {
            let node = remove(config, &word("from")?)?;
            add(config, &path, node)
        }
        "copy" => {
            let node = at(config, &word("from")?)?.clone();
            add(config, &path, node)
        }
        "test" => {
            let same = at(config, &path)?.json() == value()?.json();
            same.then_some(())
                .ok_or_else(|| format!("{path} is not what is tested for"))
        }
        other => Err(format!("there is no operation {other:?}")),
    }
}

/// The tokens of a pointer (RFC 6901).
fn tokens(path: &str) -> Result<Vec<String>, String> {
    let mut parts = path.split('/');
    if parts.next() != Some("") {
        return Err(format!("{path:?} does not begin with a slash"));
    }
    Ok(parts
        .map(|part| part.replace("~1", "/").replace("~0", "~"))
        .collect())
}

fn step<'a>(node: &'a mut Node, token: &str) -> Option<&'a mut Node> {
    match &mut node.value {
        Value::Map(map) => map
            .iter_mut()
            .find(|(key, _)| key == token)
            .map(|(_, node)| node),
        Value::List(list) => list.get_mut(token.parse::<usize>().ok()?),
        _ => None,
    }
}

fn at<'a>(config: &'a mut Node, path: &str) -> Result<&'a mut Node, String> {
    let mut node = config;
    for token in tokens(path)? {
        node = step(node, &token).ok_or_else(|| format!("there is no {path}"))?;
    }
    Ok(node)
}

/// What holds the value at a path, and its name in there.
fn parent<'a>(config: &'a mut Node, path: &str) -> Result<(&'a mut Node, String), String> {
    let (above, _) = path
        .rsplit_once('/')
        .ok_or_else(|| format!("there is nothing above {path:?}"))?;
    let last = tokens(path)?.pop().unwrap_or_default();
    Ok((at(config, above)?, last))
}

fn add(config: &mut Node, path: &str, node: Node) -> Result<(), String> {
    if path.is_empty() {
        *config = node;
        return Ok(());
    }
    let (parent, last) = parent(config, path)?;
    match &mut parent.value {
        Value::Map(_) => parent.set(&last, node),
        Value::List(list) if last == "-" => list.push(node),
        Value::List(list) => {
            let place = last
                .parse::<usize>()
                .ok()
                .filter(|place| *place <= list.len());
            list.insert(place.ok_or_else(|| format!("there is no {path}"))?, node);
        }
        _ => return Err(format!("nothing can be added at {path}")),
    }
    Ok(())
}

fn remove(config: &mut Node, path: &str) -> Result<Node, String> {
    let (parent, last) = parent(config, path)?;
    let removed = match &mut parent.value {
        Value::Map(_) => parent.take(&last),
        Value::List(list) => {
            let place = last
                .parse::<usize>()
                .ok()
                .filter(|place| *place < list.len());
            place.map(|place| list.remove(place))
        }
        _ => None,
    };
    removed.ok_or_else(|| format!("there is no {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    #[test]
    fn a_patch_does_its_operations() {
        let mut config = yaml::read("f", "{a: [1, 2], b: {c: 3}}").unwrap();
        let patch = r#"[{"op": "add", "path": "/a/-", "value": 9}, {"op": "remove", "path": "/a/0"},
            {"op": "replace", "path": "/b/c", "value": 4}, {"op": "copy", "from": "/b", "path": "/d"},
            {"op": "move", "from": "/d/c", "path": "/e~1f"}, {"op": "test", "path": "/a/1", "value": 9}]"#;
        for operation in yaml::read("p", patch).unwrap().list().unwrap() {
            apply(operation, &mut config).unwrap();
        }
        let json = serde_json::json!({"a": [2, 9], "b": {"c": 4}, "d": {}, "e/f": 4});
        assert_eq!(config.json(), json);
        let wrong = yaml::read("p", r#"{"op": "remove", "path": "/x/y"}"#).unwrap();
        assert_eq!(apply(&wrong, &mut config).unwrap_err(), "there is no /x");
    }
}
