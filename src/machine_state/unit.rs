//! Generates the supervisor's files for the server, and for two services that start what its calls need outside its
//! control group and limits.
//!
//! One starts the gpg-agent, which may need a card reader or a display, and outlives the server. The other runs the
//! machine's own programs, as their users; it exists only where services use them.

use super::{
    AGENT_LAUNCHER, AGENT_UNIT, LAUNCH, LAUNCHER, LAUNCHER_UNIT, PROGRAM, PROGRAM_LAUNCHER,
    SERVICES, Supervisor, UNIT,
};
use crate::edge::PROVIDER_FOLDER;

/// A supervisor's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Name of its service.
    pub name: &'static str,
    /// Its path.
    pub path: String,
    /// Its content.
    pub text: String,
    /// Its permission bits.
    pub mode: u32,
}

/// All services, in the order of their start.
pub const UNITS: [&str; 3] = [AGENT_UNIT, LAUNCHER_UNIT, UNIT];
/// The socket of the service that runs programs, in a folder of its own.
pub const LAUNCHER_SOCKET: &str = "/run/anklume/run/launcher.sock";
/// That folder.
const LAUNCHER_FOLDER: &str = "/run/anklume/run";
/// The folder of the gpg-agent launcher's socket.
const AGENT_FOLDER: &str = "/run/anklume/gpg-agent";
/// The gpg-agent launcher's socket.
const AGENT_SOCKET: &str = "/run/anklume/gpg-agent/launcher.sock";
/// `XDG_RUNTIME_DIR` of the server and of the operator's calls, so that both share one clipboard.
pub const RUNTIME: &str = "/run/anklume/user";
/// The server's search path under every supervisor: the same as systemd's.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The log folder.
pub const LOGS: &str = "/var/log/anklume";
/// Time before a stopping server is killed, in seconds: longer than its running calls have to finish.
pub const STOP_SECONDS: u64 = 90;

/// Returns the units of a server that runs as this user (`None`: root), with one for the machine's own programs if services
/// use any; none without a supervisor.
#[must_use]
pub fn units(supervisor: Supervisor, run_as: Option<&str>, has_programs: bool) -> Vec<Unit> {
    let user = run_as.unwrap_or("root");
    let wanted = UNITS.into_iter();
    let wanted = wanted.filter(|name| has_programs || *name != LAUNCHER_UNIT);
    let unit = |name| {
        let path = unit_path(supervisor, name)?;
        // OpenRC runs the file itself, which is a script.
        let mode = if supervisor == Supervisor::Openrc {
            0o755
        } else {
            0o644
        };
        let text = match (supervisor, name) {
            (Supervisor::Systemd, AGENT_UNIT) => systemd_agent(user),
            (Supervisor::Systemd, LAUNCHER_UNIT) => systemd_launcher(),
            (Supervisor::Systemd, _) => systemd_server(user),
            (Supervisor::Openrc, AGENT_UNIT) => openrc_agent(user),
            (Supervisor::Openrc, LAUNCHER_UNIT) => openrc_launcher(),
            (Supervisor::Openrc, _) => openrc_server(user),
            (Supervisor::Nobody, _) => return None,
        };
        Some(Unit {
            name,
            path,
            text,
            mode,
        })
    };
    wanted.filter_map(unit).collect()
}

/// Returns the path of the file of one of the [`UNITS`]; `None` without a supervisor.
#[must_use]
pub fn unit_path(supervisor: Supervisor, name: &str) -> Option<String> {
    match supervisor {
        Supervisor::Systemd => Some(format!("/etc/systemd/system/{name}.service")),
        Supervisor::Openrc => Some(format!("/etc/init.d/{name}")),
        Supervisor::Nobody => None,
    }
}

/// `KillMode=process`: a process that a call leaves running on purpose (the clipboard holder) outlives the server. No
/// start limit: a server that cannot start now may do so later, and `doctor` reports it.
fn systemd_server(user: &str) -> String {
    format!(
        "# Written by `anklume apply`, which undoes what is changed here.
[Unit]
Description=anklume: the services of this machine
Wants={AGENT_UNIT}.service
After={AGENT_UNIT}.service {LAUNCHER_UNIT}.service
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={PROGRAM} mcp serve --listen {PROVIDER_FOLDER}
User={user}
Environment=PATH={PATH} XDG_RUNTIME_DIR={RUNTIME} {AGENT_LAUNCHER}={AGENT_SOCKET} {PROGRAM_LAUNCHER}={LAUNCHER_SOCKET}
RuntimeDirectory=anklume/mcp anklume/user
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=restart
LogsDirectory=anklume
LogsDirectoryMode=0750
Restart=always
RestartSec=1
TimeoutStopSec={STOP_SECONDS}
KillMode=process
OOMPolicy=continue
LimitNOFILE=65536
LimitCORE=0
TasksMax=8192
NoNewPrivileges=yes

[Install]
WantedBy=multi-user.target
"
    )
}

/// `KillMode=process`: the agent, and the passphrases that it holds, outlive the launcher.
fn systemd_agent(user: &str) -> String {
    format!(
        "# Written by `anklume apply`, which undoes what is changed here.
[Unit]
Description=anklume: starts the gpg-agent of the services of this machine
StartLimitIntervalSec=0

[Service]
ExecStart={PROGRAM} {LAUNCH} {AGENT_SOCKET}
User={user}
Environment=PATH={PATH}
RuntimeDirectory=anklume/gpg-agent
RuntimeDirectoryMode=0700
Restart=always
RestartSec=1
KillMode=process
OOMPolicy=continue
"
    )
}

/// `KillMode=control-group`: nothing that it starts outlives it. The capabilities are those that [`crate::confinement`]
/// lets it keep.
fn systemd_launcher() -> String {
    format!(
        "# Written by `anklume apply`, which undoes what is changed here.
[Unit]
Description=anklume: runs the programs of the services of this machine
StartLimitIntervalSec=0

[Service]
ExecStart={PROGRAM} {LAUNCHER} {LAUNCHER_SOCKET} {SERVICES}
Environment=PATH={PATH}
RuntimeDirectory=anklume/run
RuntimeDirectoryMode=0755
Restart=always
RestartSec=1
KillMode=control-group
OOMPolicy=continue
LimitCORE=0
LimitNOFILE=65536
TasksMax=16384
NoNewPrivileges=yes
CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_KILL CAP_DAC_READ_SEARCH

[Install]
WantedBy=multi-user.target
"
    )
}

fn openrc_launcher() -> String {
    format!(
        "#!/sbin/openrc-run
# Written by `anklume apply`, which undoes what is changed here.
description=\"anklume: runs the programs of the services of this machine\"
supervisor=supervise-daemon
command={PROGRAM}
command_args=\"{LAUNCHER} {LAUNCHER_SOCKET} {SERVICES}\"
rc_ulimit=\"-n 65536\"
supervise_daemon_args=\"--env PATH={PATH}\"
respawn_delay=1
respawn_max=0

start_pre() {{
    checkpath -d -m 0755 /run/anklume
    checkpath -d -m 0755 -o root {LAUNCHER_FOLDER}
}}
"
    )
}

fn openrc_server(user: &str) -> String {
    format!(
        "#!/sbin/openrc-run
# Written by `anklume apply`, which undoes what is changed here.
description=\"anklume: the services of this machine\"
supervisor=supervise-daemon
command={PROGRAM}
command_args=\"mcp serve --listen {PROVIDER_FOLDER}\"
command_user={user}
supervise_daemon_args=\"--env PATH={PATH} --env XDG_RUNTIME_DIR={RUNTIME} --env {AGENT_LAUNCHER}={AGENT_SOCKET} --env {PROGRAM_LAUNCHER}={LAUNCHER_SOCKET}\"
retry=\"TERM/{STOP_SECONDS}/KILL/5\"
respawn_delay=1
respawn_max=0

depend() {{
    want {AGENT_UNIT}
    after {AGENT_UNIT} {LAUNCHER_UNIT}
}}

start_pre() {{
    checkpath -d -m 0755 /run/anklume
    # Anything that belongs to another user must not be reused.
    for folder in {PROVIDER_FOLDER} {RUNTIME}; do
        [ \"$(stat -c %U $folder 2>/dev/null)\" = {user} ] || rm -rf $folder
    done
    checkpath -d -m 0700 -o {user} {PROVIDER_FOLDER} {RUNTIME}
    checkpath -d -m 0750 -o {user} {LOGS}
}}
"
    )
}

fn openrc_agent(user: &str) -> String {
    format!(
        "#!/sbin/openrc-run
# Written by `anklume apply`, which undoes what is changed here.
description=\"anklume: starts the gpg-agent of the services of this machine\"
supervisor=supervise-daemon
command={PROGRAM}
command_args=\"{LAUNCH} {AGENT_SOCKET}\"
command_user={user}
supervise_daemon_args=\"--env PATH={PATH}\"
respawn_delay=1
respawn_max=0

start_pre() {{
    checkpath -d -m 0755 /run/anklume
    checkpath -d -m 0700 -o {user} {AGENT_FOLDER}
}}
"
    )
}

/// Returns the path of the link that makes systemd start a service at boot.
#[must_use]
pub fn systemd_wanted(name: &str) -> String {
    format!("/etc/systemd/system/multi-user.target.wants/{name}.service")
}
