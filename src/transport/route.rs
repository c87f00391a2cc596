//! The rule that picks the way: from flags and surroundings alone; pure.

use std::path::{Path, PathBuf};

use super::Socket;
use crate::edge::CONSUMER_FOLDER;
use crate::machine_state::IDENTITY;
use crate::name::{MachineName, NameFault};

/// The folder in which a consumer finds the sockets of its providers.
const SOCKETS: &str = CONSUMER_FOLDER;
/// Incus puts this socket into every machine that may ask it things.
const GUEST: &str = "/dev/incus/sock";

/// The request on the command line.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WantedMachine<'a> {
    /// `-i`
    pub(crate) instance: Option<&'a str>,
    /// `--project`
    pub(crate) project: Option<&'a str>,
    /// `--socket`
    pub(crate) socket: Option<&'a Path>,
}

/// The surroundings of this program that decide on routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RouteContext {
    /// `ANKLUME_SOCKET_DIR`
    pub(crate) sockets: Option<PathBuf>,
    /// Inside a machine of Incus's or anklume's.
    pub(crate) in_machine: bool,
}

impl RouteContext {
    /// Looks around.
    pub(crate) fn look() -> Self {
        Self {
            sockets: std::env::var_os("ANKLUME_SOCKET_DIR")
                .filter(|folder| !folder.is_empty())
                .map(PathBuf::from),
            in_machine: [IDENTITY, GUEST]
                .iter()
                .any(|path| Path::new(path).exists()),
        }
    }

    /// The folder of the providers' sockets; none on the host.
    pub(super) fn folder(&self) -> Option<&Path> {
        let inside = self.in_machine.then_some(Path::new(SOCKETS));
        self.sockets.as_deref().or(inside)
    }
}

/// The route; for `incus exec` the machine is still only a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// A child of this very program.
    Local,
    /// Into a machine from the host.
    Host {
        /// The machine.
        machine: String,
        /// Its project, where it was given.
        project: Option<String>,
    },
    /// Over a socket, and nothing else.
    Socket(Socket),
}

/// The reason why no route fits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WayFault {
    /// `-i` inside a machine names a socket, so it must be a name.
    #[error("`{}` is not a machine: {fault}", name.escape_debug())]
    Name {
        /// The input.
        name: String,
        /// Its fault.
        fault: NameFault,
    },
    /// `--project` where there is no Incus to ask.
    #[error("`--project` has no meaning inside a machine: a provider is reached over its socket")]
    ProjectInside,
}

/// Picks the way. `--socket` overrides all; inside a machine `-i` is a socket; on the host it is `incus exec`.
pub(crate) fn way(wanted: WantedMachine<'_>, around: &RouteContext) -> Result<Route, WayFault> {
    if let Some(socket) = wanted.socket {
        return Ok(Route::Socket(Socket {
            path: socket.to_owned(),
            provider: None,
        }));
    }
    let Some(name) = wanted.instance else {
        return Ok(Route::Local);
    };
    let Some(folder) = around.folder() else {
        return Ok(Route::Host {
            machine: name.to_owned(),
            project: wanted.project.map(str::to_owned),
        });
    };
    if wanted.project.is_some() {
        return Err(WayFault::ProjectInside);
    }
    let provider: MachineName = name.parse().map_err(|fault| WayFault::Name {
        name: name.to_owned(),
        fault,
    })?;
    Ok(Route::Socket(Socket {
        path: folder.join(format!("{provider}.sock")),
        provider: Some(provider),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> RouteContext {
        RouteContext::default()
    }

    fn inside() -> RouteContext {
        RouteContext {
            sockets: None,
            in_machine: true,
        }
    }

    fn socket(path: &str, provider: Option<&str>) -> Route {
        Route::Socket(Socket {
            path: path.into(),
            provider: provider.map(|name| name.parse().unwrap()),
        })
    }

    fn named(name: &str) -> WantedMachine<'_> {
        WantedMachine {
            instance: Some(name),
            ..WantedMachine::default()
        }
    }

    #[test]
    fn without_a_name_the_server_is_a_child_everywhere() {
        for around in [host(), inside()] {
            assert_eq!(way(WantedMachine::default(), &around), Ok(Route::Local));
        }
    }

    #[test]
    fn on_the_host_a_name_is_a_machine_of_incus() {
        let wanted = WantedMachine {
            project: Some("p"),
            ..named("Vault")
        };
        let expected = Route::Host {
            machine: "Vault".to_owned(),
            project: Some("p".to_owned()),
        };
        assert_eq!(way(wanted, &host()), Ok(expected));
    }

    #[test]
    fn inside_a_machine_a_name_is_a_socket_and_nothing_else() {
        let expected = socket("/srv/anklume/mcp/vault.sock", Some("vault"));
        assert_eq!(way(named("vault"), &inside()), Ok(expected));
        let elsewhere = RouteContext {
            sockets: Some("/s".into()),
            in_machine: false,
        };
        let expected = socket("/s/vault.sock", Some("vault"));
        assert_eq!(way(named("vault"), &elsewhere), Ok(expected));
        for bad in ["../x", "a/b", "", "Vault", "a\n"] {
            let fault = way(named(bad), &inside());
            assert!(matches!(fault, Err(WayFault::Name { .. })), "{bad:?}");
        }
        let wanted = WantedMachine {
            project: Some("p"),
            ..named("vault")
        };
        assert_eq!(way(wanted, &inside()), Err(WayFault::ProjectInside));
    }

    #[test]
    fn a_socket_overrides_all() {
        let wanted = WantedMachine {
            socket: Some(Path::new("/x.sock")),
            ..named("vault")
        };
        for around in [host(), inside()] {
            assert_eq!(way(wanted, &around), Ok(socket("/x.sock", None)));
        }
    }
}
