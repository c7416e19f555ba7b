//! The OCI image layout (image-spec 1.1): `index.json` leads to a manifest, the manifest to
//! layers, each a blob named by its digest.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{Fault, bad};
use crate::hex::hex;

/// An index or a manifest is small (the distribution spec advises 4 MiB at most).
const MAX_JSON: u64 = 4 << 20;
/// An archive with more entries is no image layout.
const MAX_ENTRIES: usize = 10_000;
/// An index may lead to an index, but not for ever.
const MAX_DEPTH: usize = 4;

/// A SHA-256 digest in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Digest(String);

impl Digest {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(hex(&Sha256::digest(bytes)))
    }

    /// `sha256:<64 hex digits>` and nothing else: it becomes part of a path.
    fn parse(text: &str) -> Result<Self, Fault> {
        let hex = text.strip_prefix("sha256:").filter(|h| {
            h.len() == 64
                && h.bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        match hex {
            Some(hex) => Ok(Self(hex.to_owned())),
            None => bad(format!("`{}` is not a sha256 digest", text.escape_debug())),
        }
    }

    pub(super) fn hex(&self) -> &str {
        &self.0
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Descriptor>,
}

/// A layer of the image.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) digest: Digest,
    size: u64,
    media_type: String,
}

/// An image layout, open.
pub(super) enum Layout {
    /// A directory with `index.json` and `blobs/`.
    Directory(PathBuf),
    /// The same in a tar file: name, offset and length of each member.
    Archive(PathBuf, Vec<(String, u64, u64)>),
}

impl Layout {
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let mut members: Vec<(String, u64, u64)> = Vec::new();
        let len = fs::metadata(path)?.len();
        let mut archive = tar::Archive::new(File::open(path)?);
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.trim_start_matches("./").to_owned();
            members.push((name, entry.raw_file_position(), entry.size()));
            if members.len() > MAX_ENTRIES {
                return bad("is no OCI archive: too many entries");
            }
            if entry
                .raw_file_position()
                .saturating_add(entry.header().entry_size()?)
                > len
            {
                return bad("truncated");
            }
        }
        Ok(Self::Archive(path.to_owned(), members))
    }

    /// A member and its length.
    fn member(&self, name: &str) -> Result<(File, u64), Fault> {
        match self {
            Self::Directory(path) => match File::open(path.join(name)) {
                Ok(file) => {
                    let size = file.metadata()?.len();
                    Ok((file, size))
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => bad(format!("has no {name}")),
                Err(e) => Err(e.into()),
            },
            Self::Archive(path, members) => {
                let Some((_, offset, size)) = members.iter().find(|(n, ..)| n == name) else {
                    return bad(format!("has no {name}"));
                };
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(*offset))?;
                Ok((file, *size))
            }
        }
    }

    fn json<T: for<'de> Deserialize<'de>>(
        &self,
        name: &str,
        check: Option<(&Digest, u64)>,
    ) -> Result<T, Fault> {
        let (file, size) = self.member(name)?;
        if size > MAX_JSON || check.is_some_and(|(_, said)| said != size) {
            return bad(format!(
                "{name} has {size} bytes, which is not what it should have"
            ));
        }
        let mut bytes = Vec::new();
        file.take(size).read_to_end(&mut bytes)?;
        if check.is_some_and(|(digest, _)| *digest != Digest::of(&bytes)) {
            return bad(format!("{name} does not have the digest it is named by"));
        }
        serde_json::from_slice(&bytes).or_else(|e| bad(format!("{name}: {e}")))
    }

    /// The layers of the image for this architecture, lowest first.
    pub(super) fn layers(&self) -> Result<Vec<Layer>, Fault> {
        let mut index: Index = self.json("index.json", None)?;
        for _ in 0..MAX_DEPTH {
            let fits = |d: &Descriptor| {
                d.platform
                    .as_ref()
                    .is_none_or(|p| p.architecture == "amd64")
            };
            let Some(descriptor) = index.manifests.into_iter().find(fits) else {
                return bad("holds no image for amd64");
            };
            let digest = Digest::parse(&descriptor.digest)?;
            let name = format!("blobs/sha256/{}", digest.hex());
            let check = Some((&digest, descriptor.size));
            if descriptor.media_type.contains("index") || descriptor.media_type.contains("list") {
                index = self.json(&name, check)?;
                continue;
            }
            let manifest: Manifest = self.json(&name, check)?;
            let layer = |d: Descriptor| {
                let digest = Digest::parse(&d.digest)?;
                Ok(Layer {
                    digest,
                    size: d.size,
                    media_type: d.media_type,
                })
            };
            return manifest.layers.into_iter().map(layer).collect();
        }
        bad("index leads to index without end")
    }

    /// A layer's tar stream; `finish` it to have its digest checked.
    pub(super) fn read(&self, layer: &Layer) -> Result<LayerReader, Fault> {
        let name = format!("blobs/sha256/{}", layer.digest.hex());
        let (file, size) = self.member(&name)?;
        if size != layer.size {
            return bad(format!(
                "truncated: layer {name} should have {} bytes, has {size}",
                layer.size
            ));
        }
        let blob = Hashing {
            inner: file.take(size),
            hash: Sha256::new(),
        };
        if layer.media_type.ends_with("zstd") {
            return bad("its layer is compressed by zstd, which is not supported yet");
        }
        let gzip = layer.media_type.ends_with("gzip");
        let stream = if gzip {
            Stream::Gzip(Box::new(flate2::read::GzDecoder::new(blob)))
        } else {
            Stream::Plain(blob)
        };
        Ok(LayerReader {
            stream,
            digest: layer.digest.clone(),
        })
    }
}

/// Hashes what is read through it.
pub(super) struct Hashing {
    inner: io::Take<File>,
    hash: Sha256,
}

impl Read for Hashing {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(buf.get(..n).unwrap_or_default());
        Ok(n)
    }
}

enum Stream {
    Plain(Hashing),
    Gzip(Box<flate2::read::GzDecoder<Hashing>>),
}

/// A layer's uncompressed bytes.
pub(super) struct LayerReader {
    stream: Stream,
    digest: Digest,
}

impl Read for LayerReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Plain(s) => s.read(buf),
            Stream::Gzip(s) => s.read(buf),
        }
    }
}

impl LayerReader {
    /// Reads the blob to its end and compares its digest.
    pub(super) fn finish(self) -> Result<(), Fault> {
        let mut blob = match self.stream {
            Stream::Plain(s) => s,
            Stream::Gzip(s) => s.into_inner(),
        };
        io::copy(&mut blob, &mut io::sink())?;
        if hex(&blob.hash.finalize()) != self.digest.hex() {
            return bad("a layer does not have the digest it is named by");
        }
        Ok(())
    }
}
