//! All kinds of clipboard owners: those that offer text provide it; with any other, the result is an empty text.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::{Desk, eventually};
use crate::harness::{have_program, python};

impl Desk {
    /// Makes a program put text on the clipboard; the program gets the text on stdin, and these arguments.
    pub(super) fn put(&self, program: &str, arguments: &[&str], text: &[u8]) {
        let mut child = Command::new(program)
            .args(arguments)
            .env("DISPLAY", &self.name)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text).unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// Starts an owner with this behaviour.
    fn owned(&self, words: &[&str]) -> Owner {
        let mut child = Command::new(python("python").unwrap())
            .arg("tests/clients/x11_owner.py")
            .args(words)
            .env("DISPLAY", &self.name)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "owns\n", "{words:?}");
        Owner(child)
    }
}

/// A running owner; dropping this value kills it.
struct Owner(Child);

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn whatever_type_a_program_offers_is_read_as_that() {
    let Some(desk) = Desk::new() else { return };
    for (kind, expected) in [
        ("image/jpeg", ""),
        ("application/octet-stream", ""),
        ("UTF8_STRING", "data é"),
        ("text/plain", "data é"),
        ("text/plain;charset=utf-8", "data é"),
        ("text/html", "data é"),
        ("text/uri-list", "data é"),
        ("STRING", "data é"),
    ] {
        desk.put(
            "xclip",
            &["-i", "-selection", "clipboard", "-t", kind],
            "data é".as_bytes(),
        );
        // The program moves to the background before it owns the clipboard.
        eventually(kind, || desk.get() == Ok(expected.to_owned()));
    }
}

#[test]
fn what_xsel_copies_is_read_and_what_was_set_is_pasted_by_it() {
    let Some(desk) = Desk::new().filter(|_| have_program("xsel")) else {
        return;
    };
    for text in ["salut é\n", &"y".repeat(65_536)] {
        desk.put("xsel", &["--clipboard", "--input"], text.as_bytes());
        eventually("it is on the clipboard", || {
            desk.get() == Ok(text.to_owned())
        });
    }
    desk.set("bonjour");
    let pasted = Command::new("xsel")
        .args(["--clipboard", "--output"])
        .env("DISPLAY", &desk.name)
        .output()
        .unwrap();
    assert_eq!(pasted.stdout, b"bonjour");
}

#[test]
fn owners_that_do_as_they_like_give_their_text_or_the_cause() {
    let Some(desk) = Desk::new().filter(|_| python("python").is_some()) else {
        return;
    };
    let password = "the clipboard's content is marked as a password, and this service does not hand passwords over; \
        the operator can allow it: `with: {passwords: true}`";
    let withheld =
        "the display, or the program that owns its clipboard, did not provide the content";
    for (words, expected) in [
        (&["password"][..], Err(password)),
        (&["mark-withheld"], Err(password)),
        (&["public"], Ok("public text")),
        (&["latin"], Ok("café")),
        (&["text"], Ok("café")),
        (&["old"], Ok("old")),
        (&["second"], Ok("second")),
        (
            &["image"],
            Err(
                "the clipboard's owner offers an image as PNG that is none; copy it with another program",
            ),
        ),
        // In a list this long, the mark may be among the types that the tool does not read.
        (&["many", "10000"], Err(password)),
        (&["many", "100"], Ok("first of many")),
        (
            &["not-utf8"],
            Err("the clipboard's content is not UTF-8 text"),
        ),
        (&["withheld"], Err(withheld)),
        (&["incr", "60000"], Ok(&"z".repeat(60_000))),
        (
            &["incr", "300000"],
            Err("the clipboard holds 300000 bytes; at most 65536 can be returned"),
        ),
    ] {
        let owner = desk.owned(words);
        let expected = expected.map(str::to_owned).map_err(str::to_owned);
        assert_eq!(desk.get(), expected, "{words:?}");
        drop(owner);
    }
}

#[test]
fn a_password_is_handed_over_where_the_service_says_so() {
    let Some(desk) = Desk::new().filter(|_| python("python").is_some()) else {
        return;
    };
    let _owner = desk.owned(&["password"]);
    assert!(desk.get().is_err());
    let outcome = desk
        .server
        .call("clipboard_get", json!({"passwords": true}));
    assert_eq!(outcome.unwrap().text, "hunter2");
    // An explicit false is the same as no value.
    assert!(
        desk.server
            .call("clipboard_get", json!({"passwords": false}))
            .is_err()
    );
}

#[test]
fn an_owner_that_never_answers_is_given_up() {
    let Some(mut desk) = Desk::new().filter(|_| python("python").is_some()) else {
        return;
    };
    let _owner = desk.owned(&["silent"]);
    desk.server.settings.display_wait = Duration::from_millis(500);
    assert_eq!(
        desk.get().unwrap_err(),
        "the display, or the program that owns its clipboard, did not answer within 0 s"
    );
    eventually("the process that asked is gone", || desk.holders() == 0);
}
