//! Describes how a machine's content differs from the state in which `apply` left it. Pure.

use super::diagnose::{Broken, Cause, Examiner, incus_line};
use crate::edge::End;
use crate::machine_state::{
    ABOVE, Drift, DriftKind, ETC, MachineSpec, ObservedMachine, PROGRAM, PROGRAM_FOLDER, Serving,
    differences,
};
use crate::plan::machine_spec;
use crate::text::shown;

/// Length of a displayed digest, in characters.
const DIGEST_SHOWN: usize = 12;
/// Maximum displayed length of text from a machine, in characters.
const TEXT_MAX: usize = 300;

impl Examiner<'_> {
    /// Returns the first difference of these kinds in a machine, as a fault.
    pub(super) fn inside(&self, end: &End, kinds: &[DriftKind]) -> Option<Broken> {
        let machine = &end.machine;
        if let Some(why) = self.unread(end) {
            return Some(Broken {
                what: Cause::Program,
                detail: format!("the files of {machine} cannot be read: {why}"),
                fix: incus_line("info", end, &["--show-log"]),
            });
        }
        let Some(found) = self.found(end) else {
            let detail = format!("`{PROGRAM}` was never installed in {machine}");
            return Some(self.by_apply(Cause::Program, detail));
        };
        let (_, declared) = self.infra.machine(machine.as_str())?;
        let order = machine_spec(self.program, declared);
        let pieces = differences(&order, found);
        let piece = pieces.iter().find(|piece| kinds.contains(&piece.kind))?;
        let (what, detail) = match &found.program {
            Some(program)
                if piece.kind == DriftKind::Program
                    && *program != order.program
                    && self
                        .applied
                        .is_some_and(|applied| applied.had_another(self.program)) =>
            {
                let detail = format!(
                    "`{PROGRAM}` in {machine} differs from this program, which was replaced after the last `apply`"
                );
                (Cause::Version, detail)
            }
            _ => described(piece, machine.as_str(), &order, found),
        };
        let mut broken = self.by_apply(what, detail);
        if matches!(piece.kind, DriftKind::Program | DriftKind::Rights)
            && let Some(first) = taken_back(end, found)
        {
            broken.fix = format!("{first}; {}", self.apply);
        }
        Some(broken)
    }

    /// Explains why a provider did not answer the host, if the reason is visible from the host.
    pub(super) fn silence(&self, provider: &End) -> Option<Broken> {
        if self.found(provider)?.serving != Serving::Silent {
            return None;
        }
        // A consumer that is missing from the policy in force has no socket in the provider.
        self.inside(provider, &[DriftKind::Services])
            .filter(|_| !self.awaits_services(provider))
            .or_else(|| self.inside(provider, &[DriftKind::Server]))
    }
}

/// Returns the commands that restrict the program's folder to root, if others can change its content. Until it is
/// restricted, nothing is pushed there, because others could change the program before it runs.
fn taken_back(end: &End, found: &ObservedMachine) -> Option<String> {
    let open = |folder: &&str| {
        let rights = found.bad_permissions.get(*folder);
        rights.is_some_and(|rights| rights.let_others_write())
    };
    let folder = [PROGRAM_FOLDER, ETC].into_iter().find(open)?;
    let owner = incus_line("exec", end, &["--", "chown", "root:root", folder]);
    let mode = incus_line("exec", end, &["--", "chmod", "755", folder]);
    Some(format!("{owner}; {mode}"))
}

/// Describes a difference in a machine.
fn described(
    piece: &Drift,
    machine: &str,
    order: &MachineSpec,
    found: &ObservedMachine,
) -> (Cause, String) {
    match piece.kind {
        DriftKind::Program => {
            let detail = match &found.program {
                None => format!("`{PROGRAM}` is gone from {machine}"),
                Some(program) if *program == order.program => {
                    format!("`{PROGRAM}` in {machine} is not owned by root with mode 0755")
                }
                Some(_) => format!("`{PROGRAM}` in {machine} differs from this program"),
            };
            (Cause::Program, detail)
        }
        DriftKind::Rights => rights(machine, found),
        DriftKind::Name => (
            Cause::Program,
            format!(
                "the name of {machine} or the link to its program differs from what `apply` set"
            ),
        ),
        DriftKind::Services => {
            let detail = match found.services {
                None => format!("the services file is gone from {machine}"),
                Some(_) => format!("the services file of {machine} differs from the declared one"),
            };
            (Cause::Policy, detail)
        }
        DriftKind::Supervision => (
            Cause::Supervision,
            format!("the unit or script that starts the server of {machine} is missing or changed"),
        ),
        DriftKind::Server => server(machine, order, found),
    }
}

/// Describes the file or folder with a wrong owner or mode.
fn rights(machine: &str, found: &ObservedMachine) -> (Cause, String) {
    let path = found.bad_permissions.keys().find(|path| *path != PROGRAM);
    let path = path.map_or("", String::as_str);
    let what = if path.starts_with("/srv") {
        Cause::Folder
    } else {
        Cause::Program
    };
    let why = if ABOVE.contains(&path) {
        "is not accessible to the user who may call from there"
    } else {
        "no longer has the owner and mode that `apply` set"
    };
    (what, format!("`{path}` in {machine} {why}"))
}

/// Describes the fault of a server.
fn server(machine: &str, order: &MachineSpec, found: &ObservedMachine) -> (Cause, String) {
    let detail = match &found.serving {
        Serving::Policy {
            refused: Some(why), ..
        } => {
            let why = why.shown(TEXT_MAX);
            format!("the server of {machine} refused its newest services: {why}")
        }
        Serving::Policy { digest, .. } => {
            let declared = order.services().ok().flatten();
            let declared = declared.map(|services| services.digest());
            format!(
                "the server of {machine} reports the policy {}; infra.yml declares {}",
                digest.shown(DIGEST_SHOWN),
                shown(&declared.unwrap_or_default(), DIGEST_SHOWN)
            )
        }
        Serving::Silent | Serving::Unknown => {
            let detail = format!("the server of {machine} does not answer");
            return (Cause::Server, detail);
        }
    };
    (Cause::Policy, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine_state::{FoundServices, Supervisor};
    use crate::services::Services;
    use crate::text::Foreign;

    /// Returns a machine that matches its specification except for `serving` and the missing units.
    fn found(order: &MachineSpec, serving: Serving) -> ObservedMachine {
        ObservedMachine {
            runs: true,
            program: Some(order.program.clone()),
            bad_permissions: std::collections::BTreeMap::new(),
            link: Some(PROGRAM.to_owned()),
            identity: Some(order.identity(Supervisor::Openrc)),
            services: order
                .services
                .as_deref()
                .map(|file| FoundServices::with(file.as_bytes(), None)),
            units: std::collections::BTreeMap::new(),
            serving,
            confinement: None,
        }
    }

    #[test]
    fn what_differs_is_said_in_words_and_a_machine_s_own_are_escaped() {
        let services = serde_json::json!({
            "machine": "signer",
            "services": [{"name": "sign", "tool": "gpg_sign", "consumers": ["dev"]}]
        });
        let services: Services = serde_json::from_value(services).unwrap();
        let digest = services.digest();
        let order = MachineSpec::new("p1", "signer".parse().unwrap(), None, Some(&services));
        let said = |serving: Serving| {
            let found = found(&order, serving);
            let pieces = differences(&order, &found);
            let described = pieces
                .iter()
                .map(|one| described(one, "signer", &order, &found));
            described.collect::<Vec<_>>()
        };
        let policy = |digest: &str, refused: Option<&str>| Serving::Policy {
            digest: digest.into(),
            refused: refused.map(Foreign::from),
            unlogged: None,
        };
        let unit = "the unit or script that starts the server of signer is missing or changed";
        let unit = (Cause::Supervision, unit.to_owned());
        assert_eq!(said(policy(&digest, None)), std::slice::from_ref(&unit));
        let short = digest.split_at(DIGEST_SHOWN).0;
        let cases = [
            (
                policy("ab\u{1b}", None),
                Cause::Policy,
                format!(
                    "the server of signer reports the policy ab\\u{{1b}}; infra.yml declares {short}…"
                ),
            ),
            (
                policy(&digest, Some("no\nJSON")),
                Cause::Policy,
                "the server of signer refused its newest services: no\\nJSON".to_owned(),
            ),
            (
                Serving::Silent,
                Cause::Server,
                "the server of signer does not answer".to_owned(),
            ),
        ];
        for (serving, what, detail) in cases {
            assert_eq!(said(serving), [unit.clone(), (what, detail)]);
        }
    }
}
