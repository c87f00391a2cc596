//! Tests domains: names, subnets, trust.
//!
//! Each case is a file and all its findings: code, line:column, marked text.

use super::{Case, check};

const CASES: &[Case] = &[
    ("domains: {a: }", &["empty-value 1:11 a"]),
    ("domains: {a: []}", &["wrong-type 1:14 ["]),
    ("domains: {5: {subnet_id: 0}}", &["wrong-type 1:11 5"]),
    ("domains: {true: {subnet_id: 0}}", &["wrong-type 1:11 true"]),
    (
        r#"domains: {"": {subnet_id: 0}}"#,
        &[r#"invalid-name 1:11 """#],
    ),
    (
        r#"domains: {"work\n": {subnet_id: 0}}"#,
        &[r#"invalid-name 1:11 "work\n""#],
    ),
    (
        "domains: {A: {subnet_id: 0}, -b: {subnet_id: 1}, c_d: {subnet_id: 2}}",
        &[
            "invalid-name 1:11 A",
            "invalid-name 1:30 -b",
            "invalid-name 1:50 c_d",
        ],
    ),
    (
        "domains:
  all: {subnet_id: 0}
  ungrouped: {subnet_id: 1}
  localhost: {subnet_id: 2}
  default: {subnet_id: 3}
  host: {subnet_id: 4}",
        &[
            "reserved-name 2:3 all",
            "reserved-name 3:3 ungrouped",
            "reserved-name 4:3 localhost",
            "reserved-name 5:3 default",
            "reserved-name 6:3 host",
        ],
    ),
    (
        "domains: {abcdefghijk: {subnet_id: 0}, abcdefghijkl: {subnet_id: 1}}",
        &["name-too-long 1:40 abcdefghijkl"],
    ),
    (
        r#"domains:
  a: {}
  b: {subnet_id: }
  c: {subnet_id: true}
  d: {subnet_id: 255}
  e: {subnet_id: -1}
  f: {subnet_id: 010}
  g: {subnet_id: "1"}
  h: {subnet_id: 1.0}
  i: {subnet_id: 0x10}
  j: {subnet_id: 99999999999999999999}
  k: {subnet_id: 254}"#,
        &[
            "missing-key 2:3 a",
            "missing-key 3:3 b",
            "warning empty-value 3:7 subnet_id",
            "wrong-type 4:18 true",
            "out-of-range 5:18 255",
            "out-of-range 6:18 -1",
            "ambiguous-number 7:18 010",
            r#"wrong-type 8:18 "1""#,
            "wrong-type 9:18 1.0",
            "ambiguous-number 10:18 0x10",
            "out-of-range 11:18 99999999999999999999",
        ],
    ),
    (
        "domains: {a: {subnet_id: 1}, b: {subnet_id: 1}}",
        &["duplicate-subnet 1:45 1"],
    ),
    (
        "global: {addressing: {}}
domains: {a: {subnet_id: 1}, b: {subnet_id: 1}, c: {subnet_id: 1, trust_level: admin}}",
        &["duplicate-subnet 2:45 1"],
    ),
    (
        "domains:
  a:
    subnet_id: 0
    enabled: yes
    ephemeral: 1
    trust_level: high
    ai_provider: x
    ai_sanitize: maybe
    description: [a]
    profiles: []
    machines: []
    file_portal: x
    sub_net: 1
  b: {subnet_id: 1, file_portal: {allowed_paths: [1], read_only: 1, x: 1}}",
        &[
            "wrong-type 4:14 yes",
            "wrong-type 5:16 1",
            "invalid-value 6:18 high",
            "invalid-value 7:18 x",
            "invalid-value 8:18 maybe",
            "wrong-type 9:18 [",
            "wrong-type 10:15 [",
            "wrong-type 11:15 [",
            "wrong-type 12:18 x",
            "warning unknown-key 13:5 sub_net",
            "wrong-type 14:51 1",
            "wrong-type 14:66 1",
            "warning unknown-key 14:69 x",
        ],
    ),
    (
        "domains: {a: {subnet_id: 0, machines: }}",
        &["warning empty-value 1:29 machines"],
    ),
    (
        "domains: {a: {subnet_id: 0, trust_level: untrusted, machines: {m: {}, n: {type: vm}}}, b: {subnet_id: 1, trust_level: disposable, machines: {o: {}}}}",
        &[
            "warning container-in-untrusted-domain 1:64 m",
            "warning container-in-untrusted-domain 1:142 o",
        ],
    ),
];

#[test]
fn domains_have_names_that_work_and_subnets_of_their_own() {
    check(CASES);
}
