use std::fs;

use super::*;

fn read(meta: &str, user: &[u8]) -> Result<Seed, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("meta-data"), meta).unwrap();
    fs::write(folder.path().join("user-data"), user).unwrap();
    Ok(seed(folder::read(folder.path())?, "nocloud"))
}

#[test]
fn meta_data_may_be_json_yaml_or_empty() {
    let json = read(
        r#"{"instance-id":"i-1","local-hostname":"d","public-keys":{"0":{"openssh-key":"k1"},"b":["k2",""]}}"#,
        b"u",
    )
    .unwrap();
    assert_eq!(
        (&*json.instance_id, json.hostname.as_deref()),
        ("i-1", Some("d"))
    );
    assert_eq!(json.public_keys(), ["k1", "k2"]);
    assert_eq!(json.user_data, b"u");
    assert_eq!(read("instance-id: i-2\n", b"").unwrap().instance_id, "i-2");
    assert_eq!(read("\n", b"").unwrap().instance_id, "nocloud");
}

#[test]
fn what_is_wrong_is_named() {
    let why = read("instance-id: [", b"").unwrap_err();
    assert!(why.starts_with("meta-data:1:"), "{why}");
    let long = read("", &vec![b'x'; (1 << 20) + 1]).unwrap_err();
    assert_eq!(long, "user-data: 1048577 bytes; it may have 1048576");
    let folder = tempfile::tempdir().unwrap();
    let missing = folder::read(folder.path()).unwrap_err();
    assert!(missing.starts_with("meta-data: No such file"), "{missing}");
}

#[test]
fn a_word_is_a_seed_and_the_first_source_names_the_instance() {
    let mut found = line::parse("ds=nocloud;h=box;i=i-9;s=/x/\n").unwrap();
    assert_eq!(found.value("seedfrom").as_deref(), Some("/x/"));
    assert!(line::parse("ds=nocloudy").is_none());
    assert!(line::parse("quiet").is_none());
    let later = Found {
        meta_data: folder::meta_data(b"instance-id: i-1\nx: 1\n").unwrap(),
        user_data: Some(b"u".to_vec()),
        ..Found::default()
    };
    found.add("later", later);
    let seed = seed(found, "nocloud");
    assert_eq!((&*seed.instance_id, &*seed.user_data), ("i-9", &b"u"[..]));
}

#[test]
fn a_config_drive_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let latest = folder.path().join("openstack/latest");
    fs::create_dir_all(&latest).unwrap();
    for (name, text) in [
        (
            "meta_data.json",
            r#"{"uuid": "u-1", "hostname": "h", "public_keys": {"k": "ssh-rsa A"}}"#,
        ),
        ("user_data", "#!/bin/sh\n"),
        (
            "vendor_data.json",
            r##"{"cloud-init": "#cloud-config\n{}"}"##,
        ),
        (
            "network_data.json",
            r#"{"links": [{"id": "l", "name": "eth0", "ethernet_mac_address": "aa:bb:cc:dd:ee:ff"}],
                "networks": [{"link": "l", "type": "ipv4_dhcp"}], "services": [{"address": "1.1.1.1"}]}"#,
        ),
    ] {
        fs::write(latest.join(name), text).unwrap();
    }
    let seed = seed(config_drive::read(folder.path()).unwrap(), "configdrive");
    assert_eq!(
        (&*seed.instance_id, seed.hostname.as_deref()),
        ("u-1", Some("h"))
    );
    assert_eq!(seed.public_keys(), ["ssh-rsa A"]);
    assert_eq!(seed.vendor_data, b"#cloud-config\n{}");
    let network = String::from_utf8(seed.network_config.unwrap()).unwrap();
    assert!(
        network.contains("mac_address: \"aa:bb:cc:dd:ee:ff\""),
        "{network}"
    );
}
