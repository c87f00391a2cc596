//! Tests YAML features that a security policy must not use, and files that are not YAML.
//!
//! Each case is a file and all its findings: code, line:column, marked text.

use super::{Case, check};

const CASES: &[Case] = &[
        (
            "
",
            &[
                "empty-file 1:1 ",
            ],
        ),
        (
            "# only a comment
",
            &[
                "empty-file 1:1 ",
            ],
        ),
        (
            "- a
",
            &[
                "wrong-type 1:1 -",
            ],
        ),
        (
            "text",
            &[
                "wrong-type 1:1 text",
            ],
        ),
        (
            "~",
            &[
                "empty-file 1:1 ~",
            ],
        ),
        (
            "{}",
            &[
                "missing-key 1:1 {",
            ],
        ),
        (
            "domains: {a: {subnet_id: 0}}
---
domains: {b: {subnet_id: 0}}
",
            &[
                "second-document 2:1 ---",
            ],
        ),
        (
            "---
domains: {a: {subnet_id: 0}}
...
",
            &[
            ],
        ),
        (
            "domains: {a: {subnet_id: 0}}
...
---
x: 1
",
            &[
                "second-document 3:1 ---",
            ],
        ),
        (
            "%YAML 1.1
---
domains: {}
",
            &[
                "yaml-directive 1:1 %",
            ],
        ),
        (
            "domains: &x {a: {subnet_id: 0}}
",
            &[
                "yaml-anchor 1:10 &x",
            ],
        ),
        (
            "domains: {a: {subnet_id: 0, machines: *x}}
",
            &[
                "yaml-alias 1:39 *x",
            ],
        ),
        (
            "domains: {a: &y {subnet_id: 0, machines: {}}, b: *y}
",
            &[
                "yaml-anchor 1:14 &y",
                "yaml-alias 1:50 *y",
            ],
        ),
        (
            "domains: {a: {subnet_id: 0, <<: {description: x}}}
",
            &[
                "yaml-merge-key 1:29 <<",
            ],
        ),
        (
            r#"domains: {a: !!map {subnet_id: !!int "0"}}
"#,
            &[
                "yaml-tag 1:14 !!map",
                "yaml-tag 1:32 !!int",
                r#"wrong-type 1:38 "0""#,
            ],
        ),
        (
            "domains: {a: {subnet_id: 0, description: !!python/object/apply:os.system ls}}
",
            &[
                "yaml-tag 1:42 !!python/object/apply:os.system",
            ],
        ),
        (
            "domains: {a: {subnet_id: 0}, a: {subnet_id: 1}}
",
            &[
                "duplicate-key 1:30 a",
            ],
        ),
        (
            r#"domains: {a: {subnet_id: 0}, "\x61": {subnet_id: 1}}
"#,
            &[
                r#"duplicate-key 1:30 "\x61""#,
            ],
        ),
        (
            "domains: {a: {subnet_id: 0, machines: {m: {services: [{name: s, tool: gpg_sign, consumers: [], consumers: [m]}]}}}}
",
            &[
                "duplicate-key 1:96 consumers",
            ],
        ),
        (
            "domains: {? [a, b] : {subnet_id: 0}, c: {subnet_id: 1}}
",
            &[
                "complex-key 1:13 [",
            ],
        ),
        (
            "domains: {*x : {subnet_id: 0}}
",
            &[
                "yaml-alias 1:11 *x",
            ],
        ),
        (
            "domains:\n\ta: {subnet_id: 0}\n",
            &[
                "yaml-syntax 2:2 a",
            ],
        ),
        (
            "domains: {a: {subnet_id: 0}
",
            &[
                "yaml-syntax 1:10 {",
            ],
        ),
        (
            r#"domains: {a: {subnet_id: 0, description: "x}}
"#,
            &[
                r#"yaml-syntax 1:42 ""#,
            ],
        ),
        (
            "domains: {a: {subnet_id: 0}}]
",
            &[
                "yaml-syntax 1:29 ]",
            ],
        ),
        (
            "\u{feff}domains: {a: {subnet_id: x}}\n",
            &[
                "wrong-type 1:26 x",
            ],
        ),
        (
        "domains: {a: {subnet_id: 0}}\n# a\rdomains: {b: {subnet_id: 0}}\n",
        &["yaml-syntax 2:4 \r"],
    ),
    (
            "domains:\r\n  a:\r\n    subnet_id: x\r\n",
            &[
                "wrong-type 3:16 x",
            ],
        ),
        (
            "domains: {a: {subnet_id: 0, description: \"a\u{1b}b\"}}\n",
            &[
                r"yaml-syntax 1:44 \u{1b}",
            ],
        ),
        (
            "domains: {é☕: {subnet_id: x}}
",
            &[
                "invalid-name 1:11 é☕",
                "wrong-type 1:27 x",
            ],
        ),
        (
            "domains: {a: {subnet_id: 0, description: |
  x
  }}
",
            &[
                "yaml-syntax 1:42 |",
            ],
        ),
];

#[test]
fn yaml_is_read_strictly() {
    check(CASES);
}
