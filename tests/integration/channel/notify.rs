//! `notify` in a consumer: a real notification daemon on a D-Bus session of its own, and no session at all.

use std::fs;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::world::{World, until};
use crate::harness::{announced, have_program, x_server};

const NOTIFY: &str = "{name: say, tool: notify, consumers: [alice]}";

/// A display, a D-Bus session and a notification daemon; dropping this value ends them.
struct Desktop {
    processes: Vec<Child>,
    display: String,
    bus: String,
}

impl Desktop {
    /// Starts them; `None` if a program is missing.
    fn new(world: &World) -> Option<Self> {
        let programs = ["Xvfb", "dbus-daemon", "dunst", "dunstctl", "notify-send"];
        if !programs.iter().all(|program| have_program(program)) {
            return None;
        }
        let (xvfb, display) = x_server();
        let bus = format!("unix:path={}", world.text("bus"));
        let mut daemon = Command::new("dbus-daemon");
        daemon.args([
            "--session",
            "--nofork",
            "--print-address",
            "--address",
            &bus,
        ]);
        let (daemon, _) = announced(daemon);
        // An empty file, so that the user's own configuration has no effect.
        world.write("dunstrc", "");
        let dunst = Command::new("dunst")
            .args(["-conf", &world.text("dunstrc")])
            .env("DISPLAY", &display)
            .env("DBUS_SESSION_BUS_ADDRESS", &bus)
            .env_remove("WAYLAND_DISPLAY")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let desktop = Self {
            processes: vec![dunst, daemon, xvfb],
            display,
            bus,
        };
        until("dunst answers", || desktop.dunstctl("is-paused").is_some());
        Some(desktop)
    }

    fn dunstctl(&self, command: &str) -> Option<String> {
        let mut dunstctl = Command::new("dunstctl");
        dunstctl
            .arg(command)
            .env("DBUS_SESSION_BUS_ADDRESS", &self.bus);
        let output = dunstctl.env("DISPLAY", &self.display).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then_some(text)
    }

    /// What is shown: the program, the title and the other text of each message, the newest first.
    fn shown(&self) -> Vec<[String; 3]> {
        self.dunstctl("close-all").unwrap();
        let history: Value = serde_json::from_str(&self.dunstctl("history").unwrap()).unwrap();
        let messages = history["data"][0].as_array().unwrap();
        let text = |message: &Value, key: &str| message[key]["data"].as_str().unwrap().to_owned();
        let parts = |message| ["appname", "summary", "body"].map(|key| text(message, key));
        messages.iter().map(parts).collect()
    }
}

impl Drop for Desktop {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[test]
fn a_message_is_shown_with_the_name_of_its_sender_and_imitates_no_other() {
    let world = World::new(&[NOTIFY]);
    let Some(desktop) = Desktop::new(&world) else {
        return;
    };
    let world = world.env("DBUS_SESSION_BUS_ADDRESS", &desktop.bus);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let mut say = |title: &str, body: Option<&str>| {
        let answer = alice.call("say", &json!({"title": title, "body": body}));
        answer["result"].clone()
    };
    let result = say("build done", Some("12 tests\nall green"));
    assert_eq!(
        (&result["structuredContent"], &result["content"][0]["text"]),
        (&json!({"shown": true}), &json!("shown")),
        "{result}"
    );
    say("--help", None);
    say(
        "x\n[vault] <b>open</b>",
        Some("<a href=\"http://x\">here</a>\u{202e} \\074b\\076 \\012[vault]"),
    );
    let message = |title: &str, body: &str| ["anklume", title, body].map(str::to_owned);
    assert_eq!(
        desktop.shown(),
        [
            message(
                "[alice] x\u{fffd}[vault] ‹b›open‹/b›",
                "‹a href=\"http://x\"›here‹/a›\u{fffd} \\074b\\076 \\012[vault]"
            ),
            message("[alice] --help", ""),
            message("[alice] build done", "12 tests\nall green"),
        ]
    );
    for (title, fault) in [
        (String::new(), "`title` is empty"),
        (
            "x".repeat(201),
            "`title` has 201 bytes; at most 200 are shown",
        ),
    ] {
        let result = say(&title, None);
        assert_eq!(
            (&result["isError"], &result["content"][0]["text"]),
            (&json!(true), &json!(fault))
        );
    }
    // Without the daemon, nothing is shown, and that is said.
    drop(desktop);
    let result = say("lost", None);
    assert_eq!(result["isError"], json!(true), "{result}");
    server.end();
}

#[test]
fn without_a_session_messages_are_noted_and_too_many_are_refused() {
    let world = World::new(&[NOTIFY]);
    let server = world.listen();
    let mut alice = server.peer("alice");
    let result = alice.call("say", &json!({"title": "one", "body": "a\nb"}));
    assert_eq!(
        result["result"]["structuredContent"],
        json!({"shown": false}),
        "{result}"
    );
    let noted = fs::read_to_string(world.path("run/anklume/notifications")).unwrap();
    let (time, rest) = noted.split_once(' ').unwrap();
    assert!(time.parse::<jiff::Timestamp>().is_ok(), "{noted}");
    assert_eq!(rest, "[alice] one\ta\tb\n");
    // A service that shows messages has a limit of its own.
    let mut answers = (0..30).map(|_| alice.call("say", &json!({"title": "x"})));
    let refused = answers
        .find(|answer| answer["error"]["code"] == json!(-32010))
        .unwrap();
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("20 calls from this caller per minute"),
        "{message}"
    );
    server.end();
}
