//! Tests that every help text is useful: each is tried on a fault, and following it fixes the fault.

use super::parse;
use crate::diagnostic::{Diagnostic, Faults, Severity};
use crate::infra::findings::Code;

use Around::{Domain, File, Machine, Service, Top};

/// The part of the file around a row's text.
#[derive(Debug, Clone, Copy)]
enum Around {
    /// Nothing.
    File,
    /// The top level of a file with the domain `work` and its machine `web`.
    Top,
    /// The domain `work`.
    Domain,
    /// The machine `db` next to `web`.
    Machine,
    /// A service of `db`.
    Service,
}

impl Around {
    fn file(self, text: &str) -> String {
        match self {
            File => text.to_owned(),
            Top => {
                format!("{text}\ndomains: {{work: {{subnet_id: 0, machines: {{web: {{}}}}}}}}\n")
            }
            Domain => {
                format!("domains: {{work: {{subnet_id: 0, machines: {{web: {{}}}}, {text}}}}}\n")
            }
            Machine => {
                format!(
                    "domains: {{work: {{subnet_id: 0, machines: {{web: {{}}, db: {{{text}}}}}}}}}\n"
                )
            }
            Service => Machine.file(&format!("services: [{{name: s, tool: gpg_sign, {text}}}]")),
        }
    }
}

/// A faulty text, the code and the help that it gets, and the text corrected exactly as the help says.
type Row = (Around, Code, &'static str, &'static str, &'static str);

/// Codes that no single file causes, or none of a reasonable size.
const WITHOUT_ROW: &[(Code, &str)] = &[
    (Code::NotFound, "a file on disk"),
    (Code::BothPresent, "files on disk"),
    (Code::MissingBase, "files on disk"),
    (Code::StrayFile, "files on disk"),
    (Code::Symlink, "a file on disk"),
    (Code::NotAFile, "a file on disk"),
    (Code::TooLarge, "a file on disk"),
    (Code::Unreadable, "a file on disk"),
    (Code::NotUtf8, "bytes that are not text"),
    (
        Code::DuplicateDomain,
        "two files in a folder; in one file, it is `duplicate-key`",
    ),
    (
        Code::UnpinnedTool,
        "a lock file on disk: `a_tool_that_nobody_has_accepted_is_a_fault`",
    ),
    (Code::InvalidLock, "a lock file on disk"),
    (Code::TooManyValues, "two million values"),
    (Code::TooManyFindings, "ten thousand findings"),
    (
        Code::NoAddressLeft,
        "a hundred machines: `a_full_subnet_and_a_full_zone`",
    ),
];

#[test]
fn following_a_help_mends_the_fault() {
    for (around, code, faulty, help, corrected) in ROWS {
        mends(*code, &around.file(faulty), help, &around.file(corrected));
    }
}

#[test]
fn following_a_help_mends_an_edit() {
    for (code, old, wrong, help, corrected) in EDITS {
        assert!(SERVICES.contains(old), "{old}");
        let after = match code {
            Code::YamlSyntax => "; nothing after this point was read, so there may be more errors",
            _ => "",
        };
        let faulty = SERVICES.replacen(old, wrong, 1);
        let corrected = SERVICES.replacen(old, corrected, 1);
        mends(*code, &faulty, &format!("{help}{after}"), &corrected);
    }
}

#[test]
fn every_code_has_a_row_or_a_reason() {
    for code in Code::ALL {
        let has_row = ROWS.iter().any(|(_, of_row, ..)| of_row == code);
        let has_reason = WITHOUT_ROW.iter().any(|(without, _)| without == code);
        assert!(has_row != has_reason, "{}", code.as_str());
    }
}

#[test]
fn a_full_subnet_and_a_full_zone() {
    let machines = |last: &str| {
        let free: Vec<_> = (0..99).map(|n| format!("m{n}: {{}}, ")).collect();
        let free = free.concat();
        format!(
            "global: {{addressing: {{}}}}\ndomains: {{a: {{machines: {{{free}last: {{{last}}}}}}}}}\n"
        )
    };
    mends(
        Code::NoAddressLeft,
        &machines(""),
        "set `ip` for this machine, from .100 on: only .1 to .99 are assigned",
        &machines("ip: 10.120.0.100"),
    );
    let domains = |last: &str| {
        let full: Vec<_> = (0..255).map(|n| format!("d{n:03}: {{}}, ")).collect();
        let full = full.concat();
        format!("global: {{addressing: {{}}}}\ndomains: {{{full}last: {{trust_level: {last}}}}}\n")
    };
    mends(
        Code::ZoneOverflow,
        &domains("semi-trusted"),
        "choose another `trust_level`: a zone has 255 subnets",
        &domains("trusted"),
    );
}

/// Asserts that the faulty file gets this help, and that the corrected one has neither this finding nor an error.
#[track_caller]
fn mends(code: Code, faulty: &str, help: &str, corrected: &str) {
    let is_it =
        |found: &Diagnostic| found.code == code.as_str() && found.help.as_deref() == Some(help);
    let before = all(faulty);
    assert!(before.iter().any(is_it), "{faulty}{before:#?}");
    let after = all(corrected);
    let is_error = |found: &Diagnostic| found.severity == Severity::Error;
    let is_left = after.iter().any(|found| is_it(found) || is_error(found));
    assert!(!is_left, "{help}\n{corrected}{after:#?}");
}

fn all(text: &str) -> Vec<Diagnostic> {
    match parse("infra.yml", text) {
        Ok(read) => read.warnings,
        Err(Faults(all)) => all,
    }
}

const ROWS: &[Row] = &[
    (File, Code::EmptyFile, "# nothing yet
", "declare at least one domain: `domains: {work: {subnet_id: 0}}`", "domains: {work: {subnet_id: 0}}
"),
    (File, Code::YamlSyntax, "domains:\r  work: {subnet_id: 0}\r", "save the file with LF or CRLF line endings", "domains:
  work: {subnet_id: 0}
"),
    (File, Code::YamlSyntax, "domains:\n\twork:\n\t\tsubnet_id: 0\n", "indent with spaces: YAML allows no tabs there; nothing after this point was read, so there may be more errors", "domains:
  work:
    subnet_id: 0
"),
    (File, Code::YamlSyntax, "```yaml
domains:
  work:
    subnet_id: 0
```
", "remove the lines that begin with three backticks; nothing after this point was read, so there may be more errors", "domains:
  work:
    subnet_id: 0
"),
    (File, Code::YamlSyntax, "domains:\n  work:\n    subnet_id: 0\n    description: \"a\u{1b}b\"\n", "remove the control character; nothing after this point was read, so there may be more errors", r#"domains:
  work:
    subnet_id: 0
    description: "ab"
"#),
    (File, Code::YamlSyntax, "domains:
  work:
    subnet_id: 0
    machines:
      web: {roles: [a, b]]}
", "remove the `]`: `web: {roles: [a, b]}`; nothing after this point was read, so there may be more errors", "domains:
  work:
    subnet_id: 0
    machines:
      web: {roles: [a, b]}
"),
    (File, Code::YamlSyntax, "domains:
  work:
    subnet_id: 0
    machines:
      web: {roles: [a, b}}
", "write `]` instead of `}`: `web: {roles: [a, b]}`; nothing after this point was read, so there may be more errors", "domains:
  work:
    subnet_id: 0
    machines:
      web: {roles: [a, b]}
"),
    (File, Code::YamlSyntax, r#"domains:
  work:
    subnet_id: 0
    description: "My work
"#, r#"end the value with a quote: `description: "My work"`; nothing after this point was read, so there may be more errors"#, r#"domains:
  work:
    subnet_id: 0
    description: "My work"
"#),
    (File, Code::YamlSyntax, r#"domains:
  work:
    subnet_id: 0
    description: "My work
    machines:
      web: {ip: "10.100.0.5"}
"#, r#"end the value with a quote in line 4: `description: "My work"`; nothing after this point was read, so there may be more errors"#, r#"domains:
  work:
    subnet_id: 0
    description: "My work"
    machines:
      web: {ip: "10.100.0.5"}
"#),
    (File, Code::YamlSyntax, r#"domains:
  work:
    subnet_id: 0
    machines:
      web: {ip: "10.100.0.5}
"#, r#"end the value with a quote: `"10.100.0.5"`; nothing after this point was read, so there may be more errors"#, r#"domains:
  work:
    subnet_id: 0
    machines:
      web: {ip: "10.100.0.5"}
"#),
    (File, Code::YamlSyntax, "domains:
  work:
    description: x
    subnet_id:0
", "put a space after the colon: `subnet_id: 0`; nothing after this point was read, so there may be more errors", "domains:
  work:
    description: x
    subnet_id: 0
"),
    (File, Code::YamlSyntax, "domains:
  work:
    subnet_id:0
    description: x
", "put a space after the colon in line 3: `subnet_id: 0`; nothing after this point was read, so there may be more errors", "domains:
  work:
    subnet_id: 0
    description: x
"),
    (File, Code::YamlSyntax, "domains:
  work:
    subnet_id: 0
    machines:
      web: {type: vm ip: 10.100.0.5}
", "put a comma between the values: `web: {type: vm, ip: 10.100.0.5}`; nothing after this point was read, so there may be more errors", "domains:
  work:
    subnet_id: 0
    machines:
      web: {type: vm, ip: 10.100.0.5}
"),
    (File, Code::YamlSyntax, "domains:
  work:
    subnet_id: 0
    machines:
      web: {roles: [*]}
", r#"put the value in quotes: `"*"`; nothing after this point was read, so there may be more errors"#, r#"domains:
  work:
    subnet_id: 0
    machines:
      web: {roles: ["*"]}
"#),
    (File, Code::YamlSyntax, "domains:
  work:
    subnet_id: 0
    machines:
      web:
        roles: [a, b
      db: {}
", "add the missing `]` in line 6: `roles: [a, b]`; nothing after this point was read, so there may be more errors", "domains:
  work:
    subnet_id: 0
    machines:
      web:
        roles: [a, b]
      db: {}
"),
    (File, Code::YamlSyntax, "domains: {
  work: {subnet_id: 0}
", "add the missing `}` in line 2: `work: {subnet_id: 0}}`; nothing after this point was read, so there may be more errors", "domains: {
  work: {subnet_id: 0}}
"),
    (File, Code::YamlSyntax, "domains:
  work:
    subnet_id: 0
    description: My work: two machines
", r#"put the value in quotes: `description: "My work: two machines"`; nothing after this point was read, so there may be more errors"#, r#"domains:
  work:
    subnet_id: 0
    description: "My work: two machines"
"#),
    (File, Code::YamlSyntax, r#"domains:
  work:
    subnet_id: 0
    description: "My" work
"#, r#"put the value in quotes: `description: '"My" work'`; nothing after this point was read, so there may be more errors"#, r#"domains:
  work:
    subnet_id: 0
    description: '"My" work'
"#),
    (File, Code::YamlSyntax, "domains:
  work:
    subnet_id: 0
    description: |
    My work
", "if it continues the value above, indent it deeper than that key; otherwise remove what is neither a key nor a list item; nothing after this point was read, so there may be more errors", "domains:
  work:
    subnet_id: 0
    description: |
      My work
"),
    (File, Code::YamlSyntax, "domains:
  work:
    subnet_id: 0
    machines
      web: {}
", "end the key with a colon: `machines:`; nothing after this point was read, so there may be more errors", "domains:
  work:
    subnet_id: 0
    machines:
      web: {}
"),
    (File, Code::YamlSyntax, "domains:
  work
    subnet_id: 0
", "end the key with a colon in line 2: `work:`; nothing after this point was read, so there may be more errors", "domains:
  work:
    subnet_id: 0
"),
    (File, Code::YamlSyntax, "domains:
  work:
    subnet_id: 0
   machines:
      web: {}
", "indent the text with 4 spaces; nothing after this point was read, so there may be more errors", "domains:
  work:
    subnet_id: 0
    machines:
      web: {}
"),
    (File, Code::YamlSyntax, "domains:
  work:
    subnet_id: 0
      machines: {}
", "indent the text with 4 spaces; nothing after this point was read, so there may be more errors", "domains:
  work:
    subnet_id: 0
    machines: {}
"),
    (File, Code::YamlSyntax, "domains:
  work:
    subnet_id: 0
    machines:
      web:
        services:
          - name: s
          tool: gpg_sign
", "indent the text with 12 spaces; nothing after this point was read, so there may be more errors", "domains:
  work:
    subnet_id: 0
    machines:
      web:
        services:
          - name: s
            tool: gpg_sign
"),
    (File, Code::YamlSyntax, r#"domains:
  work:
    subnet_id: 0
    description: a\b: c "d
"#, "put the value in quotes; nothing after this point was read, so there may be more errors", r#"domains:
  work:
    subnet_id: 0
    description: 'a\b: c "d'
"#),
    (File, Code::YamlSyntax, "domains: {work: {subnet_id: 0, description: |
  My work
  }}
", "check the indentation, quotes and brackets of this line and of the lines above it; nothing after this point was read, so there may be more errors", r#"domains: {work: {subnet_id: 0, description: "My work"}}
"#),
    (File, Code::YamlDirective, "%YAML 1.1
---
domains:
  work:
    subnet_id: 0
", "remove this line; nothing after this point was read, so there may be more errors", "---
domains:
  work:
    subnet_id: 0
"),
    (File, Code::SecondDocument, "domains:
  work:
    subnet_id: 0
---
project_name: a
", "remove the line `---` or `...`, and write each top-level key only once: one file is one document", "domains:
  work:
    subnet_id: 0
project_name: a
"),
    (Domain, Code::YamlAnchor, "description: &x Work", "remove `&x`, and write the value itself wherever `*x` is", "description: Work"),
    (Domain, Code::YamlAlias, "description: *x", "write the value itself here instead of `*x`", "description: Work"),
    (Domain, Code::YamlMergeKey, "<<: {description: x}", "remove `<<`, and write the keys themselves here", "description: x"),
    (Domain, Code::YamlTag, "description: !!str 5", "remove `!!str`; put a value in quotes to make it text", r#"description: "5""#),
    (File, Code::YamlTag, "domains: !include work.yml
", "write the contents of that file here: anklume does not include files", "domains: {work: {subnet_id: 0}}
"),
    (Domain, Code::ComplexKey, "description: {{ text }}", r#"anklume does not expand templates: write the value itself, or, as text, `"{{ text }}"`"#, "description: Work"),
    (Domain, Code::ComplexKey, "description: {{ text }}", r#"anklume does not expand templates: write the value itself, or, as text, `"{{ text }}"`"#, r#"description: "{{ text }}""#),
    (Domain, Code::ComplexKey, "? [description] : Work", "write a name as the key, without `?`, `[` or `{` before it", "description: Work"),
    (Domain, Code::DuplicateKey, "subnet_id: 1", "the first one is at infra.yml:1; keep one of them", "description: x"),
    (Domain, Code::TooDeep, "x: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]", "remove levels: no key needs more than a dozen", "x: [[]]"),
    (Machine, Code::WrongType, "description: [Work]", "write only the value, not a list: `Work`", "description: Work"),
    (Machine, Code::WrongType, "description: [My, work]", "write one value, not a list", "description: My work"),
    (Machine, Code::WrongType, "description: {My: work}", "write one value, not a map", "description: My work"),
    (Top, Code::WrongType, "project_name: 2026", r#"put it in quotes: `"2026"`"#, r#"project_name: "2026""#),
    (Top, Code::WrongType, "global: {base_subnet: 10.100}", r#"put it in quotes: `"10.100"`"#, r#"global: {base_subnet: "10.100"}"#),
    (Top, Code::WrongType, "global: {base_subnet: 10}", r#"write the first two numbers of an address in quotes, such as `"10.100"`"#, r#"global: {base_subnet: "10.100"}"#),
    (Top, Code::WrongType, "global: {firewall_mode: false}", "write one of: host, vm", "global: {firewall_mode: host}"),
    (Top, Code::WrongType, "global: {resource_policy: {host_reserve: {cpu: [1]}}}", "write a share such as `20%`, a positive number, or, for memory, an amount such as `2GiB`", "global: {resource_policy: {host_reserve: {cpu: 20%}}}"),
    (Top, Code::WrongType, "global: {resource_policy: yes}", "write its keys and values, such as `resource_policy: {mode: proportional}`", "global: {resource_policy: {mode: proportional}}"),
    (Top, Code::WrongType, "global: {addressing: true}", "write its keys and values, such as `addressing: {zone_base: 100}`", "global: {addressing: {zone_base: 100}}"),
    (Top, Code::WrongType, "global: []", "write `{}` for an empty map", "global: {}"),
    (Top, Code::WrongType, "global: {shared_volumes_base: 5}", "write a path that begins with `/`, without control characters", "global: {shared_volumes_base: /srv/5}"),
    (File, Code::WrongType, "hello
", "write its keys and values, such as `domains: {work: {subnet_id: 0}}`", "domains: {work: {subnet_id: 0}}
"),
    (File, Code::WrongType, "domains:
  work:
    subnet_id:0
", "put a space after the colon: `subnet_id: 0`", "domains:
  work:
    subnet_id: 0
"),
    (File, Code::WrongType, "domains:
  - name: work
    subnet_id: 0
", "use the names as keys: `work:` instead of `- name: work`", "domains:
  work:
    subnet_id: 0
"),
    (File, Code::WrongType, "domains:
  work:
    subnet_id: 0
    machines:
      web:
      ip: 10.100.0.5
", "indent this line below the name: `ip` is a key of a machine", "domains:
  work:
    subnet_id: 0
    machines:
      web:
        ip: 10.100.0.5
"),
    (File, Code::WrongType, "domains:
  work:
  subnet_id: 0
", "indent this line below the name: `subnet_id` is a key of a domain", "domains:
  work:
    subnet_id: 0
"),
    (File, Code::WrongType, "domains:
  work:
    subnet_id: 0
    machines: web
", "write its keys and values, such as `machines: {web: {}}`", "domains:
  work:
    subnet_id: 0
    machines: {web: {}}
"),
    (File, Code::WrongType, "domains:
  work:
    subnet_id: 0
    machines: [web, db]
", "use the names as keys: `{web: {}, db: {}}`", "domains:
  work:
    subnet_id: 0
    machines: {web: {}, db: {}}
"),
    (File, Code::WrongType, "domains:
  work:
    subnet_id: 0
    machines:
      - web: {}
      - db: {}
", "remove the list around the keys: the `-` before each, or write `{…}` instead of `[…]`", "domains:
  work:
    subnet_id: 0
    machines:
      web: {}
      db: {}
"),
    (File, Code::WrongType, "domains:
  work:
    subnet_id: 0
    machines:
      - [web]
", "write its keys and values, such as `machines: {web: {}}`", "domains:
  work:
    subnet_id: 0
    machines: {web: {}}
"),
    (File, Code::WrongType, "domains:
  work:
    subnet_id: 0
    machines: {web: lxc}
", "write its keys and values, such as `web: {KEY: VALUE}`, or `{}` if there are none", "domains:
  work:
    subnet_id: 0
    machines: {web: {}}
"),
    (File, Code::WrongType, "domains:
  work:
    subnet_id: 0
    machines: {web: lxc}
", "write its keys and values, such as `web: {KEY: VALUE}`, or `{}` if there are none", "domains:
  work:
    subnet_id: 0
    machines: {web: {type: lxc}}
"),
    (File, Code::WrongType, "domains:
  work:
    subnet_id: 0
    machines: {5: {}}
", r#"put it in quotes: `"5"`"#, r#"domains:
  work:
    subnet_id: 0
    machines: {"5": {}}
"#),
    (Machine, Code::WrongType, "config: limits.memory=1GiB", "write its keys and values, such as `config: {limits.memory: 1GiB}`", "config: {limits.memory: 1GiB}"),
    (Machine, Code::WrongType, "config: [limits.memory=1GiB]", "write keys and values: `{limits.memory: 1GiB}`", "config: {limits.memory: 1GiB}"),
    (Machine, Code::WrongType, "config: {limits: {memory: 1GiB}}", "write the whole key on one line: `limits.memory: 1GiB`", "config: {limits.memory: 1GiB}"),
    (Machine, Code::WrongType, "config: {limits: {memory: [1GiB]}}", "write text, or the whole key on one line, such as `limits.memory: 1GiB`", "config: {limits.memory: 1GiB}"),
    (Machine, Code::WrongType, "boot_autostart: yes", "write `true`", "boot_autostart: true"),
    (Machine, Code::WrongType, "boot_autostart: 0", "write `false`", "boot_autostart: false"),
    (Machine, Code::WrongType, r#"boot_autostart: "true""#, "write it without quotes: `true`", "boot_autostart: true"),
    (Machine, Code::WrongType, "boot_autostart: maybe", "write `true` or `false`", "boot_autostart: true"),
    (Machine, Code::WrongType, "boot_autostart: [true]", "write `true` or `false`", "boot_autostart: true"),
    (Machine, Code::WrongType, r#"boot_priority: "5""#, "write it without quotes: `5`", "boot_priority: 5"),
    (Machine, Code::WrongType, "boot_priority: high", "write a whole number from 0 to 100", "boot_priority: 10"),
    (Machine, Code::WrongType, r#"boot_priority: "500""#, "write a whole number from 0 to 100", "boot_priority: 100"),
    (Machine, Code::WrongType, "weight: heavy", "write a whole number of at least 1", "weight: 2"),
    (Machine, Code::WrongType, "snapshots_expiry: 30", "write a number and `m`, `h` or `d`, such as `30d`", "snapshots_expiry: 30d"),
    (Machine, Code::WrongType, "ip: 10", "write four numbers from 0 to 255 separated by dots, without leading zeros or `/`, or remove `ip`", "ip: 10.100.0.1"),
    (Machine, Code::WrongType, "ip: [10.100.0.9]", "write only the value, not a list: `10.100.0.9`", "ip: 10.100.0.9"),
    (Machine, Code::WrongType, "mcp: {memory: [64MiB]}", "write an amount from `48MiB` to `1048576MiB`, or the same in bytes", "mcp: {memory: 64MiB}"),
    (Machine, Code::WrongType, "mcp: {run_as: 1000}", "name the user: a lower-case letter or `_`, then lower-case letters, digits, `_` and `-`, at most 32 characters", "mcp: {run_as: signer}"),
    (Machine, Code::WrongType, "mcp: 1000", "write its keys and values, such as `mcp: {uid: 1000}`", "mcp: {uid: 1000}"),
    (File, Code::WrongType, "domains:
  work:
    subnet_id: 0
    machines:
      web:
        profiles:
          -default
", "begin each item with `- `: `- default`", "domains:
  work:
    subnet_id: 0
    machines:
      web:
        profiles:
          - default
"),
    (File, Code::WrongType, "domains:
  work:
    subnet_id: 0
    machines:
      web:
        services:
          sign:
            tool: gpg_sign
", "write `- name: sign` instead of `sign:`", "domains:
  work:
    subnet_id: 0
    machines:
      web:
        services:
          - name: sign
            tool: gpg_sign
"),
    (File, Code::WrongType, "domains:
  work:
    subnet_id: 0
    machines:
      web:
        services:
          name: sign
          tool: gpg_sign
", "write `- name:` instead of `name:` and indent the other keys by 2 more, or put `[{` and `}]` around the keys", "domains:
  work:
    subnet_id: 0
    machines:
      web:
        services:
          - name: sign
            tool: gpg_sign
"),
    (Machine, Code::WrongType, "services: {name: sign, tool: gpg_sign}", "write `- name:` instead of `name:` and indent the other keys by 2 more, or put `[{` and `}]` around the keys", "services: [{name: sign, tool: gpg_sign}]"),
    (Machine, Code::WrongType, "services: {}", "write `[]` for an empty list", "services: []"),
    (Machine, Code::WrongType, "services: gpg_sign", "write a list, such as `services: [{name: file_sign, tool: gpg_sign}]`", "services: [{name: file_sign, tool: gpg_sign}]"),
    (Machine, Code::WrongType, "services: [gpg_sign]", "indent consumers below `consumers:`, or write a service, such as `{name: file_sign, tool: gpg_sign}`", "services: [{name: file_sign, tool: gpg_sign}]"),
    (Machine, Code::WrongType, "services: [{name: 5, tool: gpg_sign}]", "choose a name such as `file_sign`", "services: [{name: file_sign, tool: gpg_sign}]"),
    (Machine, Code::WrongType, "services: [{name: s, tool: true}]", "the tools are: gpg_sign, ssh_sign, clipboard_get, clipboard_set, file_accept, file_provide, notify", "services: [{name: s, tool: gpg_sign}]"),
    (Service, Code::WrongType, "consumers: web", "write a list: `[web]`", "consumers: [web]"),
    (Service, Code::WrongType, "consumers: {web: rw}", "write a list: `[web]`", "consumers: [web]"),
    (Service, Code::WrongType, "with: key_id", r#"write its keys and values, such as `with: {key_id: "0123456789ABCDEF"}`"#, r#"with: {key_id: "0123456789ABCDEF"}"#),
    (Service, Code::WrongType, "with: [{key_id: 0123456789ABCDEF}]", "remove the list around the keys: the `-` before each, or write `{…}` instead of `[…]`", "with: {key_id: 0123456789ABCDEF}"),
    (Top, Code::WrongType, "shared_volumes: {docs: {consumers: [web]}}", "use the names as keys, with `ro` or `rw`: `{web: ro}`", "shared_volumes: {docs: {consumers: {web: ro}}}"),
    (Top, Code::WrongType, "shared_volumes: {docs: {consumers: web}}", "write its keys and values, such as `consumers: {work: ro}`", "shared_volumes: {docs: {consumers: {web: ro}}}"),
    (Top, Code::WrongType, "shared_volumes: {docs: {consumers: {web: true}}}", "write one of: ro, rw", "shared_volumes: {docs: {consumers: {web: ro}}}"),
    (Top, Code::WrongType, "network_policies: {from: work, to: host}", "write `- from:` instead of `from:` and indent the other keys by 2 more, or put `[{` and `}]` around the keys", "network_policies: [{from: work, to: host}]"),
    (Top, Code::WrongType, "network_policies: [work]", "write its keys and values, such as `{from: work, to: host, ports: all}`", "network_policies: [{from: work, to: host, ports: all}]"),
    (Top, Code::WrongType, "network_policies: [{from: work, to: host, ports: 80}]", "write a list: `[80]`", "network_policies: [{from: work, to: host, ports: [80]}]"),
    (File, Code::EmptyValue, "domains:
  work:
    subnet_id: 0
    machines:
      web:
      ip: 10.100.0.5
", "indent the lines that belong to it, write `{}` if there are none, or remove the key", "domains:
  work:
    subnet_id: 0
    machines:
      web:
        ip: 10.100.0.5
"),
    (File, Code::EmptyValue, "domains:
  work:
    subnet_id: 0
    machines: {web: }
", "indent the lines that belong to it, write `{}` if there are none, or remove the key", "domains:
  work:
    subnet_id: 0
    machines: {web: {}}
"),
    (Machine, Code::EmptyValue, "ip: ", "write a value, or remove the key", "ip: 10.100.0.5"),
    (Machine, Code::EmptyValue, "mcp: {uid: }", "write a value, or remove the key", "mcp: {uid: 1000}"),
    (Machine, Code::EmptyValue, "profiles: [~]", "write a value, or remove it", "profiles: []"),
    (File, Code::MissingKey, "project_name: a
", "declare at least one domain: `domains: {work: {subnet_id: 0}}`", "project_name: a
domains: {work: {subnet_id: 0}}
"),
    (File, Code::MissingKey, "domains: {work: {}}
", "add a number of its own from 0 to 254, the third part of its addresses, such as `subnet_id: 0`; or write `global: {addressing: {}}` at the top, and domains get subnets by `trust_level`", "domains: {work: {subnet_id: 0}}
"),
    (File, Code::MissingKey, "domains: {work: {}}
", "add a number of its own from 0 to 254, the third part of its addresses, such as `subnet_id: 0`; or write `global: {addressing: {}}` at the top, and domains get subnets by `trust_level`", "domains: {work: {}}
global: {addressing: {}}
"),
    (Machine, Code::MissingKey, "services: [{tool: gpg_sign}]", "add the name that consumers call, such as `name: file_sign`; only a service's first key has a `-`", "services: [{tool: gpg_sign, name: file_sign}]"),
    (Machine, Code::MissingKey, "services: [{name: s}]", "add `tool:` with one of: gpg_sign, ssh_sign, clipboard_get, clipboard_set, file_accept, file_provide, notify; only a service's first key has a `-`", "services: [{name: s, tool: gpg_sign}]"),
    (Machine, Code::MissingKey, "devices: {gpu0: {}}", "add `type:` with one of: none, nic, disk, unix-char, unix-block, usb, gpu, infiniband, proxy, unix-hotplug, tpm, pci", "devices: {gpu0: {type: gpu}}"),
    (Machine, Code::MissingKey, "devices: {data: {type: disk}}", "add the folder in the machine, such as `path: /data`", "devices: {data: {type: disk, path: /data}}"),
    (Machine, Code::MissingKey, r#"devices: {p: {type: proxy, listen: "tcp:127.0.0.1:80"}}"#, "add an address, such as `connect: tcp:127.0.0.1:80`", r#"devices: {p: {type: proxy, listen: "tcp:127.0.0.1:80", connect: tcp:127.0.0.1:80}}"#),
    (Machine, Code::MissingKey, "persistent_data: {app: {}}", "add the folder in the machine, such as `path: /var/lib/app`", "persistent_data: {app: {path: /var/lib/app}}"),
    (Top, Code::MissingKey, "shared_volumes: {docs: {}}", "add domains or machines, such as `consumers: {work: rw, web: ro}`", "shared_volumes: {docs: {consumers: {work: rw, web: ro}}}"),
    (Top, Code::MissingKey, "network_policies: [{from: work}]", "add `to:` with the name of a domain or a machine, or `host`", "network_policies: [{from: work, to: host}]"),
    (Machine, Code::UnknownKey, "snapshot_expiry: 30d", "did you mean `snapshots_expiry`?", "snapshots_expiry: 30d"),
    (Machine, Code::UnknownKey, "mcp: {q9: 1}", "the keys are: run_as, uid, gid, allow_unlogged, memory, confinement, tools, servers, children", "mcp: {uid: 1}"),
    (File, Code::UnknownKey, "domains: {}
work: {subnet_id: 0}
", "indent it below a line `domains:`: it looks like one of them", "domains:
  work: {subnet_id: 0}
"),
    (Top, Code::UnusedKey, "global: {nesting_prefix: true}", "remove it, or set it to `false`", "global: {nesting_prefix: false}"),
    (Top, Code::UnusedKey, r#"global: {addressing: {}, base_subnet: "10.1"}"#, "remove `base_subnet`, or `addressing`", "global: {addressing: {}}"),
    (Machine, Code::InvalidValue, "type: container", "write one of: lxc, vm", "type: lxc"),
    (Machine, Code::InvalidValue, "os_image: debian 13", "name an image, such as `images:debian/13`: without spaces, not beginning with `-`", "os_image: images:debian/13"),
    (Machine, Code::InvalidValue, r#"snapshots_schedule: "@daily""#, "write five cron fields, such as `0 2 * * *`", "snapshots_schedule: 0 2 * * *"),
    (Machine, Code::InvalidValue, "snapshots_expiry: a month", "write a number and `m`, `h` or `d`, such as `30d`", "snapshots_expiry: 30d"),
    (Domain, Code::InvalidValue, "ai_sanitize: yes", "write one of: true, false, always", "ai_sanitize: true"),
    (Top, Code::InvalidValue, "global: {resource_policy: {host_reserve: {memory: 2G}}}", "write a share such as `20%`, a positive number, or, for memory, an amount such as `2GiB`", "global: {resource_policy: {host_reserve: {memory: 2GiB}}}"),
    (Top, Code::InvalidValue, r#"network_policies: [{from: work, to: host, ports: ["80", 443-444]}]"#, "write numbers from 1 to 65535, one by one and without quotes, or `ports: all`", "network_policies: [{from: work, to: host, ports: [80, 443, 444]}]"),
    (Top, Code::InvalidValue, "shared_volumes: {docs: {consumers: {web: read}}}", "write one of: ro, rw", "shared_volumes: {docs: {consumers: {web: ro}}}"),
    (Machine, Code::OutOfRange, "boot_priority: 200", "write a whole number from 0 to 100", "boot_priority: 100"),
    (Machine, Code::OutOfRange, "weight: 0", "write a whole number of at least 1", "weight: 1"),
    (Top, Code::OutOfRange, "global: {addressing: {base_octet: 172}}", "write `10`, or remove the key", "global: {addressing: {base_octet: 10}}"),
    (Machine, Code::OutOfRange, "mcp: {memory: 64MB}", "write an amount from `48MiB` to `1048576MiB`, or the same in bytes", "mcp: {memory: 64MiB}"),
    (Machine, Code::AmbiguousNumber, "boot_priority: 010", "write it in decimal digits, without `+` or leading zeros", "boot_priority: 10"),
    (Machine, Code::InvalidPath, "persistent_data: {app: {path: srv}}", "write a path that begins with `/`, without control characters", "persistent_data: {app: {path: /srv}}"),
    (Machine, Code::DuplicateItem, "profiles: [default, default]", "list it once: later ones override earlier ones", "profiles: [default]"),
    (Machine, Code::ConflictingKeys, "boot_priority: 1, config: {boot.autostart.priority: 2}", "remove one: `boot_priority` is at infra.yml:1", "config: {boot.autostart.priority: 2}"),
    (File, Code::InvalidName, "domains: {Work: {subnet_id: 0}}
", "write `work`, or choose another name", "domains: {work: {subnet_id: 0}}
"),
    (File, Code::InvalidName, "domains: {büro: {subnet_id: 0}}
", "choose a name such as `work` or `home-2`", "domains: {home-2: {subnet_id: 0}}
"),
    (File, Code::InvalidName, "domains:
  work:
    subnet_id: 0
    machines: {Web_1: {}}
", "write `web-1`, or choose another name", "domains:
  work:
    subnet_id: 0
    machines: {web-1: {}}
"),
    (File, Code::InvalidName, r#"domains:
  work:
    subnet_id: 0
    machines: {"?": {}}
"#, "choose a name such as `work-dev` or `web1`", "domains:
  work:
    subnet_id: 0
    machines: {web1: {}}
"),
    (Machine, Code::InvalidName, "services: [{name: File Sign, tool: gpg_sign}]", "write `file_sign`, or choose another name", "services: [{name: file_sign, tool: gpg_sign}]"),
    (Machine, Code::InvalidName, "services: [{name: 2nd, tool: gpg_sign}]", "choose a name such as `file_sign`", "services: [{name: file_sign, tool: gpg_sign}]"),
    (Machine, Code::InvalidName, "mcp: {run_as: Root}", "name the user: a lower-case letter or `_`, then lower-case letters, digits, `_` and `-`, at most 32 characters", "mcp: {run_as: root}"),
    (Machine, Code::InvalidName, "devices: {a b: {type: none}}", "use 1 to 64 characters, without spaces or `/`, and not just `~`", "devices: {a-b: {type: none}}"),
    (Machine, Code::InvalidName, "persistent_data: {App: {path: /app}}", "use lower-case letters, digits and `-`, with a letter or digit at both ends", "persistent_data: {app: {path: /app}}"),
    (Top, Code::InvalidName, r#"project_name: " ""#, "choose a name with a visible character, on one line", "project_name: work"),
    (File, Code::ReservedName, "domains: {all: {subnet_id: 0}}
", "choose another name", "domains: {home: {subnet_id: 0}}
"),
    (File, Code::NameTooLong, "domains: {my-accounting: {subnet_id: 0}}
", "choose a name with at most 11 characters", "domains: {accounting: {subnet_id: 0}}
"),
    (File, Code::SameName, "domains: {web: {subnet_id: 0, machines: {web: {}}}}
", "rename one of them: the machine is at infra.yml:1; Ansible warns when a group and a host share a name", "domains: {work: {subnet_id: 0, machines: {web: {}}}}
"),
    (File, Code::DuplicateMachine, "domains: {a: {subnet_id: 0, machines: {web: {}}}, b: {subnet_id: 1, machines: {web: {}}}}
", "rename one of them: the first one is at infra.yml:1; a machine name must be unique across all domains", "domains: {a: {subnet_id: 0, machines: {web: {}}}, b: {subnet_id: 1, machines: {web2: {}}}}
"),
    (Top, Code::UnknownName, "shared_volumes: {docs: {consumers: {wrk: ro}}}", "did you mean `work`?", "shared_volumes: {docs: {consumers: {work: ro}}}"),
    (Top, Code::UnknownName, "shared_volumes: {docs: {consumers: {web: ro, zzz: ro}}}", "declare it, or take it off the list", "shared_volumes: {docs: {consumers: {web: ro}}}"),
    (Top, Code::UnknownName, "network_policies: [{from: work, to: zzz}]", "name a domain, a machine, or `host`", "network_policies: [{from: work, to: host}]"),
    (Machine, Code::UnknownProfile, "profiles: [small]", "declare it in the domain's `profiles`, or take it off the list", "profiles: []"),
    (Top, Code::InvalidSubnet, "global: {base_subnet: 10.100.0.0/16}", r#"write the first two numbers of an address in quotes, such as `"10.100"`"#, r#"global: {base_subnet: "10.100"}"#),
    (File, Code::DuplicateSubnet, "domains: {a: {subnet_id: 0}, b: {subnet_id: 0}}
", "choose another number from 0 to 254: the domain at infra.yml:1 has this one", "domains: {a: {subnet_id: 0}, b: {subnet_id: 1}}
"),
    (File, Code::ZoneOverflow, "global: {addressing: {zone_base: 245}}
domains: {a: {trust_level: disposable}}
", "choose a lower `zone_base` (the default is 100), or another `trust_level`", "global: {addressing: {zone_base: 100}}
domains: {a: {trust_level: disposable}}
"),
    (Machine, Code::InvalidAddress, "ip: 10.100.0.10/24", "write it without `/` and what follows: `10.100.0.10`", "ip: 10.100.0.10"),
    (Machine, Code::InvalidAddress, "ip: 10.100.0.010", "write four numbers from 0 to 255 separated by dots, without leading zeros or `/`, or remove `ip`", "ip: 10.100.0.10"),
    (Machine, Code::InvalidAddress, "ip: dhcp", "write four numbers from 0 to 255 separated by dots, without leading zeros or `/`, or remove `ip`", "type: lxc"),
    (Machine, Code::AddressOutsideSubnet, "ip: 10.100.1.5", "choose one from 10.100.0.1 to 10.100.0.253", "ip: 10.100.0.5"),
    (Machine, Code::ReservedAddress, "ip: 10.100.0.254", "choose one from 10.100.0.1 to 10.100.0.253", "ip: 10.100.0.253"),
    (File, Code::DuplicateAddress, "domains:
  work:
    subnet_id: 0
    machines: {web: {ip: 10.100.0.5}, db: {ip: 10.100.0.5}}
", "choose another address: the machine at infra.yml:4 has this one", "domains:
  work:
    subnet_id: 0
    machines: {web: {ip: 10.100.0.5}, db: {ip: 10.100.0.6}}
"),
    (File, Code::DuplicateAddress, "global: {firewall_mode: vm}
domains: {anklume: {subnet_id: 0, machines: {db: {ip: 10.100.0.253}}}}
", "give the machine another address, or write `firewall_mode: host`", "global: {firewall_mode: vm}
domains: {anklume: {subnet_id: 0, machines: {db: {ip: 10.100.0.5}}}}
"),
    (Machine, Code::DuplicateService, "services: [{name: s, tool: gpg_sign}, {name: s, tool: clipboard_get}]", "rename one of them: the first one is at infra.yml:1; a name must be unique on its machine", "services: [{name: s, tool: gpg_sign}, {name: clipboard, tool: clipboard_get}]"),
    (Machine, Code::ReservedName, "mcp: {tools: {notify: {description: x, command: [/bin/x]}}}", "choose another name, such as `deploy`", "mcp: {tools: {deploy: {description: x, command: [/bin/x]}}}"),
    (Machine, Code::InvalidName, "mcp: {tools: {Deploy: {description: x, command: [/bin/x]}}}", "write `deploy`, or choose another name", "mcp: {tools: {deploy: {description: x, command: [/bin/x]}}}"),
    (Machine, Code::MissingKey, "mcp: {tools: {deploy: {command: [/bin/x]}}}", "add what the tool does, for people and models: `description: Deploys the current release`", "mcp: {tools: {deploy: {description: Deploys the current release, command: [/bin/x]}}}"),
    (Machine, Code::MissingKey, "mcp: {tools: {deploy: {description: x}}}", "write the program's absolute path and its arguments: `command: [/usr/local/bin/deploy, \"--env={env}\"]`", "mcp: {tools: {deploy: {description: x, command: [/usr/local/bin/deploy, \"--env={env}\"], arguments: {env: {type: string}}}}}"),
    (Machine, Code::InvalidCommand, "mcp: {tools: {deploy: {description: x, command: [deploy]}}}", "write the program's absolute path and its arguments: `command: [/usr/local/bin/deploy, \"--env={env}\"]`", "mcp: {tools: {deploy: {description: x, command: [/usr/local/bin/deploy]}}}"),
    (Machine, Code::InvalidCommand, "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{\"]}}}", "`{name}` stands for an argument; `{{` and `}}` stand for braces", "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{{\"]}}}"),
    (Machine, Code::InvalidCommand, "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{env}\"]}}}", "declare it: `arguments: {env: {type: string}}`", "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{env}\"], arguments: {env: {type: string}}}}}"),
    (Machine, Code::InvalidCommand, "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a b}\"]}}}", "double the braces: `{{` and `}}` stand for the characters", "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{{a b}}\"]}}}"),
    (Machine, Code::InvalidCommand, "mcp: {tools: {deploy: {description: x, command: [/bin/x, --env, \"{env}\"], arguments: {env: {type: string, optional: true}}}}}", "write the option and its value as one element, such as `\"--env={env}\"`, once", "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"--env={env}\"], arguments: {env: {type: string, optional: true}}}}}"),
    (Machine, Code::InvalidCommand, "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {type: string, stdin: true}}}}}", "remove it from the command, or remove `stdin`", "mcp: {tools: {deploy: {description: x, command: [/bin/x], arguments: {a: {type: string, stdin: true}}}}}"),
    (Machine, Code::UnknownTool, "mcp: {servers: {github: {command: [/bin/x]}}}, services: [{name: s, tool: github/}]", "write the server and one of its tools, such as `github/list_issues`; each tool is named", "mcp: {servers: {github: {command: [/bin/x]}}}, services: [{name: s, tool: github/list_issues}]"),
    (Machine, Code::UnknownTool, "mcp: {servers: {github: {command: [/bin/x]}}}, services: [{name: s, tool: github}]", "name one of its tools: `github/TOOL`", "mcp: {servers: {github: {command: [/bin/x]}}}, services: [{name: s, tool: github/list_issues}]"),
    (Machine, Code::UnknownTool, "services: [{name: s, tool: Git/log}]", "name a server in `mcp: {servers: …}`: lower-case letters, digits and `_`", "mcp: {servers: {git: {command: [/bin/x]}}}, services: [{name: s, tool: git/log}]"),
    (Machine, Code::InvalidCommand, "mcp: {tools: {deploy: {description: x, command: [/bin/x], arguments: {env: {type: string}}}}}", "add it to the command, such as `\"--env={env}\"`, or set `stdin: true`, or remove it", "mcp: {tools: {deploy: {description: x, command: [/bin/x], arguments: {env: {type: string, stdin: true}}}}}"),
    (Machine, Code::InvalidCommand, "mcp: {tools: {deploy: {description: x, command: [/bin/x], arguments: {a: {type: string, stdin: true}, b: {type: string, stdin: true}}}}}", "remove `stdin` from one of them, and add it to the command", "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{b}\"], arguments: {a: {type: string, stdin: true}, b: {type: string}}}}}"),
    (Machine, Code::InvalidValue, "mcp: {tools: {deploy: {description: \"\\t\", command: [/bin/x]}}}", "write 1 to 2000 bytes of text, without control characters", "mcp: {tools: {deploy: {description: x, command: [/bin/x]}}}"),
    (Machine, Code::MissingKey, "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {}}}}}", "add `type:` with one of: string, integer, number, boolean", "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {type: string}}}}}"),
    (Machine, Code::InvalidValue, "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {type: string, min: 1}}}}}", "remove it, or correct `type`", "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {type: integer, min: 1}}}}}"),
    (Machine, Code::InvalidValue, "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {type: integer, min: 2, max: 1}}}}}", "exchange them", "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {type: integer, min: 1, max: 2}}}}}"),
    (Machine, Code::InvalidValue, "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {type: string, enum: [5]}}}}}", "write text; quote what YAML reads as a number or Boolean", "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {type: string, enum: [\"5\"]}}}}}"),
    (Machine, Code::InvalidValue, "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {type: integer, enum: [\"5\"]}}}}}", "write a number, without quotes", "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {type: integer, enum: [5]}}}}}"),
    (Machine, Code::InvalidValue, "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {type: boolean, enum: [\"true\"]}}}}}", "write true or false, without quotes", "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {type: boolean, enum: [true]}}}}}"),
    (Machine, Code::DuplicateItem, "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {type: integer, enum: [5, 5]}}}}}", "list it once", "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {type: integer, enum: [5]}}}}}"),
    (Machine, Code::InvalidValue, "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {type: integer, enum: []}}}}}", "list the allowed values, or remove it", "mcp: {tools: {deploy: {description: x, command: [/bin/x, \"{a}\"], arguments: {a: {type: integer}}}}}"),
    (Machine, Code::InvalidName, "mcp: {servers: {GitHub: {command: [/bin/x]}}}", "write `github`, or choose another name", "mcp: {servers: {github: {command: [/bin/x]}}}"),
    (Machine, Code::MissingKey, "mcp: {servers: {github: {}}}", "write the program's absolute path and its arguments: `command: [/opt/github-mcp-server, stdio]`", "mcp: {servers: {github: {command: [/opt/github-mcp-server, stdio]}}}"),
    (Machine, Code::InvalidCommand, "mcp: {servers: {github: {command: [github-mcp-server]}}}", "write the program's absolute path and its arguments: `command: [/opt/github-mcp-server, stdio]`", "mcp: {servers: {github: {command: [/opt/github-mcp-server, stdio]}}}"),
    (Machine, Code::UnknownTool, "mcp: {servers: {github: {command: [/bin/x]}}}, services: [{name: s, tool: gihtub/list}]", "did you mean `github/list`?", "mcp: {servers: {github: {command: [/bin/x]}}}, services: [{name: s, tool: github/list}]"),
    (Machine, Code::UnknownTool, "services: [{name: s, tool: github/list}]", "declare it: `mcp: {servers: {github: {command: [/path/to/server]}}}`", "mcp: {servers: {github: {command: [/path/to/server]}}}, services: [{name: s, tool: github/list}]"),
    (Machine, Code::InvalidName, "mcp: {servers: {github: {command: [/bin/x]}}}, services: [{name: s, tool: \"github/list issues\"}]", "write `list-issues`, or choose another name", "mcp: {servers: {github: {command: [/bin/x]}}}, services: [{name: s, tool: github/list-issues}]"),
    (Machine, Code::UnknownTool, "mcp: {tools: {deploy: {description: x, command: [/bin/x]}}}, services: [{name: s, tool: deplyo}]", "did you mean `deploy`? the tools are: gpg_sign, ssh_sign, clipboard_get, clipboard_set, file_accept, file_provide, notify, deploy", "mcp: {tools: {deploy: {description: x, command: [/bin/x]}}}, services: [{name: s, tool: deploy}]"),
    (Machine, Code::UnknownTool, "services: [{name: s, tool: gpg-sign}]", "did you mean `gpg_sign`? the tools are: gpg_sign, ssh_sign, clipboard_get, clipboard_set, file_accept, file_provide, notify", "services: [{name: s, tool: gpg_sign}]"),
    (Machine, Code::UnknownTool, "services: [{name: s, tool: sign}]", "the tools are: gpg_sign, ssh_sign, clipboard_get, clipboard_set, file_accept, file_provide, notify", "services: [{name: s, tool: gpg_sign}]"),
    (Service, Code::UnknownConsumer, "consumers: [web, mail]", "declare the machine in a domain, or take it off the list", "consumers: [web]"),
    (Service, Code::UnknownConsumer, r#"consumers: ["*"]"#, "list the machines one by one: no name stands for all of them", "consumers: [web]"),
    (File, Code::UnknownConsumer, "domains: {work: {subnet_id: 0, machines: {work-dev: {}, db: {services: [{name: s, tool: gpg_sign, consumers: [wrok-dev]}]}}}}
", "did you mean `work-dev`?", "domains: {work: {subnet_id: 0, machines: {work-dev: {}, db: {services: [{name: s, tool: gpg_sign, consumers: [work-dev]}]}}}}
"),
    (Service, Code::DomainAsConsumer, "consumers: [work]", "instead, list the machines of the domain that may call the service, one by one", "consumers: [web]"),
    (Service, Code::OwnConsumer, "consumers: [db]", "take it off the list: a machine needs no channel to itself", "consumers: []"),
    (Service, Code::DuplicateConsumer, "consumers: [web, web]", "list it once", "consumers: [web]"),
    (File, Code::DisabledConsumer, "domains: {a: {subnet_id: 0, machines: {m: {services: [{name: s, tool: gpg_sign, consumers: [off-dev]}]}}}, off: {enabled: false, subnet_id: 1, machines: {off-dev: {}}}}
", "enable the domain, or take the machine off the list", "domains: {a: {subnet_id: 0, machines: {m: {services: [{name: s, tool: gpg_sign, consumers: [off-dev]}]}}}, off: {enabled: true, subnet_id: 1, machines: {off-dev: {}}}}
"),
    (Service, Code::InvalidArgument, "with: {key_id: 1234567890123456}", r#"YAML reads a number or Boolean here; quote it to make it text: `"1234567890123456"`"#, r#"with: {key_id: "1234567890123456"}"#),
    (Service, Code::InvalidArgument, "with: {key_ids: 5}", "correct the argument, or remove it from `with`", "consumers: []"),
    (Service, Code::InvalidCondition, "where: {dat: {max_length: 5}}", "correct the argument's name, or remove it", "where: {data: {max_length: 5}}"),
    (Service, Code::InvalidCondition, "with: {key_id: 0123456789ABCDEF}, where: {key_id: {prefix: A}}", "remove it, or set it in `with`", "with: {key_id: 0123456789ABCDEF}"),
    (Service, Code::InvalidCondition, "with: {public_key: true}, where: {public_key: {const: true}}", "remove it: a rule is about what a caller sends", "with: {public_key: true}"),
    (Service, Code::InvalidCondition, "where: {offset: {max: 5}}, only: [data]", "add it to `only`", "where: {offset: {max: 5}}, only: [data, offset]"),
    (Service, Code::InvalidCondition, "only: [public_key]", "add it to `only`, or set it in `with`", "only: [public_key, data]"),
    (Service, Code::InvalidCondition, "where: {data: {}}", "add a rule, such as `prefix` or `enum`, or remove the argument", "where: {data: {prefix: a}}"),
    (Service, Code::InvalidCondition, "where: {data: {absent: true}}", "remove the rule: it refuses every call", "consumers: []"),
    (Service, Code::InvalidCondition, "where: {offset: {prefix: a}}", "remove it, or use `const` or `enum`", "where: {offset: {enum: [0, 1]}}"),
    (Service, Code::InvalidCondition, "where: {final: {const: \"no\"}}", "write a value that the tool takes", "where: {final: {const: true}}"),
    (Service, Code::InvalidCondition, "where: {offset: {min: 5, max: 4}}", "correct the rule: no value satisfies it", "where: {offset: {min: 4, max: 5}}"),
    (Service, Code::InvalidCondition, "where: {data: {prefix: \"\"}}", "write some text, or remove it", "where: {data: {prefix: a}}"),
    (Service, Code::InvalidCondition, "where: {data: {const: null}}", "write a value other than null, or `absent: true`", "where: {data: {const: aGk=}}"),
    (Service, Code::InvalidCondition, "where: {offset: {min: a}}", "write a number, without quotes", "where: {offset: {min: 1}}"),
    (Service, Code::InvalidCondition, "where: {offset: {min: 1, absent: false}}", "remove it", "where: {offset: {min: 1}}"),
    (Service, Code::InvalidCondition, "expires: tomorrow", "write a date and a time with their offset from UTC, such as `2027-01-31T18:00:00Z`", "expires: 2027-01-31T18:00:00Z"),
    (Service, Code::InvalidArgument, "offered_only: true", "remove it: only a clipboard is offered", "consumers: []"),
    (Machine, Code::MissingKey, "services: [{name: s, tool: ssh_sign}]", "add the public key to sign with: `with: {key: \"ssh-ed25519 AAAA… comment\"}`", "services: [{name: s, tool: ssh_sign, with: {key: \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHJnfXSd+mIq3usHI0ElQbZ2mrMkdJ5WxeOXNlv2Tj+8\"}}]"),
    (Machine, Code::InvalidArgument, "services: [{name: s, tool: ssh_sign, with: {key: \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHJnfXSd+mIq3usHI0ElQbZ2mrMkdJ5WxeOXNlv2Tj+8\", allow: []}}]", "name what the service signs, such as `git`, or remove `allow`: its default is `git`", "services: [{name: s, tool: ssh_sign, with: {key: \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHJnfXSd+mIq3usHI0ElQbZ2mrMkdJ5WxeOXNlv2Tj+8\"}}]"),
    (Machine, Code::InvalidArgument, "services: [{name: s, tool: ssh_sign, with: {key: \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHJnfXSd+mIq3usHI0ElQbZ2mrMkdJ5WxeOXNlv2Tj+8\", allow: [login]}}]", "add the fingerprints of the host keys, as `ssh-keygen -lf` prints them: `hosts: [\"SHA256:…\"]`", "services: [{name: s, tool: ssh_sign, with: {key: \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHJnfXSd+mIq3usHI0ElQbZ2mrMkdJ5WxeOXNlv2Tj+8\", allow: [login], hosts: [\"SHA256:upAmuG+4fJhy7j3W7jBu/KUU7KKHcWJdeUi4ZMDVlv8\"]}}]"),
    (Machine, Code::InvalidArgument, "services: [{name: s, tool: ssh_sign, with: {key: \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHJnfXSd+mIq3usHI0ElQbZ2mrMkdJ5WxeOXNlv2Tj+8\", hosts: [\"SHA256:upAmuG+4fJhy7j3W7jBu/KUU7KKHcWJdeUi4ZMDVlv8\"]}}]", "remove `hosts`, or add `login` to `allow`", "services: [{name: s, tool: ssh_sign, with: {key: \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHJnfXSd+mIq3usHI0ElQbZ2mrMkdJ5WxeOXNlv2Tj+8\"}}]"),
    (Machine, Code::PrivilegedEnd, "config: {security.privileged: true}, services: [{name: s, tool: gpg_sign, consumers: [web]}]", "remove `security.privileged`, or the services that it offers and calls: its root is the host's root", "services: [{name: s, tool: gpg_sign, consumers: [web]}]"),
    (Machine, Code::PrivilegedContainer, "config: {security.privileged: true}", "remove `security.privileged`, or write `type: vm`: the container's root is the host's root", "config: {}"),
    (Machine, Code::ReservedDeviceName, "devices: {mcp_0123456789abcdef: {type: none}}", "`mcp_` followed by 16 hexadecimal digits is reserved for anklume: choose another name", "devices: {data: {type: none}}"),
    (Machine, Code::ProxyIntoChannels, r#"devices: {p: {type: proxy, listen: "unix:/run/anklume/mcp/x", connect: "tcp:127.0.0.1:80"}}"#, "choose a path outside of /var/lib/anklume, /run/anklume/mcp, /srv/anklume/mcp: only `services` declares channels", r#"devices: {p: {type: proxy, listen: "unix:/run/x", connect: "tcp:127.0.0.1:80"}}"#),
    (Machine, Code::ProxyIntoSharedFolder, r#"devices: {d: {type: disk, source: /srv/data, path: /data}, p: {type: proxy, connect: "tcp:127.0.0.1:80", listen: "unix:/srv/data/x"}}"#, "choose a path that no machine may write to: a machine could put a link to any host socket there", r#"devices: {d: {type: disk, source: /srv/data, path: /data}, p: {type: proxy, connect: "tcp:127.0.0.1:80", listen: "unix:/run/x"}}"#),
    (Machine, Code::SourceInSharedFolder, "devices: {d: {type: disk, source: /srv/data, path: /data}, e: {type: disk, source: /srv/data/e, path: /e}}", "share folders that do not contain each other, or let no machine write to the outer one (`ro`, `readonly: true`): it could put a link to any host folder there", "devices: {d: {type: disk, source: /srv/data, path: /data, readonly: true}, e: {type: disk, source: /srv/data/e, path: /e}}"),
    (Machine, Code::SourceInSharedFolder, "devices: {d: {type: disk, source: /proc/1, path: /data}}", "choose a path outside of /proc: a machine could put a link to any host folder there", "devices: {d: {type: disk, source: /srv/data, path: /data}}"),
    (Machine, Code::DeviceSharesChannels, "devices: {d: {type: disk, source: /var/lib, path: /data}}", "share a folder that neither contains /var/lib/anklume nor lies in it", "devices: {d: {type: disk, source: /srv/data, path: /data}}"),
    (Machine, Code::DiskOverAnklume, "devices: {d: {type: disk, source: /srv/data, path: /opt}}, services: [{name: s, tool: gpg_sign, consumers: [web]}]", "choose a path that is neither above nor below /run/anklume, /srv/anklume, /opt/anklume, /etc/anklume", "devices: {d: {type: disk, source: /srv/data, path: /data}}, services: [{name: s, tool: gpg_sign, consumers: [web]}]"),
    (Machine, Code::DuplicateDevice, "persistent_data: {a: {path: /a}}, devices: {pd-a: {type: disk, source: /srv/b, path: /b}}", "`sv-…` are shared volumes and `pd-…` persistent data: rename the device or the volume", "persistent_data: {a: {path: /a}}, devices: {b: {type: disk, source: /srv/b, path: /b}}"),
    (Machine, Code::DuplicateMount, "persistent_data: {a: {path: /a}, b: {path: /a}}", "give each disk a `path` of its own", "persistent_data: {a: {path: /a}, b: {path: /b}}"),
    (File, Code::ContainerInUntrustedDomain, "domains: {a: {subnet_id: 0, trust_level: untrusted, machines: {m: {}}}}
", "write `type: vm`: a container shares the host's kernel", "domains: {a: {subnet_id: 0, trust_level: untrusted, machines: {m: {type: vm}}}}
"),
    (File, Code::DisabledDomain, "domains: {a: {subnet_id: 0}, b: {subnet_id: 1, enabled: false}}
network_policies: [{from: a, to: b}]
", "enable the domain, or remove the policy: until then, it has no effect", "domains: {a: {subnet_id: 0}, b: {subnet_id: 1, enabled: true}}
network_policies: [{from: a, to: b}]
"),
    (File, Code::PolicyAddress, "domains: {a: {subnet_id: 0, machines: {m: {}}}, b: {subnet_id: 1}}
network_policies: [{from: m, to: b, ports: all}]
", "give the machine an `ip`: a policy lets through what one address sends to another", "domains: {a: {subnet_id: 0, machines: {m: {ip: 10.100.0.1}}}, b: {subnet_id: 1}}
network_policies: [{from: m, to: b, ports: all}]
"),
    (File, Code::PolicyWithoutEffect, "domains: {a: {subnet_id: 0}, b: {subnet_id: 1}}
network_policies: [{from: a, to: b}]
", "add `ports:` with a list of numbers, or `ports: all`", "domains: {a: {subnet_id: 0}, b: {subnet_id: 1}}
network_policies: [{from: a, to: b, ports: all}]
"),
    (Top, Code::PolicyWithoutEffect, "network_policies: [{from: work, to: host, ports: all}]", "remove it, or keep it for Ansible", ""),
    (Top, Code::AiAccess, "global: {ai_access_policy: exclusive, ai_access_default: work}", "declare the domain, or write `ai_access_policy: open`", "global: {ai_access_policy: open}"),
    (File, Code::AiAccess, "global: {ai_access_policy: exclusive}
domains: {work: {subnet_id: 0}, ai-tools: {subnet_id: 1}}
", "add `ai_access_default:` with the domain that may use the AI tools, or write `ai_access_policy: open`", "global: {ai_access_policy: exclusive, ai_access_default: work}
domains: {work: {subnet_id: 0}, ai-tools: {subnet_id: 1}}
"),
    (File, Code::AiAccess, "global: {ai_access_policy: exclusive, ai_access_default: wrk}
domains: {work: {subnet_id: 0}, ai-tools: {subnet_id: 1}}
", "name another domain that is declared, or write `ai_access_policy: open`", "global: {ai_access_policy: exclusive, ai_access_default: work}
domains: {work: {subnet_id: 0}, ai-tools: {subnet_id: 1}}
"),
    (File, Code::AiAccess, "global: {ai_access_policy: exclusive, ai_access_default: work}
domains: {work: {subnet_id: 0}, ai-tools: {subnet_id: 1}}
network_policies: [{from: work, to: ai-tools}, {from: work, to: ai-tools}]
", "keep one of these policies, or write `ai_access_policy: open`", "global: {ai_access_policy: exclusive, ai_access_default: work}
domains: {work: {subnet_id: 0}, ai-tools: {subnet_id: 1}}
network_policies: [{from: work, to: ai-tools}]
"),
    (Top, Code::FirewallMode, "global: {firewall_mode: vm}", "declare the domain, or write `firewall_mode: host`", "global: {firewall_mode: host}"),
    (File, Code::SeveralGpus, "domains: {a: {subnet_id: 0, machines: {m: {gpu: true}, n: {gpu: true}}}}
", "let only one machine use it, or set `gpu_policy: shared` in `global`", "domains: {a: {subnet_id: 0, machines: {m: {gpu: true}, n: {gpu: false}}}}
"),
    (File, Code::SharedGpu, "global: {gpu_policy: shared}
domains: {a: {subnet_id: 0, machines: {m: {gpu: true}, n: {gpu: true}}}}
", "let only one machine use it, unless the machines may see each other's memory, as they can on most GPUs", "global: {gpu_policy: shared}
domains: {a: {subnet_id: 0, machines: {m: {gpu: true}, n: {gpu: false}}}}
"),
    (File, Code::YamlSyntax, "domains:
  work:
    subnet_id: 0
    machines:
      web: {}
      db:
        services:
          - name: sign
            tool: gpg_sign
            consumers:
              - web
          - name: clip
            tool: clipboard_get
  - pro:
    subnet_id: 1
    machines:
      mail: {}
", "remove the `-` if this is a key, or begin all items of the list with `-`; nothing after this point was read, so there may be more errors", "domains:
  work:
    subnet_id: 0
    machines:
      web: {}
      db:
        services:
          - name: sign
            tool: gpg_sign
            consumers:
              - web
          - name: clip
            tool: clipboard_get
  pro:
    subnet_id: 1
    machines:
      mail: {}
"),
    (Service, Code::WrongType, "consumers: (web)", "write a list: `[web]`", "consumers: [web]"),
    (Service, Code::UnknownConsumer, "consumers: [work/web]", "list only machines: `web`", "consumers: [web]"),
    (Machine, Code::WrongType, "services: [[name: sign, tool: gpg_sign]]", "remove the list around the keys: the `-` before each, or write `{…}` instead of `[…]`", "services: [{name: sign, tool: gpg_sign}]"),
    (File, Code::YamlSyntax, "domains:
work:
    subnet_id: 0
    machines:
      web: {}
      db:
        services:
          - name: sign
            tool: gpg_sign
            consumers:
              - web
          - name: clip
            tool: clipboard_get
  pro:
    subnet_id: 1
    machines:
      mail: {}
", "indent the text with 2 spaces in line 2; nothing after this point was read, so there may be more errors", "domains:
  work:
    subnet_id: 0
    machines:
      web: {}
      db:
        services:
          - name: sign
            tool: gpg_sign
            consumers:
              - web
          - name: clip
            tool: clipboard_get
  pro:
    subnet_id: 1
    machines:
      mail: {}
"),
    (File, Code::YamlSyntax, "  work:
    subnet_id: 0
    machines:
      web: {}
      mail: {}
      db:
        services:
          - name: sign
            tool: gpg_sign
            consumers:
              - web
              - mail
          - name: clip
            tool: clipboard_get
project_name: a
", "write `domains:` above the first line, or do not indent it; nothing after this point was read, so there may be more errors", "domains:
  work:
    subnet_id: 0
    machines:
      web: {}
      mail: {}
      db:
        services:
          - name: sign
            tool: gpg_sign
            consumers:
              - web
              - mail
          - name: clip
            tool: clipboard_get
project_name: a
"),
    (File, Code::UnknownKey, "work:
  subnet_id: 0
  machines: {web: {}}
", "indent it below a line `domains:`: it looks like one of them", "domains:
  work:
    subnet_id: 0
    machines: {web: {}}
"),
    (File, Code::UnknownKey, "domains:
  work:
    subnet_id: 0
    machines:
    web:
      type: vm
", "indent it below a line `machines:`: it looks like one of them", "domains:
  work:
    subnet_id: 0
    machines:
      web:
        type: vm
"),
    (File, Code::WrongType, "domains:
  work:
    subnet_id: 0
  machines:
    web:
      type: vm
", "indent this line below the name: `machines` is a key of a domain", "domains:
  work:
    subnet_id: 0
    machines:
      web:
        type: vm
"),
    (File, Code::WrongType, "domains:
  work:
    subnet_id: 0
    machines:
      web:
        type: vm
      mcp: {uid: 1000}
", "indent this line below the name: `mcp` is a key of a machine", "domains:
  work:
    subnet_id: 0
    machines:
      web:
        type: vm
        mcp: {uid: 1000}
"),
    (File, Code::UnknownKey, "domains:\n  work:\n    subnet_id: 0\n    machines:\n      web:\n       \u{a0}type: vm\n", r#"write straight quotes (`"`) for “ and ”, and a space for each no-break space (U+00A0)"#, "domains:
  work:
    subnet_id: 0
    machines:
      web:
        type: vm
"),
    (Machine, Code::InvalidAddress, "ip: “10.100.0.9”", r#"write straight quotes (`"`) for “ and ”, and a space for each no-break space (U+00A0)"#, r#"ip: "10.100.0.9""#),
    (Service, Code::UnknownConsumer, "consumers: [‘web’]", r#"write straight quotes (`"`) for “ and ”, and a space for each no-break space (U+00A0)"#, r#"consumers: ["web"]"#),
    (File, Code::UnknownConsumer, "domains: {work: {subnet_id: 0, machines: {work_dev: {}, db: {services: [{name: s, tool: gpg_sign, consumers: [work-dev]}]}}}}
", "declare the machine in a domain, or take it off the list", "domains: {work: {subnet_id: 0, machines: {work-dev: {}, db: {services: [{name: s, tool: gpg_sign, consumers: [work-dev]}]}}}}
"),
    (File, Code::UnknownConsumer, "domains: {work: {subnet_id: 0, machines: {Work-Dev: {}, db: {services: [{name: s, tool: gpg_sign, consumers: [work-dev]}]}}}}
", "declare the machine in a domain, or take it off the list", "domains: {work: {subnet_id: 0, machines: {work-dev: {}, db: {services: [{name: s, tool: gpg_sign, consumers: [work-dev]}]}}}}
"),
    (File, Code::UnknownConsumer, "domains: {work: {subnet_id: 0, machines: {work dev: {}, db: {services: [{name: s, tool: gpg_sign, consumers: [work-dev]}]}}}}
", "declare the machine in a domain, or take it off the list", "domains: {work: {subnet_id: 0, machines: {work-dev: {}, db: {services: [{name: s, tool: gpg_sign, consumers: [work-dev]}]}}}}
"),
    (File, Code::UnknownName, "domains: {work: {subnet_id: 0}, pro: {subnet_id: 1}}
network_policies: [{from: work, to: por}]
", "did you mean `pro`?", "domains: {work: {subnet_id: 0}, pro: {subnet_id: 1}}
network_policies: [{from: work, to: pro}]
"),
    (Machine, Code::UnknownKey, "IP: 10.100.0.9", "did you mean `ip`?", "ip: 10.100.0.9"),
    (Top, Code::UnknownKey, "default_os_image: images:debian/13", "it is a key of `global`: move it there", "global: {default_os_image: images:debian/13}"),
    (Service, Code::UnknownKey, "limits: {calls_per_minute:5}", "put a space after the colon: `calls_per_minute: 5`", "limits: {calls_per_minute: 5}"),
    (Domain, Code::UnknownKey, "services: [{name: s, tool: gpg_sign}]", "it is a key of a machine: move it there", "description: x"),
    (Machine, Code::UnknownKey, "consumers: [web]", "it is a key of a service: move it there", "services: [{name: s, tool: gpg_sign, consumers: [web]}]"),
    (Top, Code::UnknownKey, "machines: {db: {}}", "it is a key of a domain: move it there", "project_name: a"),
];

/// The file that [`EDITS`] change.
const SERVICES: &str = "\
domains:
  work:
    subnet_id: 0
    machines:
      web: {}
      mail: {}
      db:
        services:
          - name: sign
            tool: gpg_sign
            consumers:
              - web
              - mail
          - name: clip
            tool: clipboard_get
";

/// A code, a part of [`SERVICES`], what somebody wrote there, the help, and the part corrected exactly as it says.
type Edit = (Code, &'static str, &'static str, &'static str, &'static str);

const EDITS: &[Edit] = &[
    (
        Code::YamlSyntax,
        "              - mail",
        "              -mail",
        "put a space after the `-`",
        "              - mail",
    ),
    (
        Code::YamlSyntax,
        "          - name: sign",
        "          -name: sign",
        "put a space after the `-` in line 9",
        "          - name: sign",
    ),
    (
        Code::YamlSyntax,
        "            consumers:\n              - web\n              - mail",
        "            consumers: - web",
        "put the `-` on a new line below the key",
        "            consumers:\n              - web",
    ),
    (
        Code::DuplicateKey,
        "          - name: clip",
        "            name: clip",
        "the first one is at infra.yml:9; keep one of them, or begin a second list item with `-`",
        "          - name: clip",
    ),
    (
        Code::YamlSyntax,
        "          - name: sign",
        "            name: sign",
        "remove the `-` if this is a key, or begin all items of the list with `-`",
        "          - name: sign",
    ),
    (
        Code::MissingKey,
        "            tool: gpg_sign",
        "          - tool: gpg_sign",
        "add the name that consumers call, such as `name: file_sign`; only a service's first key has a `-`",
        "            tool: gpg_sign",
    ),
    (
        Code::MissingKey,
        "            tool: gpg_sign",
        "          - tool: gpg_sign",
        "add `tool:` with one of: gpg_sign, ssh_sign, clipboard_get, clipboard_set, file_accept, file_provide, notify; only a service's first key has a `-`",
        "            tool: gpg_sign",
    ),
    (
        Code::YamlSyntax,
        "          - name: sign",
        "          - - name: sign",
        "remove the second `-` in line 9",
        "          - name: sign",
    ),
    (
        Code::UnknownKey,
        "          - name: clip\n            tool: clipboard_get",
        "          - clip:\n              tool: clipboard_get",
        "write `name:` before this name, and no `:` after it",
        "          - name: clip\n            tool: clipboard_get",
    ),
    (
        Code::WrongType,
        "              - web\n              - mail",
        "              • web\n              • mail",
        "begin each item with `- `: `- web`",
        "              - web\n              - mail",
    ),
    (
        Code::WrongType,
        "              - web\n              - mail",
        "              – web\n              – mail",
        "begin each item with `- `: `- web`",
        "              - web\n              - mail",
    ),
    (
        Code::YamlSyntax,
        "              - mail",
        "              • mail",
        "begin the list item with `-`",
        "              - mail",
    ),
    (
        Code::YamlSyntax,
        "              - mail",
        "              * mail",
        "begin the list item with `-`",
        "              - mail",
    ),
    (
        Code::UnknownConsumer,
        "            consumers:\n              - web\n              - mail",
        "            consumers: [web mail]",
        "list only machines: `web, mail`",
        "            consumers: [web, mail]",
    ),
    (
        Code::UnknownConsumer,
        "            consumers:\n              - web\n              - mail",
        "            consumers: [web; mail]",
        "list only machines: `web, mail`",
        "            consumers: [web, mail]",
    ),
    (
        Code::UnknownConsumer,
        "            consumers:\n              - web\n              - mail",
        "            consumers: [web and mail]",
        "list only machines: `web, mail`",
        "            consumers: [web, mail]",
    ),
    (
        Code::WrongType,
        "              - mail",
        "          - mail",
        "indent consumers below `consumers:`, or write a service, such as `{name: file_sign, tool: gpg_sign}`",
        "              - mail",
    ),
    (
        Code::YamlSyntax,
        "            consumers:\n              - web\n              - mail",
        "            consumers: [web,, mail]",
        "remove the extra comma",
        "            consumers: [web, mail]",
    ),
    (
        Code::YamlSyntax,
        "            consumers:\n              - web\n              - mail",
        "            consumers: [, web, mail]",
        "remove the extra comma",
        "            consumers: [web, mail]",
    ),
    (
        Code::YamlSyntax,
        "            tool: gpg_sign",
        "            tool = gpg_sign",
        "write `:` instead of `=`",
        "            tool: gpg_sign",
    ),
    (
        Code::YamlSyntax,
        "    subnet_id: 0",
        "    subnet_id = 0",
        "write `:` instead of `=` in line 3",
        "    subnet_id: 0",
    ),
    (
        Code::YamlSyntax,
        "    subnet_id: 0",
        "    // note\n    subnet_id: 0",
        "begin the comment with `#` in line 3",
        "    # note\n    subnet_id: 0",
    ),
    (
        Code::YamlSyntax,
        "    subnet_id: 0",
        "    ; note\n    subnet_id: 0",
        "begin the comment with `#` in line 3",
        "    # note\n    subnet_id: 0",
    ),
    (
        Code::YamlSyntax,
        "            tool: clipboard_get",
        "            tool: clipboard_get\nEOF",
        "if it continues the value above, indent it deeper than that key; otherwise remove what is neither a key nor a list item",
        "            tool: clipboard_get",
    ),
    (
        Code::YamlSyntax,
        "domains:",
        "$ cat infra.yml\ndomains:",
        "if it continues the value above, indent it deeper than that key; otherwise remove what is neither a key nor a list item in line 1",
        "domains:",
    ),
    (
        Code::YamlSyntax,
        "      web: {}",
        "      ...\n      web: {}",
        "if it continues the value above, indent it deeper than that key; otherwise remove what is neither a key nor a list item in line 5",
        "      web: {}",
    ),
    (
        Code::SecondDocument,
        "  work:",
        "...\n  work:",
        "remove the line `---` or `...`, and write each top-level key only once: one file is one document",
        "  work:",
    ),
    (
        Code::YamlSyntax,
        "    subnet_id: 0",
        "    description: Signs what\n    others may not\n    subnet_id: 0",
        "if it continues the value above, indent it deeper than that key; otherwise remove what is neither a key nor a list item",
        "    description: Signs what\n      others may not\n    subnet_id: 0",
    ),
    (
        Code::YamlSyntax,
        "    subnet_id: 0",
        "<<<<<<< HEAD\n    subnet_id: 0\n=======\n    subnet_id: 1\n>>>>>>> other",
        "remove the lines that begin with `<<<<<<<`, `=======` and `>>>>>>>`, and keep one version of the lines that they enclose",
        "    subnet_id: 0",
    ),
    (
        Code::YamlSyntax,
        "    machines:",
        "=======\n    machines:",
        "remove the lines that begin with `<<<<<<<`, `=======` and `>>>>>>>`, and keep one version of the lines that they enclose",
        "    machines:",
    ),
    (
        Code::YamlSyntax,
        "    subnet_id: 0",
        ">>>>>>> other\n    subnet_id: 0",
        "remove the lines that begin with `<<<<<<<`, `=======` and `>>>>>>>`, and keep one version of the lines that they enclose",
        "    subnet_id: 0",
    ),
    (
        Code::YamlSyntax,
        "    subnet_id: 0",
        "  subnet_id: 0",
        "indent the text with 4 spaces in line 3",
        "    subnet_id: 0",
    ),
    (
        Code::WrongType,
        "        services:",
        "      services:",
        "indent this line below the name: `services` is a key of a machine",
        "        services:",
    ),
    (
        Code::YamlSyntax,
        "    subnet_id: 0",
        "   \u{a0}subnet_id: 0",
        r#"write straight quotes (`"`) for “ and ”, and a space for each no-break space (U+00A0) in line 3"#,
        "    subnet_id: 0",
    ),
    (
        Code::YamlSyntax,
        "    machines:",
        "    description: “Work: all”\n    machines:",
        r#"write straight quotes (`"`) for “ and ”, and a space for each no-break space (U+00A0)"#,
        "    description: \"Work: all\"\n    machines:",
    ),
    (
        Code::YamlSyntax,
        "    machines:",
        "    description: \"C:\\users\"\n    machines:",
        r"double each `\`, or use single quotes",
        "    description: \"C:\\\\users\"\n    machines:",
    ),
    (
        Code::YamlSyntax,
        "    machines:",
        "    description: \"C:\\users\"\n    machines:",
        r"double each `\`, or use single quotes",
        "    description: 'C:\\users'\n    machines:",
    ),
];
