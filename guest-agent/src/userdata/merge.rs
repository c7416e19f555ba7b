//! Two configurations into one (cloud-init's mergers and its `merge_how`).

use crate::yaml::{Node, Value};

/// How values are merged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct How {
    dict: Option<Options>,
    list: Option<Options>,
    str: Option<Options>,
}

type Options = Vec<String>;

impl How {
    /// How one source of configuration adds to a weightier one.
    pub fn sources() -> Self {
        Self {
            dict: Some(Vec::new()),
            list: Some(Vec::new()),
            str: Some(Vec::new()),
        }
    }

    /// How a part of user-data that says nothing adds to those before it.
    pub fn parts() -> Self {
        Self {
            dict: Some(vec!["replace".to_owned()]),
            ..Self::sources()
        }
    }

    /// Reads `dict(replace)+list(append)`; `None` where nothing is said.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let mut how = Self::default();
        let mut any = false;
        for word in text
            .split('+')
            .map(str::trim)
            .filter(|word| !word.is_empty())
        {
            let word = word.to_lowercase().replace('-', "_");
            let (name, options) = word
                .strip_suffix(')')
                .and_then(|word| word.split_once('('))
                .ok_or_else(|| format!("{word:?} is not of the form name(option,...)"))?;
            let options = options.split(',').map(str::trim);
            let options = options
                .filter(|option| !option.is_empty())
                .map(str::to_owned);
            how.set(name, options.collect())?;
            any = true;
        }
        Ok(any.then_some(how))
    }

    /// Takes `merge_how`, or `merge_type`, out of a configuration.
    pub fn take(config: &mut Node) -> Result<Option<Self>, String> {
        let (how, kind) = (config.take("merge_how"), config.take("merge_type"));
        let Some(said) = how.filter(|node| node.value != Value::Null).or(kind) else {
            return Ok(None);
        };
        let wrong = |why: String| said.wrong("merge_how", why);
        let list = match &said.value {
            Value::Null => return Ok(None),
            Value::Text(text) => return Self::parse(text).map_err(wrong),
            Value::List(list) => list,
            _ => {
                return Err(wrong(format!(
                    "neither text nor a list but {}",
                    said.kind()
                )));
            }
        };
        let mut how = Self::default();
        for item in list {
            let (name, options) = match &item.value {
                Value::List(words) => {
                    let mut words = words.iter().filter_map(Node::scalar);
                    (words.next().unwrap_or_default(), words.collect())
                }
                _ => {
                    let name = item.get("name").and_then(Node::scalar);
                    let name = name.ok_or_else(|| item.wrong("merge_how", "it has no name"))?;
                    let options = item.get("settings").map(Node::scalars);
                    (name, options.unwrap_or_default())
                }
            };
            how.set(name.replace('-', "_").trim(), options)
                .map_err(|why| item.wrong("merge_how", why))?;
        }
        Ok((!list.is_empty()).then_some(how))
    }

    fn set(&mut self, name: &str, options: Options) -> Result<(), String> {
        let place = match name.strip_prefix("m_").unwrap_or(name) {
            "dict" => &mut self.dict,
            "list" => &mut self.list,
            "str" => &mut self.str,
            _ => return Err(format!("there is no way to merge {name:?}")),
        };
        // The first of two counts.
        place.get_or_insert(options);
        Ok(())
    }

    /// `old` with `new` merged into it.
    pub fn merge(&self, old: Node, new: Node) -> Node {
        match (&old.value, &self.dict, &self.list, &self.str) {
            (Value::Map(_), Some(options), ..) => self.merge_maps(options, old, new),
            (Value::List(_), _, Some(options), _) => self.merge_lists(options, old, new),
            (Value::Text(text), _, _, Some(options)) => {
                if let (true, Some(more)) = (has(options, "append"), new.text()) {
                    let text = format!("{text}{more}");
                    return Node {
                        value: Value::Text(text),
                        ..new
                    };
                }
                new
            }
            _ => old,
        }
    }

    fn merge_maps(&self, options: &Options, mut old: Node, new: Node) -> Node {
        let Value::Map(new) = new.value else {
            return old;
        };
        let replace = first(options, &["replace", "no_replace"], "no_replace") == "replace";
        let delete = has(options, "allow_delete");
        let recurse = |node: &Node| match &node.value {
            Value::List(_) => has(options, "recurse_array") || has(options, "recurse_list"),
            Value::Text(_) => has(options, "recurse_str"),
            Value::Map(_) => true,
            _ => false,
        };
        for (key, node) in new {
            if old.entry(&key).is_none() {
                old.set(&key, node);
            } else if node.value == Value::Null && delete {
                old.take(&key);
            } else if replace {
                old.set(&key, node);
            } else if recurse(&node)
                && let Value::Map(map) = &mut old.value
                && let Some((_, slot)) = map.iter_mut().find(|(name, _)| *name == key)
            {
                *slot = self.merge(std::mem::take(slot), node);
            }
        }
        old
    }

    fn merge_lists(&self, options: &Options, mut old: Node, new: Node) -> Node {
        let method = first(
            options,
            &["append", "prepend", "replace", "no_replace"],
            "replace",
        );
        let mut added = match new.value {
            Value::List(list) => list,
            // Python takes any other for a sequence of its letters, or fails.
            _ if method == "replace" => return new,
            _ => return old,
        };
        let Value::List(list) = &mut old.value else {
            return old;
        };
        match method {
            "append" => list.append(&mut added),
            "prepend" => {
                added.append(list);
                *list = added;
            }
            "no_replace" => {}
            _ => {
                for (slot, node) in list.iter_mut().zip(added) {
                    let recurse = match &node.value {
                        Value::List(_) => {
                            has(options, "recurse_array") || has(options, "recurse_list")
                        }
                        Value::Text(_) => has(options, "recurse_str"),
                        Value::Map(_) => has(options, "recurse_dict"),
                        _ => false,
                    };
                    *slot = match recurse {
                        true => self.merge(std::mem::take(slot), node),
                        false => node,
                    };
                }
            }
        }
        old
    }
}

fn has(options: &Options, wanted: &str) -> bool {
    options.iter().any(|option| option == wanted)
}

/// The first of `known` that is among the options.
fn first<'a>(options: &Options, known: &[&'a str], default: &'a str) -> &'a str {
    let found = known.iter().find(|name| has(options, name));
    found.unwrap_or(&default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    fn merged(how: &str, old: &str, new: &str) -> serde_json::Value {
        let read = |text| yaml::read("f", text).unwrap();
        let how = How::parse(how).unwrap().unwrap_or_else(How::parts);
        how.merge(read(old), read(new)).json()
    }

    #[test]
    fn parts_replace_key_by_key_unless_they_say_how() {
        let (old, new) = (
            "{a: [1, 2], b: {x: 1}, c: s, d: 1}",
            "{a: [3], b: {y: 2}, c: t, d: null}",
        );
        let json = serde_json::json!({"a": [3], "b": {"y": 2}, "c": "t", "d": null});
        assert_eq!(merged("", old, new), json);
        let json = serde_json::json!({"a": [1, 2, 3], "b": {"x": 1, "y": 2}, "c": "s", "d": 1});
        assert_eq!(
            merged(
                "list(append)+dict(recurse_array,no_replace)+str()",
                old,
                new
            ),
            json
        );
        let json = serde_json::json!({"a": [3, 2], "b": {"x": 1, "y": 2}, "c": "st"});
        let how = "dict(recurse_list, recurse_str, allow_delete)+list()+str(append)";
        assert_eq!(merged(how, old, new), json);
        let json = serde_json::json!({"a": [3, 1, 2], "b": {"x": 1, "y": 2}, "c": "s", "d": 1});
        assert_eq!(merged("dict(recurse_array)+list(prepend)", old, new), json);
    }

    #[test]
    fn a_configuration_says_how_in_two_ways() {
        for text in [
            "{merge_how: 'list(append)+dict(recurse_array)', a: 1}",
            "merge_how: [{name: list, settings: [append]}, {name: dict, settings: [recurse_array]}]\na: 1",
            "merge_type: [[list, append], [dict, recurse_array]]\na: 1",
        ] {
            let mut config = yaml::read("f", text).unwrap();
            let how = How::take(&mut config).unwrap().unwrap();
            assert_eq!(
                Some(how),
                How::parse("list(append)+dict(recurse_array)").unwrap()
            );
            assert_eq!(config.json(), serde_json::json!({"a": 1}));
        }
        let mut config = yaml::read("f", "a: 1\nmerge_how: list\n").unwrap();
        let why = How::take(&mut config).unwrap_err();
        assert!(why.starts_with("f:2: merge_how: "), "{why}");
    }
}
