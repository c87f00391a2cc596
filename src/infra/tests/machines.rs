//! Tests machines: names, addresses, every key.
//!
//! Each case is a file and all its findings: code, line:column, marked text.

use super::{Case, check};

const CASES: &[Case] = &[
    (
        r#"domains:
  a:
    subnet_id: 0
    machines:
      m:
        boot_autostart: true
        boot_priority: 5
        snapshots_schedule: "0 2 * * *"
        snapshots_expiry: 30m
        ephemeral: true
        config:
          boot.autostart: off
          boot.autostart.priority: 6
          snapshots.schedule: "@daily"
          snapshots.expiry: 30m
          security.protection.delete: "1"
      same:
        boot_autostart: true
        boot_priority: 5
        snapshots_schedule: "0 2 * * *"
        snapshots_expiry: 30m
        ephemeral: false
        config:
          boot.autostart: "yes"
          boot.autostart.priority: 5
          snapshots.schedule: "0 2 * * *"
          snapshots.expiry: 30M
          security.protection.delete: true
      default: {config: {security.protection.delete: false}}
"#,
        &[
            "conflicting-keys 12:27 off",
            "conflicting-keys 13:36 6",
            r#"conflicting-keys 14:31 "@daily""#,
            "conflicting-keys 15:29 30m",
            r#"conflicting-keys 16:39 "1""#,
        ],
    ),
    (
        r#"domains:
  a:
    subnet_id: 0
    machines:
      m:
        ip: "10.100.0.010"
      n:
        ip: 10
      o: {ip: 10.100.0.1/24}
      p: {ip: "10.100.0.0"}
      q: {ip: "10.100.0.255"}
      r: {ip: "10.101.0.1"}
      s: {ip: "10.100.0.7"}
      t: {ip: "10.100.0.7"}
      u: {ip: "10.100.0.1, 0.0.0.0"}
      v: {ip: "10.100.0.999"}
      w: {ip: }
      x: {ip: "10.100.0.254"}
      y: {ip: "10.100.0.abc"}
      z: {ip: "10.100.0.1\n"}"#,
        &[
            r#"invalid-address 6:13 "10.100.0.010""#,
            "wrong-type 8:13 10",
            "invalid-address 9:15 10.100.0.1/24",
            r#"reserved-address 10:15 "10.100.0.0""#,
            r#"reserved-address 11:15 "10.100.0.255""#,
            r#"address-outside-subnet 12:15 "10.101.0.1""#,
            r#"duplicate-address 14:15 "10.100.0.7""#,
            r#"invalid-address 15:15 "10.100.0.1, 0.0.0.0""#,
            r#"invalid-address 16:15 "10.100.0.999""#,
            "warning empty-value 17:11 ip",
            r#"reserved-address 18:15 "10.100.0.254""#,
            r#"invalid-address 19:15 "10.100.0.abc""#,
            r#"invalid-address 20:15 "10.100.0.1\n""#,
        ],
    ),
    (
        "global: {addressing: {}}
domains: {z: {machines: {a: {}, b: {ip: 10.120.1.1}, c: {}}}}",
        &["address-outside-subnet 2:41 10.120.1.1"],
    ),
    (
        r#"domains:
  a: {subnet_id: 0, machines: {m: {}}}
  work:
    subnet_id: 1
    machines:
      m: {}
      work: {}
      "a\nb": {}
      all: {}
      ungrouped: {}
      localhost: {}
      host: {}
      5: {}
      -x: {}
      x: []
      y: text
      z:
      aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffggg: {}
      aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgggg: {}"#,
        &[
            "warning same-name 3:3 work",
            "duplicate-machine 6:7 m",
            r#"invalid-name 8:7 "a\nb""#,
            "reserved-name 9:7 all",
            "reserved-name 10:7 ungrouped",
            "reserved-name 11:7 localhost",
            "reserved-name 12:7 host",
            "wrong-type 13:7 5",
            "invalid-name 14:7 -x",
            "wrong-type 15:10 [",
            "wrong-type 16:10 text",
            "empty-value 17:7 z",
            "invalid-name 19:7 aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgggg",
        ],
    ),
    (
        r#"domains:
  a:
    subnet_id: 0
    profiles: {q: {}}
    machines:
      m:
        type: container
        os_image: "a b"
        profiles: [default, nope, q, q, 5]
        boot_autostart: 1
        boot_priority: 101
        snapshots_schedule: "0 2 * *"
        snapshots_expiry: 30
        weight: 0
        gpu: x
        roles: x
        ephemeral: y
        os_imge: x
      n: {config: [], devices: [], profiles: default, persistent_data: [], storage_volumes: [], services: {}, mcp: [], roles: [~]}
      o: {services: x, mcp: x, snapshots_schedule: "0 2 * * *\n", snapshots_expiry: "30d\n", boot_priority: true, weight: true}"#,
        &[
            "invalid-value 7:15 container",
            r#"invalid-value 8:19 "a b""#,
            "unknown-profile 9:29 nope",
            "duplicate-item 9:38 q",
            "wrong-type 9:41 5",
            "wrong-type 10:25 1",
            "out-of-range 11:24 101",
            r#"invalid-value 12:29 "0 2 * *""#,
            "wrong-type 13:27 30",
            "out-of-range 14:17 0",
            "wrong-type 15:14 x",
            "wrong-type 16:16 x",
            "wrong-type 17:20 y",
            "warning unknown-key 18:9 os_imge",
            "wrong-type 19:19 [",
            "wrong-type 19:32 [",
            "wrong-type 19:46 default",
            "wrong-type 19:72 [",
            "wrong-type 19:93 [",
            "wrong-type 19:107 {",
            "wrong-type 19:116 [",
            "empty-value 19:128 ~",
            "wrong-type 20:21 x",
            "wrong-type 20:29 x",
            r#"invalid-value 20:52 "0 2 * * *\n""#,
            r#"invalid-value 20:85 "30d\n""#,
            "wrong-type 20:109 true",
            "wrong-type 20:123 true",
        ],
    ),
];

#[test]
fn machines_have_unique_names_and_addresses_that_exist() {
    check(CASES);
}
