//! Folders of scripts.

use std::path::Path;

use crate::userdata::command::run_folder;
use crate::userdata::context::Context;
use crate::yaml::Node;

/// The vendor's, with `vendor_data.prefix` before each.
pub fn vendor(context: &Context) -> Result<(), String> {
    let prefix = context.config.at(&["vendor_data", "prefix"]);
    let prefix = prefix.map(Node::scalars).unwrap_or_default();
    run(
        context,
        "scripts_vendor",
        &context.instance.scripts().join("vendor"),
        &prefix,
    )
}

/// The user's own, and what `runcmd` says.
pub fn user(context: &Context) -> Result<(), String> {
    run(context, "scripts_user", &context.instance.scripts(), &[])
}

/// Those of every boot.
pub fn per_boot(context: &Context) -> Result<(), String> {
    shared(context, "per-boot")
}

/// Those of every instance.
pub fn per_instance(context: &Context) -> Result<(), String> {
    shared(context, "per-instance")
}

/// Those of the disk.
pub fn per_once(context: &Context) -> Result<(), String> {
    shared(context, "per-once")
}

fn shared(context: &Context, name: &str) -> Result<(), String> {
    let folder = context.instance.shared("scripts").join(name);
    let module = format!("scripts_{}", name.replace('-', "_"));
    run(context, &module, &folder, &[])
}

fn run(context: &Context, module: &str, folder: &Path, prefix: &[String]) -> Result<(), String> {
    for why in run_folder(folder, prefix, || context.instance.settle()) {
        context.failed(module, &why);
    }
    Ok(())
}
