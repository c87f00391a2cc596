//! From the shape to the model: every rule of every section, all findings at once.
//!
//! A fault never ends the checking: what cannot be built is left out, the rest is checked on, and a file with any
//! fault gives no model at all.

mod devices;
mod domains;
mod endpoints;
mod global;
mod machines;
mod names;
mod policies;
mod services;
mod volumes;

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use super::code::Code;
use super::field::Fields;
use super::findings::{At, Findings};
use super::open::{FileRole, InfraFile};
use super::raw::{self, Entry, Node};
use super::{Domain, Infra, Machine, TrustLevel};
use crate::diagnostic::{Diagnostic, Faults, quote};
use devices::PlacedPath;
use global::GlobalSettings;

/// Keys of the file.
const TOP: [&str; 5] = [
    "project_name",
    "global",
    "domains",
    "network_policies",
    "shared_volumes",
];

/// What a machine takes from its domain and the file.
struct MachineContext<'s> {
    domain: &'s str,
    /// `None` after a fault in it.
    subnet: Option<Ipv4Addr>,
    /// Machines without an address get one.
    gives_addresses: bool,
    ephemeral: bool,
    trust: Option<TrustLevel>,
    /// The domain's profiles by name.
    profiles: &'s HashMap<String, usize>,
    settings: &'s GlobalSettings,
    names: &'s Names<'s>,
}

/// Reads and checks the files of an infrastructure.
pub(super) fn read(files: &[InfraFile], project: &str) -> Result<(Infra, Vec<Diagnostic>), Faults> {
    let sources: Vec<_> = files.iter().map(|file| file.source.clone()).collect();
    let mut findings = Findings::new(sources);
    let mut roots = Vec::new();
    for (number, file) in (0..).zip(files) {
        if let Some(root) = raw::read(&file.source.text, number, &mut findings) {
            roots.push((file.role, root));
        }
    }
    // Half a file would give faults that are none, such as consumers that the other half declares.
    let whole = roots.len() == files.len();
    let infra = whole
        .then(|| infra(&roots, project, &mut findings))
        .flatten();
    let warnings = findings.finish()?;
    match infra {
        Some(infra) => Ok((infra, warnings)),
        None => Err(Faults(warnings)),
    }
}

/// The declarations of the files, by section.
struct Sections<'t, 'a> {
    top: Fields<'t, 'a>,
    domains: Vec<&'t Entry<'a>>,
    policies: Vec<&'t Node<'a>>,
}

/// Names that something in the file may refer to.
#[derive(Debug)]
struct Names<'t> {
    machines: HashMap<&'t str, Home<'t>>,
    domains: HashMap<&'t str, At>,
    disabled: HashSet<&'t str>,
}

/// Place of a machine's declaration.
#[derive(Debug, Clone, Copy)]
struct Home<'t> {
    at: At,
    domain: &'t str,
}

impl<'t> Names<'t> {
    fn is_disabled(&self, domain: &str) -> bool {
        self.disabled.contains(&domain)
    }

    fn machine_names(&self) -> impl Iterator<Item = &'t str> + '_ {
        self.machines.keys().copied()
    }
}

/// A domain with its machines, not yet a model.
struct DomainDraft {
    domain: Domain,
    profiles: Vec<devices::PlacedProfile>,
    /// Positions of the profiles, by name.
    profile_index: HashMap<String, usize>,
    machines: Vec<MachineDraft>,
}

/// A machine, its devices with their places.
struct MachineDraft {
    machine: Machine,
    at: At,
    /// `security.privileged` of its own `config`.
    privileged: devices::Privileged,
    devices: Vec<PlacedPath>,
}

fn infra(roots: &[(FileRole, Node<'_>)], project: &str, findings: &mut Findings) -> Option<Infra> {
    let sections = sections(roots, findings)?;
    let settings = global::read(sections.top, findings);
    let project = global::project(sections.top, project, findings);
    let names = names::names(&sections.domains, findings);
    let mut drafts = domains::read(&sections.domains, &settings, &names, findings);
    policies::add_firewall(&settings, &mut drafts, &names, findings);
    volumes::share(sections.top, &settings, &names, &mut drafts, findings);
    endpoints::check(&drafts, findings);
    policies::check_gpus(&settings, &drafts, findings);
    let network_policies = policies::read(&sections.policies, &settings, &names, findings);
    let infra = Infra {
        project,
        global: settings.global?,
        domains: drafts.into_iter().map(DomainDraft::build).collect(),
        network_policies,
        unapplied: findings.take_unapplied(),
        index: HashMap::new(),
    };
    Some(infra.with_index())
}

impl DomainDraft {
    /// The profile of that name.
    fn profile(&self, name: &str) -> Option<&devices::PlacedProfile> {
        self.profiles.get(*self.profile_index.get(name)?)
    }

    fn build(self) -> Domain {
        let machines = self.machines.into_iter().map(|draft| {
            let devices = draft.devices.into_iter().map(|placed| placed.device);
            Machine {
                devices: devices.collect(),
                ..draft.machine
            }
        });
        Domain {
            machines: machines.collect(),
            ..self.domain
        }
    }
}

/// Puts the files together: the top level of the first, domains and policies of all.
fn sections<'t, 'a>(
    roots: &'t [(FileRole, Node<'a>)],
    findings: &mut Findings,
) -> Option<Sections<'t, 'a>> {
    let (_, base) = roots.iter().find(|(role, _)| *role == FileRole::Base)?;
    let alone = roots.len() == 1;
    let top = top(base, alone, findings)?;
    top.known("the file", &TOP, findings);
    let mut domains: Vec<&Entry<'_>> = match top.entry("domains") {
        Some(entry) => Fields::of(entry, findings)?.entries().iter().collect(),
        None => Vec::new(),
    };
    let mut policies = Vec::new();
    if let Some(items) = top.list("network_policies", findings) {
        policies.extend(items);
    }
    let mut seen: HashMap<&str, At> = HashMap::new();
    seen.extend(domains.iter().map(|e| (e.key.text.as_ref(), e.at)));
    for (role, root) in roots {
        match role {
            FileRole::Base => {}
            FileRole::Domains => add_domains(root, &mut domains, &mut seen, findings),
            FileRole::Policies => add_policies(root, &mut policies, top, findings),
        }
    }
    if alone && top.entry("domains").is_none() {
        findings
            .error(Code::MissingKey, top.at, "there is no `domains`")
            .help("declare at least one domain: `domains: {work: {subnet_id: 0}}`");
    }
    Some(Sections {
        top,
        domains,
        policies,
    })
}

/// The map at the top of the first file. `base.yml` of a folder may be empty.
fn top<'t, 'a>(base: &'t Node<'a>, alone: bool, findings: &mut Findings) -> Option<Fields<'t, 'a>> {
    if !super::field::is_null(base) {
        return Fields::of_item(base, "the file", findings);
    }
    if alone {
        findings
            .error(Code::EmptyFile, base.at, "the file declares nothing")
            .help("declare at least one domain: `domains: {work: {subnet_id: 0}}`");
        return None;
    }
    Some(Fields::none(base.at))
}

fn add_domains<'t, 'a>(
    root: &'t Node<'a>,
    domains: &mut Vec<&'t Entry<'a>>,
    seen: &mut HashMap<&'t str, At>,
    findings: &mut Findings,
) {
    if super::field::is_null(root) {
        findings
            .warning(Code::EmptyFile, root.at, "the file declares nothing")
            .help("declare a domain in it, or remove it");
        return;
    }
    let Some(fields) = Fields::of_item(root, "the file", findings) else {
        return;
    };
    for entry in fields.entries() {
        let name = entry.key.text.as_ref();
        if let Some(first) = seen.get(name) {
            let message = format!("domain {} is declared twice", quote(name));
            let first = findings.short(*first);
            findings
                .error(Code::DuplicateDomain, entry.at, message)
                .help(format!("the first one is at {first}; keep one of them"));
        } else {
            seen.insert(name, entry.at);
            domains.push(entry);
        }
    }
}

fn add_policies<'t, 'a>(
    root: &'t Node<'a>,
    policies: &mut Vec<&'t Node<'a>>,
    top: Fields<'_, '_>,
    findings: &mut Findings,
) {
    if super::field::is_null(root) {
        return;
    }
    let Some(fields) = Fields::of_item(root, "the file", findings) else {
        return;
    };
    fields.known("`policies.yml`", &["network_policies"], findings);
    let Some(entry) = fields.entry("network_policies") else {
        return;
    };
    if let Some(first) = top.entry("network_policies") {
        let first = findings.short(first.at);
        findings
            .error(
                Code::DuplicateKey,
                entry.at,
                "`network_policies` is already in `base.yml`",
            )
            .help(format!("the first one is at {first}; keep one of them"));
        return;
    }
    if let Some(items) = fields.list("network_policies", findings) {
        policies.extend(items);
    }
}
