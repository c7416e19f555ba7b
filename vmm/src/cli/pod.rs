//! `peapod pod`: a manifest becomes Kubernetes' own objects.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::run;
use crate::pod::{self, Choices, ContainerDisks};

/// Arguments of `peapod pod`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A VirtualMachineInstance, YAML or JSON
    pub manifest: PathBuf,
    /// How to print them
    #[arg(short, long, default_value = "yaml")]
    pub output: Output,
    /// The compute container's image
    #[arg(
        long,
        value_name = "REFERENCE",
        default_value = "localhost/peapod/compute:latest"
    )]
    pub image: String,
    /// The device plugin's resource that is /dev/kvm
    #[arg(long, value_name = "NAME", default_value = "devices.kubevirt.io/kvm")]
    pub kvm_resource: String,
    /// So many pods, kept by a Deployment [default: one Pod]
    #[arg(long, value_name = "COUNT")]
    pub replicas: Option<u32>,
    /// How the compute container gets at the VMI's container images
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub container_disks: ContainerDisks,
}

/// How objects are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A document each
    Yaml,
    /// One List
    Json,
}

/// Why there are no objects.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] run::Error),
    /// It cannot be in a pod.
    #[error("{0}: {1}")]
    Pod(String, pod::Error),
}

/// The objects for a manifest.
pub fn objects(args: &Args) -> Result<Vec<Value>, Error> {
    let (machine, text) = run::read_manifest_text(&args.manifest)?;
    let choices = Choices {
        image: args.image.clone(),
        kvm_resource: args.kvm_resource.clone(),
        replicas: args.replicas,
        container_disks: args.container_disks,
    };
    pod::objects(&machine, &text, &choices)
        .map_err(|why| Error::Pod(args.manifest.display().to_string(), why))
}

/// Prints them.
pub fn print(args: &Args, objects: &[Value]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if args.output == Output::Json {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        return writeln!(out, "{list:#}");
    }
    for object in objects {
        let text = serde_saphyr::to_string(object).map_err(io::Error::other)?;
        writeln!(out, "---\n{}", text.trim_end())?;
    }
    Ok(())
}
