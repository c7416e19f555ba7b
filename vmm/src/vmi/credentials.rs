//! `spec.accessCredentials`: public keys for the seed's meta-data.

use super::documents::Beside;
use super::machine::{Keyed, SeedForm, SshKeys};
use super::object::{Field, Problems};
use super::{schema, volumes};

/// Keys, and the kind of seed that they go into.
pub(super) type Credentials<'a> = Vec<(Field<'a>, SeedForm, SshKeys)>;

/// Reads the list. What only an agent of QEMU's could do is refused: the seed does it at the first
/// boot.
pub(super) fn read<'a>(
    field: Option<Field<'a>>,
    beside: &Beside,
    p: &mut Problems,
) -> Credentials<'a> {
    let list = field.map(|field| field.list(p)).unwrap_or_default();
    let read = list.into_iter().filter_map(|field| {
        let mut credential = field.object(p, schema::ACCESS_CREDENTIAL)?;
        let key = credential.take("sshPublicKey");
        if key.is_none() && credential.names().next().is_none() {
            field.problem(p, "`sshPublicKey` is required");
        }
        credential.finish(p);
        let mut key = key?.object(p, schema::SSH_PUBLIC_KEY)?;
        let source = key.need(p, "source");
        let method = key.need(p, "propagationMethod");
        key.finish(p);
        let secret = source.and_then(|source| {
            let mut source = source.object(p, schema::KEY_SOURCE)?;
            let secret = source.need(p, "secret");
            source.finish(p);
            let mut secret = secret?.object(p, schema::KEY_SECRET)?;
            let name = volumes::filled(&mut secret, "secretName", p);
            secret.finish(p);
            name
        });
        let mut method = method?.object(p, schema::PROPAGATION)?;
        let no_cloud = method.take("noCloud");
        let form = match (no_cloud, method.take("configDrive")) {
            (Some(_), _) => Some(SeedForm::NoCloud),
            (None, Some(_)) => Some(SeedForm::ConfigDrive),
            (None, None) => None,
        };
        if form.is_none() && method.names().next().is_none() {
            method
                .field()
                .problem(p, "`noCloud` or `configDrive` is required");
        }
        method.finish(p);
        let secret = secret?;
        let files = beside.keys(Keyed::Secret, &secret).cloned();
        Some((field, form?, SshKeys { secret, files }))
    });
    read.collect()
}
