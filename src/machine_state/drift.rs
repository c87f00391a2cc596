//! Models the content found in a machine, and lists its differences from the specification.

use std::collections::BTreeMap;

use super::{Identity, MachineSpec, PROGRAM, Rights, units};
use crate::digest::sha256;
use crate::services::ServiceOutline;
use crate::text::Foreign;

/// The content found in a machine; empty if the machine does not exist yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedMachine {
    /// True if the machine is running.
    pub runs: bool,
    /// SHA-256 of the program.
    pub program: Option<String>,
    /// anklume's entries whose owner or mode is not as specified, and folders above them that keep the caller out.
    pub bad_permissions: BTreeMap<String, Rights>,
    /// Target of the links to the program; `None` if one is missing or leads elsewhere than the other.
    pub link: Option<String>,
    /// The machine's identity.
    pub identity: Option<Identity>,
    /// The services file.
    pub services: Option<FoundServices>,
    /// The supervisor's files for the server and its gpg-agent: paths and contents.
    pub units: BTreeMap<String, String>,
    /// The state of its server.
    pub serving: Serving,
    /// The confinement of its server, as the server reports it.
    pub confinement: Option<String>,
}

/// A services file that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundServices {
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Its services; `None` if it is not a valid services file.
    pub services: Option<Vec<ServiceOutline>>,
}

impl FoundServices {
    /// Describes a file with these bytes and with its services as read by an unprivileged reader.
    #[must_use]
    pub fn with(bytes: &[u8], services: Option<Vec<ServiceOutline>>) -> Self {
        Self {
            sha256: sha256(bytes),
            services,
        }
    }
}

/// The state of a machine's server, as the server reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Serving {
    /// Unknown: the server was not asked, or could not be.
    #[default]
    Unknown,
    /// No server answers.
    Silent,
    /// A server answers; its policy has this digest.
    Policy {
        /// SHA-256 of the policy.
        digest: Foreign,
        /// The reason why a newer policy was refused.
        refused: Option<Foreign>,
        /// The reason why its log cannot be written.
        unlogged: Option<Foreign>,
    },
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// Its kind.
    pub kind: DriftKind,
    /// The difference as a plan shows it: `+`, `~` or `-`, the part and the machine.
    pub line: String,
}

/// The kind of difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriftKind {
    /// The program must be pushed.
    Program,
    /// The name of the machine, or the link to the program.
    Name,
    /// Owner and permissions of anklume's entries, or a folder that keeps the caller out.
    Rights,
    /// The services file.
    Services,
    /// The units that start the server.
    Supervision,
    /// The running server.
    Server,
}

/// Lists all differences; the list is empty if the machine matches.
#[must_use]
pub fn differences(spec: &MachineSpec, found: &ObservedMachine) -> Vec<Drift> {
    let machine = &spec.machine;
    let mut differences = Vec::new();
    let mut add = |kind, line| differences.push(Drift { kind, line });
    let can_run = !found.bad_permissions.contains_key(PROGRAM);
    if found.program.as_ref() != Some(&spec.program) || !can_run {
        let sign = sign(found.program.is_some());
        add(DriftKind::Program, format!("{sign} program on {machine}"));
    }
    let is_named = found.identity.as_ref().is_some_and(|identity| {
        identity.machine == spec.machine
            && identity.run_as == spec.run_as
            && identity.supervisor.is_some() == spec.services.is_some()
            && !identity.unfinished
    });
    if !is_named || found.link.as_deref() != Some(PROGRAM) {
        let sign = sign(found.identity.is_some());
        let line = format!("{sign} name and links of the program on {machine}");
        add(DriftKind::Name, line);
    }
    let paths = found.bad_permissions.keys().map(String::as_str);
    let paths: Vec<&str> = paths.filter(|path| *path != PROGRAM).collect();
    if !paths.is_empty() {
        let line = format!("~ permissions on {machine}: {}", paths.join(", "));
        add(DriftKind::Rights, line);
    }
    if !has_services(spec, found) {
        let sign = match (&found.services, &spec.services) {
            (Some(_), None) => '-',
            (old, _) => sign(old.is_some()),
        };
        let line = format!("{sign} services file on {machine}");
        add(DriftKind::Services, line);
    }
    if let Some(line) = supervision(spec, found) {
        add(DriftKind::Supervision, line);
    }
    if let Some(line) = serving(spec, found) {
        add(DriftKind::Server, line);
    }
    differences
}

const fn sign(exists: bool) -> char {
    if exists { '~' } else { '+' }
}

/// Returns whether the services file is the declared one, or none is declared and none exists.
fn has_services(spec: &MachineSpec, found: &ObservedMachine) -> bool {
    let wanted = spec.services.as_ref().map(sha256);
    wanted.as_ref() == found.services.as_ref().map(|file| &file.sha256)
}

/// Compares the supervisor's files, for the supervisor named in the machine's identity.
fn supervision(spec: &MachineSpec, found: &ObservedMachine) -> Option<String> {
    let supervisor = found.identity.as_ref().and_then(|one| one.supervisor);
    let wanted = match spec.services {
        Some(_) => units(supervisor?, spec.run_as.as_deref(), spec.has_programs()),
        None => Vec::new(),
    };
    let wanted = wanted.into_iter().map(|unit| (unit.path, unit.text));
    let wanted: BTreeMap<String, String> = wanted.collect();
    (found.units != wanted).then(|| {
        let exist = wanted.keys().all(|path| found.units.contains_key(path));
        let sign = if wanted.is_empty() { '-' } else { sign(exist) };
        format!("{sign} supervision of the server on {}", spec.machine)
    })
}

/// Compares the policy that the server reports with the declared one.
fn serving(spec: &MachineSpec, found: &ObservedMachine) -> Option<String> {
    let machine = &spec.machine;
    let services = spec.services().ok()??;
    match &found.serving {
        // A server that does not exist yet is started with everything else.
        Serving::Unknown if found.runs || found.services.is_none() => None,
        Serving::Unknown => Some(format!("~ server on {machine}: stopped → running")),
        Serving::Silent => Some(format!("~ server on {machine}: no answer → running")),
        Serving::Policy {
            digest, refused, ..
        } => {
            let same = *digest.raw() == services.digest() && refused.is_none();
            (!same && has_services(spec, found))
                .then(|| format!("~ server on {machine}: another policy → the declared one"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine_state::Supervisor;
    use crate::services::Services;

    fn spec() -> MachineSpec {
        let services = serde_json::json!({
            "machine": "signer",
            "services": [{"name": "sign", "tool": "gpg_sign", "consumers": ["dev", "web"]}]
        });
        let services: Services = serde_json::from_value(services).unwrap();
        MachineSpec::new("p1", "signer".parse().unwrap(), None, Some(&services))
    }

    fn found_services(text: &str) -> FoundServices {
        FoundServices::with(text.as_bytes(), None)
    }

    /// Returns the systemd files of a server that runs as this user.
    fn files(run_as: Option<&str>) -> BTreeMap<String, String> {
        let units = units(Supervisor::Systemd, run_as, false).into_iter();
        units.map(|unit| (unit.path, unit.text)).collect()
    }

    /// Returns a machine that matches its specification.
    fn done(spec: &MachineSpec) -> ObservedMachine {
        let services = spec.services().unwrap();
        ObservedMachine {
            runs: true,
            program: Some(spec.program.clone()),
            bad_permissions: BTreeMap::new(),
            link: Some(crate::machine_state::PROGRAM.to_owned()),
            identity: Some(Identity {
                ..spec.identity(Supervisor::Systemd)
            }),
            services: spec.services.as_deref().map(found_services),
            units: services
                .as_ref()
                .map(|_| files(spec.run_as.as_deref()))
                .unwrap_or_default(),
            serving: services.map_or(Serving::Unknown, |services| Serving::Policy {
                digest: services.digest().into(),
                refused: None,
                unlogged: None,
            }),
            confinement: None,
        }
    }

    #[test]
    fn other_rights_are_a_difference_and_those_of_the_program_need_another_one() {
        let spec = spec();
        let other = crate::machine_state::Rights {
            uid: 0,
            gid: 0,
            mode: 0o700,
        };
        let with = |paths: &[&str]| {
            let odd = paths.iter().map(|path| ((*path).to_owned(), other));
            ObservedMachine {
                bad_permissions: odd.collect(),
                ..done(&spec)
            }
        };
        assert_eq!(
            lines(&spec, &with(&["/srv", "/opt/anklume"])),
            ["~ permissions on signer: /opt/anklume, /srv"]
        );
        let program = differences(&spec, &with(&[crate::machine_state::PROGRAM]));
        assert_eq!(
            program,
            [Drift {
                kind: DriftKind::Program,
                line: "~ program on signer".to_owned()
            }]
        );
    }

    fn lines(spec: &MachineSpec, found: &ObservedMachine) -> Vec<String> {
        differences(spec, found)
            .into_iter()
            .map(|piece| piece.line)
            .collect()
    }

    #[test]
    fn what_is_done_leaves_nothing_to_do() {
        assert_eq!(lines(&spec(), &done(&spec())), [""; 0]);
    }

    #[test]
    fn an_empty_machine_gets_everything() {
        assert_eq!(
            lines(&spec(), &ObservedMachine::default()),
            [
                "+ program on signer",
                "+ name and links of the program on signer",
                "+ services file on signer",
            ]
        );
    }

    #[test]
    fn each_part_is_compared() {
        let same = done(&spec());
        let services = spec().services;
        let cases: [(ObservedMachine, &str); 8] = [
            (
                ObservedMachine {
                    program: Some("p0".to_owned()),
                    ..same.clone()
                },
                "~ program on signer",
            ),
            (
                ObservedMachine {
                    link: None,
                    ..same.clone()
                },
                "~ name and links of the program on signer",
            ),
            (
                ObservedMachine {
                    identity: None,
                    units: BTreeMap::new(),
                    ..same.clone()
                },
                "+ name and links of the program on signer",
            ),
            (
                ObservedMachine {
                    units: BTreeMap::new(),
                    ..same.clone()
                },
                "+ supervision of the server on signer",
            ),
            (
                ObservedMachine {
                    units: files(Some("other")),
                    ..same.clone()
                },
                "~ supervision of the server on signer",
            ),
            (
                ObservedMachine {
                    serving: Serving::Silent,
                    ..same.clone()
                },
                "~ server on signer: no answer → running",
            ),
            (
                ObservedMachine {
                    runs: false,
                    serving: Serving::Unknown,
                    ..same.clone()
                },
                "~ server on signer: stopped → running",
            ),
            (
                ObservedMachine {
                    serving: Serving::Policy {
                        digest: "d".into(),
                        refused: None,
                        unlogged: None,
                    },
                    ..same
                },
                "~ server on signer: another policy → the declared one",
            ),
        ];
        for (found, line) in cases {
            assert_eq!(lines(&spec(), &found), [line]);
        }
        let withdrawn = MachineSpec {
            services: None,
            ..spec()
        };
        let services = services.as_deref().map(found_services);
        let found = ObservedMachine {
            services,
            ..done(&spec())
        };
        assert_eq!(
            lines(&withdrawn, &found),
            [
                "~ name and links of the program on signer",
                "- services file on signer",
                "- supervision of the server on signer",
            ]
        );
    }
}
