//! `yum_repos`

use std::path::Path;

use crate::userdata::context::Context;
use crate::userdata::files;
use crate::yaml::{Node, Value};

const MODULE: &str = "yum_add_repo";
const FOLDER: &str = "/etc/yum.repos.d";

/// Writes a file for each repository that has none.
pub fn run(context: &Context) -> Result<(), String> {
    let folder = context.get("yum_repo_dir").and_then(Node::scalar);
    let folder = folder.unwrap_or_else(|| FOLDER.to_owned());
    let Some(repositories) = context.get("yum_repos") else {
        return Ok(());
    };
    let entries = repositories.map().ok_or_else(|| {
        repositories.wrong(
            "yum_repos",
            format!("a mapping, not {}", repositories.kind()),
        )
    })?;
    for (name, repository) in entries {
        let id = name.replace(' ', "-");
        let path = Path::new(&folder).join(format!("{}.repo", files::clean_name(&id)));
        if path.exists() {
            continue;
        }
        let fail = |why: &str| {
            context.failed(MODULE, &repository.wrong(&format!("yum_repos.{name}"), why));
        };
        if !["baseurl", "metalink", "mirrorlist"]
            .iter()
            .any(|key| repository.get(key).is_some())
        {
            fail("it has no baseurl, metalink or mirrorlist");
            continue;
        }
        let mut text = format!("# Created by peapod-agent\n[{id}]\n");
        for (key, value) in repository.map().into_iter().flatten() {
            text.push_str(&format!("{} = {}\n", key.to_lowercase(), value_of(value)));
        }
        if let Err(error) = files::write(&path, text.as_bytes(), 0o644) {
            fail(&format!("{}: {error}", path.display()));
        }
    }
    Ok(())
}

/// A truth is 1 or 0, a list one value a line.
fn value_of(node: &Node) -> String {
    match &node.value {
        Value::Bool(truth) => u8::from(*truth).to_string(),
        Value::List(list) => list.iter().map(value_of).collect::<Vec<_>>().join("\n\t"),
        _ => node.scalar().unwrap_or_default(),
    }
}
