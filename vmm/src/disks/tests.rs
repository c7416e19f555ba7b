use std::fs;
use std::process::Command;

use vm_memory::VolatileSlice;

use super::*;

/// A machine with these volumes, each a disk.
fn machine(volumes: &str) -> Machine {
    let text = format!(
        "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nmetadata: {{name: t}}\nspec:\n  \
         domain: {{memory: {{guest: 64Mi}}, devices: {{autoattachPodInterface: false}}}}\n  \
         volumes: [{volumes}]\n"
    );
    vmi::parse("t", text.as_bytes()).unwrap().machine
}

fn plan(
    machine: &Machine,
    folder: &Path,
    options: &[&str],
) -> Result<(Vec<PlannedDisk>, Vec<PathBuf>), Error> {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }
    let line = std::iter::once(&"t").chain(options);
    let options = <Line as clap::Parser>::parse_from(line).options;
    let finder = Finder {
        mounted: None,
        options: &options,
        images: &[],
        cache: &folder.join("cache"),
        dry_run: false,
    };
    finder.check(machine)?;
    Ok((finder.plan(machine)?, options.backing_dir.clone()))
}

fn opened(machine: &Machine, folder: &Path, options: &[&str]) -> Box<dyn Disk> {
    let (disks, backing_dirs) = plan(machine, folder, options).unwrap();
    open(&disks[0], &backing_dirs, folder, None).unwrap()
}

/// The disk's first sector's first byte, after `write` went there.
fn first(disk: &mut dyn Disk, write: Option<u8>) -> u8 {
    let mut bytes = [write.unwrap_or(0); 512];
    let slice = VolatileSlice::from(bytes.as_mut_slice());
    if write.is_some() {
        disk.write(&slice, 0).unwrap();
    }
    disk.read(&slice, 0).unwrap();
    disk.flush().unwrap();
    bytes[0]
}

fn qemu_img(words: &str) {
    let status = Command::new("qemu-img").args(words.split(' ')).status();
    assert!(status.expect("qemu-img").success());
}

/// 1 MiB that begins with `Q`, raw and as a qcow2 image.
fn images(folder: &Path) -> (PathBuf, PathBuf) {
    let (raw, qcow2) = (folder.join("raw"), folder.join("qcow2"));
    let mut bytes = vec![0; 1 << 20];
    bytes[0] = b'Q';
    fs::write(&raw, bytes).unwrap();
    qemu_img(&format!(
        "convert -c -O qcow2 {} {}",
        raw.display(),
        qcow2.display()
    ));
    (raw, qcow2)
}

#[test]
fn a_raw_disk_that_begins_as_a_qcow2_image_is_never_taken_for_one() {
    let folder = tempfile::tempdir().unwrap();
    let (_, qcow2) = images(folder.path());
    let machine = machine(&format!(
        "{{name: r, hostDisk: {{path: {}, type: Disk}}}}",
        qcow2.display()
    ));
    let said = plan(&machine, folder.path(), &[]).unwrap_err().to_string();
    assert!(said.contains("--format r=qcow2"), "{said}");
    let length = fs::metadata(&qcow2).unwrap().len();
    let file = File::options().write(true).open(&qcow2).unwrap();
    file.set_len(length.next_multiple_of(512)).unwrap();
    let mut raw = opened(&machine, folder.path(), &["--format", "r=raw"]);
    assert_eq!(raw.size(), length.next_multiple_of(512));
    assert_eq!(first(&mut *raw, None), b'Q');
    drop(raw);
    let mut disk = opened(&machine, folder.path(), &["--format", "r=qcow2"]);
    assert_eq!(disk.size(), 1 << 20);
    assert_eq!(first(&mut *disk, Some(b'W')), b'W');
    drop(disk);
    let mut again = opened(&machine, folder.path(), &["--format", "r=qcow2"]);
    assert_eq!(first(&mut *again, None), b'W');
}

#[test]
fn a_claim_is_found_where_the_command_line_says_and_an_ephemeral_one_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, qcow2) = images(folder.path());
    let ephemeral = machine("{name: r, ephemeral: {persistentVolumeClaim: {claimName: mine}}}");
    let said = plan(&ephemeral, folder.path(), &[])
        .unwrap_err()
        .to_string();
    assert_eq!(
        said,
        "disk `r`: claim `mine`: looked for /var/run/kubevirt-private/vmi-disks/r/disk.img and \
         /dev/r; --claim mine=PATH names it"
    );
    for (file, format) in [(&raw, "r=raw"), (&qcow2, "r=qcow2")] {
        let before = fs::read(file).unwrap();
        let claim = format!("mine={}", file.display());
        let options = ["--claim", &claim, "--format", format];
        let mut disk = opened(&ephemeral, folder.path(), &options);
        assert_eq!(first(&mut *disk, None), b'Q');
        assert_eq!(first(&mut *disk, Some(b'W')), b'W');
        drop(disk);
        assert!(fs::read(file).unwrap() == before);
    }
    let kept = machine("{name: r, persistentVolumeClaim: {claimName: mine}}");
    let claim = format!("mine={}", raw.display());
    let mut disk = opened(&kept, folder.path(), &["--claim", &claim]);
    first(&mut *disk, Some(b'W'));
    assert_eq!(fs::read(&raw).unwrap()[0], b'W');
}

#[test]
fn an_empty_disk_is_of_its_size_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let machine = machine("{name: e, emptyDisk: {capacity: 1000}}");
    let mut disk = opened(&machine, folder.path(), &[]);
    assert_eq!(disk.size(), 1024);
    assert_eq!(first(&mut *disk, None), 0);
    assert_eq!(first(&mut *disk, Some(7)), 7);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_option_for_a_disk_that_is_not_there_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let machine = machine("{name: e, emptyDisk: {capacity: 1Mi}}");
    for (options, want) in [
        (
            ["--format", "x=raw"],
            "--format x: the manifest has no such hostDisk or claim",
        ),
        (
            ["--claim", "x=/y"],
            "--claim x: the manifest has no such claim",
        ),
    ] {
        let error = plan(&machine, folder.path(), &options).unwrap_err();
        assert_eq!(error.to_string(), want);
    }
    assert!(parse_format("r=vmdk").is_err() && parse_format("raw").is_err());
}

#[test]
fn a_config_map_that_nobody_has_is_named_unless_it_is_optional() {
    let folder = tempfile::tempdir().unwrap();
    let of = |more: &str| machine(&format!("{{name: conf, configMap: {{name: app{more}}}}}"));
    let error = plan(&of(""), folder.path(), &[]).unwrap_err().to_string();
    assert!(
        error.contains("disk `conf`: ConfigMap `app` is neither"),
        "{error}"
    );
    let (disks, _) = plan(&of(", optional: true"), folder.path(), &[]).unwrap();
    assert!(matches!(disks[0].backing, Backing::Memory(_)));
}
