//! Tests `services` and `mcp`, the sections that grant access.
//!
//! Each case is a file and all its findings: code, line:column, marked text.

use super::{Case, check};

const CASES: &[Case] = &[
    (
        r#"domains:
  vault:
    subnet_id: 0
    machines:
      signer:
        services:
          - name: a
            tool: gpgsign
            consumers: work-dev
            consumer: x
          - file_sign
          - name: a
            tool: gpg_sign
            consumers: [signer, vault, wrk-dev, work-dev, work-dev, 5, [a], off, ghost]
          - {}
          - name: ../../x y
            tool: [gpg_sign]
            consumers: {a: b}
          - name: 5
            tool: null
            consumers:
          -
          - [name]
          - {name: "a\n", tool: "gpg_sign\n", consumers: ["work-dev\n"]}
        mcp: {run_as: 1000, uid: -1, gid: 4294967295, shell: x}
      n: {mcp: {run_as: "a b", uid: 4294967294, gid: 0, confinement: strict, memory: 47MiB}}
      o: {mcp: {run_as: , uid: x}}
      p: {services: }
      q: {mcp: }
  work:
    subnet_id: 1
    machines:
      work-dev: {}
  away: {subnet_id: 2, enabled: false, machines: {off: {}}}"#,
        &[
            "unknown-tool 8:19 gpgsign",
            "wrong-type 9:24 work-dev",
            "unknown-key 10:13 consumer",
            "wrong-type 11:13 file_sign",
            "duplicate-service 12:19 a",
            "own-consumer 14:25 signer",
            "domain-as-consumer 14:33 vault",
            "unknown-consumer 14:40 wrk-dev",
            "duplicate-consumer 14:59 work-dev",
            "wrong-type 14:69 5",
            "wrong-type 14:72 [",
            "disabled-consumer 14:77 off",
            "unknown-consumer 14:82 ghost",
            "missing-key 15:13 {",
            "missing-key 15:13 {",
            "invalid-name 16:19 ../../x y",
            "wrong-type 17:19 [",
            "wrong-type 18:24 {",
            "wrong-type 19:19 5",
            "empty-value 20:13 tool",
            "empty-value 21:13 consumers",
            "empty-value 22:12 ",
            "wrong-type 23:13 [",
            r#"invalid-name 24:20 "a\n""#,
            r#"unknown-tool 24:33 "gpg_sign\n""#,
            r#"unknown-consumer 24:59 "work-dev\n""#,
            "wrong-type 25:23 1000",
            "out-of-range 25:34 -1",
            "out-of-range 25:43 4294967295",
            "unknown-key 25:55 shell",
            r#"invalid-name 26:25 "a b""#,
            "invalid-value 26:70 strict",
            "out-of-range 26:86 47MiB",
            "empty-value 27:17 run_as",
            "wrong-type 27:32 x",
            "empty-value 28:11 services",
            "empty-value 29:11 mcp",
        ],
    ),
    (
        "domains:
  a:
    subnet_id: 0
    machines:
      m:
        services:
          - name: a
            tool: gpg_sign
            with: {key_id: 1234567890123456, nope: x}
          - {name: b, tool: clipboard_get, with: [key_id]}
          - {name: c, tool: clipboard_get, with: }
",
        &[
            "invalid-argument 9:20 key_id",
            "invalid-argument 9:46 nope",
            "wrong-type 10:50 [",
            "empty-value 11:44 with",
        ],
    ),
    (
        "domains:
  a:
    subnet_id: 0
    machines:
      m:
        services:
          - {name: a, tool: file_accept, where: {path: {path_under: a/../b}, mode: {max: x, min: 1}}}
          - {name: b, tool: file_accept, with: {path: a}, where: {path: {prefix: b}, nope: {const: 1}, data: {}}}
          - {name: c, tool: file_accept, where: {data: {regex: a, prefix: 5, max_bytes: -1, enum: [a, a, null]}}}
          - {name: d, tool: file_accept, only: [path, path, nope], expires: 2027-01-31}
          - {name: e, tool: file_accept, where: [data], only: data, expires: 2027}
          - {name: f, tool: file_accept, where: {path: {prefix: abc, max_length: 2}, data: {enum: [b], prefix: a}}}
          - {name: g, tool: file_accept, where: , only: , expires: }
          - {name: h, tool: file_accept, where: {path: {path_under: /srv}, data: {prefix: /etc, path_under: /srv}}}
          - {name: j, tool: file_accept, where: {path: {path_under: .}}, only: [path, data]}
          - {name: k, tool: file_accept, where: {path: {path_under: ./a//b/}}}
          - {name: i, tool: file_accept, where: {path: {path_under: a/b, prefix: a/b/c}, data: {prefix: /sr, path_under: /srv}}}
",
        &[
            "invalid-condition 7:57 path_under",
            "invalid-condition 7:90 x",
            "invalid-condition 8:67 path",
            "invalid-condition 8:86 nope",
            "invalid-condition 8:104 data",
            "unknown-key 9:57 regex",
            "wrong-type 9:75 5",
            "out-of-range 9:89 -1",
            "duplicate-item 9:103 a",
            "invalid-condition 9:106 null",
            "invalid-condition 10:42 only",
            "duplicate-item 10:55 path",
            "invalid-condition 10:61 nope",
            "invalid-condition 10:77 2027-01-31",
            "wrong-type 11:49 [",
            "wrong-type 11:63 data",
            "wrong-type 11:78 2027",
            "invalid-condition 12:57 prefix",
            "invalid-condition 12:93 enum",
            "empty-value 13:42 where",
            "empty-value 13:51 only",
            "empty-value 13:59 expires",
            "invalid-condition 14:57 path_under",
            "invalid-condition 14:83 prefix",
        ],
    ),
];

#[test]
fn services_are_read_strictly() {
    check(CASES);
}
