//! Tests shared volumes, persistent data and storage volumes.
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
        devices: {sv-docs: {type: nic}, pd-x: {type: nic}, o: {type: disk, path: /docs, source: /o}}
        persistent_data: {x: {path: /x}}
      n: {}
      p:
        storage_volumes: {v: {pool: 1, size: 5, path: x, z: 1}, w: }
        persistent_data: {"A": {path: /a}, b: {}, c: {path: rel}, d: {path: /e, readonly: 1}, e: x, f: }
  b: {subnet_id: 1, enabled: false, machines: {k: {}}}
shared_volumes:
  docs: {path: /docs, consumers: {a: ro, m: rw}}
  Bad: {consumers: {a: ro}}
  none: {}
  nope: {consumers: []}
  empt: {consumers: {}}
  other: {source: x, path: y, shift: 1, propagate: x, consumers: {a: r, zz: rw, n: true}, z: 1}
  two: {path: /docs/, consumers: {n: rw}}
  nul:
  lib: {source: /var/lib/anklume, consumers: {a: ro}}"#,
        &[
            "duplicate-device 6:19 sv-docs",
            "duplicate-device 6:41 pd-x",
            "duplicate-mount 6:82 /docs",
            "wrong-type 10:37 1",
            "invalid-path 10:55 x",
            "warning unknown-key 10:58 z",
            "empty-value 10:65 w",
            r#"invalid-name 11:27 "A""#,
            "missing-key 11:44 b",
            "invalid-path 11:61 rel",
            "wrong-type 11:91 1",
            "wrong-type 11:98 x",
            "empty-value 11:101 f",
            "invalid-name 15:3 Bad",
            "missing-key 16:3 none",
            "wrong-type 17:21 [",
            "missing-key 18:3 empt",
            "invalid-path 19:19 x",
            "invalid-path 19:28 y",
            "wrong-type 19:38 1",
            "wrong-type 19:52 x",
            "invalid-value 19:70 r",
            "unknown-name 19:73 zz",
            "wrong-type 19:84 true",
            "warning unknown-key 19:91 z",
            "duplicate-mount 20:15 /docs/",
            "empty-value 21:3 nul",
            "warning device-shares-channels 22:17 /var/lib/anklume",
        ],
    ),
    (
        "network_policies: {}
shared_volumes: []
domains: {a: {subnet_id: 0}}",
        &["wrong-type 1:19 {", "wrong-type 2:17 ["],
    ),
];

#[test]
fn volumes_become_disks_that_do_not_collide() {
    check(CASES);
}
