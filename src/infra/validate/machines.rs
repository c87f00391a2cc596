//! Checks every key of machines except devices, services and volumes, which have their own modules.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use super::devices;
use super::global::image;
use super::{MachineContext, MachineDraft, check_reserved, mcp, name, services, value_of, volumes};
use crate::diagnostic::quote;
use crate::infra::field::{self, Fields, Text};
use crate::infra::findings::{At, Code, Findings};
use crate::infra::network::{self, AUTOMATIC, AddressFault};
use crate::infra::raw::Entry;
use crate::infra::{Machine, MachineType, PROTECTION, TrustLevel, is_true};
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

/// A check of a string's form, and the help if it fails.
type Shape = (fn(&str) -> bool, &'static str);

const SCHEDULE: Shape = (is_schedule, "write five cron fields, such as `0 2 * * *`");
const EXPIRY: Shape = (
    is_expiry,
    "write a number and `m`, `h` or `d`, such as `30d`",
);

/// Reads the machines of one domain; `addresses` contains those already taken in any domain.
pub(super) fn read(
    machines: Fields<'_, '_>,
    context: &MachineContext<'_>,
    addresses: &mut HashMap<Ipv4Addr, At>,
    findings: &mut Findings,
) -> Vec<MachineDraft> {
    let entries = machines.entries().iter();
    let mut drafts: Vec<_> = entries
        .filter_map(|entry| machine(entry, context, addresses, findings))
        .collect();
    if context.settings.zones
        && let Some(subnet) = context.subnet
    {
        give_addresses(subnet, &mut drafts, addresses, findings);
    }
    drafts
}

fn machine(
    entry: &Entry<'_>,
    context: &MachineContext<'_>,
    addresses: &mut HashMap<Ipv4Addr, At>,
    findings: &mut Findings,
) -> Option<MachineDraft> {
    let name = machine_name(entry, findings);
    let fields = Fields::of_named(entry, "a machine", &KEYS, findings)?;
    fields.known("a machine", &KEYS, findings);
    fields.note_unapplied(&["weight", "gpu", "roles"], findings);
    let kind = match fields.choice("type", &["lxc", "vm"], findings) {
        Some("vm") => MachineType::VirtualMachine,
        _ => MachineType::Container,
    };
    warn_of_container(entry, kind, context, findings);
    let ip = address(fields, context, addresses, findings);
    let own_image = image(fields, "os_image", findings);
    let (config, privileged) = devices::config(fields, findings);
    let mut placed = volumes::persistent(entry, fields, context, findings);
    devices::add_own(fields, &mut placed, findings);
    // Belongs to `resource_policy`, which is not applied.
    fields.integer("weight", 1..=i64::MAX, findings);
    let mcp = mcp::read(fields, findings);
    let place_of = |key: &str, findings: &Findings| {
        let own = fields.entry(key)?;
        findings.place(own.value.at).map(Box::new)
    };
    let machine = Machine {
        place: findings.place(entry.at)?,
        ip_place: place_of("ip", findings),
        os_image_place: place_of("os_image", findings),
        kind,
        description: fields
            .incus_text("description", findings)
            .unwrap_or_default(),
        ip,
        os_image: own_image.unwrap_or_else(|| context.settings.global.default_os_image.clone()),
        ephemeral: fields
            .flag("ephemeral", findings)
            .unwrap_or(context.ephemeral),
        gpu: fields.flag("gpu", findings),
        profiles: profiles(fields, context, findings),
        config,
        devices: Vec::new(),
        storage_volumes: volumes::storage(fields, findings),
        roles: roles(fields, findings),
        boot_autostart: fields.flag("boot_autostart", findings),
        boot_priority: fields.integer("boot_priority", 0..=100, findings),
        snapshots_schedule: shaped(fields, "snapshots_schedule", SCHEDULE, findings),
        snapshots_expiry: shaped(fields, "snapshots_expiry", EXPIRY, findings),
        services: services::read(entry, fields, context.names, &mcp, findings),
        mcp,
        written_empty: fields.empty(&["config", "devices", "profiles", "services"]),
        name: name?,
    };
    check_conflicts(fields, &machine, findings);
    Some(MachineDraft {
        machine,
        at: entry.at,
        privileged,
        devices: placed,
    })
}

/// Reports a key of the machine and a key of its `config` that set the same Incus key to different values.
fn check_conflicts(fields: Fields<'_, '_>, machine: &Machine, findings: &mut Findings) {
    let Some(config) = fields.entry("config") else {
        return;
    };
    let mut own = machine.own_config();
    if machine.ephemeral {
        own.push(("ephemeral", PROTECTION, "false".to_owned()));
    }
    for (key, incus_key, value) in own {
        let in_config = machine.config.iter().find(|(name, _)| name == incus_key);
        let (Some(entry), Some((_, other)), Some(node)) =
            (fields.entry(key), in_config, value_of(config, incus_key))
        else {
            continue;
        };
        let is_flag = ["true", "false"].contains(&value.as_str());
        if *other == value || is_flag && is_true(other) == is_true(&value) {
            continue;
        }
        let message = format!(
            "`{incus_key}` is {} here, but {} by `{key}`",
            quote(other),
            quote(&value)
        );
        let help = format!("remove one: `{key}` is at {}", findings.short(entry.at));
        findings
            .error(Code::ConflictingKeys, node.at, message)
            .help(help);
    }
}

fn machine_name(entry: &Entry<'_>, findings: &mut Findings) -> Option<MachineName> {
    let text = field::text_key(entry, "the name of a machine", findings)?;
    check_reserved(text, "machine", entry.at, findings);
    name(text, entry.at, "such as `work-dev` or `web1`", findings)
}

fn warn_of_container(
    entry: &Entry<'_>,
    kind: MachineType,
    context: &MachineContext<'_>,
    findings: &mut Findings,
) {
    let low = [TrustLevel::Untrusted, TrustLevel::Disposable];
    let trust = context.trust.filter(|trust| low.contains(trust));
    if let (MachineType::Container, Some(trust)) = (kind, trust) {
        let message = format!(
            "{} is a container in the {} domain {}",
            quote(&entry.key.text),
            trust.as_str(),
            quote(context.domain)
        );
        findings
            .warning(Code::ContainerInUntrustedDomain, entry.at, message)
            .help("write `type: vm`: a container shares the host's kernel");
    }
}

fn address(
    fields: Fields<'_, '_>,
    context: &MachineContext<'_>,
    addresses: &mut HashMap<Ipv4Addr, At>,
    findings: &mut Findings,
) -> Option<Ipv4Addr> {
    const HELP: &str = "write four numbers from 0 to 255 separated by dots, without leading zeros or `/`, \
                        or remove `ip`";
    let Text { text, at } = fields.text_like("ip", || HELP.to_owned(), findings)?;
    let Ok(address) = text.parse::<Ipv4Addr>() else {
        let message = format!("{} is no IPv4 address", quote(text));
        let alone = text
            .split_once('/')
            .map(|(address, _)| address.parse::<Ipv4Addr>());
        findings
            .error(Code::InvalidAddress, at, message)
            .help(match alone {
                Some(Ok(address)) => format!("write it without `/` and what follows: `{address}`"),
                _ => HELP.to_owned(),
            });
        return None;
    };
    if let Some(first) = findings.earlier(addresses, address, at) {
        let message = format!("`{address}` is already taken");
        findings
            .error(Code::DuplicateAddress, at, message)
            .help(format!(
                "choose another address: the machine at {first} has this one"
            ));
    }
    if let Some(subnet) = context.subnet
        && let Err(fault) = network::check_address(address, subnet)
    {
        report_address(address, subnet, fault, at, findings);
    }
    Some(address)
}

fn report_address(
    address: Ipv4Addr,
    subnet: Ipv4Addr,
    fault: AddressFault,
    at: At,
    findings: &mut Findings,
) {
    let reserved = Code::ReservedAddress;
    let within = format!("subnet {subnet}/24");
    let (code, is) = match fault {
        AddressFault::Outside => (
            Code::AddressOutsideSubnet,
            format!("not in its domain's {within}"),
        ),
        AddressFault::Network => (reserved, format!("the address of the {within} itself")),
        AddressFault::Gateway => (reserved, format!("the gateway of the {within}")),
        AddressFault::Broadcast => (reserved, format!("the broadcast address of the {within}")),
    };
    let first = network::host(subnet, 1);
    let last = network::host(subnet, network::GATEWAY - 1);
    findings
        .error(code, at, format!("`{address}` is {is}"))
        .help(format!("choose one from {first} to {last}"));
}

/// Assigns machines without an address the first free ones, in file order.
fn give_addresses(
    subnet: Ipv4Addr,
    drafts: &mut [MachineDraft],
    addresses: &mut HashMap<Ipv4Addr, At>,
    findings: &mut Findings,
) {
    let mut next = AUTOMATIC;
    for draft in drafts.iter_mut().filter(|draft| draft.machine.ip.is_none()) {
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
        let (first, last) = AUTOMATIC.into_inner();
        findings
            .error(Code::NoAddressLeft, draft.at, message)
            .help(format!(
                "set `ip` for this machine, from .{} on: only .{first} to .{last} are assigned",
                last + 1
            ));
    }
}

fn profiles(
    fields: Fields<'_, '_>,
    context: &MachineContext<'_>,
    findings: &mut Findings,
) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut seen = HashSet::new();
    for item in fields.list("profiles", findings).unwrap_or_default() {
        let Some(Text { text, at }) = field::text_item(item, "the name of a profile", findings)
        else {
            continue;
        };
        if text != "default" && !context.profiles.contains_key(text) {
            let message = format!(
                "{} is not a profile of domain {}",
                quote(text),
                quote(context.domain)
            );
            findings
                .error(Code::UnknownProfile, at, message)
                .help("declare it in the domain's `profiles`, or take it off the list");
        } else if !seen.insert(text) {
            let message = format!("profile {} is listed twice", quote(text));
            findings
                .error(Code::DuplicateItem, at, message)
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
    let (fits, rule) = shape;
    let Text { text, at } = fields.text_like(key, || rule.to_owned(), findings)?;
    if !fits(text) {
        let message = format!("{} is not a valid value for `{key}`", quote(text));
        findings.error(Code::InvalidValue, at, message).help(rule);
    }
    Some(text.to_owned())
}

/// Returns whether a string consists of five fields on one line, separated by spaces or tabs.
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

/// Returns whether a string consists of digits and a unit.
fn is_expiry(text: &str) -> bool {
    let digits = text.strip_suffix(['d', 'h', 'm']).unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}
