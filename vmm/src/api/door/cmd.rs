//! What virt-handler asks, and the answers. An answer to a call about the VM's life is a sentence
//! where it was not done; a call that Peapod has no answer to is refused with the reason.

use std::sync::Arc;
use std::time::Duration;

use guest_agent::protocol::GuestInfo;
use kubevirt_rpc::cmd::cmd_server::Cmd;
use kubevirt_rpc::cmd::{
    DomainResponse, DomainStatsResponse, EmptyRequest, ExecRequest, ExecResponse, FreezeRequest,
    GuestFilesystemsResponse, GuestInfoResponse, GuestPingRequest, GuestPingResponse,
    GuestUserListResponse, Response, VmiRequest,
};
use kubevirt_rpc::cmd_info::cmd_info_server::CmdInfo;
use kubevirt_rpc::cmd_info::{CmdInfoRequest, CmdInfoResponse};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tonic::{Request, Status, async_trait};

use super::notify::warning;
use super::vm::Vm;
use super::{Shared, Stage};
use crate::agent::qga::StandStill;

/// What a program may write that is passed on.
const OUTPUT: usize = 1 << 20;
/// The longest that a program of a probe may take.
const LONGEST: u64 = 3600;
/// Why calls that Peapod has no answer to have none.
const REFUSED: &[(&str, &str)] = &[
    (
        "SoftRebootVirtualMachine",
        "the guest's agent powers it off, but does not reboot it; reset it, or run `reboot` in it",
    ),
    ("MigrateVirtualMachine", MOVED),
    ("SyncMigrationTarget", MOVED),
    ("CancelVirtualMachineMigration", MOVED),
    ("SignalTargetPodCleanup", MOVED),
    ("FinalizeVirtualMachineMigration", MOVED),
    ("HotplugHostDevices", PLUGGED),
    (
        "VirtualMachineMemoryDump",
        "a guest's memory is not written to a file",
    ),
    ("GetQemuVersion", "there is no QEMU here"),
    ("SyncVirtualMachineCPUs", PLUGGED),
    ("SyncVirtualMachineMemory", PLUGGED),
    ("GetSEVInfo", SEALED),
    ("GetLaunchMeasurement", SEALED),
    ("InjectLaunchSecret", SEALED),
    (
        "GetDomainDirtyRateStats",
        "which pages a guest writes is not followed",
    ),
    (
        "GetScreenshot",
        "there is no screen; the serial console is the guest's only one",
    ),
    ("BackupVirtualMachine", BACKED_UP),
    ("RedefineCheckpoint", BACKED_UP),
    (
        "GetVMStats",
        "ask GetDomainStats, GetGuestInfo and GetUsers",
    ),
];
const MOVED: &str = "a VM stays where it was started";
const PLUGGED: &str = "a VM keeps the devices, CPUs and memory that it was started with";
const SEALED: &str = "the guest's memory is not encrypted";
const BACKED_UP: &str = "changed blocks of disks are not tracked";

/// Why a call is refused, if it is.
pub fn refusal(name: &str) -> Option<&'static str> {
    let found = REFUSED.iter().find(|(call, _)| *call == name);
    found.map(|(_, why)| *why)
}

/// The launcher as virt-handler speaks with it.
pub struct Launcher(pub Arc<Shared>);

type Answer<T> = Result<tonic::Response<T>, Status>;

fn said(result: Result<(), impl ToString>) -> Response {
    Response {
        success: result.is_ok(),
        message: result.err().map(|why| why.to_string()).unwrap_or_default(),
    }
}

fn answer(result: Result<(), impl ToString>) -> Answer<Response> {
    Ok(tonic::Response::new(said(result)))
}

/// Does on a thread of its own what may wait for the guest.
async fn apart<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|error| Status::internal(error.to_string()))
}

impl Launcher {
    /// The VM, while it runs.
    fn running(&self) -> Result<Arc<Vm>, &'static str> {
        match self.0.vm() {
            Some(vm) if !vm.has_ended() => Ok(vm),
            Some(_) => Err("the VM has ended"),
            None => Err("there is no VM yet"),
        }
    }

    /// Has the guest's file systems stand still or go on, which its domain then says.
    async fn stand_still(&self, how: StandStill) -> Answer<Response> {
        let vm = match self.running() {
            Ok(vm) => vm,
            Err(why) => return answer(Err(why)),
        };
        let asked = apart({
            let vm = vm.clone();
            move || vm.running.stand_still(how)
        });
        let asked = asked.await?;
        if asked.is_ok() {
            vm.set_frozen(matches!(how, StandStill::For(_)));
        }
        answer(asked)
    }

    /// What the guest says of itself, as KubeVirt's API has it.
    async fn guest(
        &self,
        tell: impl FnOnce(&GuestInfo) -> Value,
    ) -> Result<(Response, String), Status> {
        let told = match self.running() {
            Ok(vm) => apart(move || vm.running.guest_info()).await?,
            Err(why) => Err(why.to_owned()),
        };
        let told = told.map(|info| tell(&info).to_string());
        let text = told.clone().unwrap_or_default();
        Ok((said(told.map(|_| ())), text))
    }
}

#[async_trait]
impl CmdInfo for Launcher {
    async fn info(&self, _: Request<CmdInfoRequest>) -> Answer<CmdInfoResponse> {
        Ok(tonic::Response::new(CmdInfoResponse {
            supported_cmd_versions: vec![kubevirt_rpc::VERSION],
        }))
    }
}

#[async_trait]
impl Cmd for Launcher {
    /// The first gives the VMI; virt-handler goes on calling, and hears that it runs.
    async fn sync_virtual_machine(&self, request: Request<VmiRequest>) -> Answer<Response> {
        let vmi = request.into_inner().vmi.unwrap_or_default().vmi_json;
        let stage = self.0.stage().clone();
        match stage {
            Stage::Waiting => {
                let (give, given) = oneshot::channel();
                if self.0.give.try_send((vmi, give)).is_err() {
                    return answer(Err("another VMI is being started"));
                }
                let gone = "another VMI was started".to_owned();
                answer(given.await.unwrap_or(Err(gone)))
            }
            Stage::Has(vm) if vm.has_ended() => answer(Err("the VM has ended")),
            Stage::Has(vm) => {
                let given = serde_json::from_slice::<Value>(&vmi).unwrap_or_default();
                let is = |field: &str, own: &str| {
                    let given = given.pointer(&format!("/metadata/{field}"));
                    let given = given.and_then(Value::as_str);
                    own.is_empty() || given.is_none_or(|given| given == own)
                };
                let own = &vm.domain;
                let same =
                    is("uid", &own.uid) && is("name", &own.name) && is("namespace", &own.namespace);
                let other = || format!("{} runs here, which is another VMI", own.full_name());
                answer(same.then_some(()).ok_or_else(other))
            }
        }
    }

    async fn pause_virtual_machine(&self, _: Request<VmiRequest>) -> Answer<Response> {
        match self.running() {
            Ok(vm) => answer(apart(move || vm.running.pause()).await?),
            Err(why) => answer(Err(why)),
        }
    }

    async fn unpause_virtual_machine(&self, _: Request<VmiRequest>) -> Answer<Response> {
        answer(self.running().map(|vm| vm.running.resume()))
    }

    async fn reset_virtual_machine(&self, _: Request<VmiRequest>) -> Answer<Response> {
        answer(self.running().and_then(|vm| vm.running.reset()))
    }

    async fn shutdown_virtual_machine(&self, _: Request<VmiRequest>) -> Answer<Response> {
        // One that is not there is off.
        if let Ok(vm) = self.running() {
            vm.running.stop(None);
        }
        answer(Ok::<_, String>(()))
    }

    async fn kill_virtual_machine(&self, _: Request<VmiRequest>) -> Answer<Response> {
        if let Ok(vm) = self.running() {
            vm.running.kill();
        }
        answer(Ok::<_, String>(()))
    }

    /// The domain, not the machine: of one that runs nothing is deleted.
    async fn delete_virtual_machine(&self, _: Request<VmiRequest>) -> Answer<Response> {
        if self.0.vm().is_some_and(|vm| vm.has_ended()) {
            self.0.deleted.notify_one();
        }
        answer(Ok::<_, String>(()))
    }

    async fn ping(&self, _: Request<EmptyRequest>) -> Answer<Response> {
        answer(Ok::<_, String>(()))
    }

    async fn get_domain(&self, _: Request<EmptyRequest>) -> Answer<DomainResponse> {
        let vm = self.0.vm().filter(|vm| !vm.is_deleted());
        let domain = vm.map(|vm| vm.domain.json(&vm.now()).to_string());
        Ok(tonic::Response::new(DomainResponse {
            response: Some(said(Ok::<_, String>(()))),
            domain: domain.unwrap_or_default(),
        }))
    }

    async fn get_domain_stats(&self, _: Request<EmptyRequest>) -> Answer<DomainStatsResponse> {
        let stats = self.running().map(|vm| vm.domain.stats(&vm.running));
        Ok(tonic::Response::new(DomainStatsResponse {
            domain_stats: stats.as_ref().map(Value::to_string).unwrap_or_default(),
            response: Some(said(Ok::<_, String>(()))),
        }))
    }

    async fn guest_ping(&self, request: Request<GuestPingRequest>) -> Answer<GuestPingResponse> {
        let within = patience(request.into_inner().timeout_seconds);
        let vm = self.running().map_err(Status::unavailable)?;
        let agent = vm.agent.clone();
        let answered = apart(move || agent.ping(within)).await?;
        if let Err(error) = answered {
            let what = format!("GuestAgentPing probe failed for VMI {}", vm.domain.name);
            let event = warning(&vm.domain, "GuestAgentPingFailed", &what);
            // Where many wait already this one tells nothing new.
            let _ = self.0.events.try_send(event);
            return Err(Status::unknown(error.to_string()));
        }
        Ok(tonic::Response::new(GuestPingResponse {
            response: Some(said(Ok::<_, String>(()))),
        }))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let request = request.into_inner();
        let within = patience(request.timeout_seconds);
        let argv = std::iter::once(request.command).chain(request.args);
        let argv: Vec<_> = argv.collect();
        let vm = self.running().map_err(Status::unavailable)?;
        let ended = apart(move || vm.agent.run(argv, within, OUTPUT)).await?;
        let ended = ended.map_err(|error| Status::unknown(error.to_string()))?;
        Ok(tonic::Response::new(ExecResponse {
            response: Some(said(Ok::<_, String>(()))),
            exit_code: ended.status,
            std_out: String::from_utf8_lossy(&ended.output).into_owned(),
        }))
    }

    async fn get_guest_info(&self, _: Request<EmptyRequest>) -> Answer<GuestInfoResponse> {
        let vm = self.0.vm();
        let software = vm.and_then(|vm| vm.running.agent.status().software);
        let asked = self.guest(|info| {
            let os = &info.os;
            json!({
                "guestAgentVersion": software.unwrap_or_default(),
                "hostname": info.hostname,
                "os": {
                    "name": os.name,
                    "kernelRelease": os.kernel_release,
                    "version": os.version,
                    "prettyName": os.pretty_name,
                    "versionId": os.version_id,
                    "kernelVersion": os.kernel_version,
                    "machine": os.machine,
                    "id": os.id,
                },
                "timezone": format!("{}, {}", info.timezone.name, info.timezone.offset_seconds),
                "userList": users(info),
                "fsInfo": { "disks": file_systems(info) },
                "fsFreezeStatus": if info.frozen { "frozen" } else { "thawed" },
            })
        });
        let (response, text) = asked.await?;
        Ok(tonic::Response::new(GuestInfoResponse {
            response: Some(response),
            guest_info_response: text,
        }))
    }

    async fn get_users(&self, _: Request<EmptyRequest>) -> Answer<GuestUserListResponse> {
        let (response, text) = self.guest(users).await?;
        Ok(tonic::Response::new(GuestUserListResponse {
            response: Some(response),
            guest_user_list_response: text,
        }))
    }

    async fn get_filesystems(&self, _: Request<EmptyRequest>) -> Answer<GuestFilesystemsResponse> {
        let (response, text) = self.guest(file_systems).await?;
        Ok(tonic::Response::new(GuestFilesystemsResponse {
            response: Some(response),
            guest_filesystems_response: text,
        }))
    }

    /// They go on by themselves after so long.
    async fn freeze_virtual_machine(&self, request: Request<FreezeRequest>) -> Answer<Response> {
        let seconds = u32::try_from(request.into_inner().unfreeze_timeout_seconds).ok();
        let seconds = seconds.filter(|seconds| *seconds > 0);
        self.stand_still(StandStill::For(seconds)).await
    }

    async fn unfreeze_virtual_machine(&self, _: Request<VmiRequest>) -> Answer<Response> {
        self.stand_still(StandStill::NoMore).await
    }
}

fn users(info: &GuestInfo) -> Value {
    let users = info
        .users
        .iter()
        .map(|user| json!({ "userName": user.name, "loginTime": user.since_ms as f64 / 1000.0 }));
    users.collect()
}

fn file_systems(info: &GuestInfo) -> Value {
    let all = info.filesystems.iter().map(|one| {
        json!({
            "diskName": one.device,
            "mountPoint": one.mountpoint,
            "fileSystemType": one.kind,
            "usedBytes": one.used,
            "totalBytes": one.total,
        })
    });
    all.collect()
}

/// How long a probe waits: a second at least.
fn patience(seconds: i32) -> Duration {
    let seconds = u64::try_from(seconds).unwrap_or(1);
    Duration::from_secs(seconds.clamp(1, LONGEST))
}
