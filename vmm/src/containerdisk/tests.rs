use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use serde_json::json;

use super::layout::Digest;
use super::*;

type Files<'a> = &'a [(&'a str, &'a [u8])];

/// A layer of these files, gzipped or not.
fn layer(files: &[(&str, &[u8])], gzip: bool) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, *data).unwrap();
    }
    let tar = builder.into_inner().unwrap();
    if !gzip {
        return tar;
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&tar).unwrap();
    encoder.finish().unwrap()
}

/// Writes an image layout of these layers.
fn image(dir: &Path, layers: &[Vec<u8>], gzip: bool) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        format!("sha256:{}", digest.hex())
    };
    let suffix = if gzip { "+gzip" } else { "" };
    let descriptors: Vec<_> = layers
        .iter()
        .map(|l| {
            json!({ "mediaType": format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
                    "digest": put(l), "size": l.len() })
        })
        .collect();
    let manifest = json!({ "schemaVersion": 2, "layers": descriptors }).to_string();
    let index = json!({ "schemaVersion": 2, "manifests": [
        { "mediaType": "application/vnd.oci.image.manifest.v1+json",
          "digest": put(manifest.as_bytes()), "size": manifest.len() }
    ] });
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

fn disk() -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    disk[..4].copy_from_slice(b"boot");
    disk[700_000] = 1;
    disk
}

fn get(dir: &Path, path: Option<&str>) -> Result<PathBuf, Error> {
    unpack(
        &format!("oci:{}", dir.display()),
        path,
        dir,
        &dir.join("cache"),
    )
}

fn why(result: Result<PathBuf, Error>) -> String {
    match result.unwrap_err() {
        Error::Bad { why, .. } => why,
        other => other.to_string(),
    }
}

#[test]
fn the_disk_of_a_layout_and_of_an_archive_is_unpacked_sparse_and_once() {
    let dir = tempfile::tempdir().unwrap();
    for gzip in [false, true] {
        let layout = dir.path().join("layout");
        image(&layout, &[layer(&[("disk/a.img", &disk())], gzip)], gzip);
        let path = get(&layout, None).unwrap();
        assert_eq!(fs::read(&path).unwrap(), disk());
        let metadata = fs::metadata(&path).unwrap();
        assert!(metadata.blocks() * 512 < 512 << 10, "not sparse");
        assert!(metadata.permissions().readonly());
        assert_eq!(get(&layout, None).unwrap(), path);
        assert_eq!(fs::read_dir(layout.join("cache")).unwrap().count(), 1);

        // By its reference, out of an archive.
        let images = dir.path().join("images");
        fs::create_dir_all(images.join("containerdisks")).unwrap();
        let archive = File::create(images.join("containerdisks/peapod_details_1.tar")).unwrap();
        let mut builder = tar::Builder::new(archive);
        builder.append_dir_all(".", &layout).unwrap();
        builder.finish().unwrap();
        let cache = tempfile::tempdir().unwrap();
        let path = unpack("peapod/details:1", None, &images, cache.path()).unwrap();
        assert_eq!(fs::read(path).unwrap(), disk());
        fs::remove_dir_all(&layout).unwrap();
    }
}

#[test]
fn the_path_says_which_of_several_and_whiteouts_hide() {
    let dir = tempfile::tempdir().unwrap();
    let other = vec![1; 512];
    let two = [("disk/a.img", &disk()[..]), ("disk/b.img", &other[..])];
    image(dir.path(), &[layer(&two, false)], false);
    assert!(why(get(dir.path(), None)).starts_with("has more than one file"));
    let b = get(dir.path(), Some("/disk/b.img")).unwrap();
    assert_eq!(fs::read(b).unwrap(), other);
    assert_eq!(
        why(get(dir.path(), Some("/disk/c.img"))),
        "has no file /disk/c.img"
    );

    let dir = tempfile::tempdir().unwrap();
    let layers = [layer(&two, false), layer(&[("disk/.wh.a.img", b"")], false)];
    image(dir.path(), &layers, false);
    assert_eq!(fs::read(get(dir.path(), None).unwrap()).unwrap(), other);
}

#[test]
fn bad_images_are_refused_and_leave_nothing_in_the_cache() {
    let cases: [(Files, &str); 3] = [
        (&[("etc/x", b"x")], "has no file in /disk"),
        (&[("disk/a.img", &[])], "/disk/a.img has 0 bytes"),
        (&[("disk/../../a.img", &[1; 512])], "has no file in /disk"),
    ];
    for (files, want) in cases {
        let dir = tempfile::tempdir().unwrap();
        image(dir.path(), &[layer(files, true)], true);
        assert_eq!(why(get(dir.path(), None)), want);
        let left = fs::read_dir(dir.path().join("cache"))
            .map(|d| d.count())
            .unwrap_or(0);
        assert_eq!(left, 0);
    }
}

#[test]
fn a_file_is_taken_whatever_its_length() {
    let dir = tempfile::tempdir().unwrap();
    let qcow2 = b"QFI\xfb\0\0\0\x03 and more";
    image(dir.path(), &[layer(&[("disk/a", qcow2)], false)], false);
    assert_eq!(fs::read(get(dir.path(), None).unwrap()).unwrap(), qcow2);
}

#[test]
fn changed_and_truncated_blobs_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = layer(&[("disk/a.img", &disk())], false);
    image(dir.path(), std::slice::from_ref(&bytes), false);
    let blob = dir
        .path()
        .join("blobs/sha256")
        .join(Digest::of(&bytes).hex());
    let mut changed = bytes.clone();
    changed[600_000] ^= 1;
    fs::write(&blob, &changed).unwrap();
    assert_eq!(
        why(get(dir.path(), None)),
        "a layer does not have the digest it is named by"
    );
    fs::write(&blob, &bytes[..4096]).unwrap();
    assert!(why(get(dir.path(), None)).starts_with("truncated"));
    fs::write(
        dir.path().join("index.json"),
        r#"{"manifests":[{"digest":"sha256:../x","size":1}]}"#,
    )
    .unwrap();
    assert!(why(get(dir.path(), None)).contains("is not a sha256 digest"));
    let missing = unpack("nobody/has:this", None, dir.path(), dir.path()).unwrap_err();
    assert!(
        missing.to_string().contains("nobody_has_this.tar"),
        "{missing}"
    );
}
