//! Looks up what a program needs to run in this machine: its user and its environment.

use rustix::process::geteuid;

use super::env_file::{self, EnvFileError};
use super::{ProgramSpec, UserIds};
use crate::account::{Account, AccountError};
use crate::catalogue::ProcessSettings;
use crate::machine_state::PATH;

/// The reason why a program cannot be started as declared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    EnvFile(#[from] EnvFileError),
    /// Only root can become another user.
    #[error("this launcher does not run as root, so it cannot become the user `{0}`")]
    NotRoot(String),
    #[error("the groups of `{user}` cannot be read: {source}")]
    Groups {
        user: String,
        source: std::io::Error,
    },
}

/// The user that programs without a `run_as` run as.
#[derive(Debug, Clone)]
pub(crate) enum ChildUser {
    /// The launcher's own.
    Launcher,
    /// That of the machine's server.
    Server(Account),
}

/// Returns what a reaper needs to run a program.
pub(crate) fn spec(
    argv: Vec<String>,
    settings: &ProcessSettings,
    default: &ChildUser,
) -> Result<ProgramSpec, SettingsError> {
    let account = match (&settings.run_as, default) {
        (Some(name), _) => Some(Account::find(Some(name))?),
        (None, ChildUser::Server(account)) => Some(account.clone()),
        (None, ChildUser::Launcher) => None,
    };
    let own = geteuid();
    let user = match &account {
        Some(account) if own.is_root() => Some(UserIds {
            uid: account.uid,
            gid: account.gid,
            groups: account.groups().map_err(|source| SettingsError::Groups {
                user: account.name.clone(),
                source,
            })?,
        }),
        Some(account) if account.uid != own.as_raw() => {
            return Err(SettingsError::NotRoot(account.name.clone()));
        }
        _ => None,
    };
    let folder = match &account {
        Some(account) => account.home.clone(),
        None => std::env::var("HOME").unwrap_or_else(|_| "/".to_owned()),
    };
    let mut env = vec![
        ("PATH".to_owned(), PATH.to_owned()),
        ("HOME".to_owned(), folder.clone()),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
    ];
    if let Some(account) = &account {
        env.extend(["USER", "LOGNAME"].map(|name| (name.to_owned(), account.name.clone())));
    }
    if let Some(path) = &settings.env_file {
        env.extend(env_file::read(path)?);
    }
    Ok(ProgramSpec {
        argv,
        env,
        folder,
        user,
        memory: settings.memory,
    })
}
