//! The page about coding agents, with a scripted client in the place of the agent.

use serde_json::{Value, json};

use crate::debian::{Init, debian};
use crate::ssh::{commit, key_pair};
use crate::world::World;

/// An MCP server that needs a token, for busybox.
const TRACKER: &str = r#"#!/bin/sh
[ "$TOKEN" = s3cret ] || exit 1
while IFS= read -r line; do
    id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
    case $line in
    *'"method":"initialize"'*) result='{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"tracker","version":"1"}}' ;;
    *'"method":"tools/list"'*) result='{"tools":[{"name":"list_issues","description":"Lists the issues of a repository","inputSchema":{"type":"object","properties":{"repo":{"type":"string"},"state":{"type":"string"}},"required":["repo"]}}]}' ;;
    *'"method":"tools/call"'*) result='{"content":[{"type":"text","text":"1: it crashes"}]}' ;;
    *) continue ;;
    esac
    printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$result"
done
"#;

/// The tools that the agent calls, in this order, with their arguments, and whether the call fails.
fn calls() -> [(&'static str, Value, bool); 9] {
    [
        ("issues", json!({"repo": "app"}), false),
        ("issues", json!({"repo": "secret"}), true),
        ("issues", json!({"repo": "app", "state": "all"}), true),
        (
            "hand_in",
            json!({"path": "report.txt", "file": "report.txt"}),
            false,
        ),
        (
            "fetch",
            json!({"path": "plan.txt", "save_as": "plan.txt"}),
            false,
        ),
        ("commits", json!({"data": commit()}), false),
        // These bytes are nothing that Git signs.
        ("commits", json!({"data": "AAAA"}), true),
        ("list_issues", json!({"repo": "app"}), true),
        ("gpg_sign", json!({"data": ""}), true),
    ]
}

/// The page's machines with the names of a test, and the same without the service of the MCP server.
fn declared(page: &str, public_key: &str) -> [String; 2] {
    let yaml = page.split("```yaml\n").nth(1).unwrap();
    let yaml = yaml.split("```").next().unwrap();
    let (before, rest) = yaml.split_once("key: \"").unwrap();
    let (_, after) = rest.split_once('"').unwrap();
    let whole = format!("\n{before}key: \"{public_key}\"{after}")
        .replace("  secrets:\n", "  {a}:\n    ephemeral: true\n")
        .replace("  agents:\n", "  {b}:\n    ephemeral: true\n")
        .replace("      vault:\n", "      {a}-vault:\n")
        .replace("      agent: {mcp", "      {b}-agent: {mcp")
        // busybox has no users.
        .replace("              run_as: tracker\n", "")
        .replace("[agent]", "[{b}-agent]")
        .replace("subnet_id: 1", "subnet_id: 2")
        .replace("subnet_id: 0", "subnet_id: 1");
    let (start, rest) = whole.split_once("          - name: issues\n").unwrap();
    let (_, end) = rest.split_once("          - name: hand_in\n").unwrap();
    let first = format!("{start}          - name: hand_in\n{end}");
    [first, whole]
}

/// The vault, with the server and the key of the page, and the agent's machine, of this image if it is given; also
/// returns the public key.
fn vault_and_agent(page: &str, image: Option<&str>) -> (World, String) {
    let (public, private) = key_pair();
    let [first, whole] = declared(page, public.trim()).map(|text| match image {
        Some(image) => text.replace(
            "{b}-agent: {",
            &format!("{{b}}-agent: {{os_image: {image}, "),
        ),
        None => text,
    });
    let mut world = World::new(&first);
    world.apply();
    let put = format!(
        "mkdir -p /opt/tracker ~/.ssh /srv/anklume/portal/outgoing/all && cat >/opt/tracker/server <<'END'\n{TRACKER}END\n\
         chmod 755 /opt/tracker/server && umask 077 && echo TOKEN=s3cret >/etc/tracker.env && cat >~/.ssh/id_ed25519 <<'KEY'\n{private}KEY\n\
         umask 022; echo plan >/srv/anklume/portal/outgoing/all/plan.txt"
    );
    assert!(world.exec(0, "vault", &put).0);
    world.declare(&whole);
    let pinned = world.run(&["mcp", "pin", "--yes"]);
    assert_eq!(pinned.status, 0, "{}", pinned.stderr);
    world.lock = Some(pinned.read("anklume.lock"));
    world.apply();
    (world, public)
}

/// The page's console blocks, as their lines.
fn consoles(page: &str) -> Vec<Vec<&str>> {
    let blocks = page.split("```console\n").skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap().lines().collect())
        .collect()
}

#[test]
fn an_agent_does_what_was_granted_and_nothing_else() {
    let page = include_str!("../../docs/agents.md");
    let (world, _) = vault_and_agent(page, None);
    let consoles = consoles(page);
    assert_eq!(consoles[0], ["$ anklume mcp pin", "$ anklume apply"]);
    let config = consoles[1][0].strip_prefix("agent$ ").unwrap();
    let prepare = format!(
        "mkdir project && cd project && {config} 2>/dev/null && echo done >report.txt && cat .mcp.json"
    );
    let (done, file) = world.exec(1, "agent", &prepare);
    assert!(done, "{file}");
    let file: Value = serde_json::from_str(&file).unwrap();
    let entry = &file["mcpServers"]["anklume"];
    let words = entry["args"].as_array().unwrap().iter();
    let words: Vec<&str> = words.map(|word| word.as_str().unwrap()).collect();
    let start = format!("{} {}", entry["command"].as_str().unwrap(), words.join(" "));
    let vault = world.machine(0, "vault");
    let mut lines = vec![r#"{"jsonrpc":"2.0","id":0,"method":"tools/list"}"#.to_owned()];
    for (id, (name, arguments, _)) in (1..).zip(calls()) {
        let params = json!({"name": format!("{vault}__{name}"), "arguments": arguments});
        let call = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params});
        lines.push(call.to_string());
    }
    let script = format!("cd project && {start} <<'END'\n{}\nEND", lines.join("\n"));
    let (done, said) = world.exec(1, "agent", &script);
    assert!(done, "{said}");
    let answers = said.lines().map(|line| serde_json::from_str(line).unwrap());
    let mut answers: Vec<Value> = answers.collect();
    answers.sort_by_key(|answer| answer["id"].as_u64());
    assert_eq!(answers.len(), lines.len(), "{said}");
    let tools = answers[0]["result"]["tools"].as_array().unwrap().iter();
    let tools: Vec<&str> = tools.map(|tool| tool["name"].as_str().unwrap()).collect();
    let expected = ["commits", "issues", "hand_in", "fetch"].map(|name| format!("{vault}__{name}"));
    assert_eq!(tools, expected);
    for (answer, (name, arguments, fails)) in answers.iter().skip(1).zip(calls()) {
        let failed = answer["result"]["isError"] == true || !answer["error"].is_null();
        assert_eq!(failed, fails, "{name} {arguments}: {answer}");
    }
    let text = |id: usize| {
        answers[id]["result"]["content"][0]["text"]
            .as_str()
            .unwrap()
    };
    assert_eq!(text(1), "1: it crashes");
    assert_eq!(text(2), "`repo` must be one of \"app\", \"docs\" (`enum`)");
    assert_eq!(
        text(3),
        "`state` may not be sent: the service takes only `repo` (`only`)"
    );
    let fetched = world.exec(1, "agent", "cat project/plan.txt");
    assert_eq!(fetched, (true, "plan\n".to_owned()));
    let folder = world.machine(1, "agent");
    let there = format!("cat /srv/anklume/portal/incoming/{folder}/report.txt");
    assert_eq!(world.exec(0, "vault", &there), (true, "done\n".to_owned()));
    // Neither the key nor the token is in the agent's machine.
    let secrets = "grep -rl -e s3cret -e 'OPENSSH PRIVATE' /root /etc /srv /run 2>/dev/null";
    assert_eq!(world.exec(1, "agent", secrets).1, "");
    world.is_settled();
}

#[test]
#[ignore = "long"]
fn an_agent_s_commit_is_signed_by_the_vault() {
    let page = include_str!("../../docs/agents.md");
    let (world, public) = vault_and_agent(page, Some(debian(Init::Systemd)));
    assert!(world.exec(1, "agent", Init::Systemd.up()).0);
    let lines = consoles(page).remove(2);
    let commands = lines
        .iter()
        .map(|line| line.strip_prefix("agent$ ").unwrap());
    let commands = commands.collect::<Vec<_>>().join(" && ");
    let signs = format!(
        "git config --global user.name Agent && git config --global user.email agent@example.org && git init -q project && \
         cd project && git add -A && {}",
        commands.replace("commit -S", "commit --allow-empty -S")
    );
    let (done, said) = world.exec(1, "agent", &format!("{{ {signs}; }} 2>&1"));
    assert!(done, "{said}");
    let verifies = format!(
        "echo 'agent@example.org {}' >signers && cd project && git -c gpg.ssh.allowedSignersFile=../signers verify-commit HEAD 2>&1",
        public.trim()
    );
    let (done, said) = world.exec(1, "agent", &verifies);
    assert!(
        done && said.starts_with("Good \"git\" signature for agent@example.org"),
        "{said}"
    );
}
