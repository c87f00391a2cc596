//! Drives the server's supervisor: systemd, OpenRC, or none.

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

use super::tree::MachineTree;
use super::{SetupError, failed, launcher, server};
use crate::account::Account;
use crate::edge::PROVIDER_FOLDER;
use crate::machine_state::{
    AGENT_UNIT, LAUNCHER_UNIT, LOGS, RUNTIME, STOP_SECONDS, Supervisor, UNIT, UNITS,
    systemd_wanted, unit_path, units,
};

/// Maximum time for a supervisor command: the time that a server may take to end, plus some to kill and start one.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(STOP_SECONDS + 10);
/// Interval for checking whether OpenRC has started everything.
const LOOK: Duration = Duration::from_millis(50);
/// Maximum length of a supervisor's error output that is passed on, in characters.
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

/// Writes the supervisor's unit files, and removes that of a service which is no longer needed; returns the names of the
/// services whose files changed.
pub(super) async fn install(
    tree: &MachineTree,
    supervisor: Supervisor,
    run_as: Option<&str>,
    has_programs: bool,
) -> Result<Vec<&'static str>, SetupError> {
    if supervisor == Supervisor::Openrc {
        started().await;
    }
    let units = units(supervisor, run_as, has_programs);
    let mut changed = Vec::new();
    for unit in &units {
        if tree.file(&unit.path, unit.text.as_bytes(), unit.mode)? {
            changed.push(unit.name);
        }
    }
    let unneeded = UNITS.into_iter();
    let unneeded = unneeded.filter(|name| units.iter().all(|unit| unit.name != *name));
    for name in unneeded {
        let Some(path) = unit_path(supervisor, name) else {
            continue;
        };
        if tree.read(&path)?.is_some() {
            stop(supervisor, name).await?;
            tree.remove(&path)?;
            changed.push(name);
        }
    }
    if supervisor == Supervisor::Systemd && !changed.is_empty() {
        tell("systemctl", &["daemon-reload"]).await?;
    }
    for unit in units {
        match supervisor {
            // The server wants it.
            Supervisor::Systemd if unit.name == AGENT_UNIT => {}
            Supervisor::Systemd => tell("systemctl", &["--quiet", "enable", unit.name]).await?,
            Supervisor::Openrc => {
                tell("rc-update", &["--quiet", "add", unit.name, "default"]).await?;
            }
            Supervisor::Nobody => {}
        }
    }
    Ok(changed)
}

/// Waits until OpenRC has finished booting: it forgets services that were started earlier, and can neither stop nor
/// start them again.
async fn started() {
    /// File that exists while OpenRC is changing the runlevel, which happens several times during a boot.
    const STARTING: &str = "/run/openrc/rc.starting";
    /// Number of consecutive checks without the file.
    const AWAY: u32 = 10;
    let began = Instant::now();
    let mut away = 0;
    while away < AWAY && began.elapsed() < TIMEOUT {
        let starting = Path::new(STARTING).exists();
        away = if starting { 0 } else { away + 1 };
        sleep(LOOK).await;
    }
}

/// Makes the services run from the current program: starts them, or restarts them if necessary.
pub(super) async fn run(
    supervisor: Supervisor,
    account: &Account,
    restart: bool,
    changed: &[&str],
    has_programs: bool,
) -> Result<(), SetupError> {
    let server_changed = [AGENT_UNIT, UNIT].iter().any(|unit| changed.contains(unit));
    if restart || server_changed || !server::is_current() {
        match supervisor {
            Supervisor::Systemd => tell("systemctl", &["restart", AGENT_UNIT, UNIT]).await?,
            Supervisor::Openrc => {
                for unit in [AGENT_UNIT, UNIT] {
                    tell("rc-service", &["--quiet", unit, "restart"]).await?;
                }
            }
            Supervisor::Nobody => {
                server::end().await?;
                folders(account)?;
                server::start(account)?;
            }
        }
    }
    run_launcher(
        supervisor,
        restart || changed.contains(&LAUNCHER_UNIT),
        has_programs,
    )
    .await
}

/// Makes the launcher run from the current program for this server's user, or ends it if no service uses a program.
async fn run_launcher(
    supervisor: Supervisor,
    restart: bool,
    has_programs: bool,
) -> Result<(), SetupError> {
    if has_programs && launcher::is_current() && !restart {
        return Ok(());
    }
    match supervisor {
        Supervisor::Nobody => launcher::end().await?,
        // Its file was removed, so it was stopped.
        _ if !has_programs => return Ok(()),
        Supervisor::Systemd => tell("systemctl", &["restart", LAUNCHER_UNIT]).await?,
        Supervisor::Openrc => {
            tell("rc-service", &["--quiet", LAUNCHER_UNIT, "restart"]).await?;
        }
    }
    if !has_programs {
        return Ok(());
    }
    if supervisor == Supervisor::Nobody {
        launcher::start()?;
    }
    launcher::answers().await
}

/// Ends the server, and removes the unit files that would start it again.
pub(super) async fn withdraw(tree: &MachineTree) -> Result<(), SetupError> {
    let here = detect();
    for supervisor in [Supervisor::Systemd, Supervisor::Openrc] {
        let mut any = false;
        for name in UNITS {
            let Some(file) = unit_path(supervisor, name) else {
                continue;
            };
            if tree.read(&file)?.is_none() {
                continue;
            }
            any = true;
            if here == supervisor {
                stop(supervisor, name).await?;
            }
            tree.remove(&systemd_wanted(name))?;
            tree.remove(&file)?;
        }
        if !any {
            continue;
        }
        if here == Supervisor::Systemd {
            tell("systemctl", &["daemon-reload"]).await?;
        }
    }
    launcher::end().await?;
    server::end().await
}

/// Stops a unit and disables it.
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

/// Runs a supervisor command.
async fn tell(program: &str, args: &[&str]) -> Result<(), SetupError> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let command_line = || format!("{program} {}", args.join(" "));
    let output = timeout(TIMEOUT, command.output())
        .await
        .map_err(|_| SetupError::Supervisor {
            command: command_line(),
            words: format!("it did not end within {} s", TIMEOUT.as_secs()),
        })?
        .map_err(failed("the supervisor cannot be queried"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(SetupError::Supervisor {
        command: command_line(),
        words: words.trim().chars().take(WORDS_MAX).collect(),
    })
}

/// Makes the folders that a supervisor would make: for the sockets, the clipboard and the log.
fn folders(account: &Account) -> Result<(), SetupError> {
    let cannot = "cannot create the server's folders";
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

/// Makes a user's folder. Replaces another user's folder, keeping only the log in it.
fn folder(path: &Path, mode: u32, account: &Account) -> std::io::Result<()> {
    let existing = match fs::symlink_metadata(path) {
        Ok(is) if is.is_dir() && (is.uid(), is.gid()) == (account.uid, account.gid) => {
            return fs::set_permissions(path, fs::Permissions::from_mode(mode));
        }
        Ok(is) => Some(is),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => None,
        Err(why) => return Err(why),
    };
    let mut away = path.as_os_str().to_owned();
    away.push(format!(".{}", std::process::id()));
    if let Some(before) = &existing {
        fs::rename(path, &away)?;
        if before.is_dir() {
            // From here on, its former owner cannot change it.
            lchown(&away, Some(0), Some(0))?;
            fs::set_permissions(&away, fs::Permissions::from_mode(0o700))?;
        }
    }
    fs::DirBuilder::new().mode(mode).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if let Some(before) = existing {
        if path == Path::new(LOGS) {
            logs(Path::new(&away), path, before.uid(), account)?;
        }
        // Anything that cannot be removed, such as the other user's mount, stays under the temporary name.
        let _ = fs::remove_dir_all(&away);
    }
    lchown(path, Some(account.uid), Some(account.gid))
}

/// Moves log files to another user: only those with a log's name, one link, and the former owner.
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
        // A second link to the file may belong to someone else.
        if is.is_file() && is.nlink() == 1 && is.uid() == before {
            fchown(&file, Some(account.uid), Some(account.gid))?;
            fs::rename(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
