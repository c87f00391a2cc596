//! `machine-ask`, which `apply` and `doctor` start inside a consumer: it prints one line and runs until its stdin ends.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use serde_json::Value;

use super::world::{World, wait};

/// More services than fit into the answers of other commands.
const MANY: usize = 50;

#[test]
fn a_consumer_says_what_it_is_offered_and_stays_until_it_is_let_go() {
    let services: Vec<String> = (0..MANY)
        .map(|number| {
            format!("{{name: copy_{number:02}, tool: clipboard_set, consumers: [alice]}}")
        })
        .collect();
    let services: Vec<&str> = services.iter().map(String::as_str).collect();
    let world = World::new(&services);
    let listening = world.listen();
    let folder = world.path("providers");
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink(listening.socket("alice"), folder.join("vault.sock")).unwrap();
    let ask = |provider: &str| {
        let mut command = world.command(&["machine-ask", provider]);
        let mut child = command
            .env("ANKLUME_SOCKET_DIR", &folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "it did not stay");
        drop(child.stdin.take());
        let status = wait(&mut child);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!((status, rest.as_str()), (0, ""));
        serde_json::from_str::<Value>(&line).unwrap()
    };
    let answer = ask("vault");
    let names = answer["services"].as_array().unwrap();
    assert_eq!((names.len(), &names[0]), (MANY, &"copy_00".into()));
    assert!(answer["milliseconds"].as_f64().unwrap() > 0.0, "{answer}");
    assert_eq!(answer["failed"], Value::Null);

    let answer = ask("vualt");
    assert_eq!(answer["services"], serde_json::json!([]));
    let why = answer["failed"].as_str().unwrap();
    assert!(
        why.contains("`vualt`") || why.contains("vualt.sock"),
        "{why}"
    );
    listening.end();
}
