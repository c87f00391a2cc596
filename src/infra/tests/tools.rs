//! Tests `mcp.tools`, the tools that a machine declares itself.
//!
//! Each case is a file and all its findings: code, line:column, marked text.

use serde_json::json;

use super::{Case, check, good};
use crate::name::ServiceTool;
use crate::services::Services;

const CASES: &[Case] = &[
    (
        r#"domains:
  a:
    subnet_id: 0
    machines:
      m:
        mcp:
          children: 0
          tools:
            gpg_sign: {description: x, command: [/bin/true]}
            Deploy: {description: x, command: [/bin/true]}
            a: {}
            b: {description: "", command: [], shell: true}
            c: {description: "a\tb", command: [deploy]}
            d: {description: x, command: ["/bin/{x}"]}
            e: {description: x, command: [/bin/e, "{x", "{y}{z}", 5]}
            f: {description: x, command: [/bin/f, "{gone}", "{two words}"]}
            g: {description: x, command: /bin/g --all}
            h: {description: x, command: [/bin/h], output: xml, timeout: 86401, memory: 15MiB, env_file: relative, run_as: A}
        services:
          - {name: s, tool: a}
          - {name: t, tool: i}
          - {name: u, tool: hh}"#,
        &[
            "out-of-range 7:21 0",
            "reserved-name 9:13 gpg_sign",
            "invalid-name 10:13 Deploy",
            "missing-key 11:16 {",
            "missing-key 11:16 {",
            "invalid-value 12:30 \"\"",
            "invalid-command 12:43 [",
            "unknown-key 12:47 shell",
            "invalid-value 13:30 \"a\\tb\"",
            "invalid-command 13:48 deploy",
            "invalid-command 14:43 \"/bin/{x}\"",
            "invalid-command 15:51 \"{x\"",
            "invalid-command 16:51 \"{gone}\"",
            "invalid-command 16:61 \"{two words}\"",
            "wrong-type 17:42 /bin/g --all",
            "invalid-value 18:60 xml",
            "out-of-range 18:74 86401",
            "out-of-range 18:89 15MiB",
            "invalid-path 18:106 relative",
            "invalid-name 18:124 A",
            "unknown-tool 21:29 i",
            "unknown-tool 22:29 hh",
        ],
    ),
    (
        r#"domains:
  a:
    subnet_id: 0
    machines:
      m:
        mcp:
          tools:
            a:
              description: x
              command: [/bin/a, "{one}", "{one}", --opt, "{two}", "{in}"]
              arguments:
                one: {type: string}
                two: {type: string, optional: true}
                in: {type: string, stdin: true}
                more: {type: string, stdin: true}
                unused: {type: string}
                Big: {type: string}
                none: {}
                what: {type: text}
                long: {type: integer, max_length: 5, stdin: true, optional: yes}
                range: {type: integer, min: 5, max: 4}
                min: {type: string, min: 1}
                far: {type: integer, min: -9007199254740992}
                wide: {type: string, max_length: 16385}
                vals: {type: string, enum: [a, 5, a, "b\n"]}
                nums: {type: integer, enum: ["5", 1.5], max: 9}
                empty: {type: string, enum: []}
            b:
              description: x
              command: [/bin/b, "{n}", "--f={f}", "{{n}}", --, "{o}"]
              arguments:
                n: {type: integer, enum: [1, 2], description: How many}
                f: {type: number, optional: true}
                o: {type: string, optional: true}
        services:
          - {name: s, tool: b, with: {n: 3, x: 1, o: 5}}
          - {name: t, tool: b, with: {n: 2.0, o: "-x"}}"#,
        &[
            "invalid-command 10:42 \"{one}\"",
            "invalid-command 10:58 \"{two}\"",
            "invalid-command 10:67 \"{in}\"",
            "invalid-command 15:17 more",
            "invalid-command 16:17 unused",
            "invalid-name 17:17 Big",
            "missing-key 18:23 {",
            "invalid-value 19:30 text",
            "invalid-command 20:17 long",
            "invalid-value 20:51 5",
            "invalid-value 20:61 true",
            "wrong-type 20:77 yes",
            "invalid-command 21:17 range",
            "invalid-value 21:48 max",
            "invalid-command 22:17 min",
            "invalid-value 22:42 1",
            "invalid-command 23:17 far",
            "out-of-range 23:43 -9007199254740992",
            "invalid-command 24:17 wide",
            "out-of-range 24:50 16385",
            "invalid-command 25:17 vals",
            "invalid-value 25:48 5",
            "duplicate-item 25:51 a",
            "invalid-value 25:54 \"b\\n\"",
            "invalid-command 26:17 nums",
            "invalid-value 26:46 \"5\"",
            "invalid-value 26:51 1.5",
            "invalid-command 27:17 empty",
            "invalid-value 27:39 enum",
            "invalid-argument 36:39 n",
            "invalid-argument 36:45 x",
            "invalid-argument 36:51 o",
        ],
    ),
];

const SERVERS: &[Case] = &[(
    r#"domains:
  a:
    subnet_id: 0
    machines:
      m:
        mcp:
          servers:
            a: {command: [/bin/a, "b c"], idle_seconds: 0, tools: []}
            b: {command: []}
            c: {command: [c]}
            d: {command: /bin/d}
            E: {command: [/bin/e]}
            f: {}
        services:
          - {name: s, tool: a/x.y-Z/z, with: {any: 1}}
          - {name: t, tool: a/}
          - {name: u, tool: z/x}
          - {name: v, tool: "a/x y"}
          - {name: w, tool: a}"#,
    &[
        "out-of-range 8:57 0",
        "unknown-key 8:60 tools",
        "invalid-command 9:26 [",
        "invalid-command 10:27 c",
        "wrong-type 11:26 /bin/d",
        "invalid-name 12:13 E",
        "missing-key 13:16 {",
        "unknown-tool 16:29 a/",
        "unknown-tool 17:29 z/x",
        "invalid-name 18:29 \"a/x y\"",
        "unknown-tool 19:29 a",
    ],
)];

#[test]
fn each_fault_of_a_server_is_found_where_it_is() {
    check(SERVERS);
}

#[test]
fn each_fault_of_a_tool_is_found_where_it_is() {
    check(CASES);
}

#[test]
fn a_services_file_has_the_tools_that_services_use() {
    let text = "domains:\n  a:\n    subnet_id: 0\n    machines:\n      m:\n        mcp:\n          children: 3\n          tools:\n\
        \u{20}           deploy: {description: Deploys, command: [/bin/deploy, \"{env}\"], arguments: {env: {type: string}}}\n\
        \u{20}           other: {description: Unused, command: [/bin/other]}\n\
        \u{20}       services:\n          - {name: staging, tool: deploy, with: {env: staging}, consumers: [n]}\n      n: {}\n";
    let infra = good(text).infra;
    let (_, machine) = infra.machine("m").unwrap();
    let services = Services::of(machine);
    let written: serde_json::Value = serde_json::from_slice(&services.to_file()).unwrap();
    let expected = json!({
        "deploy": {
            "description": "Deploys",
            "command": ["/bin/deploy", "{env}"],
            "arguments": [{"name": "env", "type": "string"}],
            "output": "text",
            "timeout": 60,
            "process": {"memory": 268_435_456},
        }
    });
    assert_eq!(written["policy"]["tools"], expected);
    assert_eq!(written["policy"]["children"], 3);
    let read = Services::from_file(&services.to_file()).unwrap();
    assert_eq!(read.digest(), services.digest());
    // A worker gets the tools of its consumer.
    let theirs = |name: &str| services.of_consumer(&name.parse().unwrap()).tools.len();
    assert_eq!((theirs("n"), theirs("x")), (1, 0));
    // A file without the tool that a service uses is refused.
    let mut without = services;
    without.tools.clear();
    let refused = Services::from_file(&without.to_file()).unwrap_err();
    assert_eq!(refused.to_string(), "it does not define the tool `deploy`");
    assert_eq!(
        without.services[0].tool,
        "deploy".parse::<ServiceTool>().unwrap()
    );
}
