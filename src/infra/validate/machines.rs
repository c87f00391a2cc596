//! Machines: every key but devices, services and volumes, which have rooms of their own.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use super::devices;
use super::global::image;
use super::{MachineContext, MachineDraft, names, services, volumes};
use crate::diagnostic::quote;
use crate::infra::code::Code;
use crate::infra::field::{self, Fields, Text};
use crate::infra::findings::{At, Findings};
use crate::infra::network::{self, GIVEN_OUT, UnfitSubnet};
use crate::infra::raw::Entry;
use crate::infra::{DEFAULT_IMAGE, Machine, MachineType, TrustLevel};
use crate::name::MachineName;

const KEYS: [&str; 19] = [
    "type",
    "ip",
    "os_image",
    "description",
    "config",
    "devices",
    "profiles",
    "storage_volumes",
    "persistent_data",
    "ephemeral",
    "boot_autostart",
    "boot_priority",
    "snapshots_schedule",
    "snapshots_expiry",
    "weight",
    "gpu",
    "roles",
    "services",
    "mcp",
];

/// A form that text must have, and how to say it.
type Shape = (fn(&str) -> bool, &'static str);

const SCHEDULE: Shape = (is_schedule, "five cron fields, such as `0 2 * * *`");
const EXPIRY: Shape = (is_expiry, "a number and `m`, `h` or `d`, such as `30d`");

/// Names that mean something else where a machine's name is used.
const RESERVED_MACHINES: [(&str, &str); 4] = [
    ("all", "Ansible's group of every host"),
    ("ungrouped", "Ansible's group of hosts without a group"),
    ("localhost", "Ansible's own computer"),
    ("host", "the host in `network_policies`"),
];

/// Reads the machines of one domain; `addresses` are those that are taken so far, in all domains.
pub(super) fn read(
    machines: Fields<'_, '_>,
    surroundings: &MachineContext<'_>,
    addresses: &mut HashMap<Ipv4Addr, At>,
    findings: &mut Findings,
) -> Vec<MachineDraft> {
    let mut drafts = Vec::new();
    for entry in machines.entries() {
        drafts.extend(machine(entry, surroundings, addresses, findings));
    }
    if surroundings.gives_addresses
        && let Some(subnet) = surroundings.subnet
    {
        give_addresses(subnet, &mut drafts, addresses, findings);
    }
    drafts
}

fn machine(
    entry: &Entry<'_>,
    surroundings: &MachineContext<'_>,
    addresses: &mut HashMap<Ipv4Addr, At>,
    findings: &mut Findings,
) -> Option<MachineDraft> {
    let name = machine_name(entry, findings);
    let fields = Fields::of(entry, findings)?;
    fields.known("a machine", &KEYS, findings);
    note_unapplied(fields, findings);
    let kind = match fields.choice("type", &["lxc", "vm"], findings) {
        Some("vm") => MachineType::VirtualMachine,
        _ => MachineType::Container,
    };
    warn_of_container(entry, kind, surroundings, findings);
    let ip = address(fields, surroundings, addresses, findings);
    let own_image = image(fields, "os_image", findings);
    let default_image = surroundings.settings.default_image.as_deref();
    let (config, privileged) = devices::config(fields, findings);
    let mut placed = volumes::persistent(entry, fields, surroundings, findings);
    devices::add_own(fields, &mut placed, findings);
    // No part of the model, and of `resource_policy`, which is not applied.
    let _ = fields.integer("weight", 1..=i64::MAX, findings);
    let mcp = services::users(fields, findings);
    let machine = Machine {
        place: findings.place(entry.at)?,
        kind,
        description: fields
            .filled("description", findings)
            .and_then(|entry| field::incus_text(entry, findings))
            .unwrap_or_default(),
        ip,
        os_image: own_image.unwrap_or_else(|| default_image.unwrap_or(DEFAULT_IMAGE).to_owned()),
        ephemeral: fields
            .flag("ephemeral", findings)
            .unwrap_or(surroundings.ephemeral),
        gpu: fields.flag("gpu", findings),
        profiles: profiles(fields, surroundings, findings),
        config,
        devices: Vec::new(),
        storage_volumes: volumes::storage(fields, findings),
        roles: roles(fields, findings),
        boot_autostart: fields.flag("boot_autostart", findings),
        boot_priority: fields
            .integer("boot_priority", 0..=100, findings)
            .and_then(|(priority, _)| u8::try_from(priority).ok()),
        snapshots_schedule: shaped(fields, "snapshots_schedule", SCHEDULE, findings),
        snapshots_expiry: shaped(fields, "snapshots_expiry", EXPIRY, findings),
        services: services::read(
            &entry.key.text,
            fields,
            surroundings.names,
            mcp.memory,
            findings,
        ),
        mcp,
        name: name?,
    };
    Some(MachineDraft {
        machine,
        at: entry.at,
        privileged,
        devices: placed,
    })
}

fn machine_name(entry: &Entry<'_>, findings: &mut Findings) -> Option<MachineName> {
    let text = field::text_key(entry, "the name of a machine", findings)?.text;
    names::reserved("machine", text, &RESERVED_MACHINES, entry.at, findings);
    text.parse()
        .map_err(|why| {
            findings
                .error(
                    Code::InvalidName,
                    entry.at,
                    format!("{}: {why}", quote(text)),
                )
                .help("such as `work-dev` or `web1`");
        })
        .ok()
}

fn note_unapplied(fields: Fields<'_, '_>, findings: &mut Findings) {
    for key in ["weight", "gpu", "roles"] {
        if let Some(entry) = fields.entry(key) {
            findings.unapplied(key, entry.at);
        }
    }
}

fn warn_of_container(
    entry: &Entry<'_>,
    kind: MachineType,
    surroundings: &MachineContext<'_>,
    findings: &mut Findings,
) {
    let low = [TrustLevel::Untrusted, TrustLevel::Disposable];
    let trust = surroundings.trust.filter(|trust| low.contains(trust));
    if let (MachineType::Container, Some(trust)) = (kind, trust) {
        let message = format!(
            "{} is a container in the {} domain {}",
            quote(&entry.key.text),
            trust.as_str(),
            quote(surroundings.domain)
        );
        findings
            .warning(Code::ContainerInUntrustedDomain, entry.at, message)
            .help("a container shares the host's kernel: `type: vm` keeps it apart");
    }
}

fn address(
    fields: Fields<'_, '_>,
    surroundings: &MachineContext<'_>,
    addresses: &mut HashMap<Ipv4Addr, At>,
    findings: &mut Findings,
) -> Option<Ipv4Addr> {
    let Text { text, at } = fields.text("ip", findings)?;
    let Ok(address) = text.parse::<Ipv4Addr>() else {
        findings
            .error(
                Code::InvalidAddress,
                at,
                format!("{} is no IPv4 address", quote(text)),
            )
            .help("four numbers from 0 to 255 with dots, without zeros in front and without `/`");
        return None;
    };
    if let Some(first) = addresses.get(&address) {
        let first = findings.short(*first);
        findings
            .error(
                Code::DuplicateAddress,
                at,
                format!("`{address}` is already taken"),
            )
            .help(format!("by the machine at {first}; each has its own"));
    } else {
        addresses.insert(address, at);
    }
    if let Some(subnet) = surroundings.subnet
        && let Err(unfit) = network::fit(address, subnet)
    {
        report_unfit(address, subnet, unfit, at, findings);
    }
    Some(address)
}

fn report_unfit(
    address: Ipv4Addr,
    subnet: Ipv4Addr,
    unfit: UnfitSubnet,
    at: At,
    findings: &mut Findings,
) {
    let (code, is) = match unfit {
        UnfitSubnet::Outside => (
            Code::AddressOutsideSubnet,
            format!("not in its domain's subnet {subnet}/24"),
        ),
        UnfitSubnet::Network => (
            Code::ReservedAddress,
            format!("the address of the subnet {subnet}/24 itself"),
        ),
        UnfitSubnet::Gateway => (
            Code::ReservedAddress,
            format!("the gateway of the subnet {subnet}/24"),
        ),
        UnfitSubnet::Broadcast => (
            Code::ReservedAddress,
            format!("the broadcast address of the subnet {subnet}/24"),
        ),
    };
    let first = network::host(subnet, 1);
    let last = network::host(subnet, network::GATEWAY - 1);
    findings
        .error(code, at, format!("`{address}` is {is}"))
        .help(format!("from {first} to {last}"));
}

/// Machines without an address get the first free ones, in the order of the file.
fn give_addresses(
    subnet: Ipv4Addr,
    drafts: &mut [MachineDraft],
    addresses: &mut HashMap<Ipv4Addr, At>,
    findings: &mut Findings,
) {
    let mut next = GIVEN_OUT;
    for draft in drafts.iter_mut() {
        if draft.machine.ip.is_some() {
            continue;
        }
        let free = next
            .by_ref()
            .map(|last| network::host(subnet, last))
            .find(|address| !addresses.contains_key(address));
        draft.machine.ip = free;
        if let Some(address) = free {
            addresses.insert(address, draft.at);
            continue;
        }
        let message = format!(
            "no address is left for {}",
            quote(draft.machine.name.as_str())
        );
        let (first, last) = GIVEN_OUT.into_inner();
        let help = format!(
            "only .{first} to .{last} are given out: write `ip` for some machines, from .{} on",
            last + 1
        );
        findings
            .error(Code::NoAddressLeft, draft.at, message)
            .help(help);
    }
}

fn profiles(
    fields: Fields<'_, '_>,
    surroundings: &MachineContext<'_>,
    findings: &mut Findings,
) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut seen = HashSet::new();
    for item in fields.list("profiles", findings).unwrap_or_default() {
        let Some(Text { text, at }) = field::text_item(item, "the name of a profile", findings)
        else {
            continue;
        };
        let known = text == "default" || surroundings.profiles.contains_key(text);
        if !known {
            let message = format!(
                "{} is no profile of domain {}",
                quote(text),
                quote(surroundings.domain)
            );
            findings
                .error(Code::UnknownProfile, at, message)
                .help("declare it in `profiles` of the domain, or take it off the list");
        } else if !seen.insert(text) {
            findings
                .error(
                    Code::DuplicateItem,
                    at,
                    format!("profile {} is listed twice", quote(text)),
                )
                .help("list it once: later ones override earlier ones");
        }
        names.push(text.to_owned());
    }
    names
}

fn roles(fields: Fields<'_, '_>, findings: &mut Findings) -> Option<Vec<serde_json::Value>> {
    let items = fields.list("roles", findings)?;
    for item in items {
        if field::is_null(item) {
            field::wrong_item(item, "a role", "text", findings);
        }
    }
    Some(items.iter().map(field::json).collect())
}

fn shaped(
    fields: Fields<'_, '_>,
    key: &str,
    shape: Shape,
    findings: &mut Findings,
) -> Option<String> {
    let Text { text, at } = fields.text(key, findings)?;
    let (fits, rule) = shape;
    if !fits(text) {
        findings
            .error(
                Code::InvalidValue,
                at,
                format!("{} is no value of `{key}`", quote(text)),
            )
            .help(rule);
    }
    Some(text.to_owned())
}

/// Five fields with spaces or tabs between them, on one line.
fn is_schedule(text: &str) -> bool {
    let between = |c: char| c == ' ' || c == '\t';
    !text.chars().any(|c| c.is_control() && c != '\t')
        && !text.starts_with(between)
        && !text.ends_with(between)
        && text
            .split(between)
            .filter(|field| !field.is_empty())
            .count()
            == 5
}

/// Digits and a unit.
fn is_expiry(text: &str) -> bool {
    let digits = text.strip_suffix(['d', 'h', 'm']).unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}
