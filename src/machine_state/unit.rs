//! Generates the supervisor's files for the server and for the launcher of the gpg-agent that its calls use.
//!
//! The launcher is a separate service, so that the agent is outside the server's control group and limits: it may need a
//! card reader or a display, and it outlives the server.

use super::{AGENT_LAUNCHER, AGENT_UNIT, LAUNCH, PROGRAM, Supervisor, UNIT};
use crate::edge::PROVIDER_FOLDER;

/// A supervisor's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its path.
    pub path: String,
    /// Its content.
    pub text: String,
    /// Its permission bits.
    pub mode: u32,
}

/// The launcher's socket folder.
const AGENT_FOLDER: &str = "/run/anklume/gpg-agent";
/// The launcher's socket.
const AGENT_SOCKET: &str = "/run/anklume/gpg-agent/launcher.sock";
/// `XDG_RUNTIME_DIR` of the server and of the operator's calls, so that both share one clipboard.
pub const RUNTIME: &str = "/run/anklume/user";
/// The server's search path under every supervisor: the same as systemd's.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The log folder.
pub const LOGS: &str = "/var/log/anklume";
/// Time before a stopping server is killed, in seconds: longer than its running calls have to finish.
pub const STOP_SECONDS: u64 = 90;

/// Returns the units of a server that runs as this user (`None`: root); none without a supervisor.
#[must_use]
pub fn units(supervisor: Supervisor, run_as: Option<&str>) -> Vec<Unit> {
    let user = run_as.unwrap_or("root");
    let (texts, mode) = match supervisor {
        Supervisor::Systemd => ([systemd_agent(user), systemd_server(user)], 0o644),
        // OpenRC runs the file itself, which is a script.
        Supervisor::Openrc => ([openrc_agent(user), openrc_server(user)], 0o755),
        Supervisor::Nobody => return Vec::new(),
    };
    let paths = unit_paths(supervisor).into_iter();
    paths
        .zip(texts)
        .map(|(path, text)| Unit { path, text, mode })
        .collect()
}

/// Returns the paths of the [`units`].
#[must_use]
pub fn unit_paths(supervisor: Supervisor) -> Vec<String> {
    let (folder, suffix) = match supervisor {
        Supervisor::Systemd => ("/etc/systemd/system", ".service"),
        Supervisor::Openrc => ("/etc/init.d", ""),
        Supervisor::Nobody => return Vec::new(),
    };
    let path = |unit| format!("{folder}/{unit}{suffix}");
    vec![path(AGENT_UNIT), path(UNIT)]
}

/// `KillMode=process`: a process that a call leaves running on purpose (the clipboard holder) outlives the server. No
/// start limit: a server that cannot start now may do so later, and `doctor` reports it.
fn systemd_server(user: &str) -> String {
    format!(
        "# Written by `anklume apply`, which undoes what is changed here.
[Unit]
Description=anklume: the services of this machine
Wants={AGENT_UNIT}.service
After={AGENT_UNIT}.service
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={PROGRAM} mcp serve --listen {PROVIDER_FOLDER}
User={user}
Environment=PATH={PATH} XDG_RUNTIME_DIR={RUNTIME} {AGENT_LAUNCHER}={AGENT_SOCKET}
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

fn openrc_server(user: &str) -> String {
    format!(
        "#!/sbin/openrc-run
# Written by `anklume apply`, which undoes what is changed here.
description=\"anklume: the services of this machine\"
supervisor=supervise-daemon
command={PROGRAM}
command_args=\"mcp serve --listen {PROVIDER_FOLDER}\"
command_user={user}
supervise_daemon_args=\"--env PATH={PATH} --env XDG_RUNTIME_DIR={RUNTIME} --env {AGENT_LAUNCHER}={AGENT_SOCKET}\"
retry=\"TERM/{STOP_SECONDS}/KILL/5\"
respawn_delay=1
respawn_max=0

depend() {{
    want {AGENT_UNIT}
    after {AGENT_UNIT}
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

/// Returns the path of the link that makes systemd start the server at boot.
#[must_use]
pub fn systemd_wanted() -> String {
    format!("/etc/systemd/system/multi-user.target.wants/{UNIT}.service")
}
