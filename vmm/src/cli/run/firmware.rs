//! A root disk that its own boot loader starts: UEFI, entered as a kernel is, finds it.

use std::path::PathBuf;

use super::boot::Chosen;
use super::{Error, Options, Seed, find};
use crate::boot::kernel::Kernel;
use crate::checks;
use crate::plan::PlannedDisk;
use crate::vmi::Machine;

/// Cloud Hypervisor's build of EDK2, which this machine's platform is made for.
const NAME: &str = "CLOUDHV.fd";
/// Where Debian's package has it.
const DEBIAN: &str = "/usr/share/cloudhv-efi-x86-64";

/// Finds the firmware that starts `loader`, which is on the root disk.
pub(super) fn choose(
    args: &Options,
    machine: &Machine,
    disks: &[PlannedDisk],
    images: &[PathBuf],
    loader: &str,
) -> Result<Chosen, Error> {
    let nothing_there = [
        (args.append.is_some(), "append"),
        (args.kaslr, "kaslr"),
        (args.initramfs.is_some(), "initramfs"),
        (args.seed == Seed::Vsock, "seed vsock"),
    ];
    if let Some((_, option)) = nothing_there.into_iter().find(|(given, _)| *given) {
        return Err(Error::NotByFirmware(option));
    }
    let dirs: Vec<_> = images.iter().cloned().chain([DEBIAN.into()]).collect();
    let path = find(args.firmware.as_ref(), "firmware", &[NAME], &dirs)?;
    checks::kernel(&path)?;
    let kernel = Kernel::firmware(&path)?;
    let root = machine.root_disk().unwrap_or(0);
    if let Some(first) = disks.first().filter(|_| root > 0) {
        tracing::warn!(
            "UEFI looks at the disks as the manifest lists them, whatever their bootOrder, and `{}` is \
             the first: it starts if it has a loader",
            first.name
        );
    }
    let what = format!("{loader} by {}, without the agent", path.display());
    Ok(Chosen::firmware(kernel, what))
}
