//! Tests the clipboard tools with a real Wayland compositor (headless sway), and wl-clipboard as the other program.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anklume::tool::Display;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{Server, eventually};
use crate::harness::{ANKLUME, have_program, png};

/// A user other than root, because sway refuses to start as root.
const NOBODY: &str = "65534";

/// A new compositor, and a tool server that uses it.
struct Compositor {
    sway: Child,
    socket: PathBuf,
    server: Server,
    _folder: tempfile::TempDir,
}

impl Drop for Compositor {
    fn drop(&mut self) {
        let _ = self.sway.kill();
        let _ = self.sway.wait();
    }
}

impl Compositor {
    /// An empty clipboard; `None` if a program is missing.
    fn new() -> Option<Self> {
        if !["sway", "wl-copy", "wl-paste"]
            .into_iter()
            .all(have_program)
        {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::write(path.join("config"), "xwayland disable\n").unwrap();
        let mut command = if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(path, NOBODY.parse().ok(), NOBODY.parse().ok()).unwrap();
            let mut command = Command::new("setpriv");
            command.args([
                "--reuid",
                NOBODY,
                "--regid",
                NOBODY,
                "--clear-groups",
                "sway",
            ]);
            command
        } else {
            Command::new("sway")
        };
        let sway = command
            .arg("--config")
            .arg(path.join("config"))
            .env("XDG_RUNTIME_DIR", path)
            .env("HOME", path)
            .env("WLR_BACKENDS", "headless")
            .env("WLR_LIBINPUT_NO_DEVICES", "1")
            .env("WLR_RENDERER", "pixman")
            .env_remove("WAYLAND_DISPLAY")
            .env_remove("DISPLAY")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let socket = path.join("wayland-1");
        eventually("sway listens", || UnixStream::connect(&socket).is_ok());
        let mut server = Server::new();
        server.settings.program = ANKLUME.into();
        server.settings.display = Some(Display {
            // The variable may contain a path, or a name in XDG_RUNTIME_DIR.
            wayland: Some(socket.clone().into()),
            x11: None,
        });
        Some(Self {
            sway,
            socket,
            server,
            _folder: folder,
        })
    }

    fn set(&self, content: &str) {
        self.server
            .call("clipboard_set", json!({"content": content}))
            .unwrap();
    }

    fn get(&self) -> Result<String, String> {
        self.server
            .call("clipboard_get", json!({}))
            .map(|outcome| outcome.text)
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("WAYLAND_DISPLAY", &self.socket);
        command
    }

    fn pasted(&self) -> Vec<u8> {
        self.client("wl-paste")
            .arg("--no-newline")
            .output()
            .unwrap()
            .stdout
    }
}

#[test]
fn on_wayland_the_text_outlives_the_server_and_is_shared_both_ways() {
    let Some(desk) = Compositor::new() else {
        return;
    };
    assert_eq!(desk.get().unwrap(), "");
    for text in ["héllo \u{1f600}\r\n", &"x".repeat(65_536), "short"] {
        desk.set(text);
        assert_eq!(desk.pasted(), text.as_bytes());
        assert_eq!(desk.get().unwrap(), text);
    }
    let copied = desk.client("wl-copy").arg("salut").status().unwrap();
    assert!(copied.success());
    eventually("it is on the clipboard", || desk.pasted() == b"salut");
    assert_eq!(desk.get().unwrap(), "salut");
    for (kind, expected) in [
        ("image/jpeg", ""),
        ("text/html", "data"),
        ("text/plain;charset=utf-8", "data"),
        ("STRING", "data"),
    ] {
        let copied = desk
            .client("wl-copy")
            .args(["--type", kind, "data"])
            .status();
        assert!(copied.unwrap().success());
        eventually(kind, || desk.get() == Ok(expected.to_owned()));
    }
    let large = desk.client("wl-copy").arg("x".repeat(70_000)).status();
    assert!(large.unwrap().success());
    let said = "the clipboard holds 70000 bytes; at most 65536 can be returned";
    eventually("it is on the clipboard", || {
        desk.get() == Err(said.to_owned())
    });
}

#[test]
fn on_wayland_an_image_outlives_the_server_and_is_shared_both_ways() {
    let Some(desk) = Compositor::new() else {
        return;
    };
    let pasted = || {
        let mut paste = desk.client("wl-paste");
        let output = paste.args(["--type", "image/png"]).output();
        output.unwrap().stdout
    };
    let get = || {
        let outcome = desk.server.call("clipboard_get", json!({})).unwrap();
        assert!(outcome.is_png || outcome.text.is_empty());
        STANDARD.decode(outcome.text).unwrap()
    };
    for size in [8, 100_000, 3 * 1024 * 1024] {
        let image = png(size);
        let arguments = json!({"image": STANDARD.encode(&image)});
        desk.server.call("clipboard_set", arguments).unwrap();
        assert!(pasted() == image, "{size}");
        assert!(get() == image, "{size}");
    }
    desk.set("a text");
    assert_eq!(desk.get().unwrap(), "a text");
    for size in [8, 3 * 1024 * 1024] {
        let image = png(size);
        let path = desk.server.folder.path().join("image");
        std::fs::write(&path, &image).unwrap();
        let copied = desk
            .client("wl-copy")
            .args(["--type", "image/png"])
            .stdin(std::fs::File::open(&path).unwrap())
            .status();
        assert!(copied.unwrap().success());
        eventually("it is on the clipboard", || pasted() == image);
        assert!(get() == image, "{size}");
    }
}

#[test]
fn on_wayland_what_is_marked_as_a_password_is_not_handed_over() {
    let Some(desk) = Compositor::new() else {
        return;
    };
    for (mark, is_secret) in [("secret", true), ("public", false)] {
        let copied = desk
            .client("wl-copy")
            .args(["--type", "x-kde-passwordManagerHint", mark])
            .status();
        assert!(copied.unwrap().success());
        eventually(mark, || match desk.get() {
            Ok(text) => !is_secret && text.is_empty(),
            Err(why) => {
                is_secret && why.starts_with("the clipboard's content is marked as a password")
            }
        });
    }
}

#[test]
fn a_compositor_that_is_gone_is_an_error_without_its_path() {
    let mut server = Server::new();
    server.settings.program = ANKLUME.into();
    server.settings.display = Some(Display {
        wayland: Some(server.folder.path().join("wayland-9").into()),
        x11: None,
    });
    assert_eq!(
        server.call("clipboard_get", json!({})).unwrap_err(),
        "cannot reach the display (WAYLAND_DISPLAY=a path); start it on the provider, or unset the variable there \
         so that the clipboard is a private file"
    );
}
