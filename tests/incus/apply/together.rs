//! Concurrent changes: two runs at the same time, and changes to other channels while one is in use.

use std::process::Stdio;

use serde_json::json;

use super::plan::SEED;
use crate::connection::Connection;
use crate::harness::ended_in_time;
use crate::world::{World, pair};

#[test]
fn of_two_runs_at_once_one_waits_and_finds_nothing_to_do() {
    let world = World::new(SEED);
    let runs = [(); 2].map(|()| world.anklume(&["apply"]));
    let started: Vec<_> = runs
        .iter()
        .map(|run| {
            let mut command = run.command();
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let ended: Vec<(i32, String, String)> = started
        .into_iter()
        .map(|child| {
            let output = ended_in_time(child, &["apply".to_owned()]);
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (
                output.status.code().unwrap(),
                text(&output.stdout),
                text(&output.stderr),
            )
        })
        .collect();
    assert!(ended.iter().all(|(status, ..)| *status == 0), "{ended:#?}");
    let waits = "waiting for another anklume that is changing this Incus (process ";
    let waited: Vec<_> = ended
        .iter()
        .filter(|(_, _, stderr)| stderr.contains(waits))
        .collect();
    assert_eq!(waited.len(), 1, "{ended:#?}");
    let nothing = "nothing to do: Incus is as declared\n";
    assert!(
        waited.iter().all(|(_, stdout, _)| stdout == nothing),
        "{ended:#?}"
    );
    world.is_settled();
}

#[test]
fn a_consumer_is_added_and_another_removed_beside_a_channel_in_use() {
    let text = |machines: &str, consumers: &str| {
        pair("ephemeral: true", "name: copy, tool: clipboard_set")
            .replace("      {b}-dev: {}\n", machines)
            .replace("[{b}-dev]", consumers)
    };
    let two = "      {b}-dev: {}\n      {b}-new: {}\n";
    let mut world = World::new(&text(two, "[{b}-dev]"));
    world.apply();
    let mut living = Connection::open(&world, "dev");
    let copy = json!({"content": "x"});
    living.call("copy", &copy);
    let server = world.server();

    world.declare(&text(two, "[{b}-dev, {b}-new]"));
    world.apply();
    living.call("copy", &copy);
    let mut added = Connection::open(&world, "new");
    added.call("copy", &copy);

    world.declare(&text(two, "[{b}-dev]"));
    world.apply();
    living.call("copy", &copy);
    assert_eq!(living.services(), ["copy"]);
    assert!(added.is_closed());
    assert_eq!(world.server(), server);
    world.is_settled();
}
