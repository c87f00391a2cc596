//! Tests `config`, `devices`, `profiles`, and the rules that keep an edge safe.
//!
//! Each case is a file and all its findings: code, line:column, marked text.

use super::{Case, check};

const CASES: &[Case] = &[
        (
            r#"domains:
  a:
    subnet_id: 0
    profiles:
      p:
      q:
        config: [x]
        devices: {d: {}, e: disk, f: {type: floppy}, "a b": {type: nic}}
        x: 1
      priv: {config: {security.privileged: "true"}}
    machines:
      m:
        config: {limits.cpu: 4, a: [1], b: , c: {}, security.privileged: True}
        devices: {d: {type: proxy}, e: {type: disk, path: [x]}, f: x, g: {type: disk}, h: {type: disk, source: /x}}
      n: {profiles: [priv]}"#,
            &[
                "empty-value 5:7 p",
                "wrong-type 7:17 [",
                "missing-key 8:19 d",
                "wrong-type 8:29 disk",
                "invalid-value 8:45 floppy",
                r#"invalid-name 8:54 "a b""#,
                "warning unknown-key 9:9 x",
                "warning privileged-container 10:23 security.privileged",
                "wrong-type 13:36 [",
                "empty-value 13:41 b",
                "wrong-type 13:49 {",
                "warning privileged-container 13:53 security.privileged",
                "missing-key 14:19 d",
                "missing-key 14:19 d",
                "wrong-type 14:59 [",
                "wrong-type 14:68 x",
                "missing-key 14:71 g",
            ],
        ),
        (
            r#"domains:
  a:
    subnet_id: 0
    profiles:
      priv: {config: {security.privileged: "yes"}}
      cover: {devices: {x: {type: disk, source: /x, path: /opt}}}
    machines:
      p:
        ip: 10.100.0.1
        config: {security.privileged: true}
        services: [{name: s, tool: gpg_sign, consumers: [c, d, e]}]
      c: {profiles: [priv, cover]}
      d:
        config: {security.privileged: false}
        profiles: [priv]
        devices:
          mcp_0123456789abcdef: {type: none}
          root: {type: disk, path: /, pool: default}
          a: {type: disk, path: /srv, source: /data}
          b: {type: disk, path: /opt/anklume/x, pool: default, source: vol}
          c: {type: disk, path: /srv/anklume/portal, source: /data2}
          d: {type: disk, path: /mnt/1, source: /var/lib/anklume/../anklume/mcp}
          e: {type: disk, path: /mnt/2, source: /var}
          f: {type: proxy, bind: host, listen: "unix:/var/lib/anklume/mcp/x.sock", connect: "tcp:127.0.0.1:80"}
          g: {type: proxy, bind: instance, listen: "unix:/srv/anklume/mcp/p.sock", connect: "unix:/run/x.sock"}
          h: {type: proxy, bind: instance, listen: "unix:/srv/x.sock", connect: "unix:/data/x.sock"}
          i: {type: proxy, bind: instance, listen: "unix:/srv/y.sock", connect: "unix:/var/lib/incus/unix.socket"}
          j: {type: proxy, bind: host, listen: "unix:/run/j.sock", connect: "unix:/var/run/anklume/mcp/j.sock"}
          k: {type: proxy, bind: instance, listen: "unix:/srv/z.sock", connect: "unix:/proc/1/root/x"}
      e: {}
      f: {config: {security.privileged: 1}, devices: {a: {type: disk, source: /, path: /host}}}
      g: {type: vm, config: {security.privileged: 1}}"#,
            &[
                "privileged-end 5:23 security.privileged",
                "source-in-shared-folder 6:49 /x",
                "disk-over-anklume 6:59 /opt",
                "privileged-end 10:18 security.privileged",
                "reserved-device-name 17:11 mcp_0123456789abcdef",
                "disk-over-anklume 19:33 /srv",
                "source-in-shared-folder 19:47 /data",
                "disk-over-anklume 20:33 /opt/anklume/x",
                "source-in-shared-folder 21:62 /data2",
                "device-shares-channels 22:49 /var/lib/anklume/../anklume/mcp",
                "source-in-shared-folder 22:49 /var/lib/anklume/../anklume/mcp",
                "device-shares-channels 23:49 /var",
                "source-in-shared-folder 23:49 /var",
                r#"proxy-into-channels 24:48 "unix:/var/lib/anklume/mcp/x.sock""#,
                r#"proxy-into-channels 25:52 "unix:/srv/anklume/mcp/p.sock""#,
                r#"proxy-into-shared-folder 25:93 "unix:/run/x.sock""#,
                r#"proxy-into-shared-folder 26:81 "unix:/data/x.sock""#,
                r#"proxy-into-shared-folder 27:81 "unix:/var/lib/incus/unix.socket""#,
                r#"proxy-into-shared-folder 28:48 "unix:/run/j.sock""#,
                r#"proxy-into-channels 28:77 "unix:/var/run/anklume/mcp/j.sock""#,
                r#"proxy-into-shared-folder 29:81 "unix:/proc/1/root/x""#,
                "warning privileged-container 31:20 security.privileged",
                "device-shares-channels 31:79 /",
            ],
        ),
        (
            "domains:
  a: {subnet_id: 0, machines: {m: {devices: {mcp_0123456789abcdef: {type: none}, mcp_0123: {type: none}}}}}
  b: {subnet_id: 1, enabled: false, machines: {n: {config: {security.privileged: true}, devices: {d: {type: disk, source: /, path: /x}}}}}",
            &[
                "warning reserved-device-name 2:46 mcp_0123456789abcdef",
            ],
        ),
        (
            r"domains:
  a:
    subnet_id: 0
    profiles:
      p: {devices: {x: {type: disk, source: /srv/prof, path: /prof}, y: {type: disk, source: /srv/x/outer/p, path: /y, readonly: true}}}
    machines:
      evil:
        profiles: [p]
        persistent_data: {state: {path: /state}, seen: {path: /seen, readonly: true}}
      good:
        devices:
          a: {type: disk, source: /srv/x/outer/a/inner, path: /a}
          b: {type: disk, source: /srv//x/./outer, path: /b}
          c: {type: disk, source: /srv/x/outer2, path: /c}
          d: {type: disk, source: /srv/prof/d, path: /d, readonly: true}
          e: {type: unix-block, source: /srv/x/outer/sda, path: /dev/sda}
          f: {type: unix-char, path: /srv/prof/null}
          g: {type: disk, source: /srv/anklume/data/a/evil/state/g, path: /g}
          h: {type: disk, source: /srv/anklume/data/a/evil/seen/h, path: /h}
          i: {type: disk, source: /proc/1/root/etc, path: /i}
          j: {type: disk, source: /srv/ro/j, path: /j}
          k: {type: disk, pool: default, source: srv/x/outer/k, path: /k}
shared_volumes:
  outer: {source: /srv/x/outer, consumers: {evil: rw}}
  inner: {source: /srv/x/outer/a/inner, path: /inner, consumers: {a: ro}}
  ro: {source: /srv/ro, consumers: {a: ro}}",
            &[
                "source-in-shared-folder 5:94 /srv/x/outer/p",
                "source-in-shared-folder 12:35 /srv/x/outer/a/inner",
                "source-in-shared-folder 15:35 /srv/prof/d",
                "source-in-shared-folder 16:41 /srv/x/outer/sda",
                "source-in-shared-folder 17:38 /srv/prof/null",
                "source-in-shared-folder 18:35 /srv/anklume/data/a/evil/state/g",
                "source-in-shared-folder 20:35 /proc/1/root/etc",
                "source-in-shared-folder 25:19 /srv/x/outer/a/inner",
            ],
        ),
];

#[test]
fn no_device_and_no_privilege_endangers_an_edge() {
    check(CASES);
}
