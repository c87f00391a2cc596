//! Lists the differences between the specification of a machine and what was found.

use std::collections::BTreeMap;

use super::{MachineSpec, ObservedMachine, Serving, Unit, units};
use crate::digest::sha256;
use crate::services::Services;

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// Its type.
    pub kind: DriftKind,
    /// `+`, `~` or `-`, what, and of which machine.
    pub line: String,
}

/// The kind of difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriftKind {
    /// The program must be pushed.
    Program,
    /// The name of the machine, or the link to the program.
    Name,
    /// Owner and rights of what is ours, and whether the caller may pass.
    Rights,
    /// The services file.
    Services,
    /// The unit that starts the server.
    Supervision,
    /// The server that runs.
    Server,
}

/// Everything that differs; empty: the machine is as it should be.
#[must_use]
pub fn differences(order: &MachineSpec, found: &ObservedMachine) -> Vec<Drift> {
    let machine = &order.machine;
    let mut pieces = Vec::new();
    let runs = !found.odd.contains_key(super::PROGRAM);
    if found.program.as_ref() != Some(&order.program) || !runs {
        let sign = sign(found.program.is_some());
        pieces.push(Drift {
            kind: DriftKind::Program,
            line: format!("{sign} program on {machine}"),
        });
    }
    let mut rest = |kind, line| pieces.push(Drift { kind, line });
    let named = found.identity.as_ref().is_some_and(|found| {
        found.machine == order.machine
            && found.run_as == order.run_as
            && found.supervisor.is_some() == order.services.is_some()
            && !found.unfinished
    });
    if !named || found.link.as_deref() != Some(super::PROGRAM) {
        let sign = sign(found.identity.is_some());
        let line = format!("{sign} name and link of the program on {machine}");
        rest(DriftKind::Name, line);
    }
    let odd = found.odd.keys().filter(|path| *path != super::PROGRAM);
    let odd: Vec<&str> = odd.map(String::as_str).collect();
    if !odd.is_empty() {
        let line = format!("~ rights on {machine}: {}", odd.join(", "));
        rest(DriftKind::Rights, line);
    }
    if !has_services(order, found) {
        let new = order
            .services
            .as_ref()
            .and_then(|text| summary(text.as_bytes()));
        let line = match (&found.services, new) {
            (None, new) => format!("+ services of {machine}: {}", new.unwrap_or_default()),
            (Some(_), None) => format!("- services of {machine}"),
            (Some(old), Some(new)) => {
                let old = old.shown.shown(SUMMARY_SHOWN);
                format!("~ services of {machine}: {old} → {new}")
            }
        };
        rest(DriftKind::Services, line);
    }
    if let Some(line) = supervision(order, found) {
        rest(DriftKind::Supervision, line);
    }
    if let Some(line) = serving(order, found) {
        rest(DriftKind::Server, line);
    }
    pieces
}

const fn sign(there: bool) -> char {
    if there { '~' } else { '+' }
}

/// Returns whether the services file is the declared one, or none is declared and none is there.
fn has_services(order: &MachineSpec, found: &ObservedMachine) -> bool {
    match (&order.services, &found.services) {
        (Some(text), Some(file)) => sha256(text) == file.sha256,
        (wanted, found) => wanted.is_none() && found.is_none(),
    }
}

/// The services of a file as a plan shows them; `None`: it is none.
#[must_use]
pub fn summary(file: &[u8]) -> Option<String> {
    let services = Services::from_file(file).ok()?;
    let one = |service: &crate::services::Service| {
        let consumers: Vec<&str> = service
            .consumers
            .iter()
            .take(CONSUMERS_SHOWN)
            .map(crate::name::MachineName::as_str)
            .collect();
        let more = service.consumers.len().saturating_sub(CONSUMERS_SHOWN);
        let consumers = match (consumers.is_empty(), more) {
            (true, _) => "nobody".to_owned(),
            (false, 0) => consumers.join(", "),
            (false, more) => format!("{} and {more} more", consumers.join(", ")),
        };
        format!("{} for {consumers}", service.name)
    };
    let mut all: Vec<String> = services
        .services
        .iter()
        .take(SERVICES_SHOWN)
        .map(one)
        .collect();
    let more = services.services.len().saturating_sub(SERVICES_SHOWN);
    if more > 0 {
        all.push(format!("and {more} more"));
    }
    let digest: String = services.digest().chars().take(DIGEST_SHOWN).collect();
    Some(format!("{} ({digest})", all.join("; ")))
}

/// Maximum length of a summary of a machine's services that is shown, in characters.
const SUMMARY_SHOWN: usize = 4096;

/// Maximum number of services shown.
const SERVICES_SHOWN: usize = 8;
/// Maximum number of consumers shown for a service.
const CONSUMERS_SHOWN: usize = 8;
/// Length of a digest as shown, in characters.
const DIGEST_SHOWN: usize = 12;

/// The files of the supervisor that the machine said it has.
fn supervision(order: &MachineSpec, found: &ObservedMachine) -> Option<String> {
    let machine = &order.machine;
    let supervisor = found.identity.as_ref().and_then(|one| one.supervisor);
    let wanted = match order.services {
        Some(_) => units(supervisor?, order.run_as.as_deref()),
        None => Vec::new(),
    };
    let wanted: BTreeMap<String, String> = wanted
        .into_iter()
        .map(|Unit { path, text, .. }| (path, text))
        .collect();
    (found.units != wanted).then(|| {
        let is_whole = wanted.keys().all(|path| found.units.contains_key(path));
        let sign = match (is_whole, wanted.is_empty()) {
            (_, true) => '-',
            (false, false) => '+',
            (true, false) => '~',
        };
        format!("{sign} supervision of the server on {machine}")
    })
}

/// Whether the server answers by the policy of the order.
fn serving(order: &MachineSpec, found: &ObservedMachine) -> Option<String> {
    let machine = &order.machine;
    let Ok(Some(services)) = order.services() else {
        return None;
    };
    match &found.serving {
        // What is not there yet is started with what is new.
        Serving::Unknown if found.runs || found.services.is_none() => None,
        Serving::Unknown => Some(format!("~ server on {machine}: stopped → running")),
        Serving::Silent => Some(format!("~ server on {machine}: no answer → running")),
        Serving::Policy { digest, refused } => {
            let same = *digest.raw() == services.digest() && refused.is_none();
            (!same && has_services(order, found))
                .then(|| format!("~ server on {machine}: another policy → the declared one"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine_state::{FoundServices, Identity, Supervisor};

    fn order() -> MachineSpec {
        let services = serde_json::json!({
            "machine": "signer",
            "services": [{"name": "sign", "tool": "gpg_sign", "consumers": ["dev", "web"]}]
        });
        let services: Services = serde_json::from_value(services).unwrap();
        MachineSpec::new("p1", "signer".parse().unwrap(), None, Some(&services))
    }

    /// The files of systemd for a server of this user.
    fn files(run_as: Option<&str>) -> BTreeMap<String, String> {
        let units = units(Supervisor::Systemd, run_as).into_iter();
        units.map(|unit| (unit.path, unit.text)).collect()
    }

    /// A machine in which an order was carried out.
    fn done(order: &MachineSpec) -> ObservedMachine {
        let services = order.services().unwrap();
        ObservedMachine {
            runs: true,
            program: Some(order.program.clone()),
            odd: BTreeMap::new(),
            link: Some(crate::machine_state::PROGRAM.to_owned()),
            identity: Some(Identity {
                ..order.identity(Supervisor::Systemd)
            }),
            services: order.services.as_deref().map(FoundServices::of),
            units: services
                .as_ref()
                .map(|_| files(order.run_as.as_deref()))
                .unwrap_or_default(),
            serving: services.map_or(Serving::Unknown, |services| Serving::Policy {
                digest: services.digest().into(),
                refused: None,
            }),
            confinement: None,
        }
    }

    #[test]
    fn other_rights_are_a_difference_and_those_of_the_program_need_another_one() {
        let order = order();
        let other = crate::machine_state::Rights {
            uid: 0,
            gid: 0,
            mode: 0o700,
        };
        let with = |paths: &[&str]| {
            let odd = paths.iter().map(|path| ((*path).to_owned(), other));
            ObservedMachine {
                odd: odd.collect(),
                ..done(&order)
            }
        };
        assert_eq!(
            lines(&order, &with(&["/srv", "/opt/anklume"])),
            ["~ rights on signer: /opt/anklume, /srv"]
        );
        let program = differences(&order, &with(&[crate::machine_state::PROGRAM]));
        assert_eq!(
            program,
            [Drift {
                kind: DriftKind::Program,
                line: "~ program on signer".to_owned()
            }]
        );
    }

    fn lines(order: &MachineSpec, found: &ObservedMachine) -> Vec<String> {
        differences(order, found)
            .into_iter()
            .map(|piece| piece.line)
            .collect()
    }

    #[test]
    fn what_is_done_leaves_nothing_to_do() {
        assert_eq!(lines(&order(), &done(&order())), [""; 0]);
    }

    #[test]
    fn an_empty_machine_gets_everything() {
        let services = order().services().unwrap().unwrap();
        let digest = services.digest();
        assert_eq!(
            lines(&order(), &ObservedMachine::default()),
            [
                "+ program on signer".to_owned(),
                "+ name and link of the program on signer".to_owned(),
                format!(
                    "+ services of signer: sign for dev, web ({})",
                    digest.split_at(12).0
                ),
            ]
        );
    }

    #[test]
    fn each_part_is_compared() {
        let same = done(&order());
        let services = order().services;
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
                "~ name and link of the program on signer",
            ),
            (
                ObservedMachine {
                    identity: None,
                    units: BTreeMap::new(),
                    ..same.clone()
                },
                "+ name and link of the program on signer",
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
                    },
                    ..same
                },
                "~ server on signer: another policy → the declared one",
            ),
        ];
        for (found, line) in cases {
            assert_eq!(lines(&order(), &found), [line]);
        }
        let withdrawn = MachineSpec {
            services: None,
            ..order()
        };
        let services = services.as_deref().map(FoundServices::of);
        let found = ObservedMachine {
            services,
            ..done(&order())
        };
        assert_eq!(
            lines(&withdrawn, &found),
            [
                "~ name and link of the program on signer",
                "- services of signer",
                "- supervision of the server on signer",
            ]
        );
    }
}
