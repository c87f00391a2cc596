//! Runs one of the machine's own programs as a user, with limits, and ends every process that it started.
//!
//! The launcher starts a reaper for each program ([`reaper`]), which starts the program through a third process
//! ([`exec`]) that gives up all rights first. All three are this program, executed again: that way, no code runs between
//! `fork` and `execve`, where little is safe. The reaper is the parent of every process that the program leaves behind,
//! however it detaches itself (`PR_SET_CHILD_SUBREAPER` of `prctl(2)`), and ends them all.

mod env_file;
mod exec;
mod reaper;
mod settings;
mod start;
mod tree;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use exec::run as run_exec;
pub(crate) use reaper::run as run_reaper;
pub(crate) use settings::{ChildUser, spec};
pub(crate) use start::{RunningProgram, adopt_orphans, is_program, start};

/// The hidden subcommand of a reaper; its stdin is the socket to the launcher.
pub(crate) const REAPER: &str = "program-reaper";
/// The hidden subcommand that becomes the program; its stdin is the socket to the reaper.
pub(crate) const EXEC: &str = "program-exec";

/// Maximum length of a message to a reaper, in bytes: arguments and environment, which the kernel limits to 2 MiB.
const ORDER_MAX: u32 = 8 * 1024 * 1024;
/// Maximum length of a message from a reaper, in bytes.
const REPORT_MAX: u32 = 64 * 1024;
/// Time for processes to end after SIGTERM, before they are killed.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// What a reaper runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProgramSpec {
    /// The program's absolute path and its arguments.
    pub(crate) argv: Vec<String>,
    /// Its whole environment.
    pub(crate) env: Vec<(String, String)>,
    /// Its folder.
    pub(crate) folder: String,
    /// Its user; `None`: the launcher's.
    pub(crate) user: Option<UserIds>,
    /// Memory of all its processes together, in bytes.
    pub(crate) memory: u64,
}

/// The numbers of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserIds {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
}

/// A reaper's messages to the launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum ReaperReport {
    /// The program runs.
    Started,
    /// The program could not be executed.
    Failed(String),
    /// The program has ended, and so have all processes that it started.
    Ended(ProgramEnd),
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ProgramEnd {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// Its processes used more memory than they may.
    OutOfMemory,
}
