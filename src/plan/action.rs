//! One thing to do, and how it reads in a plan: `+` is made, `~` is changed, `-` is removed.

use serde::Serialize;
use serde_json::Value;

use super::{Again, Proof, Schedule, ownership};
use crate::incus::state::InstanceId;
use crate::incus::{ConfigMap, Edit, Object, Power};
use crate::machine_state::MachineSpec;
use crate::text::shown;

/// Maximum length of a value of a key that a plan shows, in characters.
const SHOWN_MAX: usize = 60;
/// Bytes of the unit in which sizes are shown.
const MIB: u64 = 1024 * 1024;
/// The verb of a step that changes nothing.
pub(crate) const PROVE: &str = "prove";

/// The end of an edge that a device makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// The end that calls.
    Consumer,
    /// The end that is called.
    Provider,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Make an object.
    Create {
        /// The object.
        object: Object,
        /// The body for the API.
        body: Value,
        /// More about it, for whoever reads the plan.
        about: String,
    },
    /// Change an object.
    Edit {
        /// The object.
        object: Object,
        /// The changes.
        edits: Vec<Edit>,
    },
    /// Make a machine run.
    Start {
        /// The machine.
        machine: Object,
        /// From a stop or a pause.
        power: Power,
        /// Its state as Incus names it.
        from: String,
        /// True if it has devices that listen in its folder of sockets, which must be there before.
        listens: bool,
    },
    /// Make or change the device of an edge at one of its ends.
    Connect {
        /// The machine.
        machine: Object,
        /// The device's name.
        device: String,
        /// The end.
        role: Role,
        /// The machine at the other end.
        other: InstanceId,
        /// The device as it is.
        old: Option<ConfigMap>,
        /// The device as it must be.
        new: ConfigMap,
        /// Make it again though it looks right, and why.
        anew: Option<Again>,
    },
    /// Try a call over a channel.
    Prove(Proof),
    /// Put the program, the machine's name, its services and its server in order.
    Install {
        /// The machine.
        machine: Object,
        /// Its desired content.
        order: MachineSpec,
        /// True if the program must be pushed.
        push: bool,
        /// True if a server that does not answer must be ended first.
        hung: bool,
        /// The differences, for people.
        lines: Vec<String>,
    },
    /// Remove the device of an edge that is not declared, or not on this machine, with its sockets.
    Revoke {
        /// The machine.
        machine: Object,
        /// The device's name.
        device: String,
        /// The device as it is.
        old: ConfigMap,
        /// Its socket in the machine.
        inside: Option<String>,
        /// Its socket on the host, where nobody else has a right to it.
        host: Option<String>,
        /// Why, where it is not that the edge is no longer declared.
        why: Option<&'static str>,
    },
    /// Make a folder on the host, or give it its owner and rights.
    Folder {
        /// Its path.
        path: String,
        /// Its rights.
        mode: u32,
        /// True if it is there already.
        there: bool,
    },
    /// Remove a left-over socket on the host.
    Sweep {
        /// Its path.
        path: String,
    },
    /// Empty a log of a channel, and keep its end.
    Rotate {
        /// Its path.
        path: String,
        /// Its size on disk.
        bytes: u64,
    },
    /// Make the host's scheduler rotate the logs of channels.
    Schedule(Schedule),
    /// Take that away.
    Unschedule,
    /// Delete an object.
    Delete {
        /// The object.
        object: Object,
        /// True if it runs.
        running: bool,
        /// True if it is protected from deletion.
        protected: bool,
        /// Sockets on the host that go with it.
        sockets: Vec<String>,
    },
}

/// An action as programs read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ActionSummary {
    /// `create`, `change` or `remove`; `prove`, which changes nothing.
    pub(crate) verb: &'static str,
    /// What it is done to: `machine`, `device`, …
    pub(crate) kind: &'static str,
    /// Its name.
    pub(crate) name: String,
    /// As people read it, a line for each change.
    pub(crate) lines: Vec<String>,
}

impl ActionSummary {
    /// In a few words: what is done to what.
    pub(crate) fn title(&self) -> String {
        let name = self.name.escape_debug();
        format!("{} {} {name}", self.verb, self.kind)
    }
}

impl Action {
    /// Returns whether it is done though an earlier one of its chain failed: who was revoked does not wait for another.
    pub(crate) const fn stands_alone(&self) -> bool {
        matches!(self, Self::Revoke { .. })
    }

    /// The action as people and programs read it.
    pub(crate) fn shown(&self) -> ActionSummary {
        let (verb, kind, name) = self.heading();
        ActionSummary {
            verb,
            kind,
            name: name.to_owned(),
            lines: self.lines(),
        }
    }

    fn heading(&self) -> (&'static str, &'static str, &str) {
        match self {
            Self::Create { object, .. } => ("create", object.kind(), object.name()),
            Self::Edit { object, .. } => ("change", object.kind(), object.name()),
            Self::Start { machine, .. } => ("change", machine.kind(), machine.name()),
            Self::Connect {
                device, old: None, ..
            } => ("create", "device", device),
            Self::Connect { device, .. } => ("change", "device", device),
            Self::Prove(proof) => (PROVE, "channel", &proof.name),
            Self::Install { machine, lines, .. } => (verb(lines), "program", machine.name()),
            Self::Revoke { device, .. } => ("remove", "device", device),
            Self::Folder {
                path, there: false, ..
            } => ("create", "folder", path),
            Self::Folder { path, .. } => ("change", "folder", path),
            Self::Sweep { path } => ("remove", "socket", path),
            Self::Rotate { path, .. } => ("change", "log", path),
            Self::Schedule(Schedule { by, there, .. }) => {
                (if *there { "change" } else { "create" }, "rotation", by)
            }
            Self::Unschedule => ("remove", "rotation", "logs"),
            Self::Delete { object, .. } => ("remove", object.kind(), object.name()),
        }
    }

    /// The lines of the plan.
    pub(crate) fn lines(&self) -> Vec<String> {
        match self {
            Self::Create { object, about, .. } if about.is_empty() => vec![format!("+ {object}")],
            Self::Create { object, about, .. } => vec![format!("+ {object} ({about})")],
            Self::Edit { object, edits } => edit_lines(object, edits),
            Self::Start { machine, from, .. } => {
                let from = from.to_lowercase();
                vec![format!(
                    "~ {machine} status: {} → running",
                    from.escape_debug()
                )]
            }
            Self::Connect {
                machine,
                device,
                role,
                other,
                old,
                anew,
                ..
            } => {
                let sign = if old.is_none() { '+' } else { '~' };
                let way = match role {
                    Role::Consumer => "consumer of",
                    Role::Provider => "provider for",
                };
                let again = anew.map(Again::words).unwrap_or_default();
                vec![format!(
                    "{sign} device {device} on {} ({way} {}{again})",
                    machine.name(),
                    other.name
                )]
            }
            // After a change it goes without saying.
            Self::Prove(Proof { changes: true, .. }) => Vec::new(),
            Self::Prove(Proof { name, .. }) => {
                vec![format!("~ channel {name}: no answer yet → asked again")]
            }
            Self::Install { lines, .. } => lines.clone(),
            Self::Revoke {
                machine,
                device,
                why,
                ..
            } => {
                let why = why.map_or_else(String::new, |why| format!(" ({why})"));
                vec![format!(
                    "- device {} on {}{why}",
                    device.escape_debug(),
                    machine.name().escape_debug()
                )]
            }
            Self::Folder {
                path, there: false, ..
            } => vec![format!("+ folder {} on the host", path.escape_debug())],
            Self::Folder { path, mode, .. } => vec![format!(
                "~ folder {} on the host: root's, {mode:04o}",
                path.escape_debug()
            )],
            Self::Sweep { path } => vec![format!("- socket {} on the host", path.escape_debug())],
            Self::Rotate { path, bytes } => vec![format!(
                "~ log {} on the host: {} MiB → rotated",
                path.escape_debug(),
                bytes / MIB
            )],
            Self::Schedule(Schedule { by, there, .. }) => {
                let sign = if *there { '~' } else { '+' };
                vec![format!("{sign} rotation of the channels' logs, by {by}")]
            }
            Self::Unschedule => vec!["- rotation of the channels' logs".to_owned()],
            Self::Delete {
                object, protected, ..
            } => {
                let more = if *protected { " (not ephemeral)" } else { "" };
                vec![format!("- {object}{more}")]
            }
        }
    }
}

/// Summarises the lines of a plan.
fn verb(lines: &[String]) -> &'static str {
    match lines.first().and_then(|line| line.chars().next()) {
        Some('+') => "create",
        Some('-') => "remove",
        _ => "change",
    }
}

/// What anklume keeps for itself is shown where nothing else changes.
fn edit_lines(object: &Object, edits: &[Edit]) -> Vec<String> {
    let is_mark = |edit: &&Edit| matches!(edit, Edit::Config { key, .. } if ownership::is_own(key));
    let mut lines: Vec<String> = edits
        .iter()
        .filter(|edit| !is_mark(edit))
        .flat_map(|edit| lines_of(object, edit))
        .collect();
    if lines.is_empty() {
        let marks = edits.iter().filter(is_mark);
        lines = marks.flat_map(|edit| lines_of(object, edit)).collect();
    }
    lines
}

fn lines_of(object: &Object, edit: &Edit) -> Vec<String> {
    match edit {
        Edit::Description { old, new } => {
            vec![change(
                &format!("{object} description"),
                Some(old),
                Some(new),
            )]
        }
        Edit::Config { key, old, new } => vec![change(
            &format!("{object} {}", key.escape_debug()),
            old.as_deref(),
            new.as_deref(),
        )],
        Edit::Device { name, old, new } => device_lines(object, name, old.as_ref(), new.as_ref()),
        Edit::Profiles { old, new } => vec![change(
            &format!("{object} profiles"),
            Some(&old.join(", ")),
            Some(&new.join(", ")),
        )],
        Edit::Rules {
            direction,
            old,
            new,
        } => vec![change(
            &format!("{object} {}", direction.as_str()),
            rules_text(old).as_deref(),
            rules_text(new).as_deref(),
        )],
    }
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
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let changed = keys
        .into_iter()
        .filter(|key| old.get(*key) != new.get(*key));
    changed
        .map(|key| {
            change(
                &format!("{device} {}", key.escape_debug()),
                old.get(key).map(String::as_str),
                new.get(key).map(String::as_str),
            )
        })
        .collect()
}

fn change(what: &str, old: Option<&str>, new: Option<&str>) -> String {
    format!("~ {what}: {} → {}", value(old), value(new))
}

/// A value on one line, escaped, and cut where it is long.
fn value(value: Option<&str>) -> String {
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return "(none)".to_owned();
    };
    shown(value, SHOWN_MAX)
}

fn rules_text(rules: &[ConfigMap]) -> Option<String> {
    let text: Vec<String> = rules
        .iter()
        .map(|rule| {
            let key = |key: &str| rule.get(key).map_or("", String::as_str);
            let subject = [key("source"), key("destination")].concat();
            format!("{} {subject}", key("action"))
        })
        .collect();
    (!text.is_empty()).then(|| text.join("; "))
}
