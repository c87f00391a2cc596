//! Checks the facts in docs/channel.md against the program.

use std::fs;

use anklume::audit::flood::{LINE_EVERY, LINES_AT_ONCE, OWN_LINES, WINDOW};
use anklume::audit::{KEEP, ROTATE_AT};
use anklume::limits::{
    CALL_TIME, CALLS_PER_MINUTE, CALLS_PER_MINUTE_ALL, CONNECTIONS, IDLE, IN_FLIGHT, IN_FLIGHT_ALL,
    Limits, MEMORY, MEMORY_MIN, MESSAGE_BYTES, MESSAGE_BYTES_MAX, MESSAGES_AT_ONCE,
    MESSAGES_PER_SECOND, STOP_TIME,
};
use anklume::machine_state::STOP_SECONDS;
use serde_json::{Value, json};

use super::world::World;

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/channel.md");
    String::from_utf8(fs::read(path).unwrap()).unwrap()
}

/// The page's code blocks in this language.
fn blocks(language: &str) -> Vec<String> {
    let page = page();
    let begin = format!("```{language}\n");
    let blocks = page.split(&begin).skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap().to_owned())
        .collect()
}

#[test]
fn its_limits_are_the_servers() {
    let page = page();
    let rows: Vec<(&str, u64)> = page
        .lines()
        .skip_while(|line| !line.starts_with("| `limits:`"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let (default, _) = cells[2].split_once(';').unwrap_or((cells[2], ""));
            (cells[1].trim_matches('`'), default.parse().unwrap())
        })
        .collect();
    let defaults = [
        MESSAGE_BYTES,
        CALLS_PER_MINUTE.into(),
        CALLS_PER_MINUTE_ALL.into(),
        IN_FLIGHT.into(),
        IN_FLIGHT_ALL.into(),
        CALL_TIME.as_secs(),
        CONNECTIONS.into(),
        IDLE.as_secs(),
        MEMORY,
    ];
    let expected: Vec<_> = Limits::KEYS.into_iter().zip(defaults).collect();
    assert_eq!(rows, expected);
    // Line breaks in the page do not matter.
    let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
    let most = format!("at most {MESSAGE_BYTES_MAX}");
    assert!(page.contains(&most), "{most}");
    let read = format!(
        "{MESSAGES_AT_ONCE} such messages in a burst, and then {MESSAGES_PER_SECOND} a second"
    );
    assert!(page.contains(&read), "{read}");
    let floods = [
        format!("get a line each, up to {OWN_LINES} at once"),
        format!("at most {LINES_AT_ONCE} such lines at once, and then one a minute"),
    ];
    for text in floods {
        assert!(page.contains(&text), "{text}");
    }
    assert_eq!((LINE_EVERY.as_secs(), WINDOW.as_secs()), (60, 60));
    let kept = u64::from(KEEP + 1) * ROTATE_AT / 1024 / 1024;
    assert!(page.contains(&format!("{kept} MiB in all")), "{kept}");
    let end = format!("are answered, for at most {} seconds", STOP_TIME.as_secs());
    assert!(page.contains(&end), "{end}");
    let supervised = format!("A supervisor waits for {STOP_SECONDS} seconds");
    assert!(page.contains(&supervised), "{supervised}");
    let rotation = format!("At {} MiB, the log continues", ROTATE_AT / 1024 / 1024);
    assert!(page.contains(&rotation), "{rotation}");
    assert!(page.contains("eight old files") && KEEP == 8);
}

#[test]
fn its_limits_are_read_from_infra_yml() {
    let all = "{message_bytes: 1000, calls_per_minute: 1, calls_per_minute_all: 2, in_flight: 3, in_flight_all: 4, call_seconds: 5, connections: 6, idle_seconds: 7, memory: 48MiB}";
    let service = format!("{{name: x, tool: clipboard_get, consumers: [alice], limits: {all}}}");
    let world = World::new(&[&service]);
    let file: Value =
        serde_json::from_slice(&fs::read(world.path("services.json")).unwrap()).unwrap();
    let limits = file["policy"]["services"][0]["limits"].as_object().unwrap();
    let keys: Vec<&str> = limits.keys().map(String::as_str).collect();
    assert_eq!(keys, Limits::KEYS);
    assert_eq!(limits["memory"], MEMORY_MIN);
}

#[test]
fn its_entries_for_clients_start_the_right_command() {
    let args = json!(["mcp", "connect", "vault-signer"]);
    let entries: Vec<Value> = blocks("json")
        .iter()
        .map(|block| serde_json::from_str(block).unwrap())
        .collect();
    for (entry, root) in entries.iter().zip(["mcpServers", "servers"]) {
        let server = &entry[root]["vault-signer"];
        assert_eq!(
            (&server["command"], &server["args"]),
            (&json!("anklume"), &args)
        );
    }
    assert_eq!(entries.len(), 2);
    let toml = blocks("toml").concat();
    assert!(
        toml.contains(r#"args = ["mcp", "connect", "vault-signer"]"#),
        "{toml}"
    );
}
