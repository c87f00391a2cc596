//! Checks `network_policies` and the `global` keys that concern all domains: AI access, firewall machine, GPUs.
//!
//! Policies are also passed to Ansible as written.

use std::net::Ipv4Addr;
use std::num::NonZero;

use serde_json::{Value, json};

use super::global::GlobalSettings;
use super::{DomainDraft, MachineDraft, Names};
use crate::diagnostic::quote;
use crate::infra::field::{self, Fields, Text};
use crate::infra::findings::{At, Code, Findings};
use crate::infra::network::{self, FIREWALL};
use crate::infra::policy::{NetworkEnd, NetworkPolicy, Protocol};
use crate::infra::raw::{Node, NodeKind, Reading};
use crate::infra::{Machine, MachineType, McpUsers, NIC};
use crate::name::MachineName;

const KEYS: [&str; 6] = [
    "description",
    "from",
    "to",
    "ports",
    "protocol",
    "bidirectional",
];

/// The domain that `ai_access_policy` protects.
const AI_DOMAIN: &str = "ai-tools";
/// The firewall machine's domain, and its names: the current one and an older one.
const FIREWALL_DOMAIN: &str = "anklume";
const FIREWALL_NAMES: [&str; 2] = ["anklume-firewall", "sys-firewall"];

/// Returns the policies as written, plus any policy that exclusive AI access adds, and those of them with an effect.
pub(super) fn read(
    policies: &[&Node<'_>],
    settings: &GlobalSettings,
    names: &Names<'_>,
    drafts: &[DomainDraft],
    findings: &mut Findings,
) -> (Vec<Value>, Vec<NetworkPolicy>) {
    let (mut written, mut effective) = (Vec::new(), Vec::new());
    let mut to_ai = 0;
    for node in policies {
        let Some(fields) = Fields::of_item(node, "a policy", findings) else {
            continue;
        };
        fields.known("a policy", &KEYS, findings);
        let [from, to] = ["from", "to"].map(|key| end(fields, key, names, drafts, findings));
        let ports = ports(fields, findings);
        let protocol = fields.choice("protocol", &["tcp", "udp"], findings);
        let bidirectional = fields.flag("bidirectional", findings);
        let policy = field::json(node);
        let bidirectional = bidirectional.unwrap_or_default();
        let domain_of = |key: &str| names.domain_of(policy.get(key)?.as_str()?);
        let opens_ai = match ["from", "to"].map(|key| domain_of(key) == Some(AI_DOMAIN)) {
            [false, to] => to,
            [true, to] => bidirectional && !to,
        };
        to_ai += usize::from(opens_ai);
        written.push(policy);
        let (Some(from), Some(to), Some(ports)) = (from, to, ports) else {
            continue;
        };
        let protocols = Protocol::ALL.into_iter();
        let protocols = protocols.filter(|one| protocol.is_none_or(|it| it == one.as_str()));
        let protocols = protocols.collect();
        if let Some(policy) = effect(fields.at, [from, to], ports, findings) {
            effective.push(NetworkPolicy {
                protocols,
                bidirectional,
                ..policy
            });
        }
    }
    if let Some((policy, effect)) = ai_access(settings, to_ai, names, drafts, findings) {
        written.push(policy);
        effective.extend(effect);
    }
    (written, effective)
}

/// An end of a policy.
enum PolicyEnd {
    Host,
    /// Of an enabled domain.
    Known(NetworkEnd),
    /// Of a disabled domain.
    Disabled,
}

/// Returns a policy's effect; warns if it has none.
fn effect(
    at: At,
    ends: [PolicyEnd; 2],
    ports: PolicyPorts,
    findings: &mut Findings,
) -> Option<NetworkPolicy> {
    let mut warn = |message: &str, help: &str| {
        let warning = findings.warning(Code::PolicyWithoutEffect, at, message);
        warning.help(help);
    };
    let ports = match ports {
        PolicyPorts::All => None,
        PolicyPorts::Some(ports) => Some(ports),
        PolicyPorts::None => {
            let help = "add `ports:` with a list of numbers, or `ports: all`";
            warn("this policy names no ports, so it changes nothing", help);
            return None;
        }
    };
    let (from, to) = match ends {
        [PolicyEnd::Known(from), PolicyEnd::Known(to)] => (from, to),
        [PolicyEnd::Disabled, _] | [_, PolicyEnd::Disabled] => return None,
        [PolicyEnd::Host, _] | [_, PolicyEnd::Host] => {
            let message =
                "this policy changes nothing: `apply` leaves the host's own traffic alone";
            warn(message, "remove it, or keep it for Ansible");
            return None;
        }
    };
    if from.domain == to.domain {
        let message =
            "this policy changes nothing: the machines of a domain reach each other anyway";
        warn(message, "remove it, or keep it for Ansible");
        return None;
    }
    Some(NetworkPolicy {
        from,
        to,
        ports,
        protocols: Vec::new(),
        bidirectional: false,
    })
}

fn end(
    fields: Fields<'_, '_>,
    key: &str,
    names: &Names<'_>,
    drafts: &[DomainDraft],
    findings: &mut Findings,
) -> Option<PolicyEnd> {
    const HELP: &str = "name a domain, a machine, or `host`";
    if fields.entry(key).is_none() {
        let help = format!("add `{key}:` with the name of a domain or a machine, or `host`");
        findings.missing(fields.at, "the policy", key, help);
    }
    let Text { text, at } = fields.text(key, findings)?;
    if text == "host" {
        return Some(PolicyEnd::Host);
    }
    let Some(home) = names.domain_of(text) else {
        names.unknown(text, at, HELP, findings);
        return None;
    };
    if names.is_disabled(home) {
        let message = format!("domain {} is disabled", quote(home));
        findings
            .warning(Code::DisabledDomain, at, message)
            .help("enable the domain, or remove the policy: until then, it has no effect");
        return Some(PolicyEnd::Disabled);
    }
    // A domain or machine with a fault of its own has no draft.
    let mut all = drafts.iter();
    let draft = all.find(|draft| draft.domain.name.as_str() == home)?;
    let name = draft.domain.name.clone();
    if names.domains.contains_key(text) {
        return Some(PolicyEnd::Known(NetworkEnd {
            domain: name,
            machine: None,
        }));
    }
    let mut machines = draft.machines.iter();
    let machine = machines.find(|draft| draft.machine.name.as_str() == text)?;
    let Some(address) = address(draft, machine) else {
        let domain = quote(home);
        let message = format!("{} has no fixed address in {domain}", quote(text));
        let has_nic = machine.devices.iter().any(|one| one.device.name == NIC);
        let help = if has_nic {
            format!("give its device `{NIC}` an `ipv4.address` in the network of {domain}")
        } else {
            "give the machine an `ip`: a policy lets through what one address sends to another"
                .to_owned()
        };
        findings.error(Code::PolicyAddress, at, message).help(help);
        return None;
    };
    Some(PolicyEnd::Known(NetworkEnd {
        domain: name,
        machine: Some((machine.machine.name.clone(), address)),
    }))
}

/// Returns the fixed address of a machine in its domain's network: that of its own network device, if it declares one.
fn address(domain: &DomainDraft, draft: &MachineDraft) -> Option<Ipv4Addr> {
    let network = &domain.domain.network;
    let mut own = draft.devices.iter();
    let Some(own) = own.find(|one| one.device.name == NIC) else {
        return draft.machine.ip;
    };
    let is_domain = |(name, _): (&str, At)| name == network.name.as_str();
    let address: Ipv4Addr = own.get("ipv4.address")?.0.parse().ok()?;
    let is_inside = address.octets().get(..3) == network.subnet.octets().get(..3);
    (["network", "parent"]
        .iter()
        .any(|key| own.get(key).is_some_and(is_domain))
        && is_inside)
        .then_some(address)
}

/// The ports of a policy.
enum PolicyPorts {
    All,
    Some(Vec<u16>),
    None,
}

/// Reads the ports of a policy; `None` if they are faulty.
fn ports(fields: Fields<'_, '_>, findings: &mut Findings) -> Option<PolicyPorts> {
    if fields.entry("ports").is_none() {
        return Some(PolicyPorts::None);
    }
    let entry = fields.filled("ports", findings)?;
    let items = match &entry.value.kind {
        NodeKind::Scalar(scalar) if scalar.reading() == Reading::Text && scalar.text == "all" => {
            return Some(PolicyPorts::All);
        }
        NodeKind::List(items) => items,
        _ => {
            field::wrong_entry(entry, "a list", findings);
            return None;
        }
    };
    let ports: Vec<Option<u16>> = items
        .iter()
        .map(|item| {
            let port = match &item.kind {
                NodeKind::Scalar(scalar) if scalar.reading() == Reading::Integer => {
                    scalar.text.parse::<NonZero<u16>>().ok()
                }
                _ => None,
            };
            if port.is_none() {
                findings
                    .error(Code::InvalidValue, item.at, "this is not a port")
                    .help(
                        "write numbers from 1 to 65535, one by one and without quotes, or `ports: all`",
                    );
            }
            port.map(NonZero::get)
        })
        .collect();
    let ports: Vec<u16> = ports.into_iter().collect::<Option<_>>()?;
    Some(if ports.is_empty() {
        PolicyPorts::None
    } else {
        PolicyPorts::Some(ports)
    })
}

/// Checks the requirements of `ai_access_policy: exclusive`; returns the policy to add if none leads to the AI domain,
/// as written and as its effect.
fn ai_access(
    settings: &GlobalSettings,
    to_ai: usize,
    names: &Names<'_>,
    drafts: &[DomainDraft],
    findings: &mut Findings,
) -> Option<(Value, Option<NetworkPolicy>)> {
    let at = settings.ai_exclusive?;
    if !names.domains.contains_key(AI_DOMAIN) {
        let message = format!("exclusive AI access needs a domain `{AI_DOMAIN}`");
        findings
            .error(Code::AiAccess, at, message)
            .help("declare the domain, or write `ai_access_policy: open`");
    }
    if to_ai > 1 {
        let message =
            format!("{to_ai} policies lead to `{AI_DOMAIN}`, but exclusive access allows only one");
        findings
            .error(Code::AiAccess, at, message)
            .help("keep one of these policies, or write `ai_access_policy: open`");
    }
    let Some((default, place)) = &settings.ai_default else {
        let message = "exclusive AI access needs `ai_access_default`";
        findings.error(Code::AiAccess, at, message).help(
            "add `ai_access_default:` with the domain that may use the AI tools, \
                 or write `ai_access_policy: open`",
        );
        return None;
    };
    if default == AI_DOMAIN || !names.domains.contains_key(default.as_str()) {
        let message = format!(
            "{} is not a domain that could use `{AI_DOMAIN}`",
            quote(default)
        );
        findings
            .error(Code::AiAccess, *place, message)
            .help("name another domain that is declared, or write `ai_access_policy: open`");
        return None;
    }
    if to_ai > 0 {
        return None;
    }
    let policy = json!({
        "description": format!("AI access: {default} -> {AI_DOMAIN} (auto-created)"),
        "from": default,
        "to": AI_DOMAIN,
        "ports": "all",
        "bidirectional": true,
    });
    let end = |name: &str| {
        let mut enabled = drafts.iter().map(|draft| &draft.domain);
        let domain = enabled.find(|domain| domain.enabled && domain.name.as_str() == name)?;
        Some(NetworkEnd {
            domain: domain.name.clone(),
            machine: None,
        })
    };
    let ends = end(default).zip(end(AI_DOMAIN));
    let effect = ends.map(|(from, to)| NetworkPolicy {
        from,
        to,
        ports: None,
        protocols: Protocol::ALL.to_vec(),
        bidirectional: true,
    });
    Some((policy, effect))
}

/// Adds the machine of `firewall_mode: vm` to the domain `anklume`, unless one of its names is declared.
pub(super) fn add_firewall(
    settings: &GlobalSettings,
    drafts: &mut [DomainDraft],
    names: &Names<'_>,
    findings: &mut Findings,
) {
    let Some(at) = settings.firewall_vm else {
        return;
    };
    if FIREWALL_NAMES
        .iter()
        .any(|name| names.machines.contains_key(name))
    {
        return;
    }
    let [name, _] = FIREWALL_NAMES;
    let home = drafts
        .iter_mut()
        .find(|draft| draft.domain.name.as_str() == FIREWALL_DOMAIN);
    let (Some(draft), Ok(name), Some(place)) =
        (home, name.parse::<MachineName>(), findings.place(at))
    else {
        if !names.domains.contains_key(FIREWALL_DOMAIN) {
            let message = format!("a firewall machine needs a domain `{FIREWALL_DOMAIN}`");
            findings
                .error(Code::FirewallMode, at, message)
                .help("declare the domain, or write `firewall_mode: host`");
        }
        return;
    };
    let ip = network::host(draft.domain.network.subnet, FIREWALL);
    if let Some(taken) = draft.machines.iter().find(|m| m.machine.ip == Some(ip)) {
        let message = format!("`{ip}` is the firewall machine's address");
        findings
            .error(Code::DuplicateAddress, taken.at, message)
            .help("give the machine another address, or write `firewall_mode: host`");
    }
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let machine = Machine {
        name,
        ip_place: None,
        os_image_place: None,
        place,
        kind: MachineType::VirtualMachine,
        description: "Centralized firewall VM (auto-created by generator)".to_owned(),
        ip: Some(ip),
        os_image: settings.global.default_os_image.clone(),
        ephemeral: false,
        gpu: None,
        profiles: Vec::new(),
        config: vec![pair("limits.cpu", "2"), pair("limits.memory", "2GiB")],
        devices: Vec::new(),
        storage_volumes: None,
        roles: Some(vec![json!("base_system"), json!("firewall_router")]),
        boot_autostart: None,
        boot_priority: None,
        snapshots_schedule: None,
        snapshots_expiry: None,
        mcp: McpUsers::default(),
        services: Vec::new(),
        written_empty: Vec::new(),
    };
    draft.machines.push(MachineDraft {
        machine,
        at,
        privileged: None,
        devices: Vec::new(),
    });
}

/// Checks that at most one machine uses the GPU, unless `gpu_policy` is `shared`.
pub(super) fn check_gpus(
    settings: &GlobalSettings,
    drafts: &[DomainDraft],
    findings: &mut Findings,
) {
    let users: Vec<_> = drafts
        .iter()
        .flat_map(|domain| domain.machines.iter().map(move |machine| (domain, machine)))
        .filter(|(domain, draft)| uses_gpu(domain, &draft.machine))
        .map(|(_, draft)| draft)
        .collect();
    let (Some(first), Some(second)) = (users.first(), users.get(1)) else {
        return;
    };
    let first = quote(first.machine.name.as_str());
    let count = users.len();
    if settings.gpus_shared {
        let message = format!("{count} machines share the GPU; the first is {first}");
        findings
            .warning(Code::SharedGpu, second.at, message)
            .help("let only one machine use it, unless the machines may see each other's memory, as they can on most GPUs");
    } else {
        let message = format!("{count} machines use the GPU; the first is {first}");
        findings
            .error(Code::SeveralGpus, second.at, message)
            .help("let only one machine use it, or set `gpu_policy: shared` in `global`");
    }
}

fn uses_gpu(domain: &DomainDraft, machine: &Machine) -> bool {
    let profiles = machine.profiles.iter();
    machine.gpu == Some(true)
        || profiles
            .filter_map(|name| domain.profile(name))
            .any(|profile| profile.devices.iter().any(|device| device.is("gpu")))
}
