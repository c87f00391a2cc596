//! Turns the shape of a file into the model: checks every rule of every section and reports all findings in one run.
//!
//! A fault never stops the checks: the faulty part is left out and the rest is checked, but a file with any fault
//! yields no model.

mod conditions;
mod devices;
mod domains;
mod endpoints;
mod global;
mod machines;
mod mcp;
mod policies;
mod services;
mod tools;
mod volumes;

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::str::FromStr;

use super::field::Fields;
use super::findings::{At, Code, Findings};
use super::open::{FileRole, InfraFile};
use super::raw::{self, Entry, Node, NodeKind, Reading};
use super::{Domain, Infra, Machine, TOP, TrustLevel};
use crate::diagnostic::{Diagnostic, Faults, quote};
use crate::name::{MachineName, NameFault};
use devices::PlacedDevice;
use global::GlobalSettings;

/// Help for a file without any domain.
const POLICIES: &str = "network_policies";
const NO_DOMAIN_HELP: &str = "declare at least one domain: `domains: {work: {subnet_id: 0}}`";

/// The settings that a machine inherits from its domain and from `global`.
struct MachineContext<'s> {
    domain: &'s str,
    /// `None` after a fault in the subnet.
    subnet: Option<Ipv4Addr>,
    ephemeral: bool,
    trust: Option<TrustLevel>,
    /// The domain's profiles, by name.
    profiles: &'s HashMap<String, usize>,
    settings: &'s GlobalSettings,
    names: &'s Names<'s>,
}

/// Reads and checks the files of an infrastructure.
pub(super) fn read(files: &[InfraFile], project: &str) -> Result<(Infra, Vec<Diagnostic>), Faults> {
    let sources: Vec<_> = files.iter().map(|file| file.source.clone()).collect();
    let mut findings = Findings::new(sources);
    let roots: Vec<_> = (0..)
        .zip(files)
        .filter_map(|(number, file)| {
            let root = raw::read(&file.source.text, number, &mut findings)?;
            Some((file.role, root))
        })
        .collect();
    // Checking only some of the files would cause false faults, such as unknown consumers that another file declares.
    let infra = if roots.len() == files.len() {
        infra(&roots, project, &mut findings)
    } else {
        None
    };
    let warnings = findings.finish()?;
    match infra {
        Some(infra) => Ok((infra, warnings)),
        None => Err(Faults(warnings)),
    }
}

/// The files' declarations, by section.
struct Sections<'t, 'a> {
    top: Fields<'t, 'a>,
    domains: Vec<&'t Entry<'a>>,
    policies: Vec<&'t Node<'a>>,
    written_empty: Vec<&'static str>,
}

/// All declared names, read first so that a section can refer to names declared later.
#[derive(Debug)]
struct Names<'t> {
    machines: HashMap<&'t str, Home<'t>>,
    domains: HashMap<&'t str, At>,
    disabled: HashSet<&'t str>,
}

/// The domain and location of a machine's declaration.
#[derive(Debug, Clone, Copy)]
struct Home<'t> {
    at: At,
    domain: &'t str,
}

impl<'t> Names<'t> {
    fn new(domains: &[&'t Entry<'_>], findings: &mut Findings) -> Self {
        let mut names = Self {
            machines: HashMap::new(),
            domains: HashMap::new(),
            disabled: HashSet::new(),
        };
        for entry in domains {
            let domain = entry.key.text.as_ref();
            names.domains.insert(domain, entry.at);
            if value_of(entry, "enabled").is_some_and(is_false) {
                names.disabled.insert(domain);
            }
            let Some(NodeKind::Map(machines)) = value_of(entry, "machines").map(|node| &node.kind)
            else {
                continue;
            };
            for machine in machines {
                names.add_machine(machine, domain, findings);
            }
        }
        for (name, at) in &names.domains {
            if let Some(machine) = names.machines.get(name) {
                let other = findings.short(machine.at);
                let message = format!("{} is a domain and a machine", quote(name));
                findings.warning(Code::SameName, *at, message).help(format!(
                    "rename one of them: the machine is at {other}; \
                     Ansible warns when a group and a host share a name"
                ));
            }
        }
        names
    }

    fn add_machine(&mut self, entry: &'t Entry<'_>, domain: &'t str, findings: &mut Findings) {
        let name = entry.key.text.as_ref();
        let at = entry.at;
        let Some(first) = self.machines.get(name) else {
            self.machines.insert(name, Home { at, domain });
            return;
        };
        let place = findings.short(first.at);
        let other = quote(first.domain);
        let message = format!("machine {} is already in domain {other}", quote(name));
        findings
            .error(Code::DuplicateMachine, at, message)
            .help(format!(
                "rename one of them: the first one is at {place}; \
                 a machine name must be unique across all domains"
            ));
    }

    /// Returns the domain of this name, or that of the machine of this name.
    fn domain_of(&self, name: &str) -> Option<&'t str> {
        let domain = self.domains.get_key_value(name).map(|(name, _)| *name);
        domain.or_else(|| self.machines.get(name).map(|home| home.domain))
    }

    fn is_disabled(&self, domain: &str) -> bool {
        self.disabled.contains(domain)
    }

    /// Reports a name that is neither a domain's nor a machine's; `otherwise` is the help if no name is similar.
    fn unknown(&self, name: &str, at: At, otherwise: &str, findings: &mut Findings) {
        let all = self.domains.keys().copied().chain(self.machine_names());
        let all = all.filter(|name| name.parse::<MachineName>().is_ok());
        let help = match findings.closest(name, all) {
            Some(near) => format!("did you mean {}?", quote(near)),
            None => otherwise.to_owned(),
        };
        let files = findings.this_file();
        let message = format!(
            "{} is neither a domain nor a machine in {files}",
            quote(name)
        );
        findings.error(Code::UnknownName, at, message).help(help);
    }

    fn machine_names(&self) -> impl Iterator<Item = &'t str> + '_ {
        self.machines.keys().copied()
    }
}

/// A domain with its machines, before it becomes part of the model.
struct DomainDraft {
    domain: Domain,
    profiles: Vec<devices::PlacedProfile>,
    /// Positions of the profiles, by name.
    profile_index: HashMap<String, usize>,
    machines: Vec<MachineDraft>,
}

/// A machine, and its devices with their locations.
struct MachineDraft {
    machine: Machine,
    at: At,
    /// `security.privileged` in its own `config`.
    privileged: devices::Privileged,
    devices: Vec<PlacedDevice>,
}

fn infra(roots: &[(FileRole, Node<'_>)], project: &str, findings: &mut Findings) -> Option<Infra> {
    let sections = sections(roots, findings)?;
    let settings = global::read(sections.top, findings);
    let project = global::project(sections.top, project, findings);
    let names = Names::new(&sections.domains, findings);
    let mut drafts = domains::read(&sections.domains, &settings, &names, findings);
    policies::add_firewall(&settings, &mut drafts, &names, findings);
    volumes::share(sections.top, &settings, &names, &mut drafts, findings);
    endpoints::check(&drafts, findings);
    policies::check_gpus(&settings, &drafts, findings);
    let (network_policies, policies) =
        policies::read(&sections.policies, &settings, &names, &drafts, findings);
    let infra = Infra {
        project,
        global: settings.global,
        domains: drafts.into_iter().map(DomainDraft::build).collect(),
        network_policies,
        policies,
        written_empty: sections.written_empty,
        unapplied: findings.take_unapplied(),
        flag: String::new(),
        index: HashMap::new(),
    };
    Some(infra.with_index())
}

fn value_of<'t, 'a>(entry: &'t Entry<'a>, key: &str) -> Option<&'t Node<'a>> {
    match &entry.value.kind {
        NodeKind::Map(entries) => entries.iter().find(|entry| entry.key.text == key),
        _ => None,
    }
    .map(|entry| &entry.value)
}

fn is_false(node: &Node<'_>) -> bool {
    matches!(&node.kind, NodeKind::Scalar(scalar) if scalar.reading() == Reading::Bool(false))
}

/// Parses a name; `example` is the help if it is invalid and not similar to a valid one.
fn name<T: FromStr<Err = NameFault>>(
    text: &str,
    at: At,
    example: &str,
    findings: &mut Findings,
) -> Option<T> {
    let parsed = text.parse();
    if let Err(why) = &parsed {
        let message = format!("{}: {why}", quote(text));
        let similar = ["-", "_"]
            .iter()
            .find_map(|between| similar::<T>(text, between));
        findings
            .error(Code::InvalidName, at, message)
            .help(match similar {
                Some(similar) => format!("write `{similar}`, or choose another name"),
                None => format!("choose a name {example}"),
            });
    }
    parsed.ok()
}

/// Returns a valid name made of the same ASCII letters and digits, if there is one.
fn similar<T: FromStr>(text: &str, between: &str) -> Option<String> {
    let is_other = |c: char| matches!(c, '-' | '_' | ' ' | '.');
    let parts: Vec<_> = text
        .split(is_other)
        .filter(|part| !part.is_empty())
        .collect();
    let name = parts.join(between).to_ascii_lowercase();
    name.parse::<T>().is_ok().then_some(name)
}

/// Reports a machine or domain name that already has another meaning.
fn check_reserved(name: &str, kind: &str, at: At, findings: &mut Findings) {
    let meaning = match name {
        "all" => "Ansible's group of all hosts",
        "ungrouped" => "Ansible's group of hosts without a group",
        "localhost" => "the computer that runs Ansible",
        "host" => "the host in `network_policies`",
        "default" if kind == "domain" => "Incus's default project",
        _ => return,
    };
    let message = format!("a {kind} cannot be called `{name}`: that is {meaning}");
    findings
        .error(Code::ReservedName, at, message)
        .help("choose another name");
}

impl DomainDraft {
    /// The profile with this name.
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
        let profiles = self.profiles.into_iter();
        Domain {
            profiles: profiles.map(devices::PlacedProfile::build).collect(),
            machines: machines.collect(),
            ..self.domain
        }
    }
}

/// Combines the files: the top level of the first, and the domains and policies of all.
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
    let policies = top.list(POLICIES, findings);
    let mut policies: Vec<_> = policies.unwrap_or_default().iter().collect();
    let mut written_empty = top.empty(&[POLICIES]);
    let mut seen: HashMap<&str, At> = domains
        .iter()
        .map(|entry| (entry.key.text.as_ref(), entry.at))
        .collect();
    for (role, root) in roots {
        match role {
            FileRole::Base => {}
            FileRole::Domains => add_domains(root, &mut domains, &mut seen, findings),
            FileRole::Policies => {
                if let Some(own) = own_policies(root, top, findings) {
                    policies.extend(own.list(POLICIES, findings).unwrap_or_default());
                    written_empty.extend(own.empty(&[POLICIES]));
                }
            }
        }
    }
    if alone && top.entry("domains").is_none() {
        findings
            .error(Code::MissingKey, top.at, "`domains` is missing")
            .help(NO_DOMAIN_HELP);
    }
    Some(Sections {
        top,
        domains,
        policies,
        written_empty,
    })
}

/// The map at the top of the first file. In a folder, `base.yml` may be empty.
fn top<'t, 'a>(base: &'t Node<'a>, alone: bool, findings: &mut Findings) -> Option<Fields<'t, 'a>> {
    if !super::field::is_null(base) {
        return Fields::of_item(base, "the file", findings);
    }
    if alone {
        findings
            .error(Code::EmptyFile, base.at, "the file declares nothing")
            .help(NO_DOMAIN_HELP);
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
        if let Some(first) = findings.earlier(seen, name, entry.at) {
            let message = format!("domain {} is declared twice", quote(name));
            findings
                .error(Code::DuplicateDomain, entry.at, message)
                .help(format!("the first one is at {first}; keep one of them"));
        } else {
            domains.push(entry);
        }
    }
}

/// Returns the keys of `policies.yml`; `None` if it declares no policies, or if `base.yml` already does.
fn own_policies<'t, 'a>(
    root: &'t Node<'a>,
    top: Fields<'_, '_>,
    findings: &mut Findings,
) -> Option<Fields<'t, 'a>> {
    if super::field::is_null(root) {
        return None;
    }
    let fields = Fields::of_item(root, "the file", findings)?;
    fields.known("`policies.yml`", &[POLICIES], findings);
    let entry = fields.entry(POLICIES)?;
    if let Some(first) = top.entry(POLICIES) {
        let first = findings.short(first.at);
        let message = "`network_policies` is already in `base.yml`";
        findings
            .error(Code::DuplicateKey, entry.at, message)
            .help(format!("the first one is at {first}; keep one of them"));
        return None;
    }
    Some(fields)
}
