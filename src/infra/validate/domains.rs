//! Checks domains: names, trust, subnets. Machine keys are checked in `machines`.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use serde_json::Value;

use super::global::{GlobalSettings, Scheme};
use super::{DomainDraft, MachineContext, Names, check_reserved, devices, machines, name};
use crate::diagnostic::quote;
use crate::infra::field::{self, Fields};
use crate::infra::findings::{At, Code, Findings};
use crate::infra::network::{self, GATEWAY, SUBNET_ID_MAX, ZONE_OCTET};
use crate::infra::raw::Entry;
use crate::infra::{Domain, Network, TrustLevel};
use crate::name::DomainName;

const KEYS: [&str; 10] = [
    "description",
    "enabled",
    "subnet_id",
    "trust_level",
    "ephemeral",
    "profiles",
    "machines",
    "ai_provider",
    "ai_sanitize",
    "file_portal",
];

/// Maximum length of a bridge name, in bytes: Linux `IFNAMSIZ` minus the terminating zero.
const BRIDGE_MAX: usize = 15;
/// Prefix of a bridge name, followed by the domain's name.
const BRIDGE_PREFIX: &str = "net-";

/// The keys of a domain that determine its subnet.
struct DomainFields<'t, 'a> {
    entry: &'t Entry<'a>,
    fields: Fields<'t, 'a>,
    trust: Option<TrustLevel>,
    subnet_id: Option<(u8, At)>,
}

/// Reads all domains.
pub(super) fn read(
    entries: &[&Entry<'_>],
    settings: &GlobalSettings,
    names: &Names<'_>,
    findings: &mut Findings,
) -> Vec<DomainDraft> {
    let domains: Vec<_> = entries
        .iter()
        .filter_map(|entry| domain_fields(entry, settings, findings))
        .collect();
    let subnets = subnets(&domains, settings, findings);
    let mut addresses = HashMap::new();
    domains
        .iter()
        .zip(subnets)
        .filter_map(|(domain, subnet)| {
            draft(domain, subnet, settings, names, &mut addresses, findings)
        })
        .collect()
}

fn domain_fields<'t, 'a>(
    entry: &'t Entry<'a>,
    settings: &GlobalSettings,
    findings: &mut Findings,
) -> Option<DomainFields<'t, 'a>> {
    let fields = Fields::of_named(entry, "a domain", &KEYS, findings)?;
    fields.known("a domain", &KEYS, findings);
    let levels = TrustLevel::ALL.map(TrustLevel::as_str);
    let written = fields.choice("trust_level", &levels, findings);
    let trust = TrustLevel::ALL
        .into_iter()
        .find(|level| Some(level.as_str()) == written);
    let is_default = settings.zones && fields.entry("trust_level").is_none();
    let default_trust = is_default.then_some(TrustLevel::SemiTrusted);
    let written_id = fields.entry("subnet_id");
    let subnet_id = fields
        .integer("subnet_id", 0..=SUBNET_ID_MAX, findings)
        .zip(written_id.map(|entry| entry.value.at));
    if written_id.is_none_or(|entry| field::is_null(&entry.value)) && !settings.zones {
        let owner = format!("domain {}", quote(&entry.key.text));
        let help = format!(
            "add a number of its own from 0 to {SUBNET_ID_MAX}, the third part of its addresses, \
             such as `subnet_id: 0`; \
             or write `global: {{addressing: {{}}}}` at the top, and domains get subnets by `trust_level`"
        );
        findings.missing(entry.at, &owner, "subnet_id", help);
    }
    Some(DomainFields {
        entry,
        fields,
        trust: trust.or(default_trust),
        subnet_id,
    })
}

/// Returns the subnet of each domain; `None` after a fault.
fn subnets(
    domains: &[DomainFields<'_, '_>],
    settings: &GlobalSettings,
    findings: &mut Findings,
) -> Vec<Option<(u8, Ipv4Addr)>> {
    check_unique(domains, settings, findings);
    match settings.scheme {
        None => domains.iter().map(|_| None).collect(),
        Some(Scheme::Subnets { base: (a, b) }) => domains
            .iter()
            .map(|domain| {
                let (id, _) = domain.subnet_id?;
                Some((id, Ipv4Addr::new(a, b, id, 0)))
            })
            .collect(),
        Some(Scheme::Zones { base }) => zones(domains, base, findings),
    }
}

/// Checks that each `subnet_id` is unique across all domains or within its zone.
fn check_unique(
    domains: &[DomainFields<'_, '_>],
    settings: &GlobalSettings,
    findings: &mut Findings,
) {
    let mut seen: HashMap<(Option<TrustLevel>, u8), At> = HashMap::new();
    for domain in domains {
        let Some((id, at)) = domain.subnet_id else {
            continue;
        };
        let zone = domain.trust.filter(|_| settings.zones);
        if let Some(first) = findings.earlier(&mut seen, (zone, id), at) {
            let within = zone.map_or(String::new(), |level| {
                format!(" in the zone of `{}`", level.as_str())
            });
            let message = format!("`subnet_id` {id} is already taken{within}");
            findings
                .error(Code::DuplicateSubnet, at, message)
                .help(format!(
                    "choose another number from 0 to {SUBNET_ID_MAX}: the domain at {first} has this one"
                ));
        }
    }
}

fn zones(
    domains: &[DomainFields<'_, '_>],
    zone_base: u8,
    findings: &mut Findings,
) -> Vec<Option<(u8, Ipv4Addr)>> {
    let mut by_zone: BTreeMap<TrustLevel, Vec<(&str, Option<u8>)>> = BTreeMap::new();
    for domain in domains {
        if let Some(trust) = domain.trust {
            let id = domain.subnet_id.map(|(id, _)| id);
            let name = domain.entry.key.text.as_ref();
            by_zone.entry(trust).or_default().push((name, id));
        }
    }
    let ids: BTreeMap<_, _> = by_zone
        .into_iter()
        .map(|(trust, zone)| (trust, network::subnet_ids(&zone)))
        .collect();
    domains
        .iter()
        .map(|domain| {
            let trust = domain.trust?;
            let name = domain.entry.key.text.as_ref();
            let id = ids.get(&trust).and_then(|zone| zone.get(name)).copied()?;
            let octet = network::zone_octet(zone_base, trust);
            if let (Some(octet), Some(id)) = (octet, id) {
                return Some((id, Ipv4Addr::new(ZONE_OCTET, octet, id, 0)));
            }
            let (fault, help) = match octet {
                None => (
                    "lies beyond 10.255",
                    "choose a lower `zone_base` (the default is 100), or another `trust_level`",
                ),
                Some(_) => (
                    "has no subnet left",
                    "choose another `trust_level`: a zone has 255 subnets",
                ),
            };
            let message = format!("the zone of `{}` {fault}", trust.as_str());
            findings
                .error(Code::ZoneOverflow, domain.entry.at, message)
                .help(help);
            None
        })
        .collect()
}

fn draft(
    domain: &DomainFields<'_, '_>,
    subnet: Option<(u8, Ipv4Addr)>,
    settings: &GlobalSettings,
    names: &Names<'_>,
    addresses: &mut HashMap<Ipv4Addr, At>,
    findings: &mut Findings,
) -> Option<DomainDraft> {
    let fields = domain.fields;
    let name = domain_name(domain.entry, findings);
    let description = fields.incus_text("description", findings);
    let enabled = fields.flag("enabled", findings).unwrap_or(true);
    let ephemeral = fields.flag("ephemeral", findings).unwrap_or(false);
    let (ai_provider, ai_sanitize) = ai(fields, findings);
    file_portal(fields, findings);
    let profiles = devices::profiles(fields, findings);
    let profile_index: HashMap<String, usize> = profiles
        .iter()
        .map(|profile| profile.name.clone())
        .zip(0..)
        .collect();
    let context = MachineContext {
        domain: &domain.entry.key.text,
        subnet: subnet.map(|(_, subnet)| subnet),
        ephemeral,
        trust: domain.trust,
        profiles: &profile_index,
        settings,
        names,
    };
    let machines = fields
        .map("machines", findings)
        .map(|machines| machines::read(machines, &context, addresses, findings));
    let (subnet_id, subnet) = subnet.unwrap_or((0, Ipv4Addr::UNSPECIFIED));
    let name = name?;
    Some(DomainDraft {
        domain: Domain {
            place: findings.place(domain.entry.at)?,
            description: description.unwrap_or_default(),
            enabled,
            subnet_id,
            trust_level: domain.trust,
            ephemeral,
            profiles: Vec::new(),
            ai_provider,
            ai_sanitize,
            network: Network {
                name: format!("{BRIDGE_PREFIX}{name}"),
                subnet,
                gateway: network::host(subnet, GATEWAY),
            },
            machines: Vec::new(),
            written_empty: fields.empty(&["profiles"]),
            name,
        },
        profiles,
        profile_index,
        machines: machines.unwrap_or_default(),
    })
}

fn domain_name(entry: &Entry<'_>, findings: &mut Findings) -> Option<DomainName> {
    let text = field::text_key(entry, "the name of a domain", findings)?;
    let name: DomainName = name(text, entry.at, "such as `work` or `home-2`", findings)?;
    check_reserved(text, "domain", entry.at, findings);
    let bridge = BRIDGE_PREFIX.len() + text.len();
    if bridge > BRIDGE_MAX {
        let message = format!(
            "the bridge `{BRIDGE_PREFIX}{name}` has {bridge} characters, but Linux allows at most {BRIDGE_MAX}"
        );
        let max = BRIDGE_MAX - BRIDGE_PREFIX.len();
        findings
            .error(Code::NameTooLong, entry.at, message)
            .help(format!("choose a name with at most {max} characters"));
    }
    Some(name)
}

fn ai(fields: Fields<'_, '_>, findings: &mut Findings) -> (String, Value) {
    fields.note_unapplied(&["ai_provider", "ai_sanitize", "file_portal"], findings);
    let provider = fields
        .choice("ai_provider", &["local", "cloud", "local-first"], findings)
        .unwrap_or("local");
    let default = Value::Bool(provider != "local");
    let Some(entry) = fields.filled("ai_sanitize", findings) else {
        return (provider.to_owned(), default);
    };
    let written = field::json(&entry.value);
    if !matches!(&written, Value::Bool(_)) && written != "always" {
        let message = "this is not a valid value for `ai_sanitize`";
        findings
            .error(Code::InvalidValue, entry.value.at, message)
            .help("write one of: true, false, always");
    }
    (provider.to_owned(), written)
}

fn file_portal(fields: Fields<'_, '_>, findings: &mut Findings) {
    let Some(portal) = fields.map("file_portal", findings) else {
        return;
    };
    portal.known("`file_portal`", &["allowed_paths", "read_only"], findings);
    portal.flag("read_only", findings);
    let paths = portal.list("allowed_paths", findings).unwrap_or_default();
    for path in paths {
        field::text_item(path, "a path", findings);
    }
}
