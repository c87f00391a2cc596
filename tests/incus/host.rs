//! The operator's commands on the host: services by name, a provider's log, and errors in machines that point there.

use serde_json::Value;

use crate::world::World;

/// A provider with a service that fixes an argument, and its consumer.
const INFRA: &str = r#"
domains:
  {a}:
    subnet_id: 1
    ephemeral: true
    machines:
      {a}-signer:
        ip: "{base}.1.10"
        services:
          - {name: report, tool: file_provide, consumers: [{b}-dev], with: {path: report.txt}}
          - {name: copy, tool: clipboard_set, consumers: [{b}-dev]}
          - {name: push, tool: file_accept, consumers: [{b}-dev]}
  {b}:
    subnet_id: 2
    ephemeral: true
    machines:
      {b}-dev: {ip: "{base}.2.10"}
"#;

#[test]
fn the_host_knows_services_by_name_and_shows_a_providers_log() {
    let world = World::new(INFRA);
    world.apply();
    let signer = world.machine(0, "signer");
    let portal = "mkdir -p /srv/anklume/portal && printf content >/srv/anklume/portal/report.txt";
    assert!(world.exec(0, "signer", portal).0);

    // A service is called with its own name, and with the arguments that it fixes.
    let path = format!("{signer}/report");
    for call in [["-i", &signer, "report"].as_slice(), &[&path]] {
        let ran = world.run(&[&["mcp", "call"], call].concat());
        ran.is(0, "Y29udGVudA==", "");
    }
    let ran = world.run(&["mcp", "call", &path, "path=other.txt"]);
    ran.is(
        2,
        "",
        "error: `report` has no argument `path`\n  = help: its arguments: offset, length, resume, entries\n",
    );
    let ran = world.run(&["mcp", "call", "-i", &signer, "reprot"]);
    let message = "error: Unknown tool: reprot\n  = help: did you mean `report`? available tools: gpg_sign, clipboard_get, \
        clipboard_set, file_accept, file_provide, report, copy, push\n";
    ran.is(1, "", message);
    // The list still contains only the tools, and a note names the services.
    let ran = world.run(&["mcp", "list", &signer]);
    assert_eq!((ran.status, ran.stdout.lines().count()), (0, 5), "{ran:?}");
    let note = "note: the machine's services can be called too: report, copy, push\n";
    assert_eq!(ran.stderr, note);

    // The log, and only the selected lines.
    let ran = world.run(&["audit", "show", "-i", &signer, "--service", "report"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{ran:?}");
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{ran:?}");
    // A changed line is not shown, but is reported.
    let log = "/var/log/anklume/audit.jsonl";
    assert!(world.exec(0, "signer", &format!("cp {log} /tmp/log && sed -i 2s/copy/copi/ {log}; sed -i '2s/report/repart/' {log}")).0);
    let altered = world.run(&["audit", "show", "-i", &signer]);
    let warning = format!(
        "warning: 1 line(s) are not intact; `anklume audit verify` in `{signer}` lists them\n"
    );
    assert_eq!(altered.stderr, warning);
    assert!(world.exec(0, "signer", &format!("cp /tmp/log {log}")).0);
    let line = "  allowed  (operator)  report (file_provide)  done, ";
    assert!(lines.iter().all(|one| one.contains(line)), "{ran:?}");
    let json = world.run(&["audit", "show", "-i", &signer, "--format", "json"]);
    let logged = json
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let logged: Vec<Value> = logged.collect();
    assert!(logged.len() > 2 && json.stderr.is_empty(), "{json:?}");
    let ran = world.run(&["audit", "show", "-i", &format!("{signer}s")]);
    assert_eq!((ran.status, ran.stdout.as_str()), (4, ""), "{ran:?}");
    assert!(
        ran.stderr.starts_with(&format!(
            "error: no machine `{signer}s`\n  = help: did you mean `{signer}` ("
        )),
        "{ran:?}"
    );

    // A consumer has no such log, and no infra.yml.
    let inside = |command: &str| {
        let (done, said) = world.exec(1, "dev", &format!("/opt/anklume/anklume {command} 2>&1"));
        assert!(!done, "{said}");
        said
    };
    let said = inside("doctor");
    let expected = format!(
        "error: this is the machine `{}`: run this command on the host, next to `infra.yml`\n  = help: here, \
         `anklume mcp list -i {signer}` shows what it may use",
        world.machine(1, "dev")
    );
    assert!(said.starts_with(&expected), "{said}");
    let said = inside(&format!("audit show -i {signer}"));
    assert!(said.starts_with(&expected), "{said}");
    let ran = world.run(&["audit", "show", "-i", &world.machine(1, "dev")]);
    let expected = format!("error: `{}` has no audit log\n", world.machine(1, "dev"));
    assert!(
        ran.status == 1 && ran.stderr.starts_with(&expected),
        "{ran:?}"
    );
    let said = inside("audit show");
    assert!(
        said.contains("`anklume audit show -i PROVIDER` shows its log"),
        "{said}"
    );
}
