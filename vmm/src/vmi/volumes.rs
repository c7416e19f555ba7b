//! `spec.volumes`: what lies on the disks.

use std::path::PathBuf;

use super::credentials::Credentials;
use super::documents::{self, Beside};
use super::machine::{HostDiskType, Keyed, SeedForm, Source};
use super::object::{Field, Object, Problems};
use super::schema;

/// KubeVirt's label of a disk of files.
const LABEL: &str = "cfgdata";
/// What a FAT's may have.
const MAX_LABEL: usize = 11;

/// A volume, waiting for its disk.
pub(super) struct Volume<'a> {
    pub(super) name: String,
    pub(super) source: Source,
    pub(super) field: Field<'a>,
}

/// Reads all volumes. One whose source is refused keeps its name (its source is then of no
/// account), so that its disk is not blamed as well.
pub(super) fn read<'a>(
    field: Option<&Field<'a>>,
    beside: &Beside,
    p: &mut Problems,
) -> Vec<Volume<'a>> {
    let mut volumes: Vec<Volume> = Vec::new();
    let fields = field.map(|f| f.list(p)).unwrap_or_default();
    for (index, field) in fields.into_iter().enumerate() {
        let Some(mut volume) = field.object(p, schema::VOLUME) else {
            continue;
        };
        let name = volume
            .need(p, "name")
            .and_then(|f| f.string(p).map(str::to_owned));
        let before = p.len();
        let place = (name.as_deref().unwrap_or_default(), index);
        let source = source(&mut volume, place, beside, p);
        if source.is_none() && p.len() == before && volume.names().next().is_none() {
            field.problem(p, "has no source, such as `hostDisk` or `containerDisk`");
        }
        volume.finish(p);
        let Some(name) = name else { continue };
        if volumes.iter().any(|v| v.name == name) {
            field.problem(p, format!("a second volume is named `{name}`"));
        }
        let source = source.unwrap_or(Source::Seed {
            form: SeedForm::NoCloud,
            user_data: Vec::new(),
            network_data: None,
            keys: Vec::new(),
        });
        volumes.push(Volume {
            name,
            source,
            field,
        });
    }
    volumes
}

/// Puts public keys into the seeds that are to carry them.
pub(super) fn credentials(
    volumes: &mut [Volume<'_>],
    credentials: Credentials<'_>,
    p: &mut Problems,
) {
    for (field, wanted, found) in credentials {
        let mut seeds = volumes
            .iter_mut()
            .filter_map(|volume| match &mut volume.source {
                Source::Seed { form, keys, .. } if *form == wanted => Some(keys),
                _ => None,
            });
        match seeds.next() {
            Some(keys) => keys.push(found),
            None => field.problem(p, "there is no seed of that kind among the volumes"),
        }
    }
}

/// The source of the volume of that name and index.
fn source(
    volume: &mut Object,
    place: (&str, usize),
    beside: &Beside,
    p: &mut Problems,
) -> Option<Source> {
    let (name, index) = place;
    if volume.names().count() > 1 {
        volume.field().problem(p, "has more than one source");
        volume.ignore(schema::VOLUME);
        return None;
    }
    if let Some(field) = volume.take("hostDisk") {
        return host_disk(&field, p);
    }
    // Until v1alpha3 it had the other name.
    let container_disk = volume.take("containerDisk");
    if let Some(field) = container_disk.or_else(|| volume.take("registryDisk")) {
        let mut disk = field.object(p, schema::CONTAINER_DISK)?;
        // Who pulls, and with which right, is settled before a launcher starts.
        disk.ignore(&["imagePullPolicy", "imagePullSecret"]);
        let image = filled(&mut disk, "image", p);
        let path = disk
            .take("path")
            .and_then(|f| f.string(p).map(str::to_owned));
        disk.finish(p);
        return Some(Source::ContainerDisk {
            volume: (name.to_owned(), index),
            image: image?,
            path,
        });
    }
    if let Some(field) = volume.take("emptyDisk") {
        let mut disk = field.object(p, schema::EMPTY_DISK)?;
        let capacity = disk.need(p, "capacity").and_then(|f| {
            let capacity = f.quantity(p)?;
            if capacity == 0 {
                f.problem(p, "must not be 0");
            }
            Some(capacity)
        });
        disk.finish(p);
        return capacity.map(|capacity| Source::EmptyDisk { capacity });
    }
    if let Some(field) = volume.take("persistentVolumeClaim") {
        return claim(&field, name, false, p);
    }
    if let Some(field) = volume.take("ephemeral") {
        let mut ephemeral = field.object(p, schema::EPHEMERAL)?;
        let field = ephemeral.need(p, "persistentVolumeClaim");
        ephemeral.finish(p);
        return claim(&field?, name, true, p);
    }
    if let Some(field) = volume.take("dataVolume") {
        let mut data = field.object(p, schema::DATA_VOLUME)?;
        data.accept_bool("hotpluggable", false);
        // CDI fills a claim of the DataVolume's name.
        let claim = filled(&mut data, "name", p);
        data.finish(p);
        return Some(Source::Claim {
            volume: name.to_owned(),
            claim: claim?,
            ephemeral: false,
        });
    }
    if let Some(field) = volume.take("serviceAccount") {
        let mut account = field.object(p, schema::SERVICE_ACCOUNT_VOLUME)?;
        let account_name = filled(&mut account, "serviceAccountName", p);
        account.finish(p);
        return Some(Source::Keys {
            volume: name.to_owned(),
            of: Keyed::ServiceAccount,
            name: account_name?,
            optional: false,
            label: LABEL.to_owned(),
            fields: serde_json::Value::Null,
            files: None,
        });
    }
    if let Some(field) = volume.take("downwardAPI") {
        let mut downward = field.object(p, schema::DOWNWARD_API)?;
        let fields = downward.need(p, "fields");
        let label = label(&mut downward, p);
        downward.finish(p);
        return Some(Source::Keys {
            volume: name.to_owned(),
            of: Keyed::DownwardApi,
            name: name.to_owned(),
            optional: false,
            label: label?,
            fields: fields?.node().value.json(),
            files: None,
        });
    }
    for (kind, of, known, key) in [
        (
            "configMap",
            Keyed::ConfigMap,
            schema::CONFIG_MAP_VOLUME,
            "name",
        ),
        ("secret", Keyed::Secret, schema::SECRET_VOLUME, "secretName"),
    ] {
        if let Some(field) = volume.take(kind) {
            return keys(&mut field.object(p, known)?, of, (name, key), beside, p);
        }
    }
    let (field, form) = match volume.take("cloudInitNoCloud") {
        Some(field) => (field, SeedForm::NoCloud),
        None => (volume.take("cloudInitConfigDrive")?, SeedForm::ConfigDrive),
    };
    let mut seed = field.object(p, schema::NO_CLOUD)?;
    let user = ["userData", "userDataBase64", "secretRef", "userdata"];
    let user_data = data(&mut seed, user, beside, p);
    let network = [
        "networkData",
        "networkDataBase64",
        "networkDataSecretRef",
        "networkdata",
    ];
    let network_data = data(&mut seed, network, beside, p);
    if user_data.is_none() && network_data.is_none() && seed.names().next().is_none() {
        field.problem(p, "has neither `userData` nor `userDataBase64`");
    }
    seed.finish(p);
    Some(Source::Seed {
        form,
        user_data: user_data.unwrap_or_default(),
        network_data,
        keys: Vec::new(),
    })
}

/// A ConfigMap's or a Secret's disk, by the volume's name and the field that has the object's.
fn keys(
    object: &mut Object,
    of: Keyed,
    (volume, key): (&str, &str),
    beside: &Beside,
    p: &mut Problems,
) -> Option<Source> {
    let name = filled(object, key, p)?;
    let optional = object.take("optional").and_then(|f| f.boolean(p));
    let label = label(object, p)?;
    Some(Source::Keys {
        volume: volume.to_owned(),
        of,
        optional: optional.unwrap_or(false),
        label,
        fields: serde_json::Value::Null,
        files: beside.keys(of, &name).cloned(),
        name,
    })
}

/// The label of a disk of files.
fn label(object: &mut Object, p: &mut Problems) -> Option<String> {
    let Some(field) = object.take("volumeLabel") else {
        return Some(LABEL.to_owned());
    };
    let label = field.string(p)?;
    if label.len() > MAX_LABEL || !label.bytes().all(|b| b.is_ascii_graphic()) {
        let message = format!("must be at most {MAX_LABEL} printable characters");
        field.problem(p, message);
    }
    Some(label.to_owned())
}

fn claim(field: &Field, volume: &str, ephemeral: bool, p: &mut Problems) -> Option<Source> {
    let mut claim = field.object(p, schema::CLAIM)?;
    claim.accept_bool("hotpluggable", false);
    // KubeVirt mounts the claim so; of an ephemeral volume nobody writes it anyway.
    if ephemeral {
        claim.ignore(&["readOnly"]);
    }
    claim.accept_bool("readOnly", false);
    let name = filled(&mut claim, "claimName", p);
    claim.finish(p);
    Some(Source::Claim {
        volume: volume.to_owned(),
        claim: name?,
        ephemeral,
    })
}

fn host_disk(field: &Field, p: &mut Problems) -> Option<Source> {
    let mut disk = field.object(p, schema::HOST_DISK)?;
    // Whether other nodes see the same path only matters to a migration's planner.
    disk.ignore(&["shared"]);
    let path = filled(&mut disk, "path", p);
    let capacity = disk.take("capacity").and_then(|f| f.quantity(p));
    let kind = disk.need(p, "type").and_then(|f| match f.string(p)? {
        "Disk" => Some(HostDiskType::Disk),
        "DiskOrCreate" => Some(HostDiskType::DiskOrCreate),
        _ => {
            f.problem(p, "must be Disk or DiskOrCreate");
            None
        }
    });
    disk.finish(p);
    if kind == Some(HostDiskType::DiskOrCreate) && capacity.is_none_or(|c| c == 0) {
        field.problem(p, "`capacity` is required with type DiskOrCreate");
    }
    Some(Source::HostDisk {
        path: PathBuf::from(path?),
        kind: kind?,
        capacity,
    })
}

/// A string that must be there and say something.
pub(super) fn filled(object: &mut Object, name: &str, p: &mut Problems) -> Option<String> {
    let field = object.need(p, name)?;
    let text = field.string(p)?;
    if text.is_empty() || text.contains('\0') {
        field.problem(p, "must not be empty or hold a NUL");
        return None;
    }
    Some(text.to_owned())
}

/// Data that are given as they are, as base64, or in a Secret under a key that is spelt like the first
/// or in lower case.
fn data(
    object: &mut Object,
    [plain, encoded, secret, lower]: [&str; 4],
    beside: &Beside,
    p: &mut Problems,
) -> Option<Vec<u8>> {
    if let Some(field) = object.take(secret) {
        let mut reference = field.object(p, schema::SECRET_REF)?;
        let name = filled(&mut reference, "name", p);
        reference.finish(p);
        let found = beside.secret_key(&name?, &[lower, plain]);
        return found.map_err(|why| field.problem(p, why)).ok();
    }
    let text = object.take(plain).and_then(|f| f.string(p));
    let base64 = object.take(encoded);
    match (text, base64) {
        (Some(_), Some(field)) => {
            field.problem(p, format!("`{plain}` is given as well"));
            None
        }
        (Some(text), None) => Some(text.as_bytes().to_vec()),
        (None, Some(field)) => documents::base64(&field, p),
        (None, None) => None,
    }
}
