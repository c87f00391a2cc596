//! What the kernel still lets a process of the server do once it has started: no capability, the system calls of its work,
//! the files of its grants.
//!
//! Taken before the process has a second thread and never given back. Three layers, each as far as the kernel has it:
//! capabilities (`capabilities(7)`), a filter of system calls (`seccomp(2)`), and the rights to files, TCP ports and other
//! processes of Landlock (`landlock(7)`). Landlock does not keep a process from connecting to a Unix socket by its path (up to
//! its ABI 8), so a process that needs no connection may make none at all.

mod filter;

use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, LandlockStatus,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, Scope, path_beneath_rules,
};
use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};
use serde::{Deserialize, Serialize};

use crate::text::Foreign;

pub(crate) use filter::AllowedCalls;

/// The Landlock that is asked for: of an older kernel, what it has of it.
const LANDLOCK: ABI = ABI::V6;

/// The limits of a process.
#[derive(Debug)]
pub(crate) struct ProcessLimits {
    /// Its system calls.
    pub(crate) calls: AllowedCalls,
    /// The files that it may touch; `None`: those of its user.
    pub(crate) files: Option<Vec<Rule>>,
    /// True if it speaks to a display on another machine: nothing else here needs a network.
    pub(crate) network: bool,
}

/// A file or folder, with everything below it, and what may be done there. One that is not there needs no rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) path: PathBuf,
    pub(crate) rights: PathRights,
}

/// Permissions on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathRights {
    /// Read it, or the names in it.
    Read,
    /// Read it, and run it as a program.
    Run,
    /// Read it, change it, make files and folders in it, and remove them.
    Write,
}

impl Rule {
    pub(crate) fn new(path: impl Into<PathBuf>, rights: PathRights) -> Self {
        let path = path.into();
        Self { path, rights }
    }
}

/// The confinement in force for a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InForce {
    /// The reason why its system calls are not filtered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unfiltered: Option<Foreign>,
    /// The reason why it has capabilities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) capable: Option<Foreign>,
    /// The ABI of the kernel's Landlock; 0: it has none.
    #[serde(default)]
    pub(crate) landlock: u32,
}

impl InForce {
    /// Returns why a server that must be confined is not. Landlock counts as far as the kernel has it.
    pub(crate) fn missing(&self) -> Option<String> {
        let seccomp = self.unfiltered.as_ref();
        let seccomp = seccomp.map(|why| format!("no filter of system calls: {}", why.escaped()));
        let capable = self.capable.as_ref();
        seccomp.or_else(|| capable.map(|why| format!("it has capabilities: {}", why.escaped())))
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

/// Memory of a process beyond what its caller may keep, in bytes: the program, its threads, and what is freed in a moment.
const BESIDE: u64 = 128 * 1024 * 1024;

/// Fences a process that works for one caller, and the programs that it starts: the budget comes first, and whoever gets past it ends
/// here. No other process of its user may look into it, and nothing of it is left in a core file.
///
/// # Errors
///
/// The system's.
pub(crate) fn fence(budget: u64) -> rustix::io::Result<()> {
    let at_most = |most| Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(Resource::Data, at_most(budget.saturating_add(BESIDE)))?;
    setrlimit(Resource::Core, at_most(0))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Limits this thread and those that it starts. What the kernel does not have is left out and said.
///
/// # Errors
///
/// Landlock is there and refuses: what it was to protect is not.
pub(crate) fn enter(limits: &ProcessLimits) -> Result<InForce, RulesetError> {
    // Filtered system calls need it, and nothing here is to gain by `exec`.
    let capable = drop_capabilities().err().map(|why| why.to_string().into());
    if limits.calls == (AllowedCalls::Worker { files: true }) {
        // It changes the mode of no file, so each is made with the one that it is to have.
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

/// None now, and none by running a program.
fn drop_capabilities() -> rustix::io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    for capability in CapabilitySet::all().iter() {
        // Only who may drop it has it to drop; older kernels do not know the newest.
        let _ = remove_capability_from_bounding_set(capability);
    }
    // Not there before Linux 4.3.
    let _ = clear_ambient_capability_set();
    set_capabilities(None, none)
}

/// Rights to these files alone, to no TCP port, and to no process beyond those limited with it.
///
/// Nothing where files could not change their folder then, as with the first ABI of Landlock: a file that comes in would get nowhere.
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
        // Files change their folder in no ruleset that does not say so (`landlock(7)`, LANDLOCK_ACCESS_FS_REFER).
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
    let status = ruleset.restrict_self()?;
    Ok(abi(&status.landlock))
}

const fn abi(status: &LandlockStatus) -> u32 {
    match status {
        LandlockStatus::Available { effective_abi, .. } => *effective_abi as u32,
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => 0,
    }
}
