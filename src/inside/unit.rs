//! The service at a machine's supervisor, as text.

use super::{PROGRAM, UNIT};
use crate::edge::PROVIDER_FOLDER;

/// The unit's file.
pub const SYSTEMD_UNIT: &str = "/etc/systemd/system/anklume-mcp.service";
/// The script's file.
pub const OPENRC_SCRIPT: &str = "/etc/init.d/anklume-mcp";
/// `XDG_RUNTIME_DIR` of the server and of the operator's calls, so that both have one clipboard.
pub const RUNTIME: &str = "/run/anklume/user";
/// Where the server finds programs, whoever starts it: as systemd has it.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The folder of the log.
pub const LOGS: &str = "/var/log/anklume";
/// How long a server may take to end before it is killed, in seconds: longer than it gives its running calls itself.
pub const STOP_SECONDS: u64 = 90;

/// The unit for systemd.
///
/// `KillMode=process`: what a call left running on purpose (the holder of a clipboard, an agent with a key) outlives the
/// server. No start limit: a server that cannot start now may do so later, and `doctor` tells.
#[must_use]
pub fn systemd_unit(run_as: Option<&str>) -> String {
    let user = run_as.unwrap_or("root");
    format!(
        "# Written by `anklume apply`, which undoes what is changed here.
[Unit]
Description=anklume: the services of this machine
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={PROGRAM} mcp serve --listen {PROVIDER_FOLDER}
User={user}
Environment=PATH={PATH} XDG_RUNTIME_DIR={RUNTIME}
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
NoNewPrivileges=yes

[Install]
WantedBy=multi-user.target
"
    )
}

/// The script for OpenRC.
#[must_use]
pub fn openrc_script(run_as: Option<&str>) -> String {
    let user = run_as.unwrap_or("root");
    format!(
        "#!/sbin/openrc-run
# Written by `anklume apply`, which undoes what is changed here.
description=\"anklume: the services of this machine\"
supervisor=supervise-daemon
command={PROGRAM}
command_args=\"mcp serve --listen {PROVIDER_FOLDER}\"
command_user={user}
supervise_daemon_args=\"--env PATH={PATH} --env XDG_RUNTIME_DIR={RUNTIME}\"
retry=\"TERM/{STOP_SECONDS}/KILL/5\"
respawn_delay=1
respawn_max=0

start_pre() {{
    checkpath -d -m 0755 /run/anklume
    checkpath -d -m 0700 -o {user} {PROVIDER_FOLDER} {RUNTIME}
    checkpath -d -m 0750 -o {user} {LOGS}
}}
"
    )
}

/// The link by which a supervisor starts the server with the machine.
#[must_use]
pub fn systemd_wanted() -> String {
    format!("/etc/systemd/system/multi-user.target.wants/{UNIT}.service")
}
