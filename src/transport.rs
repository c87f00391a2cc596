//! Selects and opens the route to a machine: this program's own server, `incus exec`, or a socket.
//!
//! Ends the processes that it started. The protocol is handled by [`crate::mcp`].

mod open;
mod program;
mod remote_exec;
mod unreachable;

pub(crate) use open::{OpenTransport, TransportEnd, Watch, open, providers, resolve};
pub(crate) use program::{
    LOCAL_REMOTE, incus, incus_exec, program, shell_line, this_program, this_program_again,
};
pub(crate) use remote_exec::{RemoteExec, RemoteExecError};
pub(crate) use unreachable::Unreachable;

use std::path::{Path, PathBuf};

use crate::edge::CONSUMER_FOLDER;
use crate::incus::MachineRef;
use crate::machine_state::IDENTITY;
use crate::name::{MachineName, NameFault};

/// A route to a server, with everything needed to open it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Transport {
    /// A child process of this program, on stdin and stdout.
    Local,
    /// `incus exec` into a machine, on stdin and stdout.
    Exec(MachineRef),
    /// A consumer's socket to a provider.
    Socket(Socket),
}

/// A provider's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Socket {
    pub(crate) path: PathBuf,
    /// The provider that owns it; `None` if the user named the path.
    pub(crate) provider: Option<MachineName>,
}

/// The socket that Incus puts into every machine that may use its guest API.
const GUEST: &str = "/dev/incus/sock";

/// The flags that select a route.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WantedMachine<'a> {
    /// `-i`
    pub(crate) instance: Option<&'a str>,
    /// `--project`
    pub(crate) project: Option<&'a str>,
    /// `--socket`
    pub(crate) socket: Option<&'a Path>,
}

/// The environment that selects a route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RouteContext {
    /// `ANKLUME_SOCKET_DIR`
    pub(crate) sockets: Option<PathBuf>,
    /// True inside an Incus or anklume machine.
    pub(crate) in_machine: bool,
}

impl RouteContext {
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

    /// Returns whether this machine may have providers.
    pub(crate) fn has_sockets(&self) -> bool {
        self.folder().is_some()
    }

    /// Returns the providers' socket folder; on the host, there is none by default.
    fn folder(&self) -> Option<&Path> {
        let inside = self.in_machine.then_some(Path::new(CONSUMER_FOLDER));
        self.sockets.as_deref().or(inside)
    }
}

/// A route to a server; a machine on the host is only a name until it is resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// A child process of this program.
    Local,
    /// `incus exec` from the host.
    Host {
        machine: String,
        project: Option<String>,
    },
    Socket(Socket),
}

/// The reason why no route fits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WayFault {
    /// Inside a machine, `-i` names a provider, so it must be a machine name.
    #[error("`{}` is not a machine name: {fault}", name.escape_debug())]
    Name { name: String, fault: NameFault },
    /// `--project` inside a machine, which has no Incus to ask.
    #[error("`--project` has no meaning inside a machine: a provider is reached over its socket")]
    ProjectInside,
}

/// Selects a route; pure. `--socket` overrides all; `-i` means a socket inside a machine, and `incus exec` on the host.
pub(crate) fn way(wanted: WantedMachine<'_>, context: &RouteContext) -> Result<Route, WayFault> {
    if let Some(socket) = wanted.socket {
        return Ok(Route::Socket(Socket {
            path: socket.to_owned(),
            provider: None,
        }));
    }
    let Some(name) = wanted.instance else {
        return Ok(Route::Local);
    };
    let Some(folder) = context.folder() else {
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
