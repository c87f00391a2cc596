//! Tests the top level of the file and `global`.
//!
//! Each case is a file and all its findings: code, line:column, marked text.

use super::{Case, check, found};

const CASES: &[Case] = &[
        (
            "domains:",
            &[
                "empty-value 1:1 domains",
            ],
        ),
        (
            "domains: []",
            &[
                "wrong-type 1:10 [",
            ],
        ),
        (
            "domains: {}",
            &[
            ],
        ),
        (
            "domians: {}",
            &[
                "warning unknown-key 1:1 domians",
                "missing-key 1:1 domians",
            ],
        ),
        (
            "services: []
domains: {a: {subnet_id: 0}}",
            &[
                "unknown-key 1:1 services",
            ],
        ),
        (
            "global:
domains: {a: {subnet_id: 0}}",
            &[
                "empty-value 1:1 global",
            ],
        ),
        (
            "global: []
domains: {a: {subnet_id: 0}}",
            &[
                "wrong-type 1:9 [",
            ],
        ),
        (
            "project_name: 5
domains: {a: {subnet_id: 0}}",
            &[
                "wrong-type 1:15 5",
            ],
        ),
        (
            r#"project_name: ""
domains: {a: {subnet_id: 0}}"#,
            &[
                r#"invalid-name 1:15 """#,
            ],
        ),
        (
            r#"project_name: "a\nb"
domains: {a: {subnet_id: 0}}"#,
            &[
                r#"invalid-name 1:15 "a\nb""#,
            ],
        ),
        (
            "global: {base_subnet: 10.100}
domains: {a: {subnet_id: 0}}",
            &[
                "wrong-type 1:23 10.100",
            ],
        ),
        (
            "global: {base_subnet: banana}
domains: {a: {subnet_id: 0}}",
            &[
                "invalid-subnet 1:23 banana",
            ],
        ),
        (
            r#"global: {base_subnet: "10.256"}
domains: {a: {subnet_id: 0}}"#,
            &[
                r#"invalid-subnet 1:23 "10.256""#,
            ],
        ),
        (
            "global: {addressing: true}
domains: {a: {}}",
            &[
                "wrong-type 1:22 true",
            ],
        ),
        (
            "global: {addressing: {base_octet: 11, zone_base: 246, zone_step: 0, x: 1}}
domains: {a: {}}",
            &[
                "out-of-range 1:35 11",
                "out-of-range 1:50 246",
                "out-of-range 1:66 0",
                "warning unknown-key 1:69 x",
            ],
        ),
        (
            "global: {addressing: {zone_base: 245}}
domains: {a: {trust_level: disposable}}",
            &[
                "zone-overflow 2:11 a",
            ],
        ),
        (
            r#"global: {addressing: {}, base_subnet: "10.1"}
domains: {a: {}}"#,
            &[
                "warning unused-key 1:26 base_subnet",
            ],
        ),
        (
            "global: {nesting_prefix: true}
domains: {a: {subnet_id: 0}}",
            &["warning unused-key 1:10 nesting_prefix"],
        ),
        (
            "global: {nesting_prefix: false}
domains: {a: {subnet_id: 0}}",
            &[],
        ),
        (
            "global:
  default_os_image: 12
  default_connection: [a]
  default_user: {a: b}
  nesting_prefix: yes
  gpu_policy: x
  firewall_mode: 1
  ai_access_policy: none
  shared_volumes_base: srv
  persistent_data_base: 5
  ai_vram_flush: []
  basesubnet: 1
domains: {a: {subnet_id: 0}}",
            &[
                "wrong-type 2:21 12",
                "wrong-type 3:23 [",
                "wrong-type 4:17 {",
                "wrong-type 5:19 yes",
                "invalid-value 6:15 x",
                "wrong-type 7:18 1",
                "invalid-value 8:21 none",
                "invalid-path 9:24 srv",
                "wrong-type 10:25 5",
                "wrong-type 11:18 [",
                "warning unknown-key 12:3 basesubnet",
            ],
        ),
        (
            "global: {resource_policy: false}
domains: {a: {subnet_id: 0}}",
            &[
                "wrong-type 1:27 false",
            ],
        ),
        (
            "global: {resource_policy: true}
domains: {a: {subnet_id: 0}}",
            &[
            ],
        ),
        (
            r#"global:
  resource_policy:
    mode: x
    cpu_mode: y
    memory_enforce: z
    overcommit: 1
    host_reserve: {cpu: "100%", memory: -1, disk: 1}
domains: {a: {subnet_id: 0}}"#,
            &[
                "invalid-value 3:11 x",
                "invalid-value 4:15 y",
                "invalid-value 5:21 z",
                "wrong-type 6:17 1",
                r#"invalid-value 7:25 "100%""#,
                "invalid-value 7:41 -1",
                "warning unknown-key 7:45 disk",
            ],
        ),
        (
            "global: {firewall_mode: vm}
domains: {a: {subnet_id: 0}}",
            &[
                "firewall-mode 1:25 vm",
            ],
        ),
        (
            "global: {firewall_mode: vm}
domains: {anklume: {subnet_id: 0, machines: {m: {ip: 10.100.0.253}}}}",
            &[
                "duplicate-address 2:46 m",
            ],
        ),
        (
            "global: {ai_access_policy: exclusive}
domains: {a: {subnet_id: 0}}",
            &[
                "ai-access 1:28 exclusive",
                "ai-access 1:28 exclusive",
            ],
        ),
        (
            "global: {ai_access_policy: exclusive, ai_access_default: ai-tools}
domains: {ai-tools: {subnet_id: 0}, x: {subnet_id: 1}}
network_policies: [{from: x, to: ai-tools, ports: all}, {from: x, to: ai-tools, ports: [1]}]",
            &[
                "ai-access 1:28 exclusive",
                "ai-access 1:58 ai-tools",
            ],
        ),
        (
            "global: {gpu_policy: exclusive}
domains: {a: {subnet_id: 0, profiles: {g: {devices: {gpu: {type: gpu}}}}, machines: {m: {gpu: true}, n: {profiles: [g]}}}}",
            &[
                "several-gpus 2:102 n",
            ],
        ),
        (
            "global: {gpu_policy: shared}
domains: {a: {subnet_id: 0, machines: {m: {gpu: true}, n: {gpu: true}}}}",
            &[
                "warning shared-gpu 2:56 n",
            ],
        ),
];

#[test]
fn the_top_of_the_file_and_its_global_section() {
    check(CASES);
}

/// Sections, and which of the keys belong to them.
const SECTIONS: &[(&str, &[&str])] = &[
    ("{KEY, domains: {a: {subnet_id: 0}}}", &[]),
    ("domains: {a: {subnet_id: 0, KEY}}", &["machines"]),
    (
        "domains: {a: {subnet_id: 0, machines: {m: {KEY}}}}",
        &["services", "mcp"],
    ),
    (
        "domains: {a: {subnet_id: 0, machines: {m: {services: [{name: s, KEY}]}}}}",
        &["consumers", "tool", "with", "limits"],
    ),
    (
        "domains: {a: {subnet_id: 0, machines: {m: {mcp: {KEY}}}}}",
        &[],
    ),
    ("domains: {a: {subnet_id: 0, profiles: {p: {KEY}}}}", &[]),
    ("domains: {a: {subnet_id: 0}}\nglobal: {KEY}", &[]),
    (
        "domains: {a: {subnet_id: 0}}\nnetwork_policies: [{from: a, to: host, KEY}]",
        &[],
    ),
    (
        "domains: {a: {subnet_id: 0}}\nshared_volumes: {v: {path: /v, KEY}}",
        &["consumers"],
    ),
    // Below an unknown key.
    ("domains: {a: {subnet_id: 0, other: {KEY}}}", &[]),
    ("domains: {a: {subnet_id: 0, other: [{KEY}]}}", &[]),
    // Where a name belongs.
    ("domains: {a: {subnet_id: 0, machines: {KEY}}}", &[]),
    ("domains: {KEY}", &[]),
];

#[test]
fn a_key_that_grants_something_is_never_just_ignored() {
    let keys = [
        ("services", "[{name: s, tool: gpg_sign}]"),
        ("mcp", "{uid: 1000}"),
        ("consumers", "[m]"),
        ("tool", "clipboard_get"),
        ("with", "{key_id: a}"),
        ("limits", "{memory: 64MiB}"),
        ("machines", "{n: {}}"),
    ];
    for (section, own) in SECTIONS {
        for (key, value) in keys.iter().filter(|(key, _)| !own.contains(key)) {
            let text = section.replace("KEY", &format!("{key}: {value}"));
            let marked = format!(" {key}");
            let is_refused = |found: &String| {
                let named = section.contains("other") && found.ends_with(" other");
                !found.starts_with("warning") && (found.ends_with(&marked) || named)
            };
            let all = found(&text);
            assert!(all.iter().any(is_refused), "{text}\n{all:?}");
        }
    }
}
