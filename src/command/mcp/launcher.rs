//! The launcher of the machine's own programs, a hidden subcommand: `anklume program-launcher`.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rustix::process::geteuid;
use rustix::stdio::stdin;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::serve::{CLEANUP_TIMEOUT, redact_panics, runtime};
use crate::account::Account;
use crate::child::{ChildUser, adopt_orphans};
use crate::command::output::Output;
use crate::confinement::{hide, keep_launcher_capabilities};
use crate::error::Exit;
use crate::mcp::launcher::{Launcher, listen};
use crate::mcp::policy_watcher::{OnChange, PolicyWatcher};
use crate::text::escaped;

/// Threads for blocking work, of which there is little.
const THREADS: usize = 4;

/// Runs `anklume program-launcher`: listens at this address until it is killed or, if the address is abstract, its stdin
/// is closed.
pub(crate) fn run_launcher(
    address: &Path,
    services: &Path,
    output: &Output,
) -> anyhow::Result<Exit> {
    redact_panics(output);
    hide()?;
    keep_launcher_capabilities().context("the launcher's capabilities cannot be limited")?;
    adopt_orphans()?;
    let is_own = address.as_os_str().as_bytes().starts_with(b"@");
    // The server that starts its own launcher has its user.
    let account = if is_own {
        None
    } else {
        Account::of_this_machine()?
    };
    let first = match PolicyWatcher::read(services) {
        // The server says so.
        Err(_) if is_own => return Ok(Exit::Failed),
        first => first?,
    };
    let told = (!is_own).then(|| output.clone());
    let policy = Arc::new(PolicyWatcher::new(services, first, on_change(told)));
    let faults = output.clone();
    let launcher = Launcher {
        policy,
        server: account
            .as_ref()
            .map_or(geteuid().as_raw(), |account| account.uid),
        user: account.map_or(ChildUser::Launcher, ChildUser::Server),
        report: Arc::new(move |text| faults.stderr(&format!("error: {}", escaped(text)))),
    };
    let runtime = runtime(THREADS)?;
    let served = runtime.block_on(async {
        let listener =
            listen(address).with_context(|| format!("cannot listen on `{}`", address.display()))?;
        if is_own {
            let mut server = pipe::Receiver::from_owned_fd(stdin().try_clone_to_owned()?)?;
            tokio::select! {
                () = launcher.serve(listener) => {}
                _ = async { server.read(&mut [0]).await } => {}
            }
        } else {
            launcher.serve(listener).await;
        }
        Ok(Exit::Done)
    });
    runtime.shutdown_timeout(CLEANUP_TIMEOUT);
    served
}

/// Reports a refused services file, unless the server does.
fn on_change(output: Option<Output>) -> OnChange {
    Box::new(move |_, error| {
        if let (Some(output), Some(error)) = (&output, error) {
            output.stderr(&format!("error: {}", error.to_string().escape_debug()));
        }
    })
}
