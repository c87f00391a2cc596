//! Looks up users in the machine's `/etc/passwd` and `/etc/group`.

use std::fs;

use tokio::process::Command;

use crate::machine_state::{IDENTITY, Identity, RUNTIME};
use crate::name::MachineName;
use crate::tool::Surroundings;

/// The user database.
const PASSWD: &str = "/etc/passwd";
/// The group database.
const GROUP: &str = "/etc/group";
/// Maximum size of a file read here, in bytes.
const FILE_MAX: u64 = 16 * 1024 * 1024;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    /// Its name.
    pub(crate) name: String,
    /// User ID.
    pub(crate) uid: u32,
    /// Group ID.
    pub(crate) gid: u32,
    /// Home folder.
    pub(crate) home: String,
}

/// The reason why a user is not available.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccountError {
    /// The machine has no such user.
    #[error("the user `{}` does not exist in this machine: create it (`useradd -m {}`), or set another `mcp: {{run_as: …}}`", .0.escape_debug(), .0.escape_debug())]
    Nobody(String),
    /// The identity file cannot be read.
    #[error(
        "`{IDENTITY}` cannot be read, so the server's user is unknown: {0}; `anklume apply` on the host rewrites it"
    )]
    Identity(#[source] std::io::Error),
    /// The user database cannot be read.
    #[error("`{PASSWD}` cannot be read: {0}")]
    Unreadable(#[source] std::io::Error),
}

impl Account {
    /// Finds the user with that name, or root if `name` is `None`.
    pub(crate) fn find(name: Option<&str>) -> Result<Self, AccountError> {
        let Some(name) = name.filter(|name| *name != "root") else {
            return Ok(Self::root());
        };
        Self::listed(name)
            .map_err(AccountError::Unreadable)?
            .ok_or_else(|| AccountError::Nobody(name.to_owned()))
    }

    /// Finds a user in the machine's user database.
    fn listed(name: &str) -> std::io::Result<Option<Self>> {
        let text = read(PASSWD)?;
        let text = String::from_utf8_lossy(&text);
        Ok(text.lines().find_map(|line| account(line, name)))
    }

    /// Returns root, with its home folder from the user database.
    fn root() -> Self {
        let listed = Self::listed("root").unwrap_or_default();
        Self {
            name: "root".to_owned(),
            uid: 0,
            gid: 0,
            home: listed.map_or_else(|| "/root".to_owned(), |root| root.home),
        }
    }

    /// Returns the supplementary groups that list the user.
    pub(crate) fn groups(&self) -> std::io::Result<Vec<u32>> {
        let text = read(GROUP)?;
        let text = String::from_utf8_lossy(&text);
        let groups = text.lines().filter_map(|line| group(line, &self.name));
        Ok(groups.collect())
    }

    /// Returns the default locations of the user's portal, clipboard and keys.
    pub(crate) fn surroundings(&self) -> Surroundings {
        Surroundings::of_user(&self.home, RUNTIME)
    }

    /// Returns the name of this machine; `None` outside anklume's machines, or if it cannot be read.
    pub(crate) fn machine() -> Option<MachineName> {
        let text = read(IDENTITY).ok()?;
        Identity::from_file(&text).map(|identity| identity.machine)
    }

    /// Returns the user that this machine's server runs as; `None` outside anklume's machines.
    pub(crate) fn of_this_machine() -> Result<Option<Self>, AccountError> {
        let text = match read(IDENTITY) {
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(AccountError::Identity)?,
        };
        // An unreadable file must not select root.
        let identity = Identity::from_file(&text)
            .ok_or_else(|| AccountError::Identity(std::io::Error::other("it names no machine")))?;
        Self::find(identity.run_as.as_deref()).map(Some)
    }

    /// Makes a command run as this user, with this environment and without root's groups.
    pub(crate) fn runs<'c>(
        &self,
        command: &'c mut Command,
        surroundings: &Surroundings,
    ) -> &'c mut Command {
        if rustix::process::geteuid().is_root() {
            // The standard library drops the supplementary groups if root sets a user.
            command.uid(self.uid).gid(self.gid);
        }
        for (name, value) in surroundings.variables() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("USER", &self.name).env("LOGNAME", &self.name)
    }
}

fn read(path: &str) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(FILE_MAX)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Parses a line of passwd; returns `None` unless it is this user's.
fn account(line: &str, name: &str) -> Option<Account> {
    let fields: Vec<&str> = line.split(':').collect();
    let [own, _, uid, gid, _, home, ..] = fields.as_slice() else {
        return None;
    };
    (*own == name).then_some(())?;
    Some(Account {
        name: name.to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: (*home).to_owned(),
    })
}

/// Parses a line of group; returns the number of a group that lists this user.
fn group(line: &str, name: &str) -> Option<u32> {
    let fields: Vec<&str> = line.split(':').collect();
    let [_, _, gid, members] = fields.as_slice() else {
        return None;
    };
    members.split(',').find(|member| *member == name)?;
    gid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_lists_its_members_by_their_whole_names() {
        assert_eq!(group("docker:x:998:gh,signer", "signer"), Some(998));
        for line in [
            "docker:x:998:",
            "docker:x:998:signers",
            "signer:x:1:",
            "a:x:b:signer",
        ] {
            assert_eq!(group(line, "signer"), None);
        }
    }

    #[test]
    fn a_line_of_passwd_is_taken_apart() {
        let line = "signer:x:1001:1002:,,,:/home/signer:/bin/sh";
        let expected = Account {
            name: "signer".to_owned(),
            uid: 1001,
            gid: 1002,
            home: "/home/signer".to_owned(),
        };
        assert_eq!(account(line, "signer"), Some(expected));
        for other in ["sign", "x"] {
            assert_eq!(account(line, other), None);
        }
        assert_eq!(account("signer:x:-1:0::/:", "signer"), None);
        assert_eq!(account("signer:x", "signer"), None);
    }

    #[test]
    fn who_is_not_there_is_named() {
        let why = Account::find(Some("nobody-of-that-name")).unwrap_err();
        assert!(
            why.to_string()
                .starts_with("the user `nobody-of-that-name` does not exist"),
            "{why}"
        );
        assert_eq!(Account::find(None).unwrap().uid, 0);
    }
}
