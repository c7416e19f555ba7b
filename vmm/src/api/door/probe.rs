//! The other side of the door, for a probe: one call, and its answer.

use std::path::Path;
use std::time::Duration;

use kubevirt_rpc::cmd::cmd_client::CmdClient;
use kubevirt_rpc::cmd::{ExecRequest, GuestPingRequest};
use tokio::runtime::Builder;
use tokio::time::timeout;
use tonic::Status;

use super::wire::Wire;

/// How long the launcher may take beyond the guest.
const MORE: Duration = Duration::from_secs(5);

/// How what was asked for ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// A program's status.
    pub status: i32,
    /// What it wrote.
    pub output: String,
}

/// Whether the guest's agent answers.
pub fn ping(socket: &Path, domain_name: String, timeout_seconds: i32) -> Result<Ended, String> {
    let request = GuestPingRequest {
        domain_name,
        timeout_seconds,
    };
    call(socket, timeout_seconds, |mut cmd| async move {
        cmd.guest_ping(request).await.map(|_| Ended::default())
    })
}

/// Runs a program of the guest.
pub fn exec(
    socket: &Path,
    domain_name: String,
    argv: Vec<String>,
    timeout_seconds: i32,
) -> Result<Ended, String> {
    let mut words = argv.into_iter();
    let request = ExecRequest {
        domain_name,
        command: words.next().unwrap_or_default(),
        args: words.collect(),
        timeout_seconds,
    };
    call(socket, timeout_seconds, |mut cmd| async move {
        let ended = cmd.exec(request).await?.into_inner();
        Ok(Ended {
            status: ended.exit_code,
            output: ended.std_out,
        })
    })
}

fn call<F: Future<Output = Result<Ended, Status>>>(
    socket: &Path,
    seconds: i32,
    ask: impl FnOnce(CmdClient<Wire>) -> F,
) -> Result<Ended, String> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let shown = socket.display();
    let limit = Duration::from_secs(u64::try_from(seconds).unwrap_or(1)) + MORE;
    runtime.block_on(async {
        let asked = async {
            let wire = Wire::connect(socket).await;
            let wire = wire.map_err(|error| format!("{shown}: {error}"))?;
            let ended = ask(CmdClient::with_origin(wire, Wire::origin())).await;
            ended.map_err(|status| status.message().to_owned())
        };
        let late = |_| Err(format!("{shown}: the launcher does not answer"));
        timeout(limit, asked).await.unwrap_or_else(late)
    })
}
