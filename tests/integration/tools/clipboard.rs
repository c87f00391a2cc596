//! Tests the clipboard tools with a real X server, and xclip as the other program.

mod images;
mod owners;

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anklume::tool::Display;
use serde_json::{Value, json};

use super::{Server, eventually};
use crate::harness::{ANKLUME, have_program, x_server};

/// A new X server, and a tool server that uses it.
struct Desk {
    xvfb: Child,
    name: String,
    server: Server,
}

impl Drop for Desk {
    fn drop(&mut self) {
        // A holder takes a while to notice that its display is gone, and the next display may have the same number.
        for holder in self.processes("clipboard-holder") {
            signal("-KILL", holder);
        }
        let _ = self.xvfb.kill();
        let _ = self.xvfb.wait();
    }
}

impl Desk {
    /// An empty desk; `None` if a program is missing.
    fn new() -> Option<Self> {
        if !have_program("Xvfb") || !have_program("xclip") {
            return None;
        }
        let (xvfb, name) = x_server();
        let server = server_on(&name);
        Some(Self { xvfb, name, server })
    }

    fn set(&self, content: &str) {
        self.server
            .call("clipboard_set", json!({"content": content}))
            .unwrap();
    }

    fn get(&self) -> Result<String, String> {
        let outcome = self.server.call("clipboard_get", json!({}))?;
        assert!(!outcome.is_png);
        assert_eq!(
            Value::Object(outcome.structured),
            json!({"text": outcome.text, "bytes": outcome.text.len()})
        );
        Ok(outcome.text)
    }

    /// The clipboard text as another program reads it.
    fn pasted(&self) -> Vec<u8> {
        let output = self
            .xclip(&["-o", "-selection", "clipboard"])
            .output()
            .unwrap();
        output.stdout
    }

    /// Makes another program copy something to the clipboard.
    fn copied(&self, bytes: &[u8]) {
        let mut xclip = self
            .xclip(&["-i", "-selection", "clipboard"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        xclip.stdin.take().unwrap().write_all(bytes).unwrap();
        assert!(xclip.wait().unwrap().success());
        // xclip moves to the background before it owns the clipboard.
        eventually("it is on the clipboard", || self.pasted() == bytes);
    }

    fn xclip(&self, arguments: &[&str]) -> Command {
        let mut xclip = Command::new("xclip");
        xclip.args(arguments).env("DISPLAY", &self.name);
        xclip
    }

    /// The processes on this display with this word in their command line.
    fn processes(&self, word: &str) -> Vec<u32> {
        let display = format!("DISPLAY={}", self.name).into_bytes();
        let mine = |process: &u32| {
            let read = |file| std::fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
            let has = |bytes: Vec<u8>, wanted: &[u8]| {
                bytes.split(|byte| *byte == 0).any(|part| part == wanted)
            };
            has(read("environ"), &display) && has(read("cmdline"), word.as_bytes())
        };
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .filter(mine)
            .collect()
    }

    fn holders(&self) -> usize {
        self.processes("clipboard-holder").len()
    }
}

/// Sends a signal to a process of the test, which may already have exited.
fn signal(name: &str, process: u32) {
    let sent = Command::new("kill")
        .args([name, &process.to_string()])
        .stderr(Stdio::null())
        .status();
    sent.unwrap();
}

fn server_on(display: &str) -> Server {
    let mut server = Server::new();
    server.settings.program = ANKLUME.into();
    server.settings.display = Some(Display {
        wayland: None,
        x11: Some(display.into()),
    });
    server
}

#[test]
fn what_is_set_outlives_the_server_and_other_programs_paste_it() {
    let Some(desk) = Desk::new() else { return };
    // After each call, the connection and its runtime no longer exist.
    for text in [
        "bonjour",
        "héllo \u{1f600}",
        "a\r\nb\n",
        &"x".repeat(65_536),
    ] {
        desk.set(text);
        assert_eq!(desk.pasted(), text.as_bytes());
        assert_eq!(desk.get().unwrap(), text);
    }
}

#[test]
fn what_other_programs_copy_is_read() {
    let Some(desk) = Desk::new() else { return };
    for text in ["salut", "日本語\r\n", &"y".repeat(65_536)] {
        desk.copied(text.as_bytes());
        assert_eq!(desk.get().unwrap(), text);
    }
}

#[test]
fn a_short_text_after_a_long_one_is_the_short_one_on_a_display_too() {
    let Some(desk) = Desk::new() else { return };
    desk.set(&"long".repeat(10_000));
    desk.set("short");
    assert_eq!(desk.pasted(), b"short");
    desk.set("");
    assert_eq!(desk.get().unwrap(), "");
}

#[test]
fn an_empty_clipboard_is_an_empty_text() {
    let Some(desk) = Desk::new() else { return };
    assert_eq!(desk.get().unwrap(), "");
    eventually("no process is left", || desk.holders() == 0);
}

#[test]
fn a_holder_ends_when_something_else_is_copied() {
    let Some(desk) = Desk::new() else { return };
    desk.set("one");
    eventually("one holder", || desk.holders() == 1);
    desk.set("two");
    eventually("one holder is left", || desk.holders() == 1);
    desk.copied(b"three");
    eventually("no holder is left", || desk.holders() == 0);
    assert_eq!(desk.get().unwrap(), "three");
}

#[test]
fn a_holder_ends_with_its_display() {
    let Some(mut desk) = Desk::new() else { return };
    desk.set("one");
    desk.xvfb.kill().unwrap();
    desk.xvfb.wait().unwrap();
    eventually("no holder is left", || desk.holders() == 0);
}

#[test]
fn a_holder_keeps_nothing_of_the_server_open() {
    let Some(desk) = Desk::new() else { return };
    desk.set("one");
    // The process that started the holder may still exist for a moment.
    eventually("one holder", || desk.holders() == 1);
    let [holder] = <[u32; 1]>::try_from(desk.processes("clipboard-holder")).unwrap();
    for number in 0..3 {
        let open = std::fs::read_link(format!("/proc/{holder}/fd/{number}")).unwrap();
        assert_eq!(open.to_str(), Some("/dev/null"));
    }
    let folder = std::fs::read_link(format!("/proc/{holder}/cwd")).unwrap();
    assert_eq!(folder.to_str(), Some("/"));
    let stat = std::fs::read_to_string(format!("/proc/{holder}/stat")).unwrap();
    let session = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(3)
        .unwrap();
    assert_eq!(session, holder.to_string(), "it leads a session of its own");
}

#[test]
fn a_display_that_is_not_there_is_an_error_and_no_other_clipboard() {
    let server = server_on(":999");
    let said = "cannot reach the display (DISPLAY=:999); start it on the provider, or unset the variable there \
        so that the clipboard is a private file";
    assert_eq!(server.call("clipboard_get", json!({})).unwrap_err(), said);
    assert_eq!(
        server
            .call("clipboard_set", json!({"content": "x"}))
            .unwrap_err(),
        said
    );
    assert!(
        !server.settings.runtime.exists(),
        "no file was made instead"
    );
}

#[test]
fn too_much_or_no_text_is_said() {
    let Some(desk) = Desk::new() else { return };
    desk.copied(&vec![b'x'; 70_000]);
    assert_eq!(
        desk.get().unwrap_err(),
        "the clipboard holds 70000 bytes; at most 65536 can be returned"
    );
    desk.copied(b"\xff\xfe");
    assert_eq!(
        desk.get().unwrap_err(),
        "the clipboard's content is not UTF-8 text"
    );
}

#[test]
fn a_program_that_holds_the_clipboard_and_does_not_answer_is_given_up() {
    let Some(mut desk) = Desk::new() else { return };
    desk.copied(b"x");
    let [holder] = <[u32; 1]>::try_from(desk.processes("xclip")).unwrap();
    signal("-STOP", holder);
    desk.server.settings.display_wait = Duration::from_millis(500);
    assert_eq!(
        desk.get().unwrap_err(),
        "the display, or the program that owns its clipboard, did not answer within 0 s"
    );
    eventually("the process that asked is gone", || desk.holders() == 0);
    // The content of the stopped program can be replaced anyway.
    desk.server.settings.display_wait = Duration::from_secs(5);
    desk.set("y");
    assert_eq!(desk.get().unwrap(), "y");
    signal("-CONT", holder);
}

#[test]
fn without_a_display_the_clipboard_is_a_private_file() {
    let server = Server::new();
    assert_eq!(server.call("clipboard_get", json!({})).unwrap().text, "");
    let outcome = server
        .call("clipboard_set", json!({"content": "bonjour"}))
        .unwrap();
    assert_eq!(outcome.text, "7 bytes on the clipboard");
    assert_eq!(Value::Object(outcome.structured), json!({"bytes": 7}));
    assert_eq!(
        server.call("clipboard_get", json!({})).unwrap().text,
        "bonjour"
    );
    assert_eq!(
        std::fs::read(server.settings.runtime.join("clipboard")).unwrap(),
        b"bonjour"
    );
}
