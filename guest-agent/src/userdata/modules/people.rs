//! Who `users`, `user` and `groups` are, once every way to write them is undone (cloud-init's
//! ug_util.py).

use crate::userdata::merge::How;
use crate::yaml::{Map, Node, Value};

/// A user that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Person {
    /// The name.
    pub name: String,
    /// What else is said.
    pub config: Node,
    /// Whether it is the system's default user.
    pub default: bool,
}

/// A group that is asked for, and who is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The name.
    pub name: String,
    /// Users that there are.
    pub members: Vec<String>,
}

/// The users, in the order in which they are made.
pub fn users(config: &Node) -> Result<Vec<Person>, String> {
    let old = match config.get("user") {
        Some(node) if node.text().is_some() => {
            let mut user = Node::empty();
            user.set("name", node.clone());
            Some(user)
        }
        Some(node) if node.map().is_some() => Some(node.clone()),
        Some(node) => {
            return Err(node.wrong("user", format!("a name or a mapping, not {}", node.kind())));
        }
        None => None,
    };
    let distro = config.at(&["system_info", "default_user"]).cloned();
    let how = How::sources();
    let default = match (old.clone(), distro) {
        (Some(old), Some(distro)) => Some(how.merge(old, distro)),
        (old, distro) => old.or(distro),
    };
    let mut people = listed(config.get("users"))?;
    if old.is_some() {
        add(&mut people, "default", Node::empty());
    }
    for (_, config) in &mut people {
        dashes(config);
    }
    let Some(at) = people.iter().position(|(name, _)| name == "default") else {
        return Ok(persons(people, None));
    };
    let (_, said) = people.remove(at);
    let Some(mut default) = default else {
        return Ok(persons(people, None));
    };
    let name = default.take("name").and_then(|node| node.scalar());
    let Some(name) = name else {
        return Ok(persons(people, None));
    };
    let groups = default.take("groups");
    let own = people.iter().position(|(other, _)| *other == name);
    let mut own = own.map_or_else(Node::empty, |at| people.remove(at).1);
    let mut all = names(own.get("groups"));
    all.append(&mut names(groups.as_ref()));
    all.sort();
    all.dedup();
    own.set("groups", Value::Text(all.join(",")).into());
    let config = how.merge(how.merge(default, said), own);
    people.push((name.clone(), config));
    Ok(persons(people, Some(&name)))
}

fn persons(people: Map, default: Option<&str>) -> Vec<Person> {
    let person = |(name, config): (String, Node)| Person {
        default: Some(&*name) == default,
        name,
        config,
    };
    people.into_iter().map(person).collect()
}

/// The default user's name, if one is asked for.
pub fn default_user(config: &Node) -> Option<String> {
    let users = users(config).unwrap_or_default();
    users
        .into_iter()
        .find(|user| user.default)
        .map(|user| user.name)
}

fn add(people: &mut Map, name: &str, config: Node) {
    match people.iter_mut().find(|(other, _)| other == name) {
        Some((_, old)) => *old = How::sources().merge(std::mem::take(old), config),
        None => people.push((name.to_owned(), config)),
    }
}

fn listed(users: Option<&Node>) -> Result<Map, String> {
    let mut people = Map::new();
    let Some(users) = users else {
        return Ok(people);
    };
    match &users.value {
        Value::Text(_) => {
            let mut names = names(Some(users));
            names.sort();
            names
                .iter()
                .for_each(|name| add(&mut people, name, Node::empty()));
        }
        Value::Map(map) => {
            for (name, node) in map {
                match node.map() {
                    Some(_) => add(&mut people, name, node.clone()),
                    None if node.is_true() => add(&mut people, name, Node::empty()),
                    None => {}
                }
            }
        }
        Value::List(list) => {
            for (at, item) in list.iter().enumerate() {
                match &item.value {
                    Value::Text(_) | Value::List(_) => names(Some(item))
                        .iter()
                        .for_each(|name| add(&mut people, name, Node::empty())),
                    Value::Map(_) => {
                        let mut config = item.clone();
                        let name = config.take("name").and_then(|name| name.scalar());
                        add(&mut people, name.as_deref().unwrap_or("default"), config);
                    }
                    Value::Null => {}
                    _ => {
                        let why = format!("a user is a name or a mapping, not {}", item.kind());
                        return Err(item.wrong(&format!("users[{at}]"), why));
                    }
                }
            }
        }
        _ => return Err(users.wrong("users", format!("a list, not {}", users.kind()))),
    }
    Ok(people)
}

/// Keys are written with dashes too.
fn dashes(config: &mut Node) {
    if let Value::Map(map) = &mut config.value {
        for (key, _) in map.iter_mut() {
            *key = key.replace('-', "_").trim().to_owned();
        }
    }
}

/// Names in a list, in text with commas, or as the keys of a mapping.
pub fn names(node: Option<&Node>) -> Vec<String> {
    let Some(node) = node else {
        return Vec::new();
    };
    let mut found: Vec<String> = Vec::new();
    let texts = match &node.value {
        Value::Map(map) => map.iter().map(|(key, _)| key.clone()).collect(),
        Value::Text(text) => text.split(',').map(str::to_owned).collect(),
        _ => node.scalars(),
    };
    for name in texts {
        let name = name.trim();
        if !name.is_empty() && !found.iter().any(|other| other == name) {
            found.push(name.to_owned());
        }
    }
    found
}

/// The groups, in the order in which they are made.
pub fn groups(config: &Node) -> Result<Vec<Group>, String> {
    let mut groups: Vec<Group> = Vec::new();
    let mut add = |name: &str, members: Vec<String>| {
        let at = groups.iter().position(|group| group.name == name);
        let at = at.unwrap_or_else(|| {
            groups.push(Group {
                name: name.to_owned(),
                members: Vec::new(),
            });
            groups.len() - 1
        });
        if let Some(group) = groups.get_mut(at) {
            group.members.extend(members);
            group.members.sort();
            group.members.dedup();
        }
    };
    let Some(said) = config.get("groups") else {
        return Ok(groups);
    };
    let mut of_map = |map: &Map| {
        for (name, members) in map {
            add(name, names(Some(members)));
        }
    };
    match &said.value {
        Value::Map(map) => of_map(map),
        Value::List(list) => {
            for (at, item) in list.iter().enumerate() {
                match &item.value {
                    Value::Map(map) => of_map(map),
                    Value::Text(name) => of_map(&vec![(name.clone(), Node::default())]),
                    _ => {
                        let why = format!("a group is a name or a mapping, not {}", item.kind());
                        return Err(item.wrong(&format!("groups[{at}]"), why));
                    }
                }
            }
        }
        Value::Text(_) => {
            for name in names(Some(said)) {
                of_map(&vec![(name, Node::default())]);
            }
        }
        _ => return Err(said.wrong("groups", format!("a list, not {}", said.kind()))),
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    const SYSTEM: &str =
        "system_info: {default_user: {name: debian, groups: [sudo, adm], shell: /bin/bash}}\n";

    fn people(text: &str) -> Vec<(String, bool)> {
        let config = yaml::read("f", &format!("{SYSTEM}{text}")).unwrap();
        let users = users(&config).unwrap().into_iter();
        users.map(|user| (user.name, user.default)).collect()
    }

    fn pairs(all: &[(&str, bool)]) -> Vec<(String, bool)> {
        all.iter()
            .map(|(name, default)| ((*name).to_owned(), *default))
            .collect()
    }

    #[test]
    fn the_default_user_is_the_last_and_is_who_the_system_says() {
        assert_eq!(
            people("users: [default, a, {name: b}]"),
            pairs(&[("a", false), ("b", false), ("debian", true)])
        );
        assert_eq!(people("users: 'b,a'"), pairs(&[("a", false), ("b", false)]));
        assert_eq!(
            people("users: {a: true, b: false, c: {uid: 5}}"),
            pairs(&[("a", false), ("c", false)])
        );
        assert_eq!(
            people("users: [a]\nuser: me"),
            pairs(&[("a", false), ("me", true)])
        );
        assert_eq!(people("users: []"), pairs(&[]));
    }

    #[test]
    fn the_default_user_has_the_system_s_groups_and_its_own() {
        let text = format!(
            "{SYSTEM}users: [default, {{name: debian, groups: 'adm, x', lock-passwd: false}}]"
        );
        let users = users(&yaml::read("f", &text).unwrap()).unwrap();
        assert_eq!(
            users[0].config.get("groups").unwrap().text(),
            Some("adm,sudo,x")
        );
        assert!(users[0].config.get("lock_passwd").unwrap().is_false());
    }

    #[test]
    fn groups_are_written_in_three_ways() {
        for text in [
            "groups: [a, {b: [y, x]}, {b: z}]",
            "groups: {a: , b: [x, y, z]}",
        ] {
            let groups = groups(&yaml::read("f", text).unwrap()).unwrap();
            assert_eq!(groups[1].members, ["x", "y", "z"]);
        }
        let why = groups(&yaml::read("f", "groups: [1]").unwrap()).unwrap_err();
        assert_eq!(
            why,
            "f:1: groups[0]: a group is a name or a mapping, not a number"
        );
    }
}
