//! Checks `network_policies` and the `global` keys that concern all domains: AI access, firewall machine, GPUs.
//!
//! Policies are checked here and passed to Ansible, which applies them.

use std::num::NonZero;

use serde_json::{Value, json};

use super::global::GlobalSettings;
use super::{DomainDraft, MachineDraft, Names};
use crate::diagnostic::quote;
use crate::infra::field::{self, Fields, Text};
use crate::infra::findings::{Code, Findings};
use crate::infra::network::{self, FIREWALL};
use crate::infra::raw::{Node, NodeKind, Reading};
use crate::infra::{Machine, MachineType, McpUsers};
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

/// Returns the policies as written, plus any policy that exclusive AI access adds.
pub(super) fn read(
    policies: &[&Node<'_>],
    settings: &GlobalSettings,
    names: &Names<'_>,
    findings: &mut Findings,
) -> Vec<Value> {
    if let Some(first) = policies.first() {
        findings.unapplied("network_policies", first.at);
    }
    let mut written = Vec::new();
    let mut to_ai = 0;
    for node in policies {
        let Some(fields) = Fields::of_item(node, "a policy", findings) else {
            continue;
        };
        fields.known("a policy", &KEYS, findings);
        for key in ["from", "to"] {
            end(fields, key, names, findings);
        }
        ports(fields, findings);
        fields.choice("protocol", &["tcp", "udp"], findings);
        fields.flag("bidirectional", findings);
        let policy = field::json(node);
        if policy.get("to").is_some_and(|to| to == AI_DOMAIN) {
            to_ai += 1;
        }
        written.push(policy);
    }
    written.extend(ai_access(settings, to_ai, names, findings));
    written
}

fn end(fields: Fields<'_, '_>, key: &str, names: &Names<'_>, findings: &mut Findings) {
    const HELP: &str = "name a domain, a machine, or `host`";
    if fields.entry(key).is_none() {
        let help = format!("add `{key}:` with the name of a domain or a machine, or `host`");
        findings.missing(fields.at, "the policy", key, help);
    }
    let Some(Text { text, at }) = fields.text(key, findings) else {
        return;
    };
    if text == "host" {
        return;
    }
    let domain = names.domains.get_key_value(text).map(|(name, _)| *name);
    let home = || names.machines.get(text).map(|home| home.domain);
    let Some(domain) = domain.or_else(home) else {
        names.unknown(text, at, HELP, findings);
        return;
    };
    if names.is_disabled(domain) {
        let message = format!("domain {} is disabled", quote(domain));
        findings
            .warning(Code::DisabledDomain, at, message)
            .help("enable the domain, or remove the policy: until then, it has no effect");
    }
}

fn ports(fields: Fields<'_, '_>, findings: &mut Findings) {
    let Some(entry) = fields.filled("ports", findings) else {
        return;
    };
    let items = match &entry.value.kind {
        NodeKind::Scalar(scalar) if scalar.reading() == Reading::Text && scalar.text == "all" => {
            return;
        }
        NodeKind::List(items) => items,
        _ => {
            field::wrong_entry(entry, "a list", findings);
            return;
        }
    };
    for item in items {
        let is_port = matches!(&item.kind, NodeKind::Scalar(scalar)
            if scalar.reading() == Reading::Integer && scalar.text.parse::<NonZero<u16>>().is_ok());
        if !is_port {
            findings
                .error(Code::InvalidValue, item.at, "this is not a port")
                .help(
                    "write numbers from 1 to 65535, one by one and without quotes, or `ports: all`",
                );
        }
    }
}

/// Checks the requirements of `ai_access_policy: exclusive`; returns the policy to add if none leads to the AI domain.
fn ai_access(
    settings: &GlobalSettings,
    to_ai: usize,
    names: &Names<'_>,
    findings: &mut Findings,
) -> Option<Value> {
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
    (to_ai == 0).then(|| {
        json!({
            "description": format!("AI access: {default} -> {AI_DOMAIN} (auto-created)"),
            "from": default,
            "to": AI_DOMAIN,
            "ports": "all",
            "bidirectional": true,
        })
    })
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
