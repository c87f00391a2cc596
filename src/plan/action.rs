//! One step of a plan, and its lines: `+` means created, `~` changed, `-` removed.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

use super::difference::value;
use super::facts::{BigLog, RecreateReason, Role, Schedule};
use super::ownership;
use crate::edge::Edge;
use crate::incus::state::InstanceId;
use crate::incus::{ConfigMap, Edit, Object, Power};
use crate::machine_state::MachineSpec;
use crate::text::shown;

/// Maximum length of a key's value in a plan, in characters.
const SHOWN_MAX: usize = 60;
/// The unit in which sizes are shown, in bytes.
const MIB: u64 = 1024 * 1024;
/// The verb of a step that changes nothing.
const VERIFY: &str = "prove";

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
    Edit { object: Object, edits: Vec<Edit> },
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
    /// Remove the device of an edge that is undeclared or not on this machine, along with its sockets.
    Revoke {
        machine: Object,
        device: String,
        /// Its socket in the machine.
        inside: Option<String>,
        /// Its socket on the host, unless another device is entitled to it.
        host: Option<String>,
        /// The reason; `None` if the edge is no longer declared.
        why: Option<&'static str>,
    },
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

/// An action as reported to programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ActionSummary {
    /// `create`, `change`, `remove`, or `prove`, which changes nothing.
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
    /// Returns whether it runs even if an earlier action in its chain failed: revocations are mutually independent.
    pub(crate) const fn stands_alone(&self) -> bool {
        matches!(self, Self::Revoke { .. })
    }

    /// Summarises the action for users and programs.
    pub(crate) fn shown(&self) -> ActionSummary {
        let lines = self.lines();
        let sign = lines.first().and_then(|line| line.chars().next());
        let verb = match (self, sign) {
            (Self::VerifyChannel(_), _) => VERIFY,
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
            Self::Start { machine, .. } => (machine.kind(), machine.name()),
            Self::Install { machine, .. } => ("program", machine.name()),
            Self::Connect { device, .. } | Self::Revoke { device, .. } => ("device", device),
            Self::VerifyChannel(call) => ("channel", &call.name),
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
            Self::Edit { object, edits } => return edit_lines(object, edits),
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
                    Some(RecreateReason::BadSocket) => ", recreated: its socket was altered",
                };
                let (machine, other) = (machine.name(), &other.name);
                format!("{sign} device {device} on {machine} ({role} {other}{why})")
            }
            Self::Revoke {
                machine,
                device,
                why,
                ..
            } => {
                let (device, machine) = (device.escape_debug(), machine.name().escape_debug());
                let why = why.map_or_else(String::new, |why| format!(" ({why})"));
                format!("- device {device} on {machine}{why}")
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

/// Returns the lines of an edit; anklume's own marks are shown only if nothing else changes.
fn edit_lines(object: &Object, edits: &[Edit]) -> Vec<String> {
    let is_mark = |edit: &&Edit| matches!(edit, Edit::Config { key, .. } if ownership::is_own(key));
    let (marks, rest): (Vec<&Edit>, Vec<&Edit>) = edits.iter().partition(is_mark);
    let lines = |edits: Vec<&Edit>| -> Vec<String> {
        let lines = edits.into_iter().map(|edit| lines_of(object, edit));
        lines.flatten().collect()
    };
    let rest = lines(rest);
    if rest.is_empty() { lines(marks) } else { rest }
}

fn lines_of(object: &Object, edit: &Edit) -> Vec<String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let line = match edit {
        Edit::Device { name, old, new } => {
            return device_lines(object, name, old.as_ref(), new.as_ref());
        }
        Edit::Description { old, new } => change("description", old, new),
        Edit::Config { key, old, new } => change(key, &text(old), &text(new)),
        Edit::Profiles { old, new } => change("profiles", &old.join(", "), &new.join(", ")),
        Edit::Rules {
            direction,
            old,
            new,
        } => change(direction.as_str(), &rules_text(old), &rules_text(new)),
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

fn rules_text(rules: &[ConfigMap]) -> String {
    let text = rules.iter().map(|rule| {
        let subject = [value(rule, "source"), value(rule, "destination")].concat();
        format!("{} {subject}", value(rule, "action"))
    });
    text.collect::<Vec<String>>().join("; ")
}
