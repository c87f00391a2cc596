//! Every name that is declared, before anything else is read: sections refer to what comes later in the file.

use std::collections::{HashMap, HashSet};

use super::{Home, Names};
use crate::diagnostic::quote;
use crate::infra::code::Code;
use crate::infra::findings::{At, Findings};
use crate::infra::raw::{Entry, NodeKind, Reading};

/// Every name that is declared, so that sections can refer to what comes later in the file.
pub(super) fn names<'t>(domains: &[&'t Entry<'_>], findings: &mut Findings) -> Names<'t> {
    let mut names = Names {
        machines: HashMap::new(),
        domains: HashMap::new(),
        disabled: HashSet::new(),
    };
    for domain in domains {
        let domain_name = domain.key.text.as_ref();
        names.domains.insert(domain_name, domain.at);
        if entry_of(domain, "enabled").is_some_and(is_false) {
            names.disabled.insert(domain_name);
        }
        for machine in machine_entries(domain) {
            let home = Home {
                at: machine.at,
                domain: domain_name,
            };
            let name = machine.key.text.as_ref();
            match names.machines.get(name) {
                Some(first) => duplicate_machine(name, machine.at, *first, findings),
                None => {
                    names.machines.insert(name, home);
                }
            }
        }
    }
    for (name, at) in &names.domains {
        if let Some(machine) = names.machines.get(name) {
            let at = *at;
            let other = findings.short(machine.at);
            findings
                .warning(
                    Code::SameName,
                    at,
                    format!("{} is a domain and a machine", quote(name)),
                )
                .help(format!(
                    "the machine is at {other}; Ansible warns of a group and a host with one name"
                ));
        }
    }
    names
}

fn entry_of<'t, 'a>(node: &'t Entry<'a>, key: &str) -> Option<&'t Entry<'a>> {
    match &node.value.kind {
        NodeKind::Map(entries) => entries.iter().find(|entry| entry.key.text == key),
        _ => None,
    }
}

fn is_false(entry: &Entry<'_>) -> bool {
    matches!(&entry.value.kind, NodeKind::Scalar(scalar) if scalar.reading() == Reading::Bool(false))
}

fn machine_entries<'t, 'a>(domain: &'t Entry<'a>) -> &'t [Entry<'a>] {
    match entry_of(domain, "machines").map(|entry| &entry.value.kind) {
        Some(NodeKind::Map(entries)) => entries,
        _ => &[],
    }
}

fn duplicate_machine(name: &str, at: At, first: Home<'_>, findings: &mut Findings) {
    let line = findings.short(first.at);
    findings
        .error(
            Code::DuplicateMachine,
            at,
            format!(
                "machine {} is already in domain {}",
                quote(name),
                quote(first.domain)
            ),
        )
        .help(format!(
            "the first one is at {line}; a machine's name is unique over all domains"
        ));
}

/// Whether the name means something else where it is used.
pub(super) fn reserved(
    kind: &str,
    name: &str,
    reserved: &[(&str, &str)],
    at: At,
    findings: &mut Findings,
) {
    if let Some((_, meaning)) = reserved.iter().find(|(taken, _)| *taken == name) {
        findings
            .error(
                Code::ReservedName,
                at,
                format!("a {kind} cannot be called `{name}`: that is {meaning}"),
            )
            .help("choose another name");
    }
}
