//! Drives what keeps the server running: systemd, OpenRC, or nothing.

use std::fs::{self, File};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, lchown,
};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::account::Account;
use super::tree::MachineTree;
use super::{SetupError, failed, server};
use crate::edge::PROVIDER_FOLDER;
use crate::machine_state::{
    AGENT_UNIT, LOGS, RUNTIME, STOP_SECONDS, Supervisor, UNIT, systemd_wanted, unit_paths, units,
};

/// Maximum time that a supervisor may take: as long as the server that it ends, and a while to kill that and start another.
pub(crate) const PATIENCE: Duration = Duration::from_secs(STOP_SECONDS + 10);
/// Interval for checking whether OpenRC has started everything.
const LOOK: Duration = Duration::from_millis(50);
/// Most of a supervisor's last words that are passed on, in characters.
const WORDS_MAX: usize = 500;

/// Finds the supervisor of this machine.
pub(super) fn detect() -> Supervisor {
    if Path::new("/run/systemd/system").is_dir() {
        Supervisor::Systemd
    } else if Path::new("/run/openrc").is_dir() {
        Supervisor::Openrc
    } else {
        Supervisor::Nobody
    }
}

/// Writes what the supervisor starts the server by; whether that was otherwise before.
pub(super) async fn install(
    tree: &MachineTree,
    supervisor: Supervisor,
    run_as: Option<&str>,
) -> Result<bool, SetupError> {
    if supervisor == Supervisor::Openrc {
        started().await;
    }
    let mut changed = false;
    for unit in units(supervisor, run_as) {
        changed |= tree.file(&unit.path, unit.text.as_bytes(), unit.mode)?;
    }
    match supervisor {
        Supervisor::Systemd => {
            if changed {
                tell("systemctl", &["daemon-reload"]).await?;
            }
            tell("systemctl", &["--quiet", "enable", UNIT]).await?;
        }
        Supervisor::Openrc => {
            for unit in [AGENT_UNIT, UNIT] {
                tell("rc-update", &["--quiet", "add", unit, "default"]).await?;
            }
        }
        Supervisor::Nobody => {}
    }
    Ok(changed)
}

/// Waits until OpenRC has started what it starts with the machine: what is started meanwhile it forgets, and can neither
/// stop nor start again.
async fn started() {
    /// There while OpenRC changes the runlevel, of which a boot has several.
    const STARTING: &str = "/run/openrc/rc.starting";
    /// Time that it must be away.
    const AWAY: u32 = 10;
    let began = Instant::now();
    let mut away = 0;
    while away < AWAY && began.elapsed() < PATIENCE {
        let starting = Path::new(STARTING).exists();
        away = if starting { 0 } else { away + 1 };
        sleep(LOOK).await;
    }
}

/// Makes the server of the program in place run: starts one, or ends the old one first where that must be.
pub(super) async fn run(
    supervisor: Supervisor,
    account: &Account,
    restart: bool,
) -> Result<(), SetupError> {
    if server::is_current() && !restart {
        return Ok(());
    }
    match supervisor {
        Supervisor::Systemd => tell("systemctl", &["restart", AGENT_UNIT, UNIT]).await,
        Supervisor::Openrc => {
            for unit in [AGENT_UNIT, UNIT] {
                tell("rc-service", &["--quiet", unit, "restart"]).await?;
            }
            Ok(())
        }
        Supervisor::Nobody => {
            server::end().await?;
            folders(account)?;
            server::start(account)
        }
    }
}

/// Ends the server, and takes away what would start it again.
pub(super) async fn withdraw(tree: &MachineTree) -> Result<(), SetupError> {
    let here = detect();
    for supervisor in [Supervisor::Systemd, Supervisor::Openrc] {
        let files = unit_paths(supervisor);
        let mut any = false;
        for (file, unit) in files.iter().zip([AGENT_UNIT, UNIT]) {
            if tree.read(file)?.is_none() {
                continue;
            }
            any = true;
            if here == supervisor {
                stop(supervisor, unit).await?;
            }
        }
        if !any {
            continue;
        }
        tree.remove(&systemd_wanted())?;
        for file in &files {
            tree.remove(file)?;
        }
        if here == Supervisor::Systemd {
            tell("systemctl", &["daemon-reload"]).await?;
        }
    }
    server::end().await
}

/// Ends what the supervisor of this machine keeps running, for good.
async fn stop(supervisor: Supervisor, unit: &str) -> Result<(), SetupError> {
    match supervisor {
        Supervisor::Systemd => tell("systemctl", &["--quiet", "disable", "--now", unit]).await,
        Supervisor::Openrc => {
            tell("rc-service", &["--quiet", unit, "stop"]).await?;
            tell("rc-update", &["--quiet", "delete", unit]).await
        }
        Supervisor::Nobody => Ok(()),
    }
}

/// Runs a supervisor's command to its end.
async fn tell(program: &str, args: &[&str]) -> Result<(), SetupError> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let shown = || format!("{program} {}", args.join(" "));
    let output = timeout(PATIENCE, command.output())
        .await
        .map_err(|_| SetupError::Supervisor {
            command: shown(),
            words: format!("no end within {} s", PATIENCE.as_secs()),
        })?
        .map_err(failed("the supervisor cannot be asked"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(SetupError::Supervisor {
        command: shown(),
        words: words.trim().chars().take(WORDS_MAX).collect(),
    })
}

/// The folders that a supervisor would make: of the sockets, of the clipboard, of the log.
fn folders(account: &Account) -> Result<(), SetupError> {
    let cannot = "the server's folders cannot be made";
    for (path, mode) in [(PROVIDER_FOLDER, 0o700), (RUNTIME, 0o700), (LOGS, 0o750)] {
        let path = Path::new(path);
        if let Some(parent) = path.parent() {
            let mut parents = fs::DirBuilder::new();
            parents.recursive(true).mode(0o755);
            parents.create(parent).map_err(failed(cannot))?;
        }
        folder(path, mode, account).map_err(failed(cannot))?;
    }
    Ok(())
}

/// A folder of a user's. One of another user's gives way to it; of what was in it, a log goes along.
fn folder(path: &Path, mode: u32, account: &Account) -> std::io::Result<()> {
    let there = match fs::symlink_metadata(path) {
        Ok(is) if is.is_dir() && (is.uid(), is.gid()) == (account.uid, account.gid) => {
            return fs::set_permissions(path, fs::Permissions::from_mode(mode));
        }
        Ok(is) => Some(is),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => None,
        Err(why) => return Err(why),
    };
    let mut away = path.as_os_str().to_owned();
    away.push(format!(".{}", std::process::id()));
    if let Some(before) = &there {
        fs::rename(path, &away)?;
        if before.is_dir() {
            // Whoever had it changes nothing in it from here on.
            lchown(&away, Some(0), Some(0))?;
            fs::set_permissions(&away, fs::Permissions::from_mode(0o700))?;
        }
    }
    fs::DirBuilder::new().mode(mode).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if let Some(before) = there {
        if path == Path::new(LOGS) {
            logs(Path::new(&away), path, before.uid(), account)?;
        }
        // What cannot be removed, such as a mount of the other user's, stays out of the way.
        let _ = fs::remove_dir_all(&away);
    }
    lchown(path, Some(account.uid), Some(account.gid))
}

/// Hands a log on: files that only the user had, under the names that the log has.
fn logs(from: &Path, to: &Path, before: u32, account: &Account) -> std::io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let is_log = entry.file_name().to_string_lossy().starts_with("audit.");
        let file = File::options()
            .read(true)
            .custom_flags(
                i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or_default(),
            )
            .open(entry.path());
        let Some(file) = file.ok().filter(|_| is_log) else {
            continue;
        };
        let is = file.metadata()?;
        // Another name of the file may be somebody else's.
        if is.is_file() && is.nlink() == 1 && is.uid() == before {
            fchown(&file, Some(account.uid), Some(account.gid))?;
            fs::rename(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
