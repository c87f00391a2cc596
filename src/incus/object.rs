//! The Incus objects that anklume creates, and the edits that can be applied to them.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use super::connection::encoded;

/// A configuration or device: keys and values in Incus's form.
pub(crate) type ConfigMap = BTreeMap<String, String>;
/// Devices by name.
pub(crate) type Devices = BTreeMap<String, ConfigMap>;

/// The project that always exists; it contains the networks and their access lists.
pub(crate) const DEFAULT_PROJECT: &str = "default";

pub(super) fn default_project() -> String {
    DEFAULT_PROJECT.to_owned()
}

/// A named Incus object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Object {
    Project(String),
    /// A network access list in the default project.
    Acl(String),
    /// A network in the default project.
    Network(String),
    Profile {
        project: String,
        name: String,
    },
    /// A custom storage volume.
    Volume {
        project: String,
        pool: String,
        name: String,
    },
    /// A container or virtual machine.
    Machine {
        project: String,
        name: String,
    },
}

impl Object {
    /// Creates a reference to the machine `name` in `project`.
    pub(crate) fn machine(project: &str, name: &str) -> Self {
        Self::Machine {
            project: project.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Returns the API path at which an object of this kind is created.
    pub(super) fn collection(&self) -> String {
        match self {
            Self::Project(_) => "/1.0/projects".to_owned(),
            Self::Acl(_) => format!("/1.0/network-acls?project={DEFAULT_PROJECT}"),
            Self::Network(_) => format!("/1.0/networks?project={DEFAULT_PROJECT}"),
            Self::Profile { project, .. } => {
                format!("/1.0/profiles?project={}", encoded(project))
            }
            Self::Volume { project, pool, .. } => format!(
                "/1.0/storage-pools/{}/volumes/custom?project={}",
                encoded(pool),
                encoded(project)
            ),
            Self::Machine { project, .. } => {
                format!("/1.0/instances?project={}", encoded(project))
            }
        }
    }

    /// Returns its API path, with `below` (such as `/state`) between its name and the query.
    pub(super) fn path(&self, below: &str) -> String {
        let collection = self.collection();
        let (kind, query) = collection.split_at(collection.find('?').unwrap_or(collection.len()));
        format!("{kind}/{}{below}{query}", encoded(self.name()))
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Project(name) | Self::Acl(name) | Self::Network(name) => name,
            Self::Profile { name, .. } | Self::Volume { name, .. } | Self::Machine { name, .. } => {
                name
            }
        }
    }

    /// Returns the name of the project that contains it; for a project, its own name.
    pub(crate) fn project(&self) -> &str {
        match self {
            Self::Project(name) => name,
            Self::Acl(_) | Self::Network(_) => DEFAULT_PROJECT,
            Self::Profile { project, .. }
            | Self::Volume { project, .. }
            | Self::Machine { project, .. } => project,
        }
    }

    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Project(_) => "project",
            Self::Acl(_) => "acl",
            Self::Network(_) => "network",
            Self::Profile { .. } => "profile",
            Self::Volume { .. } => "volume",
            Self::Machine { .. } => "machine",
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.name().escape_debug())?;
        match self {
            Self::Profile { project, .. } | Self::Volume { project, .. } => {
                write!(f, " of {}", project.escape_debug())
            }
            _ => Ok(()),
        }
    }
}

/// The direction of the traffic that a rule covers, as seen from the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the machines.
    Ingress,
    /// From the machines.
    Egress,
}

impl Direction {
    /// The name in the API.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// One change to an object, from `old` to `new`; `None` means absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edit {
    Description {
        old: String,
        new: String,
    },
    Config {
        key: String,
        old: Option<String>,
        new: Option<String>,
    },
    Device {
        name: String,
        old: Option<ConfigMap>,
        new: Option<ConfigMap>,
    },
    Profiles {
        old: Vec<String>,
        new: Vec<String>,
    },
    /// Rules of an access list: those in `old` are removed, those in `new` are added, and others stay.
    Rules {
        direction: Direction,
        old: Vec<ConfigMap>,
        new: Vec<ConfigMap>,
    },
}

impl Edit {
    /// Applies the change to an object in the form that the API returned.
    pub(super) fn apply(&self, object: &mut Map<String, Value>) {
        match self {
            Self::Description { new, .. } => {
                object.insert("description".to_owned(), new.clone().into());
            }
            Self::Config { key, new, .. } => {
                set(object, "config", key, new.clone().map(Value::from));
            }
            Self::Device { name, new, .. } => {
                set(object, "devices", name, new.as_ref().map(as_object));
            }
            Self::Profiles { new, .. } => {
                object.insert("profiles".to_owned(), new.clone().into());
            }
            Self::Rules {
                direction,
                old,
                new,
            } => {
                let rules = object.entry(direction.as_str()).or_insert(Value::Null);
                let mut kept = match rules.take() {
                    Value::Array(rules) => rules,
                    _ => Vec::new(),
                };
                kept.retain(|rule| !old.iter().any(|gone| is_rule(rule, gone)));
                kept.extend(new.iter().map(as_object));
                *rules = kept.into();
            }
        }
    }
}

/// Converts keys to a JSON object.
pub(crate) fn as_object(keys: &ConfigMap) -> Value {
    keys.clone().into_iter().collect()
}

fn set(object: &mut Map<String, Value>, section: &str, key: &str, value: Option<Value>) {
    let section = object.entry(section).or_insert(Value::Null);
    let mut keys = match section.take() {
        Value::Object(keys) => keys,
        _ => Map::new(),
    };
    match value {
        Some(value) => keys.insert(key.to_owned(), value),
        None => keys.shift_remove(key),
    };
    *section = keys.into();
}

/// Returns whether the non-empty keys of a rule from the API are exactly these.
fn is_rule(rule: &Value, keys: &ConfigMap) -> bool {
    rule.as_object().is_some_and(|rule| {
        let mut filled = rule.iter().filter(|(_, value)| value.as_str() != Some(""));
        filled.clone().count() == keys.len()
            && filled.all(|(key, value)| keys.get(key).map(String::as_str) == value.as_str())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn keys(pairs: &[(&str, &str)]) -> ConfigMap {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn every_object_has_its_place() {
        let of = |project: &str, name: &str| (project.to_owned(), name.to_owned());
        let (project, name) = of("p q", "a/b");
        let volume = Object::Volume {
            project: project.clone(),
            pool: "d".to_owned(),
            name,
        };
        assert_eq!(
            volume.path(""),
            "/1.0/storage-pools/d/volumes/custom/a%2Fb?project=p%20q"
        );
        assert_eq!(Object::Project(project).path(""), "/1.0/projects/p%20q");
        assert_eq!(
            Object::machine("p", "m").path("/state"),
            "/1.0/instances/m/state?project=p"
        );
    }

    #[test]
    fn an_edit_touches_what_it_names_and_nothing_beside_it() {
        let mut object = json!({
            "config": {"a": "1", "hand": "made"},
            "devices": {"eth0": {"type": "nic"}, "d": {"type": "disk"}},
            "egress": [
                {"action": "reject", "destination": "x", "source": "", "description": "anklume"},
                {"action": "drop", "destination": "y"},
            ],
        });
        let edits = [
            Edit::Config {
                key: "a".to_owned(),
                old: Some("1".to_owned()),
                new: None,
            },
            Edit::Config {
                key: "b".to_owned(),
                old: None,
                new: Some("2".to_owned()),
            },
            Edit::Device {
                name: "d".to_owned(),
                old: Some(keys(&[("type", "disk")])),
                new: None,
            },
            Edit::Rules {
                direction: Direction::Egress,
                old: vec![keys(&[
                    ("action", "reject"),
                    ("destination", "x"),
                    ("description", "anklume"),
                ])],
                new: vec![keys(&[("action", "reject"), ("destination", "z")])],
            },
        ];
        for edit in &edits {
            edit.apply(object.as_object_mut().unwrap());
        }
        assert_eq!(
            object,
            json!({
                "config": {"hand": "made", "b": "2"},
                "devices": {"eth0": {"type": "nic"}},
                "egress": [
                    {"action": "drop", "destination": "y"},
                    {"action": "reject", "destination": "z"},
                ],
            })
        );
    }
}
