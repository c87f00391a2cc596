//! Tests the models of valid files, and large or hostile files.

use std::fmt::Write as _;

use serde_json::json;

use super::{EXAMPLE, found, good};
use crate::diagnostic::Faults;
use crate::infra::{Addressing, Device, Infra, MachineType, parse};

fn infra(text: &str) -> Infra {
    good(text).infra
}

fn devices(infra: &Infra, machine: &str) -> Vec<String> {
    let (_, machine) = infra.machine(machine).unwrap();
    let line = |device: &Device| {
        let keys: Vec<_> = device
            .keys
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        format!("{} {}", device.name, keys.join(" "))
    };
    machine.devices.iter().map(line).collect()
}

#[test]
fn zones_give_subnets_by_name_and_addresses_by_place() {
    let infra = infra(
        "global: {addressing: {zone_base: 50}}\ndomains:\n  \
         z: {machines: {z1: {}, z2: {ip: 10.70.1.1}, z3: {}, z4: {ip: 10.70.1.3}, z5: {}}}\n  \
         a: {}\n  x: {trust_level: admin, subnet_id: 7, machines: {x1: {}}}\n",
    );
    let subnets: Vec<_> = infra
        .domains
        .iter()
        .map(|domain| {
            (
                domain.name.as_str(),
                domain.subnet_id,
                domain.network.subnet.to_string(),
            )
        })
        .collect();
    assert_eq!(
        subnets,
        [
            ("z", 1, "10.70.1.0".to_owned()),
            ("a", 0, "10.70.0.0".to_owned()),
            ("x", 7, "10.50.7.0".to_owned()),
        ]
    );
    let addresses: Vec<_> = infra
        .machines()
        .map(|(_, machine)| machine.ip.unwrap().to_string())
        .collect();
    assert_eq!(
        addresses,
        [
            "10.70.1.2",
            "10.70.1.1",
            "10.70.1.4",
            "10.70.1.3",
            "10.70.1.5",
            "10.50.7.1"
        ]
    );
    let Addressing::Zones { written } = &infra.global.addressing else {
        panic!("zones")
    };
    assert_eq!(*written, *json!({"zone_base": 50}).as_object().unwrap());
}

#[test]
fn the_hundredth_machine_without_an_address_gets_none() {
    let mut text = "global: {addressing: {}}\ndomains:\n  a:\n    machines:\n".to_owned();
    for number in 1..=100 {
        writeln!(text, "      m{number}: {{}}").unwrap();
    }
    assert_eq!(found(&text), ["no-address-left 104:7 m100"]);
}

#[test]
fn a_zone_holds_255_domains() {
    let mut text = "global: {addressing: {}}\ndomains:\n".to_owned();
    for number in 0..300 {
        writeln!(text, "  d{number:03}: {{}}").unwrap();
    }
    let found = found(&text);
    assert_eq!(found.len(), 45);
    assert_eq!(found.first().unwrap(), "zone-overflow 258:3 d255");
}

#[test]
fn volumes_come_before_the_users_devices_and_a_machine_overrides_its_domain() {
    let infra = infra(
        "domains:\n  pro:\n    subnet_id: 0\n    machines:\n      pro-dev:\n        \
         persistent_data: {conf: {path: /etc/app, readonly: true}}\n        \
         devices: {own: {type: nic, mtu: 1500, security.mac_filtering: True}}\n      other: {}\n\
         shared_volumes:\n  docs: {consumers: {pro: ro, pro-dev: rw}}\n  \
         raw: {source: /r, path: /raw, shift: false, consumers: {other: ro}}\n",
    );
    assert_eq!(
        devices(&infra, "pro-dev"),
        [
            "sv-docs type=disk source=/srv/anklume/shares/docs path=/shared/docs shift=true",
            "pd-conf type=disk source=/srv/anklume/data/pro/pro-dev/conf path=/etc/app shift=true readonly=true",
            "own type=nic mtu=1500 security.mac_filtering=true",
        ]
    );
    assert_eq!(
        devices(&infra, "other"),
        [
            "sv-docs type=disk source=/srv/anklume/shares/docs path=/shared/docs shift=true readonly=true",
            "sv-raw type=disk source=/r path=/raw readonly=true",
        ]
    );
}

#[test]
fn configuration_values_are_text_as_it_is_written() {
    let infra = infra(
        "domains: {a: {subnet_id: 0, machines: {m: {config: \
         {limits.cpu: 4, limits.memory: 1.10, a: TRUE, b: \"yes\", c: 0x10, d: no}}}}}",
    );
    let (_, machine) = infra.machine("m").unwrap();
    let pairs: Vec<_> = machine
        .config
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let expected = [
        ("limits.cpu", "4"),
        ("limits.memory", "1.10"),
        ("a", "true"),
        ("b", "yes"),
        ("c", "0x10"),
        ("d", "no"),
    ];
    assert_eq!(pairs, expected);
}

#[test]
fn exclusive_ai_access_adds_its_policy_and_a_firewall_its_machine() {
    let text = "global: {ai_access_policy: exclusive, ai_access_default: pro, firewall_mode: vm}\n\
                domains: {ai-tools: {subnet_id: 1}, pro: {subnet_id: 2}, anklume: {subnet_id: 0}}\n";
    let infra = infra(text);
    assert_eq!(
        infra.network_policies,
        [json!({
            "description": "AI access: pro -> ai-tools (auto-created)",
            "from": "pro", "to": "ai-tools", "ports": "all", "bidirectional": true,
        })]
    );
    let (domain, firewall) = infra.machine("anklume-firewall").unwrap();
    assert_eq!(domain.name.as_str(), "anklume");
    assert_eq!(firewall.kind, MachineType::VirtualMachine);
    assert_eq!(firewall.ip.unwrap().to_string(), "10.100.0.253");
    let keys: Vec<_> = infra
        .unapplied
        .iter()
        .map(|unapplied| unapplied.key)
        .collect();
    assert_eq!(keys, ["global.firewall_mode"]);
}

#[test]
fn the_example_says_what_anklume_does_not_apply() {
    let infra = infra(EXAMPLE);
    let keys: Vec<_> = infra
        .unapplied
        .iter()
        .map(|unapplied| unapplied.key)
        .collect();
    let expected = [
        "global.default_connection",
        "global.default_user",
        "global.nesting_prefix",
        "global.gpu_policy",
        "global.firewall_mode",
        "global.ai_vram_flush",
        "global.resource_policy",
        "weight",
        "gpu",
        "roles",
        "ai_provider",
        "ai_sanitize",
        "file_portal",
        "propagate",
    ];
    assert_eq!(keys, expected);
    let (_, signer) = infra.machine("vault-signer").unwrap();
    assert_eq!(signer.mcp.run_as.as_deref(), Some("signer"));
    assert!(
        signer
            .services
            .iter()
            .any(|service| service.with.contains_key("key_id"))
    );
}

#[test]
fn a_disabled_domain_keeps_its_subnet_and_has_no_machines() {
    let infra =
        infra("domains: {a: {subnet_id: 0, enabled: false, machines: {m: {}}}, b: {subnet_id: 1}}");
    assert_eq!(infra.machines().count(), 0);
    assert!(infra.machine("m").is_none());
    assert_eq!(infra.domains.len(), 2);
}

/// Creates a file with this many machines, 40 per domain, each with two services for five consumers.
fn large(machines: usize) -> String {
    let mut text = "global: {addressing: {zone_base: 100}}\ndomains:\n".to_owned();
    let levels = ["admin", "trusted", "semi-trusted"];
    for number in 0..machines {
        if number % 40 == 0 {
            let domain = number / 40;
            let level = levels.get(domain % levels.len()).unwrap();
            writeln!(
                text,
                "  d{domain}:\n    trust_level: {level}\n    machines:"
            )
            .unwrap();
        }
        writeln!(
            text,
            "      machine-{number}:\n        type: lxc\n        services:"
        )
        .unwrap();
        for service in ["file_sign", "clipboard"] {
            writeln!(
                text,
                "          - name: {service}\n            tool: gpg_sign"
            )
            .unwrap();
            let consumers: Vec<_> = (1..=5)
                .map(|step| format!("machine-{}", (number + step * 7) % machines))
                .collect();
            writeln!(text, "            consumers: [{}]", consumers.join(", ")).unwrap();
        }
    }
    text
}

#[test]
fn ten_thousand_machines_are_read() {
    let text = large(10_000);
    let infra = infra(&text);
    assert_eq!(infra.machines().count(), 10_000);
    assert!(infra.machine("machine-9999").is_some());
}

#[test]
fn what_is_deep_or_many_is_refused() {
    let deep = format!("x: {}{}", "[".repeat(60), "]".repeat(60));
    assert_eq!(found(&deep), ["too-deep 1:35 ["]);
    let deeper = "[".repeat(1000) + &"]".repeat(1000);
    assert!(found(&deeper).first().unwrap().starts_with("too-deep 1:"));
    let line = |depth| " ".repeat(depth) + "a:\n";
    let block: String = (0..100).map(line).collect();
    assert!(found(&block).first().unwrap().starts_with("too-deep "));
    let many = format!("domains: [{}]", "a,".repeat(2_100_000));
    assert!(
        found(&many)
            .first()
            .unwrap()
            .starts_with("too-many-values 1:")
    );
}

#[test]
fn more_findings_than_anybody_reads_are_counted() {
    let mut text = String::new();
    for number in 0..11_000 {
        writeln!(text, "k{number}: 1").unwrap();
    }
    let Err(Faults(faults)) = parse("infra.yml", &text) else {
        panic!("read")
    };
    assert_eq!(faults.len(), 10_001);
    let last = faults.last().unwrap();
    assert_eq!(last.code, "too-many-findings");
    assert_eq!(last.message, "1001 more findings are not shown");
}
