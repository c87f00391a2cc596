//! Sets up a machine from inside, after `apply` has pushed the program: its program, name, services and server.
//!
//! Runs as root inside the machine. Follows no symbolic link and crosses no mount on the way to the files it writes.
//! Can run again at any time, and changes only what differs.

mod launcher;
mod server;
mod supervisor;
mod tree;

pub(crate) use server::surroundings;

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::account::{Account, AccountError};
use crate::digest::sha256;
use crate::machine_state::{
    ABOVE, CallerUser, ETC, FILE_MODE, FOLDER_MODE, FOLDERS, FRESH_PREFIX, IDENTITY, Identity,
    LINKS, LOGS, MachineSpec, PROGRAM, PROGRAM_FOLDER, SERVICES, SETUP_LOCK, Sent, SetupReport,
    Supervisor,
};
use crate::text::Foreign;
use tree::{MachineTree, TreeError};

/// The file tools' portal.
const PORTAL: &str = "/srv/anklume/portal";

/// The reason why a machine could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// A file in the machine was altered, or an operation on it failed.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The server's user is not available.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The services are not valid.
    #[error("the services are refused: {0}")]
    Services(#[from] crate::services::ServicesFault),
    /// The setup request was sent too long ago.
    #[error("the setup request came too late: another run may have sent a newer one")]
    Old,
    /// This program is not the one that the setup request names.
    #[error("the program that arrived is not the one that was sent")]
    Program,
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// The attempted operation.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A supervisor command failed.
    #[error("`{command}` failed: {words}")]
    Supervisor {
        /// The command.
        command: String,
        /// The beginning of its error output.
        words: String,
    },
    /// No server reported the sent policy in time.
    #[error("the server does not report the policy that was sent: {0}")]
    NotServing(String),
}

/// Maximum time to replace a machine's server: until the old one has ended and the new one has reported.
pub(crate) const SERVER_MAX: Duration = supervisor::TIMEOUT.saturating_add(server::REPORT_MAX);

fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> SetupError {
    move |source| SetupError::Io { doing, source }
}

/// Maximum age of a setup request when it is started, in seconds: a later run may have sent another one since.
const AGE_MAX: i64 = 30;

/// Carries out a setup request and returns the report.
pub(crate) async fn carry_out(sent: &Sent) -> SetupReport {
    match put_in_order(sent).await {
        Ok(digest) => SetupReport {
            digest: digest.map(Foreign::from),
            altered: None,
            failed: None,
        },
        Err(SetupError::Tree(TreeError::Altered(path))) => SetupReport {
            digest: None,
            altered: Some(path.into()),
            failed: None,
        },
        Err(why) => SetupReport {
            digest: None,
            altered: None,
            failed: Some(why.to_string().into()),
        },
    }
}

/// Puts the program in place first, then its configuration, then starts the server.
async fn put_in_order(sent: &Sent) -> Result<Option<String>, SetupError> {
    let order = &sent.order;
    let services = order.services()?;
    let account = Account::find(order.run_as.as_deref())?;
    let tree = MachineTree::open()?;
    // Listed before locking: a program that arrives later belongs to a run that is waiting for this one.
    let left = tree.names(PROGRAM_FOLDER, FRESH_PREFIX)?;
    for folder in [PROGRAM_FOLDER, ETC] {
        tree.is_roots(folder)?;
    }
    let _one_at_a_time = tree.lock(SETUP_LOCK).await?;
    if jiff::Timestamp::now().as_second() - sent.at > AGE_MAX {
        return Err(SetupError::Old);
    }
    let known = identity(&tree)?;
    let supervisor = match order.services {
        Some(_) => supervisor::detect(),
        None => Supervisor::Nobody,
    };
    let finished = order.identity(supervisor);
    let unfinished = Identity {
        unfinished: true,
        ..finished.clone()
    };
    // If this run is interrupted, the next one can tell that it did not finish.
    program(&tree, order, &left, || {
        tree.file(IDENTITY, &unfinished.to_file(), FILE_MODE)
    })?;
    for link in LINKS {
        tree.link(link, PROGRAM)?;
    }
    rights(&tree, order, &account)?;
    let Some(text) = &order.services else {
        supervisor::withdraw(&tree).await?;
        tree.remove(SERVICES)?;
        tree.file(IDENTITY, &finished.to_file(), FILE_MODE)?;
        return Ok(None);
    };
    tree.file(SERVICES, text.as_bytes(), FILE_MODE)?;
    tree.folder_of(PORTAL, FOLDER_MODE, &account)?;
    let other_user = known.is_none_or(|known| known.unfinished || known.run_as != order.run_as);
    let has_programs = order.has_programs();
    let run_as = order.run_as.as_deref();
    let changed = supervisor::install(&tree, supervisor, run_as, has_programs).await?;
    // The server has no access to another user's files.
    tree.hand_on(LOGS, &account)?;
    supervisor::run(supervisor, &account, other_user, &changed, has_programs).await?;
    if other_user {
        // Done only now because the old server, which made files here, has ended.
        tree.hand_on(PORTAL, &account)?;
    }
    let digest = services
        .map(|services| services.digest())
        .unwrap_or_default();
    server::reports(&digest).await?;
    tree.file(IDENTITY, &finished.to_file(), FILE_MODE)?;
    Ok(Some(digest))
}

/// Makes root own the folders again, restores their permissions, and lets the callers and the server pass through.
fn rights(tree: &MachineTree, order: &MachineSpec, account: &Account) -> Result<(), TreeError> {
    let server = CallerUser {
        uid: account.uid,
        gid: account.gid,
    };
    for folder in ABOVE {
        tree.lets_pass(folder, order.caller)?;
        tree.lets_pass(folder, server)?;
    }
    let mut folders = FOLDERS.into_iter();
    folders.try_for_each(|folder| tree.own_again(folder, FOLDER_MODE))
}

fn identity(tree: &MachineTree) -> Result<Option<Identity>, SetupError> {
    let text = tree.read(IDENTITY)?;
    Ok(text.as_deref().and_then(Identity::from_file))
}

/// Moves this program into place, if necessary, and removes the programs of interrupted runs.
///
/// Calls `begin` after all checks, before the first change.
fn program(
    tree: &MachineTree,
    order: &MachineSpec,
    left: &[String],
    begin: impl FnOnce() -> Result<bool, TreeError>,
) -> Result<(), SetupError> {
    let own = std::fs::read("/proc/self/exe").map_err(failed("cannot read this program"))?;
    if sha256(&own) != order.program {
        return Err(SetupError::Program);
    }
    let path = std::env::current_exe().map_err(failed("cannot find this program"))?;
    let name = path.file_name().and_then(std::ffi::OsStr::to_str);
    let fresh = name.filter(|name| {
        name.starts_with(FRESH_PREFIX) && path.parent() == Some(Path::new(PROGRAM_FOLDER))
    });
    begin()?;
    if let Some(fresh) = fresh {
        tree.rename(PROGRAM_FOLDER, fresh, PROGRAM)?;
    }
    for name in left {
        tree.remove(&format!("{PROGRAM_FOLDER}/{name}"))?;
    }
    Ok(())
}
