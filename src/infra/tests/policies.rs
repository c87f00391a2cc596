//! Tests `network_policies`.
//!
//! Each case is a file and all its findings: code, line:column, marked text.

use super::{Case, check};
use crate::infra::policy::NetworkEnd;

const CASES: &[Case] = &[
    (
        r"domains: {a: {subnet_id: 0, machines: {m: {ip: 10.100.0.1}, d: {}, e: {devices: {eth0: {type: nic}}}}}, b: {subnet_id: 1}}
network_policies:
  - {from: a, to: b}
  - {from: a, to: b, ports: []}
  - {from: m, to: a, ports: all}
  - {from: host, to: b, ports: all}
  - {from: d, to: b, ports: all}
  - {from: b, to: e, ports: all}
  - {from: m, to: b, ports: all}
",
        &[
            "warning policy-without-effect 3:5 {",
            "warning policy-without-effect 4:5 {",
            "warning policy-without-effect 5:5 {",
            "warning policy-without-effect 6:5 {",
            "policy-address 7:12 d",
            "policy-address 8:19 e",
        ],
    ),
    (
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
            "policy-address 6:22 m",
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
    ),
];

#[test]
fn network_policies_name_what_is_declared() {
    check(CASES);
}

#[test]
fn the_effect_of_a_policy_is_that_of_its_written_form() {
    let text = "domains:
  a: {subnet_id: 0, machines: {m: {ip: 10.100.0.1}, e: {devices: {eth0: {type: nic, network: net-a, ipv4.address: 10.100.0.9}}}}}
  b: {subnet_id: 1}
network_policies:
  - {from: m, to: b, ports: [80, 443]}
  - {from: b, to: e, ports: all, protocol: udp, bidirectional: true}
";
    let infra = super::good(text).infra;
    let told = infra.policies.iter().map(|one| {
        let end = |end: &NetworkEnd| {
            let address = end.machine.as_ref().map(|(_, address)| address.to_string());
            format!("{} {}", end.name(), address.unwrap_or_default())
        };
        let protocols = one
            .protocols
            .iter()
            .map(|one| one.as_str())
            .collect::<Vec<_>>();
        let (from, to) = (end(&one.from), end(&one.to));
        format!(
            "{from}, {to}, {:?}, {protocols:?}, {}",
            one.ports, one.bidirectional
        )
    });
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            r#"m 10.100.0.1, b , Some([80, 443]), ["tcp", "udp"], false"#,
            r#"b , e 10.100.0.9, None, ["udp"], true"#,
        ]
    );
    assert_eq!(infra.network_policies.len(), 2);
}
