//! Tests `anklume policy …` through the binary, with the whole output.

use crate::harness::{Anklume, Ran};

/// The quick start from the README.
const QUICK_START: &str = concat!(
    include_str!("../fixtures/quick-start.yml"),
    include_str!("../fixtures/quick-start-pro.yml"),
);

/// Two machines offer `clipboard` to different consumers; `spare` is disabled; `sign` fixes its key.
const SEVERAL: &str = r#"domains:
  d:
    subnet_id: 0
    machines:
      a:
        services:
          - {name: clipboard, tool: clipboard_get, consumers: [c]}
          - {name: sign, tool: gpg_sign, consumers: [c], with: {key_id: "0123456789ABCDEF0123456789ABCDEF01234567"}}
      b:
        services:
          - {name: clipboard, tool: clipboard_get, consumers: [a]}
          - {name: closed, tool: clipboard_set, consumers: []}
      c: {}
  off:
    enabled: false
    subnet_id: 1
    machines:
      spare: {}
"#;

fn policy(infra: &str, args: &[&str]) -> Ran {
    Anklume::new()
        .infra(infra)
        .args(["policy"])
        .args(args.iter().copied())
        .run()
}

fn check(infra: &str, caller: &str, service: &str, more: &[&str]) -> Ran {
    let mut args = vec!["check", "--caller", caller, "--service", service];
    args.extend(more);
    policy(infra, &args)
}

#[test]
fn a_consumer_is_allowed_and_the_line_says_where_it_is_declared() {
    check(QUICK_START, "work-dev", "file_sign", &[]).answers(
        "allowed: `work-dev` is a consumer of `file_sign` on `vault-signer` (infra.yml:9)\n",
    );
}

#[test]
fn whoever_is_not_listed_is_denied_with_the_reason() {
    check(QUICK_START, "pro-dev", "clipboard", &[]).is(
        1,
        "denied: `pro-dev` is not a consumer of `clipboard` on `vault-signer` (infra.yml:12); its consumers: work-dev\n",
        "",
    );
    check(SEVERAL, "c", "closed", &[]).is(
        1,
        "denied: `c` is not a consumer of `closed` on `b` (infra.yml:12); it has none\n",
        "",
    );
}

#[test]
fn the_provider_itself_is_no_consumer() {
    check(QUICK_START, "vault-signer", "clipboard", &[]).is(
        1,
        "denied: `vault-signer` is not a consumer of `clipboard` on `vault-signer` (infra.yml:12); its consumers: work-dev\n",
        "",
    );
}

#[test]
fn a_name_that_exists_nowhere_is_an_error_with_the_closest_match() {
    for (caller, service, more, message, help) in [
        (
            "wrok-dev",
            "clipboard",
            vec![],
            "the caller `wrok-dev` is not a machine in this file",
            "did you mean `work-dev`?",
        ),
        (
            "zzz",
            "clipboard",
            vec![],
            "the caller `zzz` is not a machine in this file",
            "`anklume policy list` shows providers and their consumers",
        ),
        (
            "",
            "clipboard",
            vec![],
            "the caller `` is not a machine in this file",
            "`anklume policy list` shows providers and their consumers",
        ),
        (
            "work-dev",
            "clipbord",
            vec![],
            "no machine offers a service `clipbord`",
            "did you mean `clipboard`?",
        ),
        (
            "work-dev",
            "\u{1b}[31m",
            vec![],
            "no machine offers a service `\\u{1b}[31m`",
            "`anklume policy list` shows all services",
        ),
        (
            "work-dev",
            "clipboard",
            vec!["--provider", "vault"],
            "the provider `vault` is not a machine in this file",
            "did you mean `vault-signer`?",
        ),
        (
            "work-dev",
            "clipboard",
            vec!["--provider", "pro-dev"],
            "`pro-dev` offers no service `clipboard`",
            "offered by: vault-signer",
        ),
        (
            "work-dev",
            "vault-signer/clip",
            vec![],
            "`vault-signer` offers no service `clip`",
            "did you mean `clipboard`?",
        ),
    ] {
        check(QUICK_START, caller, service, &more).is(
            1,
            "",
            &format!("error: {message}\n  = help: {help}\n"),
        );
    }
    check(SEVERAL, "spare", "clipboard", &[]).is(
        1,
        "",
        "error: the caller `spare` is in the domain `off`, which is disabled\n  = help: set `enabled: true` there\n",
    );
}

#[test]
fn a_service_of_several_machines_is_decided_for_each() {
    check(SEVERAL, "c", "clipboard", &[]).is(
        1,
        "allowed: `c` is a consumer of `clipboard` on `a` (infra.yml:7)\n\
         denied: `c` is not a consumer of `clipboard` on `b` (infra.yml:11); its consumers: a\n",
        "note: several machines offer this service; name one with --provider\n",
    );
    let allowed = "allowed: `c` is a consumer of `clipboard` on `a` (infra.yml:7)\n";
    check(SEVERAL, "c", "clipboard", &["--provider", "a"]).answers(allowed);
    check(SEVERAL, "c", "a/clipboard", &[]).answers(allowed);
    check(SEVERAL, "c", "a/clipboard", &["--provider", "a"]).answers(allowed);
    check(SEVERAL, "c", "a/clipboard", &["--provider", "b"]).is(
        2,
        "",
        "error: two providers are named: `a` with the service and `b` in --provider\n",
    );
}

#[test]
fn arguments_that_the_service_fixes_are_not_the_callers() {
    let fixed = r#"{"key_id": "0123456789ABCDEF0123456789ABCDEF01234567"}"#;
    assert_eq!(check(SEVERAL, "c", "sign", &["--args", fixed]).status, 0);
    // The same fingerprint in the forms that other programs use.
    for (key, code) in [
        ("0123456789abcdef0123456789abcdef01234567", 0),
        ("0x0123456789ABCDEF0123456789ABCDEF01234567", 0),
        // The service does not fix this exact subkey, and a partial fingerprint may belong to another key.
        ("0123456789ABCDEF0123456789ABCDEF01234567!", 1),
        ("89ABCDEF01234567", 1),
        ("0123456789ABCDEF0123456789ABCDEF01234568", 1),
    ] {
        let sent = format!(r#"{{"key_id": "{key}"}}"#);
        let ran = check(SEVERAL, "c", "sign", &["--args", &sent]);
        assert_eq!(ran.status, code, "{key}");
    }
    check(SEVERAL, "c", "sign", &["--args", r#"{"key_id": "other"}"#]).is(
        1,
        "denied: the caller may not set `key_id` in `sign` on `a` (infra.yml:8)\n",
        "",
    );
    check(
        QUICK_START,
        "work-dev",
        "file_sign",
        &["--args", r#"{"key_id": "other"}"#],
    )
    .is(
        1,
        "denied: the caller may not set `key_id` in `file_sign` on `vault-signer` (infra.yml:9)\n",
        "",
    );
    let ran = check(SEVERAL, "c", "sign", &["--args", "[1]"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (2, ""));
    assert!(
        ran.stderr
            .starts_with("error: `--args` is not a JSON object: ")
    );
}

#[test]
fn arguments_that_the_tool_would_refuse_are_an_error() {
    for (args, wrong) in [
        (r#"{"dta": ""}"#, "unknown argument `dta`; closest: `data`"),
        (
            r#"{"data": 1, "offset": -1}"#,
            "`data` must be a string, not a number; `offset` must be between 0 and 9007199254740991, not -1",
        ),
    ] {
        check(SEVERAL, "c", "sign", &["--provider", "a", "--args", args]).is(
            1,
            "",
            &format!(
                "error: `--args` is not valid for `sign` on `a`: {wrong}\n  = help: `sign` runs `gpg_sign`; \
                 `anklume mcp serve --list-tools --format json` shows its arguments\n"
            ),
        );
    }
}

#[test]
fn decisions_are_json_on_request() {
    check(QUICK_START, "pro-dev", "clipboard", &["--format", "json"]).is(
        1,
        r#"{
  "allowed": false,
  "caller": "pro-dev",
  "service": "clipboard",
  "decisions": [
    {
      "provider": "vault-signer",
      "allowed": false,
      "reason": "`pro-dev` is not a consumer of `clipboard` on `vault-signer` (infra.yml:12); its consumers: work-dev"
    }
  ]
}
"#,
        "",
    );
}

#[test]
fn all_services_are_listed() {
    policy(QUICK_START, &["list"]).answers(
        "SERVICE                 TOOL           CONSUMERS          DECLARED\n\
         vault-signer/file_sign  gpg_sign       work-dev, pro-dev  infra.yml:9\n\
         vault-signer/clipboard  clipboard_get  work-dev           infra.yml:12\n",
    );
    let ran = policy(SEVERAL, &["list", "--format", "json"]);
    let rows: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 4);
    assert_eq!(
        rows[1]["with"]["key_id"],
        "0123456789ABCDEF0123456789ABCDEF01234567"
    );
    assert_eq!(rows[3]["consumers"], serde_json::json!([]));
}

#[test]
fn a_file_without_services_lists_nothing_and_says_so() {
    policy(
        "domains: {d: {subnet_id: 0, machines: {a: {}}}}\n",
        &["list"],
    )
    .is(0, "", "no services are declared, so no calls are allowed\n");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    use std::process::Stdio;
    let run = Anklume::new().infra(QUICK_START).args(["policy", "list"]);
    let mut child = run
        .command()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_services_file_of_a_machine_that_offers_none_is_one_too() {
    let ran = policy(SEVERAL, &["export", "--machine", "c"]);
    assert_eq!(
        (ran.status, ran.stderr.as_str()),
        (0, "note: `c` offers no services\n")
    );
    let file: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        file["policy"],
        serde_json::json!({"machine": "c", "services": []})
    );
    let quiet = policy(SEVERAL, &["export", "--machine", "c", "--quiet"]);
    quiet.is(0, &ran.stdout, "");
}

#[test]
fn there_is_no_services_file_of_what_is_no_machine() {
    for (name, message) in [
        (
            "spare",
            "the provider `spare` is in the domain `off`, which is disabled\n  = help: set `enabled: true` there",
        ),
        ("d", "the provider `d` is not a machine in this file"),
        ("A", "the provider `A` is not a machine in this file"),
        ("a\n", "the provider `a\\n` is not a machine in this file"),
    ] {
        let ran = policy(SEVERAL, &["export", "--machine", name]);
        assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{name}");
        let begin = format!("error: {message}\n");
        assert!(ran.stderr.starts_with(&begin), "{}", ran.stderr);
    }
}

/// A service with conditions.
const CONDITIONS: &str = "domains:
  d:
    subnet_id: 0
    machines:
      dev: {}
      lab: {}
      vault:
        services:
          - name: push
            tool: file_accept
            consumers: [dev]
            where: {path: {path_under: in}}
            only: [path, data]
            expires: 2027-01-01T00:00:00+01:00
";

/// Runs a query about the service, as if at the beginning of 2026.
#[track_caller]
fn about_conditions(query: &str, more: &[&str]) -> Ran {
    about(CONDITIONS, "dev", query, more)
}

#[track_caller]
fn about(infra: &str, caller: &str, query: &str, more: &[&str]) -> Ran {
    let asked = ["policy", query, "--caller", caller, "--service", "push"];
    let at = ["--at", "2026-01-01T00:00:00Z"];
    let args = [&asked[..], &at[..], more].concat();
    Anklume::new().infra(infra).args(args).run()
}

#[test]
fn a_service_that_is_over_and_arguments_that_do_not_fit_are_said() {
    let over = CONDITIONS.replace("2027", "2001");
    let list = Anklume::new().infra(&over).args(["policy", "list"]).run();
    let until = "until 2000-12-31T23:00:00Z; expired  infra.yml:9";
    assert!(list.stdout.contains(until), "{list:?}");
    let explained = about(&over, "lab", "explain", &[]);
    let change = "add `lab` to `consumers` of `push` (infra.yml:9) to allow it, and set a later time in `expires`: \
        it expired at 2000-12-31T23:00:00Z; listed now: dev";
    assert!(explained.stdout.contains(change), "{explained:?}");
    for query in ["check", "explain"] {
        let infra = CONDITIONS.replace("            only: [path, data]\n", "");
        let args = ["--args", r#"{"path": "in/a", "mode": "x"}"#];
        let ran = about(&infra, "dev", query, &args);
        let why = "error: `--args` is not valid for `push` on `vault`: ";
        assert!(ran.stderr.starts_with(why), "{ran:?}");
    }
}

#[test]
fn the_conditions_of_a_service_are_listed_checked_and_explained() {
    let conditions =
        "`path` must be `in` or a path below it; only `data`, `path`; until 2026-12-31T23:00:00Z";
    let list = Anklume::new()
        .infra(CONDITIONS)
        .args(["policy", "list"])
        .run();
    let lines: Vec<&str> = list.stdout.lines().collect();
    assert!(lines[0].contains("  CONDITIONS  "), "{list:?}");
    assert!(
        lines[1].contains(&format!("  {conditions}  infra.yml:9")),
        "{list:?}"
    );
    about_conditions("check", &[]).answers(&format!(
        "allowed: `dev` is a consumer of `push` on `vault` (infra.yml:9); its conditions: {conditions}\n"
    ));
    let good = r#"{"path": "in/a", "data": "aGk="}"#;
    about_conditions("check", &["--args", good])
        .answers("allowed: `dev` is a consumer of `push` on `vault` (infra.yml:9)\n");
    let denied = |args: &str, why: &str| {
        let ran = about_conditions("check", &["--args", args]);
        ran.is(
            1,
            &format!("denied: `push` on `vault` (infra.yml:9): {why}\n"),
            "",
        );
    };
    denied(
        r#"{"path": "in/../a"}"#,
        "`path` must be `in` or a path below it (`path_under`)",
    );
    denied(r#"{"data": "aGk="}"#, "`path` must be sent (`path_under`)");
    denied(
        r#"{"path": "in", "offset": 0}"#,
        "`offset` may not be sent: the service takes only `data`, `path` (`only`)",
    );
    let late = Anklume::new().infra(CONDITIONS).args([
        "policy",
        "check",
        "--caller",
        "dev",
        "--service",
        "push",
        "--at",
        "2027-01-01T00:00:00Z",
    ]);
    late.run().is(
        1,
        "denied: `push` on `vault` (infra.yml:9) expired at 2026-12-31T23:00:00Z\n",
        "",
    );
    let explained = about_conditions("explain", &["--args", r#"{"path": "in", "final": true}"#]);
    explained.answers(&format!(
        "denied: `push` on `vault` (infra.yml:9): `final` may not be sent: the service takes only `data`, `path` (`only`)\n  \
         runs: file_accept\n  conditions: {conditions}\n  change: leave out `final`, or add it to `only` of `push` (infra.yml:9)\n\
         `dev` may call: vault/push\n"
    ));
    let export = Anklume::new()
        .infra(CONDITIONS)
        .args(["policy", "export", "--machine", "vault"]);
    let export: serde_json::Value = serde_json::from_str(&export.run().stdout).unwrap();
    assert_eq!(
        export.pointer("/policy/services/0/conditions"),
        Some(&serde_json::json!({
            "where": {"path": {"path_under": "in"}}, "only": ["data", "path"], "expires": "2026-12-31T23:00:00Z",
        }))
    );
    for (time, why) in [
        (
            "tomorrow",
            "not a time in RFC 3339, such as 2027-01-31T18:00:00Z",
        ),
        (
            "20270131T180000Z",
            "not a time in RFC 3339, such as 2027-01-31T18:00:00Z",
        ),
        ("2027-02-30T18:00:00Z", "there is no such time"),
    ] {
        let args = [
            "policy",
            "check",
            "--caller",
            "dev",
            "--service",
            "push",
            "--at",
            time,
        ];
        let ran = Anklume::new().infra(CONDITIONS).args(args).run();
        assert_eq!(ran.status, 2);
        assert!(
            ran.stderr
                .contains(&format!("'{time}' for '--at <TIME>': {why}\n")),
            "{}",
            ran.stderr
        );
    }
}
