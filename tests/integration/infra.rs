//! Tests `infra.yml` through the binary: complete error reports, and the rules for opening files.

use std::fs;
use std::os::unix::fs::symlink;

use crate::harness::{Anklume, Ran};

/// The quick start from the README without its `pro` domain, which its services name.
const QUICK_START: &str = include_str!("../fixtures/quick-start.yml");

fn list(infra: &str) -> Ran {
    Anklume::new().infra(infra).args(["policy", "list"]).run()
}

#[test]
fn the_quick_start_as_printed_has_one_fault() {
    list(QUICK_START).is(
        1,
        "",
        "\
error[unknown-consumer]: `pro-dev` is not a machine in this file
  --> infra.yml:11:35
   |
11 |             consumers: [work-dev, pro-dev]
   |                                   ^^^^^^^
   = help: declare the machine in a domain, or take it off the list
",
    );
}

#[test]
fn the_five_rules_of_the_documentation() {
    let infra = r"domains:
  vault:
    subnet_id: 0
    machines:
      vault-signer:
        services:
          - name: file_sign
            tool: gpg_signe
            consumers: [ghost]
          - name: file_sign
          - tool: gpg_sign
          - file_sign
";
    let drawn = "\
error[unknown-tool]: `gpg_signe` is not a tool
 --> infra.yml:8:19
  |
8 |             tool: gpg_signe
  |                   ^^^^^^^^^
  = help: did you mean `gpg_sign`? the tools are: gpg_sign, ssh_sign, clipboard_get, clipboard_set, file_accept, file_provide, notify

error[unknown-consumer]: `ghost` is not a machine in this file
 --> infra.yml:9:25
  |
9 |             consumers: [ghost]
  |                         ^^^^^
  = help: declare the machine in a domain, or take it off the list

error[missing-key]: the service has no `tool`
  --> infra.yml:10:13
   |
10 |           - name: file_sign
   |             ^^^^
   = help: add `tool:` with one of: gpg_sign, ssh_sign, clipboard_get, clipboard_set, file_accept, file_provide, notify; only a service's first key has a `-`

error[duplicate-service]: service `file_sign` is already on this machine
  --> infra.yml:10:19
   |
10 |           - name: file_sign
   |                   ^^^^^^^^^
   = help: rename one of them: the first one is at infra.yml:7; a name must be unique on its machine

error[missing-key]: the service has no `name`
  --> infra.yml:11:13
   |
11 |           - tool: gpg_sign
   |             ^^^^
   = help: add the name that consumers call, such as `name: file_sign`; only a service's first key has a `-`

error[wrong-type]: a service is text, but must be a map of keys and values
  --> infra.yml:12:13
   |
12 |           - file_sign
   |             ^^^^^^^^^
   = help: indent consumers below `consumers:`, or write a service, such as `{name: file_sign, tool: gpg_sign}`

6 errors
";
    list(infra).is(1, "", drawn);
}

#[test]
fn what_would_silently_change_the_policy_is_refused() {
    let infra = "\
domains:
  a:
    subnet_id: 0
    machines:
      b1:
        services:
          - {name: sign, tool: gpg_sign, consumers: c1}
          - {name: clip, tool: clipboard_get, consumer: [c1]}
          - {name: push, tool: file_accept, consumers: [], consumers: [c1]}
      c1: {}
";
    let drawn = "\
error[wrong-type]: `consumers` is text, but must be a list
 --> infra.yml:7:53
  |
7 |           - {name: sign, tool: gpg_sign, consumers: c1}
  |                                                     ^^
  = help: write a list: `[c1]`

error[unknown-key]: `consumer` is not a key of a service
 --> infra.yml:8:47
  |
8 |           - {name: clip, tool: clipboard_get, consumer: [c1]}
  |                                               ^^^^^^^^
  = help: did you mean `consumers`?

error[duplicate-key]: `consumers` is already a key of this map
 --> infra.yml:9:60
  |
9 |           - {name: push, tool: file_accept, consumers: [], consumers: [c1]}
  |                                                            ^^^^^^^^^
  = help: the first one is at infra.yml:9; keep one of them

3 errors
";
    list(infra).is(1, "", drawn);
}

#[test]
fn a_warning_refuses_nothing_and_quiet_hides_it() {
    let infra = "domains: {a: {subnet_id: 0, subnetid: 1, machines: {m: {services: [{name: s, tool: gpg_sign}]}}}}\n";
    let ran = list(infra);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!(
        ran.stderr,
        "\
warning[unknown-key]: `subnetid` is not a key of a domain
 --> infra.yml:1:29
  |
1 | domains: {a: {subnet_id: 0, subnetid: 1, machines: {m: {services: [{name: s, tool: gpg_sign}]}}}}
  |                             ^^^^^^^^
  = help: did you mean `subnet_id`?
"
    );
    let quiet = Anklume::new()
        .infra(infra)
        .args(["-q", "policy", "list"])
        .run();
    assert_eq!((quiet.status, quiet.stderr.as_str()), (0, ""));
    assert_eq!(quiet.stdout, ran.stdout);
}

#[test]
fn colours_go_where_they_are_wanted() {
    let coloured = Anklume::new()
        .infra("domains: []\n")
        .args(["--color", "always", "policy", "list"])
        .run();
    assert!(coloured.stderr.contains("\u{1b}["), "{}", coloured.stderr);
    let plain = list("domains: []\n");
    assert!(!plain.stderr.contains('\u{1b}'), "{}", plain.stderr);
}

#[test]
fn nothing_and_both_are_said() {
    let none = Anklume::new().args(["policy", "list"]).run();
    none.is(
        1,
        "",
        "\
error[not-found]: neither `infra.yml` nor an `infra` folder exists here
  = help: `anklume init` writes a starter `infra.yml`; if yours is elsewhere, name it with `--infra`
",
    );
    let both = Anklume::new()
        .infra("domains: {}\n")
        .file("infra/base.yml", "")
        .args(["policy", "list"])
        .run();
    both.is(
        1,
        "",
        "\
error[both-present]: both `infra.yml` and an `infra` folder exist here
  = help: keep one of them, or choose one with `--infra`
",
    );
}

#[test]
fn a_folder_is_read_without_being_named_and_faults_name_their_file() {
    let run = Anklume::new()
        .file("infra/base.yml", "")
        .file(
            "infra/domains/work.yml",
            "work: {subnet_id: 1, machines: {w: {ip: 10.100.0.1}}}\n",
        )
        .args(["policy", "list"]);
    run.run().is(
        1,
        "",
        "\
error[address-outside-subnet]: `10.100.0.1` is not in its domain's subnet 10.100.1.0/24
 --> infra/domains/work.yml:1:41
  |
1 | work: {subnet_id: 1, machines: {w: {ip: 10.100.0.1}}}
  |                                         ^^^^^^^^^^
  = help: choose one from 10.100.1.1 to 10.100.1.253
",
    );
}

#[test]
fn a_link_in_the_folder_a_fifo_and_a_huge_file_are_refused() {
    let run = Anklume::new()
        .file("infra/base.yml", "")
        .file("elsewhere.yml", "x: {subnet_id: 1}\n")
        .file("infra/domains/a.yml", "a: {subnet_id: 2}\n");
    symlink(
        "../../elsewhere.yml",
        run.path().join("infra/domains/x.yml"),
    )
    .unwrap();
    run.args(["policy", "list"]).run().is(
        1,
        "",
        "\
error[symlink]: `infra/domains/x.yml` is a symbolic link
  = help: this must be a regular file
",
    );
    let run = Anklume::new().args(["policy", "list"]);
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        run.path().join("infra.yml"),
        rustix::fs::Mode::RWXU,
    )
    .unwrap();
    run.run().is(
        1,
        "",
        "\
error[not-a-file]: `infra.yml` is a FIFO
  = help: this must be a regular file
",
    );
    let run = Anklume::new().args(["policy", "list"]);
    let huge = fs::File::create(run.path().join("infra.yml")).unwrap();
    huge.set_len(100 * 1024 * 1024).unwrap();
    run.run().is(
        1,
        "",
        "\
error[too-large]: `infra.yml` is larger than 16 MiB
  = help: 10,000 machines need about 4 MiB: is this the right file?
",
    );
}

#[test]
fn the_example_of_the_repository_is_read_without_a_word() {
    let ran = list(include_str!("../../infra.example.yml"));
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
}

#[test]
fn twenty_warnings_are_drawn_and_the_others_counted() {
    let of = |count: usize, more: &[&str]| {
        let keys: String =
            (0..count).fold(String::new(), |keys, n| format!("{keys}    odd{n}: 1\n"));
        let infra = format!("domains:\n  a:\n    subnet_id: 0\n{keys}");
        let ran = Anklume::new()
            .infra(&infra)
            .args(["policy", "list"])
            .args(more.iter().copied())
            .run();
        assert_eq!(ran.status, 0, "{ran:?}");
        let drawn = ran.stderr.matches("warning[").count();
        let mut lines = ran.stderr.lines();
        let count = lines.find(|line| line.ends_with("-v shows all"));
        (drawn, count.map(str::to_owned))
    };
    assert_eq!(of(20, &[]), (20, None));
    let one = "21 warnings, of which 20 are shown; -v shows all".to_owned();
    assert_eq!(of(21, &[]), (20, Some(one)));
    let five = "25 warnings, of which 20 are shown; -v shows all".to_owned();
    assert_eq!(of(25, &[]), (20, Some(five)));
    assert_eq!(of(25, &["-v"]), (25, None));
}
