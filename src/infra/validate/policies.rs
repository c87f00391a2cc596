//! `network_policies`, and what `global` asks of the whole: exclusive AI access, the firewall machine, GPUs.
//!
//! None of it is anklume's to apply; it is checked and handed to Ansible.

use serde_json::{Value, json};

use super::global::GlobalSettings;
use super::{DomainDraft, MachineDraft, Names};
use crate::diagnostic::quote;
use crate::infra::code::Code;
use crate::infra::field::{self, Fields, Text};
use crate::infra::findings::Findings;
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

/// The domain that `ai_access_policy` is about.
const AI_DOMAIN: &str = "ai-tools";
/// The domain that the firewall machine is in, and its names: today's and an older one.
const FIREWALL_DOMAIN: &str = "anklume";
const FIREWALL_NAMES: [&str; 2] = ["anklume-firewall", "sys-firewall"];

/// The policies as written, and the one that exclusive AI access adds.
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
    if fields.entry(key).is_none() {
        findings
            .error(
                Code::MissingKey,
                fields.at,
                format!("the policy has no `{key}`"),
            )
            .help("name a domain, a machine, or `host`");
    }
    let Some(Text { text, at }) = fields.text(key, findings) else {
        return;
    };
    let home = names.machines.get(text).map(|home| home.domain);
    let domain = names.domains.contains_key(text).then_some(text).or(home);
    if text == "host" {
        return;
    }
    let Some(domain) = domain else {
        let all = names.domains.keys().copied().chain(names.machine_names());
        let near = findings.closest(text, all);
        let files = findings.this_file();
        let help = match near {
            Some(near) => format!("did you mean {}?", quote(near)),
            None => "name a domain, a machine, or `host`".to_owned(),
        };
        findings
            .error(
                Code::UnknownName,
                at,
                format!(
                    "{} is neither a domain nor a machine of {files}",
                    quote(text)
                ),
            )
            .help(help);
        return;
    };
    if names.is_disabled(domain) {
        findings
            .warning(
                Code::DisabledDomain,
                at,
                format!("domain {} is disabled", quote(domain)),
            )
            .help("the policy has no effect until the domain is enabled");
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
        let port = match &item.kind {
            NodeKind::Scalar(scalar) if scalar.reading() == Reading::Integer => {
                scalar.text.parse::<u16>().ok().filter(|port| *port > 0)
            }
            _ => None,
        };
        if port.is_none() {
            findings
                .error(Code::InvalidValue, item.at, "this is no port")
                .help("numbers from 1 to 65535, or `ports: all`");
        }
    }
}

/// What `ai_access_policy: exclusive` needs, and the policy that it adds when none leads to the AI domain.
fn ai_access(
    settings: &GlobalSettings,
    to_ai: usize,
    names: &Names<'_>,
    findings: &mut Findings,
) -> Option<Value> {
    let at = settings.ai_access.exclusive?;
    if !names.domains.contains_key(AI_DOMAIN) {
        findings
            .error(
                Code::AiAccess,
                at,
                format!("exclusive AI access needs a domain `{AI_DOMAIN}`"),
            )
            .help("declare it, or write `ai_access_policy: open`");
    }
    if to_ai > 1 {
        findings
            .error(
                Code::AiAccess,
                at,
                format!("{to_ai} policies lead to `{AI_DOMAIN}`, and exclusive access allows one"),
            )
            .help("keep one of them, or write `ai_access_policy: open`");
    }
    let Some((default, place)) = &settings.ai_access.default else {
        findings
            .error(
                Code::AiAccess,
                at,
                "exclusive AI access needs `ai_access_default`",
            )
            .help("name the domain that may use the AI tools");
        return None;
    };
    if default == AI_DOMAIN || !names.domains.contains_key(default.as_str()) {
        findings
            .error(
                Code::AiAccess,
                *place,
                format!(
                    "{} is not a domain that could use `{AI_DOMAIN}`",
                    quote(default)
                ),
            )
            .help("name another domain of this file");
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

/// `firewall_mode: vm` adds a machine to the domain `anklume`, unless there is one of its names.
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
            findings
                .error(
                    Code::FirewallMode,
                    at,
                    format!("a firewall machine needs a domain `{FIREWALL_DOMAIN}`"),
                )
                .help("declare it, or write `firewall_mode: host`");
        }
        return;
    };
    let ip = network::host(draft.domain.network.subnet, FIREWALL);
    if let Some(taken) = draft.machines.iter().find(|m| m.machine.ip == Some(ip)) {
        findings
            .error(
                Code::DuplicateAddress,
                taken.at,
                format!("`{ip}` is the firewall machine's"),
            )
            .help("give the machine another address, or write `firewall_mode: host`");
    }
    let image = settings.default_image.as_deref();
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let machine = Machine {
        name,
        place,
        kind: MachineType::VirtualMachine,
        description: "Centralized firewall VM (auto-created by generator)".to_owned(),
        ip: Some(ip),
        os_image: image.unwrap_or(crate::infra::DEFAULT_IMAGE).to_owned(),
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
    };
    draft.machines.push(MachineDraft {
        machine,
        at,
        privileged: None,
        devices: Vec::new(),
    });
}

/// One machine has the GPU, unless `gpu_policy: shared`.
pub(super) fn check_gpus(
    settings: &GlobalSettings,
    drafts: &[DomainDraft],
    findings: &mut Findings,
) {
    let mut users = Vec::new();
    for domain in drafts {
        let with_gpu = |name: &str| {
            let profile = domain.profile(name);
            profile.is_some_and(|profile| profile.devices.iter().any(|device| device.is("gpu")))
        };
        let machines = domain.machines.iter().filter(|draft| {
            draft.machine.gpu == Some(true) || draft.machine.profiles.iter().any(|p| with_gpu(p))
        });
        users.extend(machines);
    }
    let (Some(first), Some(second)) = (users.first(), users.get(1)) else {
        return;
    };
    let first = quote(first.machine.name.as_str());
    let count = users.len();
    if settings.gpus_shared {
        findings
            .warning(
                Code::SharedGpu,
                second.at,
                format!("{count} machines share the GPU, the first is {first}"),
            )
            .help("on most GPUs they see each other's memory");
    } else {
        findings
            .error(
                Code::SeveralGpus,
                second.at,
                format!("{count} machines use the GPU, the first is {first}"),
            )
            .help("one machine alone, or `gpu_policy: shared` in `global`");
    }
}
