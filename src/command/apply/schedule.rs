//! What makes the host itself rotate the channels' logs between two runs of `apply`, so that no daemon is needed for it:
//! a timer of systemd, or a line for cron.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::plan::{HostFile, Rotation, Schedule};

/// How often, in minutes. A consumer that floods a channel writes some 150 MB in one.
const MINUTES: u32 = 2;
/// Where cron looks.
const CRON_FOLDER: &str = "/etc/cron.d";
/// The line for cron.
const CRON: &str = "/etc/cron.d/anklume";
/// What systemd runs.
const SERVICE: &str = "/etc/systemd/system/anklume-logs.service";
/// When systemd runs it.
const TIMER: &str = "/etc/systemd/system/anklume-logs.timer";
/// The timer's name.
const TIMER_NAME: &str = "anklume-logs.timer";
/// Is there once the timer is enabled.
const WANTED: &str = "/etc/systemd/system/timers.target.wants/anklume-logs.timer";
/// Is there where systemd runs the host.
const SYSTEMD: &str = "/run/systemd/system";
/// What the subcommand is called.
const COMMAND: &str = "rotate-logs";
/// First line of each file.
const HEAD: &str =
    "# Written by `anklume apply`: keeps the logs that Incus writes of the channels bounded.\n";
/// Rights of the files.
const MODE: u32 = 0o644;
/// Rights of others to write.
const OTHERS_WRITE: u32 = 0o022;
/// Longest that systemd may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who starts things at their time on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheduler {
    Systemd,
    Cron,
}

impl Scheduler {
    fn of_host() -> Option<Self> {
        if Path::new(SYSTEMD).is_dir() {
            Some(Self::Systemd)
        } else {
            Path::new(CRON_FOLDER).is_dir().then_some(Self::Cron)
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Cron => "cron",
        }
    }

    /// The files that make it run this program.
    fn files(self, program: &str) -> Vec<HostFile> {
        let file = |path: &str, content: String| HostFile {
            path: path.to_owned(),
            content: format!("{HEAD}{content}"),
        };
        match self {
            Self::Cron => vec![file(
                CRON,
                format!("*/{MINUTES} * * * * root {program} {COMMAND}\n"),
            )],
            Self::Systemd => vec![
                file(
                    SERVICE,
                    format!(
                        "[Unit]
Description=anklume: the logs of the channels stay bounded

[Service]
Type=oneshot
ExecStart={program} {COMMAND}
LogLevelMax=notice
"
                    ),
                ),
                file(
                    TIMER,
                    format!(
                        "[Unit]
Description=anklume: the logs of the channels stay bounded

[Timer]
OnBootSec={MINUTES}min
OnUnitActiveSec={MINUTES}min
AccuracySec=30s

[Install]
WantedBy=timers.target
"
                    ),
                ),
            ],
        }
    }

    /// The program that the files on the host name, if they are ours in every other word.
    fn scheduled(self) -> Option<String> {
        let path = match self {
            Self::Systemd => SERVICE,
            Self::Cron => CRON,
        };
        let text = String::from_utf8(fs::read(path).ok()?).ok()?;
        let command = format!(" {COMMAND}");
        let line = text.lines().find_map(|line| line.strip_suffix(&command))?;
        let program = line.rsplit([' ', '=']).next()?.to_owned();
        let same = |file: &HostFile| {
            fs::read(&file.path).is_ok_and(|content| content == file.content.as_bytes())
        };
        let enabled = self == Self::Cron || fs::symlink_metadata(WANTED).is_ok();
        (enabled && self.files(&program).iter().all(same)).then_some(program)
    }
}

/// Whether the host rotates the logs, and what it takes where it does not.
pub(in crate::command) fn look() -> Rotation {
    let Some(scheduler) = Scheduler::of_host() else {
        return Rotation::Nobody("this host has neither systemd nor cron".to_owned());
    };
    // An anklume at another place does it as well, as long as it is there.
    if let Some(program) = scheduler.scheduled()
        && is_safe(Path::new(&program))
    {
        return Rotation::Scheduled;
    }
    match program() {
        Ok(program) => Rotation::Wanting(Schedule {
            by: scheduler.name(),
            there: fs::symlink_metadata(CRON).is_ok() || fs::symlink_metadata(TIMER).is_ok(),
            files: scheduler.files(&program),
        }),
        Err(why) => Rotation::Nobody(why),
    }
}

/// Whether something of ours is scheduled, as it must be or not.
pub(in crate::command) fn is_scheduled() -> bool {
    [CRON, TIMER, SERVICE]
        .iter()
        .any(|path| fs::symlink_metadata(path).is_ok())
}

/// Whether the program that runs what is scheduled by cron is there; systemd always is.
pub(in crate::command) fn has_daemon() -> bool {
    Scheduler::of_host() != Some(Scheduler::Cron) || {
        let entries = fs::read_dir("/proc").into_iter().flatten();
        entries.filter_map(Result::ok).any(|entry| {
            let name = fs::read(entry.path().join("comm")).unwrap_or_default();
            [b"cron\n".as_slice(), b"crond\n"].contains(&name.as_slice())
        })
    }
}

/// This program, if root may run it unseen; or why not.
fn program() -> Result<String, String> {
    let path: PathBuf = std::env::current_exe().map_err(|why| why.to_string())?;
    let shown = path.display().to_string();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._+-".contains(&byte);
    if !shown.bytes().all(plain) {
        return Err(format!(
            "`{}` is no path for a scheduler",
            shown.escape_debug()
        ));
    }
    if !is_safe(&path) {
        return Err(format!("others than root can change `{shown}`"));
    }
    Ok(shown)
}

/// Whether a program is there, and nobody but root can put another one in its place.
fn is_safe(program: &Path) -> bool {
    let roots = |path: &Path| {
        fs::symlink_metadata(path).is_ok_and(|is| {
            is.uid() == 0 && !is.is_symlink() && is.permissions().mode() & OTHERS_WRITE == 0
        })
    };
    program.is_absolute() && program.is_file() && program.ancestors().all(roots)
}

/// Makes the host rotate the logs.
pub(super) async fn set_up(schedule: &Schedule) -> io::Result<()> {
    for file in &schedule.files {
        write(file)?;
    }
    if schedule.by == Scheduler::Systemd.name() {
        tell(&["daemon-reload"]).await?;
        tell(&["--quiet", "enable", "--now", TIMER_NAME]).await?;
    }
    Ok(())
}

/// Takes that away.
pub(super) async fn take_away() -> io::Result<()> {
    let of_systemd = Path::new(SYSTEMD).is_dir() && fs::symlink_metadata(TIMER).is_ok();
    if of_systemd {
        tell(&["--quiet", "disable", "--now", TIMER_NAME]).await?;
    }
    for path in [CRON, TIMER, SERVICE] {
        match fs::remove_file(path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
            _ => {}
        }
    }
    if of_systemd {
        tell(&["daemon-reload"]).await?;
    }
    Ok(())
}

/// Writes a file whole or not at all; cron never sees half a line.
fn write(file: &HostFile) -> io::Result<()> {
    let path = Path::new(&file.path);
    let mut fresh = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new("/")))?;
    fresh.write_all(file.content.as_bytes())?;
    fs::set_permissions(fresh.path(), fs::Permissions::from_mode(MODE))?;
    fresh.persist(path).map(drop).map_err(|failed| failed.error)
}

async fn tell(words: &[&str]) -> io::Result<()> {
    let mut command = Command::new("systemctl");
    command.args(words).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output())
        .await
        .map_err(|_| io::Error::other("systemd does not answer"))??;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_others_can_change_is_never_scheduled() {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("anklume");
        fs::write(&program, "").unwrap();
        // The folder of temporary files is everybody's.
        assert!(!is_safe(&program));
        assert!(!is_safe(Path::new("anklume")));
        assert!(!is_safe(Path::new("/usr/bin/there-is-none")));
        assert!(!is_safe(Path::new("/usr/bin")));
        let shell = fs::canonicalize("/bin/sh").unwrap();
        assert!(is_safe(&shell));
    }

    #[test]
    fn what_is_written_names_the_program_and_the_interval() {
        let [cron] = Scheduler::Cron.files("/opt/a").try_into().unwrap();
        assert_eq!(cron.path, "/etc/cron.d/anklume");
        assert_eq!(
            cron.content,
            format!("{HEAD}*/2 * * * * root /opt/a rotate-logs\n")
        );
        let [service, timer] = Scheduler::Systemd.files("/opt/a").try_into().unwrap();
        assert!(service.content.contains("\nExecStart=/opt/a rotate-logs\n"));
        assert!(timer.content.contains("\nOnUnitActiveSec=2min\n"));
    }
}
