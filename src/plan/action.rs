//! One step of a plan, and its lines: `+` means created, `~` changed, `-` removed.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

use super::difference::value;
use super::edges::DevicePair;
use super::facts::{BigLog, Proxy, RecreateReason, Role, Schedule};
use super::ownership;
use crate::edge::Edge;
use crate::incus::state::InstanceId;
use crate::incus::{ConfigMap, Edit, Object, Power};
use crate::machine_state::MachineSpec;
use crate::text::shown;

/// Maximum length of a key's value in a plan, in characters.
const SHOWN_MAX: usize = 60;
/// Maximum length of a rule in a plan, in characters: a rule may name many subnets.
const RULE_SHOWN_MAX: usize = 100;
/// The unit in which sizes are shown, in bytes.
const MIB: u64 = 1024 * 1024;
/// The verb of a step that tries a call.
const VERIFY: &str = "prove";
/// The verb of a step that could not read a machine.
const LOOK: &str = "read";

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Create an object.
    Create {
        object: Object,
        /// The request body for the API.
        body: Value,
        /// Details for the reader of the plan.
        about: String,
    },
    /// Change an object.
    Edit {
        object: Object,
        edits: Vec<Edit>,
        /// True for a machine that is running, in which some changes take effect only after a restart.
        runs: bool,
    },
    /// Remove the bridge of a network whose creation did not finish: Incus does not know it, and refuses to create another.
    RemoveBridge(String),
    /// Set up the bridge of a network again, because its interface is gone from the host, or connect machines to it again.
    RestoreBridge {
        network: Object,
        /// True if the interface is gone.
        is_gone: bool,
        /// The network's [`EXPIRY`](super::EXPIRY).
        expiry: Option<String>,
        /// Machines that were connected to it, each with its interface on the host.
        ports: Vec<(String, String)>,
    },
    /// Start a machine.
    Start {
        machine: Object,
        /// Starts a stopped machine or resumes a paused one.
        power: Power,
        /// Its status, as named by Incus.
        from: String,
        /// True if it has devices that listen in its socket folder, which must then exist first.
        listens: bool,
    },
    /// Create or change an edge's device at one of its ends.
    Connect {
        machine: Object,
        device: String,
        role: Role,
        /// The machine at the other end.
        other: InstanceId,
        /// True if the machine has a device of that name.
        exists: bool,
        new: ConfigMap,
        /// Reason to recreate a device even if its keys are correct.
        recreate: Option<RecreateReason>,
    },
    /// Try a call over a channel.
    VerifyChannel(Verification),
    /// Set up the program, the machine's name, its services and its server.
    Install {
        machine: Object,
        spec: MachineSpec,
        /// True if the program must be pushed.
        push: bool,
        /// True if an unresponsive server must be ended first.
        kill_server: bool,
        /// The differences, as the plan shows them.
        lines: Vec<String>,
    },
    /// Report that the content of a machine is unknown. This step always fails, so that nothing in the machine changes.
    Unread { machine: Object, why: String },
    /// Remove the device of an edge that is undeclared or not on this machine, along with its sockets.
    Revoke(Revocation),
    /// End a process that carries the bytes of no device, or of one that another process already serves.
    EndProxy(Proxy),
    /// Create a folder on the host, or set its owner and mode.
    Folder {
        path: String,
        mode: u32,
        exists: bool,
    },
    /// Remove a leftover socket on the host.
    Sweep { path: String },
    /// Empty a channel's log, except for its end.
    Rotate(BigLog),
    /// Have the host's scheduler rotate the channels' logs.
    Schedule(Schedule),
    /// Stop that rotation.
    Unschedule,
    /// Delete an object.
    Delete {
        object: Object,
        running: bool,
        /// True if it is protected from deletion.
        protected: bool,
        /// Its sockets on the host, which are removed along with it.
        sockets: Vec<String>,
    },
}

/// A call to try over a channel, from its consumer's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verification {
    pub(crate) edge: Edge,
    /// The channel as shown to users.
    pub(super) name: String,
    /// True if one of its ends changes; if not, an earlier run got no answer, or ended before the call.
    pub(crate) changes: bool,
    /// True if the consumer is marked when the call is tried.
    pub(crate) marked: bool,
}

/// The removal of a channel's device.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Revocation {
    pub(crate) machine: Object,
    pub(crate) device: String,
    /// Its socket in the machine.
    pub(crate) inside: Option<String>,
    /// Its socket on the host, unless another device is entitled to it.
    pub(crate) host: Option<String>,
    /// The machines that it connected; `None` if its paths are not those of a channel.
    pub(crate) pair: Option<DevicePair>,
    /// The reason; `None` if the edge is no longer declared.
    pub(super) why: Option<&'static str>,
}

impl Revocation {
    fn line(&self) -> String {
        let (device, machine) = (self.device.escape_debug(), self.machine.name());
        let role = self.pair.as_ref().map(|pair| {
            let (consumer, provider) = (&pair.consumer.name, &pair.provider);
            if pair.is_consumers {
                format!("consumer of {}", provider.escape_debug())
            } else {
                format!("provider for {}", consumer.escape_debug())
            }
        });
        let about: Vec<&str> = role.as_deref().into_iter().chain(self.why).collect();
        let about = match about.as_slice() {
            [] => String::new(),
            about => format!(" ({})", about.join(", ")),
        };
        format!("- device {device} on {}{about}", machine.escape_debug())
    }
}

/// An action as reported to programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ActionSummary {
    /// `create`, `change`, `remove`, or one that changes nothing: `prove` or `read`.
    pub(crate) verb: &'static str,
    /// The kind of object: `machine`, `device`, …
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    /// The action as shown to users, with a line for each change.
    pub(crate) lines: Vec<String>,
}

impl ActionSummary {
    /// A short description of the action.
    pub(crate) fn title(&self) -> String {
        let name = self.name.escape_debug();
        format!("{} {} {name}", self.verb, self.kind)
    }
}

impl Action {
    /// Returns the object that it deletes, if it deletes one.
    pub(crate) const fn deleted(&self) -> Option<&Object> {
        match self {
            Self::Delete { object, .. } => Some(object),
            _ => None,
        }
    }

    /// Returns whether it runs even if an earlier action in its chain failed: revocations are mutually independent.
    pub(crate) const fn stands_alone(&self) -> bool {
        matches!(self, Self::Revoke(_))
    }

    /// Returns the existing machine that the action changes or starts, except for its removal and for marks alone.
    pub(super) fn machine(&self) -> Option<&Object> {
        match self {
            Self::Edit { object, edits, .. } if !edits.iter().all(is_mark) => {
                matches!(object, Object::Machine { .. }).then_some(object)
            }
            Self::Start { machine, .. }
            | Self::Install { machine, .. }
            | Self::Connect { machine, .. } => Some(machine),
            _ => None,
        }
    }

    /// Summarises the action for users and programs.
    pub(crate) fn shown(&self) -> ActionSummary {
        let lines = self.lines();
        let sign = lines.first().and_then(|line| line.chars().next());
        let verb = match (self, sign) {
            (Self::VerifyChannel(_), _) => VERIFY,
            (Self::Unread { .. }, _) => LOOK,
            // A change, even if only a part of the object is created or removed.
            (Self::Edit { .. }, _) | (_, None | Some('~')) => "change",
            (_, Some('-')) => "remove",
            (_, Some(_)) => "create",
        };
        let (kind, name) = self.subject();
        ActionSummary {
            verb,
            kind,
            name: name.to_owned(),
            lines,
        }
    }

    fn subject(&self) -> (&'static str, &str) {
        match self {
            Self::Create { object, .. }
            | Self::Edit { object, .. }
            | Self::Delete { object, .. } => (object.kind(), object.name()),
            Self::RestoreBridge { network, .. } => (network.kind(), network.name()),
            Self::Start { machine, .. } | Self::Unread { machine, .. } => {
                (machine.kind(), machine.name())
            }
            Self::Install { machine, .. } => ("program", machine.name()),
            Self::Connect { device, .. } | Self::Revoke(Revocation { device, .. }) => {
                ("device", device)
            }
            Self::VerifyChannel(call) => ("channel", &call.name),
            Self::RemoveBridge(name) => ("bridge", name),
            Self::EndProxy(proxy) => ("process", &proxy.listen.address),
            Self::Folder { path, .. } => ("folder", path),
            Self::Sweep { path } => ("socket", path),
            Self::Rotate(log) => ("log", &log.path),
            Self::Schedule(schedule) => ("rotation", schedule.by),
            Self::Unschedule => ("rotation", "logs"),
        }
    }

    /// The action's lines in the plan.
    pub(crate) fn lines(&self) -> Vec<String> {
        let line = match self {
            Self::Edit {
                object,
                edits,
                runs,
            } => return edit_lines(object, edits, *runs),
            Self::Install { lines, .. } => return lines.clone(),
            // The lines of a change imply this call.
            Self::VerifyChannel(Verification { changes: true, .. }) => return Vec::new(),
            Self::VerifyChannel(Verification { name, .. }) => {
                format!("~ channel {name}: no answer yet → tried again")
            }
            Self::Create { object, about, .. } if about.is_empty() => format!("+ {object}"),
            Self::Create { object, about, .. } => format!("+ {object} ({about})"),
            Self::Start { machine, from, .. } => {
                let from = from.to_lowercase();
                format!("~ {machine} status: {} → running", from.escape_debug())
            }
            Self::Connect {
                machine,
                device,
                role,
                other,
                exists,
                recreate,
                ..
            } => {
                let sign = if *exists { '~' } else { '+' };
                let role = match role {
                    Role::Consumer => "consumer of",
                    Role::Provider => "provider for",
                };
                let why = match recreate {
                    None => "",
                    Some(RecreateReason::TakenOver) => ", recreated",
                    Some(RecreateReason::NoProcess) => ", recreated: its process is gone",
                    Some(RecreateReason::NoSocket) => ", recreated: its socket is gone",
                    Some(RecreateReason::BadSocket) => ", recreated: its socket differs",
                };
                let (machine, other) = (machine.name(), &other.name);
                format!("{sign} device {device} on {machine} ({role} {other}{why})")
            }
            Self::Unread { machine, why } => {
                format!("! {machine}: its files cannot be read: {why}")
            }
            Self::Revoke(revocation) => revocation.line(),
            Self::RestoreBridge {
                network,
                is_gone,
                ports,
                ..
            } => {
                let ports: Vec<&str> = ports.iter().map(|(machine, _)| machine.as_str()).collect();
                let machines = ports.join(", ");
                let machines = machines.escape_debug();
                match (is_gone, ports.as_slice()) {
                    (true, []) => format!("~ {network} bridge missing on the host → recreated"),
                    (true, _) => format!(
                        "~ {network} bridge missing on the host → recreated, {machines} reconnected"
                    ),
                    (false, _) => format!("~ {network} {machines}: not connected → reconnected"),
                }
            }
            Self::RemoveBridge(name) => format!("- bridge {} on the host", name.escape_debug()),
            Self::EndProxy(proxy) => {
                format!("- process {} on the host: {}", proxy.process, proxy.about())
            }
            Self::Folder { path, mode, exists } => {
                let path = path.escape_debug();
                if *exists {
                    format!("~ folder {path} on the host: owner root, mode {mode:04o}")
                } else {
                    format!("+ folder {path} on the host")
                }
            }
            Self::Sweep { path } => format!("- socket {} on the host", path.escape_debug()),
            Self::Rotate(log) => {
                let (path, size) = (log.path.escape_debug(), log.bytes / MIB);
                format!("~ log {path} on the host: {size} MiB → rotated")
            }
            Self::Schedule(Schedule { by, exists, .. }) => {
                let sign = if *exists { '~' } else { '+' };
                format!("{sign} rotation of the channels' logs, by {by}")
            }
            Self::Unschedule => "- rotation of the channels' logs".to_owned(),
            Self::Delete {
                object, protected, ..
            } => {
                let more = if *protected { " (not ephemeral)" } else { "" };
                format!("- {object}{more}")
            }
        };
        vec![line]
    }
}

/// Returns whether a change of this key takes effect only when the machine starts again: keys of a container without
/// `liveupdate` in Incus's configuration reference, except those that concern the host's start or snapshots.
fn needs_restart(key: &str) -> bool {
    const PREFIXES: [&str; 5] = [
        "linux.sysctl.",
        "nvidia.",
        "raw.",
        "security.idmap.",
        "security.syscalls.",
    ];
    const KEYS: [&str; 3] = [
        "security.guestapi",
        "security.guestapi.images",
        "security.privileged",
    ];
    KEYS.contains(&key)
        || key != "raw.apparmor" && PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// Returns whether an edit only sets or removes one of anklume's own marks.
fn is_mark(edit: &Edit) -> bool {
    matches!(edit, Edit::Config { key, .. } if ownership::is_own(key))
}

/// Returns the lines of an edit; anklume's own marks are shown only if nothing else changes.
fn edit_lines(object: &Object, edits: &[Edit], runs: bool) -> Vec<String> {
    let (marks, rest): (Vec<&Edit>, Vec<&Edit>) = edits.iter().partition(|edit| is_mark(edit));
    let lines = |edits: Vec<&Edit>| -> Vec<String> {
        let lines = edits.into_iter().map(|edit| lines_of(object, edit, runs));
        lines.flatten().collect()
    };
    let rest = lines(rest);
    if rest.is_empty() { lines(marks) } else { rest }
}

fn lines_of(object: &Object, edit: &Edit, runs: bool) -> Vec<String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let line = match edit {
        Edit::Device { name, old, new } => {
            return device_lines(object, name, old.as_ref(), new.as_ref());
        }
        Edit::Description { old, new } => change("description", old, new),
        Edit::Config { key, old, new } => {
            let line = change(key, &text(old), &text(new));
            let later = if runs && needs_restart(key) {
                " (after a restart)"
            } else {
                ""
            };
            line + later
        }
        Edit::Profiles { old, new } => change("profiles", &old.join(", "), &new.join(", ")),
        Edit::Rules {
            direction,
            old,
            new,
        } => {
            let side = |sign: char, rules: &[ConfigMap], others: &[ConfigMap]| {
                let rules = rules.iter().filter(|rule| !others.contains(rule));
                let line = |rule| {
                    let rule = shown(&rule_text(rule), RULE_SHOWN_MAX);
                    format!("{sign} {object} {}: {rule}", direction.as_str())
                };
                rules.map(line).collect::<Vec<_>>()
            };
            return [side('-', old, new), side('+', new, old)].concat();
        }
    };
    vec![format!("~ {object} {line}")]
}

fn device_lines(
    object: &Object,
    name: &str,
    old: Option<&ConfigMap>,
    new: Option<&ConfigMap>,
) -> Vec<String> {
    let on = match object {
        Object::Machine { name, .. } => name.clone(),
        other => other.to_string(),
    };
    let device = format!("device {} on {on}", name.escape_debug());
    let (Some(old), Some(new)) = (old, new) else {
        let sign = if old.is_none() { '+' } else { '-' };
        return vec![format!("{sign} {device}")];
    };
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let mut lines = Vec::new();
    for key in keys {
        if old.get(key) != new.get(key) {
            let line = change(key, value(old, key), value(new, key));
            lines.push(format!("~ {device} {line}"));
        }
    }
    lines
}

/// Describes a change. An empty value counts as none; others are on one line, escaped, and truncated if long.
fn change(key: &str, old: &str, new: &str) -> String {
    let [old, new] = [old, new].map(|value| match value {
        "" => "(none)".to_owned(),
        value => shown(value, SHOWN_MAX),
    });
    format!("{}: {old} → {new}", key.escape_debug())
}

/// Describes a rule, such as `allow 10.100.1.10 to 10.100.2.10, tcp 443`.
fn rule_text(rule: &ConfigMap) -> String {
    let ends = [value(rule, "source"), value(rule, "destination")];
    let ends: Vec<&str> = ends.into_iter().filter(|end| !end.is_empty()).collect();
    let mut text = format!("{} {}", value(rule, "action"), ends.join(" to "));
    let protocol = value(rule, "protocol");
    if !protocol.is_empty() {
        let more = ["destination_port", "icmp_type"].map(|key| value(rule, key));
        let more = more.iter().filter(|more| !more.is_empty());
        let words: Vec<&str> = std::iter::once(protocol).chain(more.copied()).collect();
        let _ = write!(text, ", {}", words.join(" "));
    }
    text
}
