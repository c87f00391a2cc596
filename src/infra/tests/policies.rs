//! Tests `network_policies`.
//!
//! Each case is a file and all its findings: code, line:column, marked text.

use super::{Case, check};

const CASES: &[Case] = &[(
    r#"domains: {a: {subnet_id: 0, machines: {m: {}}}, b: {subnet_id: 1, enabled: false, machines: {n: {}}}}
network_policies:
  - x
  - {}
  - {from: a, to: q, ports: 80, protocol: icmp, bidirectional: 1, foo: 1}
  - {from: host, to: m, ports: [0, 65536, true, "80", 80]}
  - {from: b, to: n, ports: all}
  - {from: 5, to: [a], ports: some}
  -"#,
    &[
        "wrong-type 3:5 x",
        "missing-key 4:5 {",
        "missing-key 4:5 {",
        "unknown-name 5:19 q",
        "wrong-type 5:29 80",
        "invalid-value 5:43 icmp",
        "wrong-type 5:64 1",
        "warning unknown-key 5:67 foo",
        "invalid-value 6:33 0",
        "invalid-value 6:36 65536",
        "invalid-value 6:43 true",
        r#"invalid-value 6:49 "80""#,
        "warning disabled-domain 7:12 b",
        "warning disabled-domain 7:19 n",
        "wrong-type 8:12 5",
        "wrong-type 8:19 [",
        "wrong-type 8:31 some",
        "empty-value 9:4 ",
    ],
)];

#[test]
fn network_policies_name_what_is_declared() {
    check(CASES);
}
