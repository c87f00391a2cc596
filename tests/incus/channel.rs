//! Calls over real edges: many at once, in both directions, across restarts, and from different users.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{ANKLUME, scrub};
use crate::world::World;

/// Each machine offers the other a service.
pub(crate) const BOTH: &str = r"
domains:
  {a}:
    subnet_id: 1
    ephemeral: true
    machines:
      {a}-one:
        services:
          - {name: copy, tool: clipboard_set, consumers: [{b}-two]}
          - {name: paste, tool: clipboard_get, consumers: [{b}-two]}
  {b}:
    subnet_id: 2
    ephemeral: true
    machines:
      {b}-two:
        services:
          - {name: copy, tool: clipboard_set, consumers: [{a}-one]}
          - {name: paste, tool: clipboard_get, consumers: [{a}-one]}
";

/// Puts text on the other machine's clipboard and reads it back; returns whether both calls succeeded, and the text.
pub(crate) fn paste(
    world: &World,
    domain: usize,
    name: &str,
    other: &str,
    text: &str,
) -> (bool, String) {
    let calls = format!(
        "anklume mcp call -i {other} copy content={text} >/dev/null && anklume mcp call -i {other} paste 2>&1"
    );
    world.exec(domain, name, &calls)
}

#[test]
fn two_machines_serve_each_other_and_survive_restarts() {
    let world = World::new(BOTH);
    world.apply();
    let (one, two) = (world.machine(0, "one"), world.machine(1, "two"));
    let both = |text: &str| {
        assert_eq!(paste(&world, 0, "one", &two, text), (true, text.to_owned()));
        let back = format!("{text}-back");
        assert_eq!(paste(&world, 1, "two", &one, &back), (true, back.clone()));
    };
    both("first");
    // A restarted machine gets its sockets back, but only `apply` restarts its server.
    for (domain, name) in [(0, &one), (1, &two)] {
        let restarted = world.incus(domain, &["restart", "--force", name]);
        assert!(restarted.status.success(), "{restarted:?}");
        let plan = world.plan();
        assert_eq!(plan, [format!("~ server on {name}: no answer → running")]);
        world.apply();
        both("again");
        world.is_settled();
    }
    // The same applies to a killed server.
    assert!(
        world
            .exec(
                0,
                "one",
                "kill -9 $(ps | sed -n 's/^ *\\([0-9]*\\) .*[m]cp serve.*/\\1/p')"
            )
            .0
    );
    let (_, words) = paste(&world, 1, "two", &one, "dead");
    assert!(!words.contains("dead"), "{words}");
    world.apply();
    both("alive");
    world.is_settled();
}

#[test]
fn an_offer_is_taken_once_between_two_machines() {
    let world = World::new(&BOTH.replace(
        "tool: clipboard_get,",
        "tool: clipboard_get, offered_only: true,",
    ));
    world.apply();
    let (one, two) = (world.machine(0, "one"), world.machine(1, "two"));
    let get = format!("anklume clipboard get -i {two} 2>&1");
    let (done, refused) = world.exec(0, "one", &get);
    assert!(!done && refused.contains("nothing is offered"), "{refused}");
    // As the message says, on the provider.
    let command = refused.split('`').nth(3).unwrap();
    assert_eq!(command, format!("anklume clipboard offer --to {one}"));
    let offers =
        format!("anklume mcp call clipboard_set content=bonjour >/dev/null; {command} 2>&1");
    let said = format!("7 bytes offered to `{one}` for 60 s\n");
    assert_eq!(world.exec(1, "two", &offers), (true, said.clone()));
    assert_eq!(world.exec(0, "one", &get), (true, "bonjour".to_owned()));
    assert!(!world.exec(0, "one", &get).0);
    // From the host, with a text of its own.
    let offer = ["clipboard", "offer", "-i", &two, "--to", &one, "-"];
    let offered = world.anklume(&offer).stdin("secret").run();
    assert_eq!(
        (offered.status, offered.stderr),
        (0, said.replace('7', "6"))
    );
    assert_eq!(world.exec(0, "one", &get), (true, "secret".to_owned()));
    let nobody = world.exec(
        1,
        "two",
        "anklume clipboard offer --to nobody 2>&1; echo $?",
    );
    let why = format!(
        "error: the provider reports: `nobody` is not a consumer of a service with `offered_only: true`; these are: {one}\n3\n"
    );
    assert_eq!(nobody, (true, why));
}

#[test]
fn a_client_outlives_the_reboot_of_its_provider() {
    let Some(python) = crate::harness::python("python") else {
        return;
    };
    let world = World::new(BOTH);
    world.apply();
    let two = world.machine(1, "two");
    // The consumer's end of the channel, as the host sees it.
    let entry = world
        .root(0, "one")
        .join(format!("srv/anklume/mcp/{two}.sock"));
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let plan = serde_json::json!([
        ["copy", {"content": "before"}],
        ["pause", {"ready": path("ready"), "go": path("go")}],
        ["copy", {"content": "after"}],
    ]);
    let mut client = Command::new(python);
    scrub(&mut client, folder.path());
    client
        .args(["tests/clients/client.py", "initialize", &plan.to_string()])
        .args([ANKLUME, "mcp", "connect", "--socket"])
        .arg(entry)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let running = client.spawn().unwrap();
    while !path("ready").exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let restarted = world.incus(1, &["restart", "--force", &two]);
    assert!(restarted.status.success(), "{restarted:?}");
    // Without a supervisor, nothing but `apply` restarts the server.
    world.apply();
    std::fs::write(path("go"), "").unwrap();
    let ran = running.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    let told: serde_json::Value =
        serde_json::from_slice(&ran.stdout).unwrap_or_else(|_| panic!("{said}"));
    let results = told["results"].as_array().unwrap();
    let errors: Vec<&serde_json::Value> = results.iter().map(|result| &result["error"]).collect();
    assert_eq!(errors, [false, false], "{told}");
    assert!(said.contains("the next message connects again"), "{said}");
}

/// A provider whose server runs as root, and a consumer that uses its clipboard and sends it files.
const SHARING: &str = r"
domains:
  {a}:
    subnet_id: 1
    ephemeral: true
    machines:
      {a}-keys:
        mcp: {run_as: root}
        services:
          - {name: copy, tool: clipboard_set, consumers: [{b}-dev]}
          - {name: paste, tool: clipboard_get, consumers: [{b}-dev]}
          - {name: drop, tool: file_accept, consumers: [{b}-dev]}
  {b}:
    subnet_id: 2
    ephemeral: true
    machines:
      {b}-dev: {}
";

#[test]
fn one_user_has_one_clipboard_one_portal_and_one_folder_of_keys_however_a_call_comes_in() {
    let mut world = World::new(SHARING);
    for user in ["root", "user"] {
        if user != "root" {
            // Files that one user's server received belong to that user; the next user begins with an empty portal.
            world.exec(0, "keys", "rm -r /srv/anklume/portal");
        }
        world.declare(&SHARING.replace("run_as: root", &format!("run_as: {user}")));
        world.apply();
        world.exec(0, "keys", "chmod 1777 /tmp");
        let keys = world.machine(0, "keys");
        let over_the_channel = |words: &str| {
            let (done, said) = world.exec(
                1,
                "dev",
                &format!("anklume mcp call -i {keys} {words} 2>&1"),
            );
            assert!(done, "{user}: {words}: {said}");
            said
        };
        let from_the_host = |words: &[&str]| {
            let ran = world.run(&[&["mcp", "call", "-i", &keys][..], words].concat());
            assert_eq!(ran.status, 0, "{user}: {ran:?}");
            ran.stdout
        };
        // A shell in the machine, as root and as the user, with a different environment.
        let within = |words: &str| {
            let odd = "XDG_RUNTIME_DIR=/tmp/own HOME=/tmp/own GNUPGHOME=/tmp/own ANKLUME_MCP_PORTAL=/tmp/own";
            let call = format!("{odd} anklume mcp call {words} 2>&1");
            let as_user = format!("su -s /bin/sh -c '{call}' {user}");
            let mut said = Vec::new();
            for shell in [&call, &as_user] {
                let (done, text) = world.exec(0, "keys", shell);
                assert!(done, "{user}: {shell}: {text}");
                said.push(text);
            }
            assert_eq!(said[0], said[1], "{user}: {words}");
            said.remove(0)
        };
        over_the_channel("copy content=one");
        assert_eq!(from_the_host(&["clipboard_get"]), "one");
        assert_eq!(within("clipboard_get"), "one");
        from_the_host(&["clipboard_set", "content=two"]);
        assert_eq!(over_the_channel("paste"), "two");
        within("clipboard_set content=three");
        assert_eq!(over_the_channel("paste"), "three");
        over_the_channel(&format!("drop path={user} data:=\\\"aGk=\\\""));
        let path = format!("path=incoming/{}/{user}", world.machine(1, "dev"));
        assert_eq!(from_the_host(&["file_provide", &path]), "aGk=");
        assert_eq!(within(&format!("file_provide {path}")), "aGk=");
        // Another user in the machine has a different clipboard.
        if user == "root" {
            let own = "mkdir /tmp/other; chown user /tmp/other; su -s /bin/sh -c 'XDG_RUNTIME_DIR=/tmp/other anklume mcp call clipboard_get 2>&1' user";
            assert_eq!(world.exec(0, "keys", own), (true, String::new()));
        }
    }
}

#[test]
fn a_hundred_connections_at_once_over_one_edge_all_get_their_own_answer() {
    let world = World::new(
        &BOTH
            .replace(
                "clipboard_set, consumers: [{b}-two]}",
                "clipboard_set, consumers: [{b}-two], limits: {connections: 128}}",
            )
            .replace("clipboard_get", "file_provide"),
    );
    world.apply();
    let one = world.machine(0, "one");
    let files = "mkdir -p /srv/anklume/portal/outgoing/all; cd /srv/anklume/portal/outgoing/all; \
                 for i in $(seq 100); do echo number $i > $i.txt; done";
    assert!(world.exec(0, "one", files).0);
    let calls = format!(
        "cd /tmp; for i in $(seq 100); do (anklume mcp call -i {one} paste path=$i.txt 2>&1 | base64 -d > got.$i) & done; wait; \
         for i in $(seq 100); do echo \"$i $(cat got.$i)\"; done"
    );
    let (done, answers) = world.exec(1, "two", &calls);
    assert!(done);
    let got: BTreeMap<&str, &str> = answers
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    assert_eq!(got.len(), 100);
    for (number, answer) in got {
        assert_eq!(answer, format!("number {number}"), "{answers}");
    }
}

#[test]
fn a_user_in_a_machine_is_told_what_there_is() {
    let world = World::new(BOTH);
    world.apply();
    let (one, two) = (world.machine(0, "one"), world.machine(1, "two"));
    let (done, listed) = world.exec(1, "two", &format!("anklume mcp list -i {one}"));
    assert!(done);
    let names: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(names, ["copy", "paste"]);
    let (_, wrong) = world.exec(1, "two", "anklume mcp list -i nobody 2>&1; echo $?");
    assert!(
        wrong.contains("nobody") && wrong.contains(&one) && wrong.ends_with("4\n"),
        "{wrong}"
    );
    let (_, alone) = world.exec(
        1,
        "two",
        "rm -r /srv/anklume/mcp; anklume mcp list -i nobody 2>&1; echo $?",
    );
    assert!(
        alone.contains("no provider serves this machine") && alone.ends_with("4\n"),
        "{alone}"
    );
    // The same commands on the host.
    let ran = world.run(&["mcp", "list", "-i", &two]);
    assert!(ran.stdout.starts_with("gpg_sign "), "{ran:?}");
}

/// An infrastructure of `machines` machines, half of them in each domain, with a total of `edges` edges between them.
fn many(machines: usize, edges: usize) -> String {
    let tag = |machine: usize| {
        if machine.is_multiple_of(2) {
            "{a}"
        } else {
            "{b}"
        }
    };
    let machine = |number: usize| {
        let served = (1..=edges).filter(|edge| edge % machines == number);
        let consumers: Vec<String> = served
            .enumerate()
            .map(|(step, _)| (number + 1 + step) % machines)
            .map(|consumer| format!("{}-m{consumer}", tag(consumer)))
            .collect();
        format!(
            "      {}-m{number}:\n        services: [{{name: paste, tool: clipboard_get, consumers: [{}]}}]\n",
            tag(number),
            consumers.join(", ")
        )
    };
    let domain = |first: usize| {
        let machines: String = (first..machines).step_by(2).map(machine).collect();
        format!(
            "  {}:\n    subnet_id: {first}\n    ephemeral: true\n    machines:\n{machines}",
            tag(first)
        )
    };
    format!("domains:\n{}{}", domain(0), domain(1))
}

#[test]
fn twenty_machines_with_thirty_edges() {
    let world = World::new(&many(20, 30));
    let (status, answer) = world.apply_json();
    assert_eq!(status, 0, "{answer:#}");
    let proven = answer["actions"].as_array().unwrap().iter();
    let proven = proven.filter(|action| action["verb"] == "prove" && action["status"] == "done");
    assert_eq!(proven.count(), 30, "{answer:#}");
    world.is_settled();
}

#[test]
fn make_lists_and_calls_what_apply_made() {
    let world = World::new(BOTH);
    world.apply();
    // The Makefile next to the program under test, without sources, so nothing is built.
    let house = tempfile::tempdir().unwrap();
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::copy(tree.join("Makefile"), house.path().join("Makefile")).unwrap();
    let built = house.path().join("target/x86_64-unknown-linux-gnu/debug");
    std::fs::create_dir_all(&built).unwrap();
    std::os::unix::fs::symlink(ANKLUME, built.join("anklume")).unwrap();
    let make = |target: &str, more: &[&str]| {
        let mut make = Command::new("make");
        make.args(["-s", target])
            .current_dir(house.path())
            .arg(format!("I={}", world.machine(0, "one")))
            .args(more);
        scrub(&mut make, house.path());
        let output = make.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(make("mcp-list", &[]).starts_with("gpg_sign "));
    let args = r#"ARGS={"content": "bonjour"}"#;
    make("mcp-call", &["TOOL=clipboard_set", args]);
    assert_eq!(make("mcp-call", &["TOOL=clipboard_get"]), "bonjour");
}
