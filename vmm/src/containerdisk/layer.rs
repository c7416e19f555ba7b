//! The one disk in an image's layers: found by the layers' tar headers, then copied out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};

use super::layout::{Layer, Layout};
use super::{Fault, bad};
use crate::sparse;

/// More than this is no disk that anybody has put into a container image.
const MAX_DISK: u64 = 2 << 40;
const MAX_ENTRIES: usize = 100_000;
/// Where a whiteout's name starts (image-spec, layer.md).
const WHITEOUT: &str = ".wh.";
/// Zeros of this size become holes.
const CHUNK: usize = 64 << 10;

/// A file of the image.
pub(super) struct Found<'a> {
    layer: &'a Layer,
    path: String,
}

/// Finds the disk: the file at `disk`, or the only one in /disk.
pub(super) fn find<'a>(
    layout: &Layout,
    layers: &'a [Layer],
    disk: Option<&str>,
) -> Result<Found<'a>, Fault> {
    let mut files: BTreeMap<String, &Layer> = BTreeMap::new();
    for layer in layers {
        let mut archive = tar::Archive::new(layout.read(layer)?);
        for (count, entry) in archive.entries()?.enumerate() {
            if count > MAX_ENTRIES {
                return bad("a layer has too many entries");
            }
            let entry = entry?;
            let path = normal(&entry.path_bytes());
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
            if let Some(hidden) = name.strip_prefix(WHITEOUT) {
                let gone = match hidden {
                    ".wh..opq" => parent.to_owned(),
                    _ => format!("{parent}/{hidden}"),
                };
                // What this very layer brings is not hidden by its own whiteouts.
                files.retain(|p, from| {
                    std::ptr::eq(*from, layer)
                        || !(*p == gone || p.starts_with(&format!("{gone}/")))
                });
            } else if entry.header().entry_type().is_file() {
                files.insert(path, layer);
            }
        }
    }
    if let Some(disk) = disk {
        let wanted = normal(disk.as_bytes());
        return match files.get(&wanted) {
            Some(layer) => Ok(Found {
                layer,
                path: wanted,
            }),
            None => bad(format!("has no file {}", disk.escape_debug())),
        };
    }
    let mut below = files.into_iter().filter(|(path, _)| {
        path.strip_prefix("/disk/")
            .is_some_and(|name| !name.contains('/'))
    });
    match (below.next(), below.next()) {
        (Some((path, layer)), None) => Ok(Found { layer, path }),
        (None, _) => bad("has no file in /disk"),
        (Some(_), Some(_)) => bad("has more than one file in /disk: `path` must say which"),
    }
}

/// An absolute path without `.`, `..` and doubled slashes. It is only ever compared, never opened.
fn normal(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Copies the file out, zeros as holes, and checks the layer's digest.
pub(super) fn extract(layout: &Layout, found: &Found, target: &mut File) -> Result<(), Fault> {
    let mut reader = layout.read(found.layer)?;
    {
        let mut archive = tar::Archive::new(&mut reader);
        let mut entry = None;
        for candidate in archive.entries()? {
            let candidate = candidate?;
            if normal(&candidate.path_bytes()) == found.path {
                entry = Some(candidate);
                break;
            }
        }
        let Some(mut entry) = entry else {
            return bad("changed while it was read");
        };
        let size = entry.size();
        if size == 0 || size > MAX_DISK {
            return bad(format!("{} has {size} bytes", found.path));
        }
        copy_sparse(&mut entry, target, size)?;
        target.set_len(size)?;
        target.sync_all()?;
    }
    io::copy(&mut reader, &mut io::sink())?;
    reader.finish()
}

fn copy_sparse(from: &mut impl Read, to: &mut File, size: u64) -> Result<(), Fault> {
    let mut chunk = vec![0; CHUNK];
    let mut done = 0u64;
    while done < size {
        let want = usize::try_from(size - done).unwrap_or(CHUNK).min(CHUNK);
        let Some(chunk) = chunk.get_mut(..want) else {
            break;
        };
        from.read_exact(chunk)?;
        sparse::append(to, chunk)?;
        done += want as u64;
    }
    Ok(())
}
