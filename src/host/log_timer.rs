//! Makes the host rotate the channels' logs between runs of `apply`, without a daemon of its own, using a systemd
//! timer or a cron job.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::time::timeout;

use super::{missing_is_removed, processes};
use crate::dir::OTHERS_WRITE;
use crate::plan::{HostFile, Rotation, Schedule};
use crate::transport;

/// Interval in minutes. A consumer that floods a channel causes about 150 MB of log in one interval.
const MINUTES: u32 = 2;
const HOST: &str = "/";
const CRON_FOLDER: &str = "/etc/cron.d";
/// The cron file.
const CRON: &str = "/etc/cron.d/anklume";
/// The command that systemd runs.
const SERVICE: &str = "/etc/systemd/system/anklume-logs.service";
/// The timer that makes systemd run it.
const TIMER: &str = "/etc/systemd/system/anklume-logs.timer";
const TIMER_NAME: &str = "anklume-logs.timer";
/// All files written for either scheduler.
const FILES: [&str; 3] = [CRON, TIMER, SERVICE];
/// Exists once the timer is enabled.
const WANTED: &str = "/etc/systemd/system/timers.target.wants/anklume-logs.timer";
/// Exists if the host was booted with systemd.
const SYSTEMD: &str = "/run/systemd/system";
const SUBCOMMAND: &str = "rotate-logs";
/// First line of each file.
const HEAD: &str =
    "# Written by `anklume apply`: rotates the logs that Incus writes for the channels.\n";
const FILE_MODE: u32 = 0o644;
const SYSTEMCTL_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheduler {
    Systemd,
    Cron,
}

impl Scheduler {
    fn of(root: &Path) -> Option<Self> {
        if at(root, SYSTEMD).is_dir() {
            Some(Self::Systemd)
        } else {
            at(root, CRON_FOLDER).is_dir().then_some(Self::Cron)
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Cron => "cron",
        }
    }

    /// The files that schedule this program.
    fn files(self, program: &str) -> Vec<HostFile> {
        let file = |path: &str, content: String| HostFile {
            path: path.to_owned(),
            content: format!("{HEAD}{content}"),
        };
        match self {
            Self::Cron => {
                let line = format!("*/{MINUTES} * * * * root {program} {SUBCOMMAND}\n");
                vec![file(CRON, line)]
            }
            Self::Systemd => {
                let service = format!(
                    "[Unit]
Description=anklume: the logs of the channels stay bounded

[Service]
Type=oneshot
ExecStart={program} {SUBCOMMAND}
LogLevelMax=notice
"
                );
                let timer = format!(
                    "[Unit]
Description=anklume: the logs of the channels stay bounded

[Timer]
OnBootSec={MINUTES}min
OnUnitActiveSec={MINUTES}min
AccuracySec=30s

[Install]
WantedBy=timers.target
"
                );
                vec![file(SERVICE, service), file(TIMER, timer)]
            }
        }
    }

    /// Returns the program run by the files on the host, if they otherwise match the generated ones.
    fn scheduled(self, root: &Path) -> Option<String> {
        let path = match self {
            Self::Systemd => SERVICE,
            Self::Cron => CRON,
        };
        let text = String::from_utf8(fs::read(at(root, path)).ok()?).ok()?;
        let command = format!(" {SUBCOMMAND}");
        let line = text.lines().find_map(|line| line.strip_suffix(&command))?;
        let program = line.rsplit([' ', '=']).next()?.to_owned();
        let same = |file: &HostFile| {
            fs::read(at(root, &file.path)).is_ok_and(|content| content == file.content.as_bytes())
        };
        let enabled = self == Self::Cron || is_at(root, WANTED);
        (enabled && self.files(&program).iter().all(same)).then_some(program)
    }
}

/// Returns a host path below this root folder.
fn at(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn is_at(root: &Path, path: &str) -> bool {
    fs::symlink_metadata(at(root, path)).is_ok()
}

/// Determines whether the host already rotates the logs and, if not, how to make it do so.
pub(crate) fn look() -> Rotation {
    look_in(Path::new(HOST), program)
}

fn look_in(root: &Path, program: impl FnOnce() -> io::Result<String>) -> Rotation {
    let Some(scheduler) = Scheduler::of(root) else {
        return Rotation::Nobody("this host has neither systemd nor cron".to_owned());
    };
    // A program at another path is fine too, if it exists and only root can change it.
    if let Some(program) = scheduler.scheduled(root)
        && is_safe(Path::new(&program))
    {
        return Rotation::Scheduled;
    }
    match program() {
        Ok(program) => Rotation::Wanting(Schedule {
            by: scheduler.name(),
            exists: is_scheduled_in(root),
            files: scheduler.files(&program),
        }),
        Err(why) => Rotation::Nobody(why.to_string()),
    }
}

/// Returns whether any of the files exists on the host, correct or not.
pub(crate) fn is_scheduled() -> bool {
    is_scheduled_in(Path::new(HOST))
}

fn is_scheduled_in(root: &Path) -> bool {
    FILES.iter().any(|path| is_at(root, path))
}

/// Returns whether the scheduler's daemon is running; systemd always is.
pub(crate) fn has_daemon() -> bool {
    Scheduler::of(Path::new(HOST)) != Some(Scheduler::Cron)
        || processes().into_iter().flatten().any(|process| {
            let name = fs::read(format!("/proc/{process}/comm")).unwrap_or_default();
            [b"cron\n".as_slice(), b"crond\n"].contains(&name.as_slice())
        })
}

/// Returns the path of this program; fails if no scheduler accepts it, or if users other than root can change it.
fn program() -> io::Result<String> {
    let path: PathBuf = std::env::current_exe()?;
    let text = path.display().to_string();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._+-".contains(&byte);
    let fault = if !text.bytes().all(plain) {
        format!(
            "a scheduler cannot run a program at `{}`",
            text.escape_debug()
        )
    } else if !is_safe(&path) {
        format!("users other than root can change `{text}`")
    } else {
        return Ok(text);
    };
    Err(io::Error::other(fault))
}

/// Returns whether the program exists and only root can replace it.
fn is_safe(program: &Path) -> bool {
    let roots = |path: &Path| {
        fs::symlink_metadata(path).is_ok_and(|is| {
            is.uid() == 0 && !is.is_symlink() && is.permissions().mode() & OTHERS_WRITE == 0
        })
    };
    program.is_absolute() && program.is_file() && program.ancestors().all(roots)
}

/// Makes the host rotate the logs.
pub(crate) async fn set_up(schedule: &Schedule) -> io::Result<()> {
    write_in(Path::new(HOST), schedule)?;
    if schedule.by == Scheduler::Systemd.name() {
        systemctl(&["daemon-reload"]).await?;
        systemctl(&["--quiet", "enable", "--now", TIMER_NAME]).await?;
    }
    Ok(())
}

/// Stops the host from rotating the logs.
pub(crate) async fn take_away() -> io::Result<()> {
    let of_systemd = Path::new(SYSTEMD).is_dir() && is_at(Path::new(HOST), TIMER);
    if of_systemd {
        systemctl(&["--quiet", "disable", "--now", TIMER_NAME]).await?;
    }
    remove_in(Path::new(HOST))?;
    if of_systemd {
        systemctl(&["daemon-reload"]).await?;
    }
    Ok(())
}

/// Writes each file completely or not at all, so that cron never sees half a line.
fn write_in(root: &Path, schedule: &Schedule) -> io::Result<()> {
    for file in &schedule.files {
        let path = at(root, &file.path);
        let mut fresh = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(root))?;
        fresh.write_all(file.content.as_bytes())?;
        fs::set_permissions(fresh.path(), fs::Permissions::from_mode(FILE_MODE))?;
        fresh.persist(path).map_err(|failed| failed.error)?;
    }
    Ok(())
}

fn remove_in(root: &Path) -> io::Result<()> {
    let mut files = FILES.iter().map(|path| fs::remove_file(at(root, path)));
    files.try_for_each(missing_is_removed)
}

async fn systemctl(args: &[&str]) -> io::Result<()> {
    let mut command = transport::program("systemctl")?;
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    // A ^C at the terminal does not interrupt the command.
    command.process_group(0);
    let output = timeout(SYSTEMCTL_TIMEOUT, command.output())
        .await
        .map_err(|_| io::Error::other("systemd does not answer"))??;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_others_can_change_is_never_scheduled() {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("anklume");
        fs::write(&program, "").unwrap();
        // Everybody can write to the folder for temporary files.
        assert!(!is_safe(&program));
        assert!(!is_safe(Path::new("anklume")));
        assert!(!is_safe(Path::new("/usr/bin/there-is-none")));
        assert!(!is_safe(Path::new("/usr/bin")));
        let shell = fs::canonicalize("/bin/sh").unwrap();
        assert!(is_safe(&shell));
    }

    /// Returns the schedule that a host with this root folder still needs, for a program that only root can change.
    fn wanting(root: &Path) -> Schedule {
        let shell = || Ok(fs::canonicalize("/bin/sh").unwrap().display().to_string());
        match look_in(root, shell) {
            Rotation::Wanting(schedule) => schedule,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_set_up_is_found_again_until_it_is_changed_or_taken_away() {
        for (by, folders) in [
            ("cron", vec!["etc/cron.d"]),
            // A host with both uses systemd.
            (
                "systemd",
                vec![
                    "etc/cron.d",
                    "run/systemd/system",
                    "etc/systemd/system/timers.target.wants",
                ],
            ),
        ] {
            let host = tempfile::tempdir().unwrap();
            let root = host.path();
            for folder in folders {
                fs::create_dir_all(root.join(folder)).unwrap();
            }
            let schedule = wanting(root);
            assert_eq!((schedule.by, schedule.exists), (by, false));
            write_in(root, &schedule).unwrap();
            if by == "systemd" {
                // The timer is written, but not enabled yet.
                assert!(wanting(root).exists);
                std::os::unix::fs::symlink(TIMER, at(root, WANTED)).unwrap();
            }
            let nobody = || Err(io::Error::other("no program"));
            assert_eq!(look_in(root, nobody), Rotation::Scheduled);
            let file = at(root, &schedule.files[0].path);
            assert_eq!(
                fs::metadata(&file).unwrap().permissions().mode() & 0o777,
                FILE_MODE
            );
            // Changed commands, an unsafe program and missing files are all noticed.
            for harm in ["rotate-logs --quiet", "rotate-logs\n* * * * * root true"] {
                let text = String::from_utf8(fs::read(&file).unwrap()).unwrap();
                fs::write(&file, text.replace("rotate-logs", harm)).unwrap();
                assert!(wanting(root).exists, "{harm}");
                write_in(root, &schedule).unwrap();
            }
            fs::write(&file, schedule.files[0].content.replace("/usr/", "/tmp/")).unwrap();
            assert!(wanting(root).exists);
            remove_in(root).unwrap();
            remove_in(root).unwrap();
            assert!(!wanting(root).exists && !is_scheduled_in(root));
        }
        let bare = tempfile::tempdir().unwrap();
        let nobody = look_in(bare.path(), || Ok(String::new()));
        assert!(
            matches!(nobody, Rotation::Nobody(why) if why.contains("neither systemd nor cron"))
        );
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
