use std::fs;

use super::*;

fn etc() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        (
            "passwd",
            "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n",
        ),
        ("shadow", "root:*:1:0:99999:7:::\n"),
        ("group", "root:x:0:\nadm:x:4:\n"),
        ("gshadow", "root:*::\nadm:*::\n"),
        ("subuid", ""),
        (
            "login.defs",
            "USERGROUPS_ENAB yes\nPASS_MAX_DAYS 99999\nSYS_UID_MIN 100\n",
        ),
    ] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[test]
fn a_user_gets_the_next_number_a_group_and_lines_in_every_file() {
    let folder = etc();
    let accounts = Accounts::at(folder.path());
    let home = folder.path().join("home/a");
    for (name, system) in [("a", false), ("b", false), ("c", true), ("d", true)] {
        accounts
            .add_user(&NewUser {
                name: name.to_owned(),
                groups: vec!["adm".to_owned()],
                home: (name == "a").then(|| home.display().to_string()),
                no_home: true,
                system,
                ..NewUser::default()
            })
            .unwrap();
    }
    let uid = |name| accounts.user(name).unwrap().uid;
    assert_eq!(
        (uid("a"), uid("b"), uid("c"), uid("d")),
        (1000, 1001, 999, 998)
    );
    assert_eq!(accounts.user("a").unwrap().home, home);
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(
        read("group"),
        "root:x:0:\nadm:x:4:a,b,c,d\na:x:1000:\nb:x:1001:\nc:x:999:\nd:x:998:\n"
    );
    assert_eq!(read("subuid"), "a:100000:65536\nb:165536:65536\n");
    assert!(read("shadow").contains("\na:!:"));
    assert!(!folder.path().join("passwd.lock").exists());
}

#[test]
fn what_would_break_a_file_is_refused() {
    let folder = etc();
    let accounts = Accounts::at(folder.path());
    for name in ["", "-a", "a:b", "a\nb", "a/b", "..", "123"] {
        accounts.add_group(name).unwrap_err();
    }
    let mut new = NewUser {
        name: "a".to_owned(),
        comment: Some("x\nroot2::0:0::/:/bin/sh".to_owned()),
        no_home: true,
        ..NewUser::default()
    };
    accounts.add_user(&new).unwrap_err();
    new.comment = None;
    new.groups = vec!["none".to_owned()];
    assert_eq!(
        accounts.add_user(&new).unwrap_err(),
        "there is no group \"none\""
    );
    assert!(accounts.user("a").is_none());
    accounts.set_hash("root", "a:b").unwrap_err();
    assert_eq!(
        accounts.lock("none").unwrap_err(),
        "there is no user \"none\""
    );
}

#[test]
fn a_password_is_set_locked_and_expired() {
    let folder = etc();
    let accounts = Accounts::at(folder.path());
    accounts.set_hash("root", "$6$x$y").unwrap();
    accounts.lock("root").unwrap();
    accounts.lock("root").unwrap();
    accounts.expire("root").unwrap();
    let shadow = fs::read_to_string(folder.path().join("shadow")).unwrap();
    assert_eq!(shadow, "root:!$6$x$y:0:0:99999:7:::\n");
}

#[test]
fn changes_together_leave_the_files_that_one_after_the_other_does() {
    let [apart, at_once] = [etc(), etc()];
    let make = |accounts: &Accounts| {
        accounts.add_group("sudo").unwrap();
        let new = NewUser {
            name: "a".to_owned(),
            groups: vec!["sudo".to_owned()],
            no_home: true,
            ..NewUser::default()
        };
        accounts.add_user(&new).unwrap();
        accounts.add_user(&new).unwrap_err();
        accounts.lock("a").unwrap();
        assert_eq!(accounts.user("a").unwrap().uid, 1000);
        assert_eq!(accounts.gid("sudo"), Some(1000));
    };
    make(&Accounts::at(apart.path()));
    let accounts = Accounts::at(at_once.path());
    accounts.together(|| make(&accounts)).unwrap();
    let files = |folder: &tempfile::TempDir| {
        let entries = fs::read_dir(folder.path()).unwrap();
        let file = |entry: fs::DirEntry| {
            let text = fs::read_to_string(entry.path()).unwrap();
            (entry.file_name(), text)
        };
        entries
            .map(|entry| file(entry.unwrap()))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    assert_eq!(files(&apart), files(&at_once));
}

#[test]
fn a_hash_is_one_that_the_c_library_makes_again() {
    let hash = hash("secret").unwrap();
    let mut perl = std::process::Command::new("perl");
    perl.args(["-e", "exit(crypt('secret', $ARGV[0]) ne $ARGV[0])", &hash]);
    assert!(crate::children::run(&mut perl).success());
    assert_eq!(random(20).unwrap().len(), 20);
}

#[test]
fn days_are_counted_as_shadow_does() {
    for (date, day) in [
        ("1970-01-01", "0"),
        ("2024-02-29", "19782"),
        ("2032-09-01", "22889"),
        ("12", "12"),
    ] {
        assert_eq!(days_of(date).as_deref(), Some(day));
    }
    assert_eq!(days_of("2024-13-01"), None);
    assert_eq!(days_of("soon"), None);
}
