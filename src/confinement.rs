//! Confines a server process permanently: no capabilities, only the system calls it needs, only the files it may use.
//!
//! Uses three layers, each as far as the kernel supports it: capabilities (`capabilities(7)`), a system call filter
//! (`seccomp(2)`), and Landlock for files, TCP ports and other processes (`landlock(7)`). Up to ABI 8, Landlock lets a
//! process connect to a Unix socket by its path, so a process that needs no connections may make none at all.

mod filter;

use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, LandlockStatus,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, Scope, path_beneath_rules,
};
use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};
use serde::{Deserialize, Serialize};

use crate::text::Foreign;

pub(crate) use filter::AllowedCalls;

/// The requested Landlock ABI; an older kernel applies the part that it supports.
const LANDLOCK: ABI = ABI::V6;

#[derive(Debug)]
pub(crate) struct ProcessLimits {
    pub(crate) calls: AllowedCalls,
    /// The files that it may access; `None`: all that its user may access.
    pub(crate) files: Option<Vec<Rule>>,
    /// True if it connects to a display on another machine; nothing else here needs a network.
    pub(crate) network: bool,
}

/// Permissions on a file, or on a folder and everything below it; a missing path is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) path: PathBuf,
    pub(crate) rights: PathRights,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathRights {
    /// Read the file, or list the folder.
    Read,
    /// Read the file, and run it as a program.
    Run,
    /// Read and change the file; create and remove files and folders in the folder.
    Write,
}

impl Rule {
    pub(crate) fn new(path: impl Into<PathBuf>, rights: PathRights) -> Self {
        let path = path.into();
        Self { path, rights }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InForce {
    /// The reason its system calls are not filtered; `None` if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unfiltered: Option<Foreign>,
    /// The reason it still has capabilities; `None` if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) capable: Option<Foreign>,
    /// The Landlock ABI in force; 0: none.
    #[serde(default)]
    pub(crate) landlock: u32,
}

impl InForce {
    /// Returns the reason why a server that must be confined is not; a kernel without Landlock is not one.
    pub(crate) fn missing(&self) -> Option<String> {
        match (&self.unfiltered, &self.capable) {
            (Some(why), _) => Some(format!("no system-call filter: {}", why.escaped())),
            (None, Some(why)) => Some(format!("it has capabilities: {}", why.escaped())),
            (None, None) => None,
        }
    }
}

impl std::fmt::Display for InForce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.unfiltered {
            None => f.write_str("seccomp")?,
            Some(why) => write!(f, "no seccomp ({})", why.escaped())?,
        }
        match &self.capable {
            None => f.write_str(", no capabilities")?,
            Some(why) => write!(f, ", capabilities ({})", why.escaped())?,
        }
        match self.landlock {
            0 => f.write_str(", no Landlock"),
            abi => write!(f, ", Landlock ABI {abi}"),
        }
    }
}

/// Memory that a process gets beyond its caller's budget, in bytes: for the program, threads and short-lived buffers.
const OVERHEAD: u64 = 128 * 1024 * 1024;

/// Limits the memory of a process that works for one caller, and of the programs that it starts, in case a caller gets
/// past its budget. No other process of its user may inspect it, and none of its memory ends up in a core file.
///
/// # Errors
///
/// Returns the system's error.
pub(crate) fn fence(budget: u64) -> rustix::io::Result<()> {
    let at_most = |max| Rlimit {
        current: Some(max),
        maximum: Some(max),
    };
    setrlimit(Resource::Data, at_most(budget.saturating_add(OVERHEAD)))?;
    hide()
}

/// Keeps other processes of this one's user from inspecting it, and its memory out of core files.
///
/// # Errors
///
/// Returns the system's error.
pub(crate) fn hide() -> rustix::io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Confines this thread and those that it starts; returns the confinement in force.
///
/// # Errors
///
/// Fails if the kernel has Landlock but refuses the rules.
pub(crate) fn enter(limits: &ProcessLimits) -> Result<InForce, RulesetError> {
    // Comes first, because it sets `no_new_privs`, which an unprivileged filter requires.
    let capable = drop_capabilities().err().map(|why| why.to_string().into());
    if limits.calls == (AllowedCalls::Worker { files: true }) {
        // It may not change file modes, so each file is created with its final mode.
        rustix::process::umask(Mode::empty());
    }
    let landlock = restrict(limits)?;
    let unfiltered = filter::install(limits.calls, limits.network).err();
    Ok(InForce {
        unfiltered: unfiltered.map(|why| why.to_string().into()),
        capable,
        landlock,
    })
}

/// Gives up what a program of this machine must not have: capabilities, those that running a program would grant, and
/// signals to processes that it has not started.
///
/// # Errors
///
/// Returns the system's error. A kernel without Landlock's scopes does not restrict signals.
pub(crate) fn give_up_rights() -> io::Result<()> {
    drop_capabilities()?;
    let signals = ProcessLimits {
        calls: AllowedCalls::Programs,
        files: None,
        network: true,
    };
    restrict(&signals).map(drop).map_err(io::Error::other)
}

/// Keeps only the capabilities that a launcher needs, also for the programs that it starts.
///
/// # Errors
///
/// Returns the system's error.
pub(crate) fn keep_launcher_capabilities() -> rustix::io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    for capability in CapabilitySet::all().difference(LAUNCHER).iter() {
        // Fails without permission to drop it, or if an older kernel does not know it.
        let _ = remove_capability_from_bounding_set(capability);
    }
    let held = capabilities(None)?;
    let kept = CapabilitySets {
        effective: held.permitted & LAUNCHER,
        permitted: held.permitted & LAUNCHER,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, kept)
}

/// Drops all capabilities, including those that running a program would grant.
fn drop_capabilities() -> rustix::io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    for capability in CapabilitySet::all().iter() {
        // Fails without permission to drop it, or if an older kernel does not know it.
        let _ = remove_capability_from_bounding_set(capability);
    }
    // Missing before Linux 4.3.
    let _ = clear_ambient_capability_set();
    set_capabilities(None, none)
}

/// The capabilities of a launcher: to become another user, to signal its processes, and to read the environment of its
/// programs from a folder that only their user may enter.
const LAUNCHER: CapabilitySet = CapabilitySet::SETUID
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::DAC_READ_SEARCH);

/// Restricts access to files, TCP ports and other processes according to these limits; returns the Landlock ABI.
///
/// Does nothing under Landlock's first ABI, which forbids moving a file to another folder, as publishing does.
fn restrict(limits: &ProcessLimits) -> Result<u32, RulesetError> {
    let refer = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Refer);
    if refer.is_err() {
        return Ok(0);
    }
    // An X server may listen on an abstract socket.
    let scope = match limits.calls {
        AllowedCalls::Server | AllowedCalls::Programs => Scope::Signal.into(),
        AllowedCalls::Worker { .. } => Scope::from_all(LANDLOCK),
    };
    let mut ruleset = Ruleset::default().scope(scope)?;
    if !limits.network {
        ruleset = ruleset.handle_access(AccessNet::from_all(LANDLOCK))?;
    }
    ruleset = match limits.files {
        Some(_) => ruleset.handle_access(AccessFs::from_all(LANDLOCK))?,
        None => ruleset.handle_access(AccessFs::Refer)?,
    };
    let mut ruleset = ruleset.create()?;
    if limits.files.is_none() {
        // A ruleset denies moves between folders unless it allows them (`landlock(7)`, LANDLOCK_ACCESS_FS_REFER).
        ruleset = ruleset.add_rules(path_beneath_rules(["/"], AccessFs::Refer))?;
    }
    for rule in limits.files.iter().flatten() {
        let access: BitFlags<AccessFs> = match rule.rights {
            PathRights::Read => AccessFs::ReadFile | AccessFs::ReadDir,
            PathRights::Run => AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute,
            PathRights::Write => AccessFs::from_all(LANDLOCK) & !BitFlags::from(AccessFs::Execute),
        };
        ruleset = ruleset.add_rules(path_beneath_rules([&rule.path], access))?;
    }
    Ok(match ruleset.restrict_self()?.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi as u32,
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => 0,
    })
}
