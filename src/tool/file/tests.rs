//! Tests the portal from the outside: every file-related bug in an earlier anklume's server, and races.

mod pieces;
mod race;
mod resume;
mod shares;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::{Map, Value, json};

use crate::catalogue::ONE_CALL_MAX;
use crate::digest::sha256;
use crate::tool::testing::{Bench, is_root};

impl Bench {
    fn accept(&self, path: &str, bytes: &[u8]) -> Result<String, String> {
        self.call(
            "file_accept",
            json!({"path": path, "data": STANDARD.encode(bytes)}),
        )
        .map(|outcome| outcome.text)
    }

    fn provide(&self, path: &str) -> Result<Vec<u8>, String> {
        self.call("file_provide", json!({"path": path}))
            .map(|outcome| STANDARD.decode(outcome.text).unwrap())
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn structured(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other}"),
    }
}

#[test]
fn a_file_goes_in_and_comes_out() {
    let bench = Bench::new();
    let outcome = bench
        .call("file_accept", json!({"path": "a/b/c.txt", "data": "aGk="}))
        .unwrap();
    assert_eq!(outcome.text, "a/b/c.txt");
    assert_eq!(
        outcome.structured,
        structured(
            json!({"path": "a/b/c.txt", "size": 2, "complete": true, "sha256": sha256(b"hi")})
        )
    );
    let path = bench.portal().join("a/b/c.txt");
    assert_eq!(mode(&path), 0o644);
    let outcome = bench
        .call("file_provide", json!({"path": "a/b/c.txt"}))
        .unwrap();
    assert_eq!(outcome.text, "aGk=");
    let mut said = outcome.structured;
    let modified: jiff::Timestamp = said["modified"].as_str().unwrap().parse().unwrap();
    let on_disk = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(std::time::SystemTime::from(modified), on_disk);
    said.shift_remove("modified");
    assert_eq!(
        said,
        structured(json!({
            "path": "a/b/c.txt", "size": 2, "offset": 0, "length": 2, "complete": true, "data": "aGk=", "sha256": sha256(b"hi"), "mode": "0644"
        }))
    );
    // An empty file is valid.
    bench.accept("empty", b"").unwrap();
    assert_eq!(bench.provide("empty").unwrap(), b"");
}

#[test]
fn a_negative_mode_is_no_way_to_setuid() {
    let bench = Bench::new();
    for bad in [
        "-3023", "-1", "4755", "2755", "1777", "+755", "0o755", "rwx", "7777",
    ] {
        let refused = bench
            .call(
                "file_accept",
                json!({"path": "f", "data": "aGk=", "mode": bad}),
            )
            .unwrap_err();
        assert!(
            refused.starts_with("`mode` must be three octal digits"),
            "{refused}"
        );
        // The call is refused before anything is written.
        assert!(!bench.portal().join("f").exists(), "{bad}");
    }
    for (good, bits) in [("0600", 0o600), ("755", 0o755), ("000", 0)] {
        let path = format!("f{good}");
        bench
            .call(
                "file_accept",
                json!({"path": path, "data": "aGk=", "mode": good}),
            )
            .unwrap();
        assert_eq!(mode(&bench.portal().join(path)), bits);
    }
}

#[test]
fn lax_base64_is_refused_before_anything_is_touched() {
    let bench = Bench::new();
    for bad in ["!!!!", "aGk", "aGk=\n", "aGl=", " aGk="] {
        let refused = bench
            .call("file_accept", json!({"path": "new/f", "data": bad}))
            .unwrap_err();
        assert!(refused.starts_with("`data` is not base64"), "{refused}");
        assert!(!bench.portal().join("new").exists(), "{bad}");
    }
}

#[test]
fn nothing_is_overwritten() {
    let bench = Bench::new();
    bench.accept("f", b"first").unwrap();
    assert_eq!(
        bench.accept("f", b"second").unwrap_err(),
        "`f` already exists, and nothing is overwritten; choose another name"
    );
    fs::create_dir(bench.portal().join("folder")).unwrap();
    symlink("nowhere", bench.portal().join("link")).unwrap();
    for taken in ["folder", "link"] {
        assert!(
            bench
                .accept(taken, b"x")
                .unwrap_err()
                .contains("already exists")
        );
    }
    assert_eq!(bench.provide("f").unwrap(), b"first");
    assert!(!bench.portal().join("nowhere").exists());
}

#[test]
fn links_lead_nowhere() {
    let bench = Bench::new();
    let outside = bench.outside();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, bench.portal().join("out")).unwrap();
    symlink(outside.join("secret"), bench.portal().join("file")).unwrap();
    symlink("inside", bench.portal().join("in")).unwrap();
    fs::create_dir(bench.portal().join("inside")).unwrap();
    fs::write(bench.portal().join("inside/f"), "f").unwrap();
    assert_eq!(
        bench.provide("out/secret").unwrap_err(),
        "`out/secret` leads through a symbolic link, which is not followed"
    );
    for path in ["file", "in/f", "out/missing"] {
        assert!(
            bench.provide(path).unwrap_err().contains("symbolic link"),
            "{path}"
        );
    }
    for path in ["out/new", "out/a/b", "in/new"] {
        assert!(
            bench
                .accept(path, b"x")
                .unwrap_err()
                .contains("symbolic link"),
            "{path}"
        );
    }
    assert_eq!(fs::read_dir(outside).unwrap().count(), 1);
}

#[test]
fn paths_that_lead_out_are_refused_as_text() {
    let bench = Bench::new();
    for path in [
        "../x",
        "/etc/passwd",
        "a/../../x",
        "",
        ".",
        "a\0b",
        "a\u{202e}b",
    ] {
        assert!(
            bench.provide(path).unwrap_err().starts_with("the path "),
            "{path:?}"
        );
        assert!(
            bench
                .accept(path, b"x")
                .unwrap_err()
                .starts_with("the path "),
            "{path:?}"
        );
    }
}

#[test]
fn only_regular_files_with_one_name_are_given() {
    let bench = Bench::new();
    let portal = bench.portal();
    fs::create_dir(portal.join("folder")).unwrap();
    mkfifoat(CWD, portal.join("pipe"), Mode::RWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(portal.join("socket")).unwrap();
    fs::write(bench.outside().join("private"), "private").unwrap();
    fs::hard_link(bench.outside().join("private"), portal.join("hard")).unwrap();
    for (path, what) in [
        (
            "folder",
            "`folder` is a folder, which `entries` lists; only regular files can be read",
        ),
        // An earlier anklume hung here.
        (
            "pipe",
            "`pipe` is a named pipe; only regular files can be read",
        ),
        (
            "socket",
            "`socket` is a socket; only regular files can be read",
        ),
        (
            "hard",
            "`hard` has a second name (a hard link), which may lie outside the portal; only regular files can be read",
        ),
        ("missing", "no file `missing` in the portal"),
        ("folder/missing", "no file `folder/missing` in the portal"),
    ] {
        assert_eq!(bench.provide(path).unwrap_err(), what);
    }
    fs::write(portal.join("f"), "").unwrap();
    assert_eq!(
        bench.provide("f/x").unwrap_err(),
        "`f/x` leads through something that is not a folder"
    );
    assert_eq!(
        bench.accept("f/x", b"").unwrap_err(),
        "`f/x` leads through something that is not a folder"
    );
}

#[test]
fn a_device_is_not_even_opened() {
    let bench = Bench::new();
    if !is_root() {
        return;
    }
    let path = bench.portal().join("null");
    let device = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(
        CWD,
        &path,
        rustix::fs::FileType::CharacterDevice,
        Mode::RWXU,
        device,
    )
    .unwrap();
    assert!(
        fs::symlink_metadata(&path)
            .unwrap()
            .file_type()
            .is_char_device()
    );
    assert_eq!(
        bench.provide("null").unwrap_err(),
        "`null` is a device; only regular files can be read"
    );
}

#[test]
fn another_digest_than_announced_writes_nothing() {
    let bench = Bench::new();
    let announced = sha256(b"other");
    let arguments = json!({"path": "f", "data": "aGk=", "sha256": announced});
    assert_eq!(
        bench.call("file_accept", arguments).unwrap_err(),
        format!(
            "the SHA-256 of the content is {}, not {announced}; nothing was written",
            sha256(b"hi")
        )
    );
    assert_eq!(bench.entries(), 0);
}

#[test]
fn the_portal_is_made_for_the_first_file_and_where_it_is_safe() {
    let bench = Bench::without_portal();
    assert_eq!(
        bench.provide("f").unwrap_err(),
        "the provider has no portal folder yet; it is created by `file_accept` or by its owner"
    );
    bench.accept("f", b"x").unwrap();
    assert_eq!(mode(bench.portal()), 0o755);
    let bench = Bench::without_portal();
    let parent = bench.portal().parent().unwrap();
    fs::create_dir_all(parent).unwrap();
    fs::set_permissions(parent, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(
        bench
            .accept("f", b"x")
            .unwrap_err()
            .starts_with("cannot create the portal folder: ")
    );
    assert!(!bench.portal().exists());
}

#[test]
fn no_error_names_a_path_of_the_server() {
    let bench = Bench::new();
    symlink("/etc", bench.portal().join("etc")).unwrap();
    fs::write(bench.portal().join("file"), "").unwrap();
    let mut said = String::new();
    for path in [
        "etc/passwd",
        "file/x",
        "missing",
        "/etc/passwd",
        &"x".repeat(300),
    ] {
        said.push_str(&bench.provide(path).unwrap_err());
        said.push_str(&bench.accept(path, b"x").err().unwrap_or_default());
    }
    assert!(!said.contains(bench.portal().to_str().unwrap()), "{said}");
    let bench = Bench::without_portal();
    said.clear();
    fs::create_dir_all(bench.portal().parent().unwrap()).unwrap();
    fs::write(bench.portal(), "a file").unwrap();
    said.push_str(&bench.provide("f").unwrap_err());
    said.push_str(&bench.accept("f", b"x").unwrap_err());
    assert!(!said.contains(bench.portal().to_str().unwrap()), "{said}");
}

#[test]
fn calls_at_once_on_one_connection_do_not_disturb_each_other() {
    let bench = Bench::new();
    fs::write(bench.portal().join("out"), "out").unwrap();
    let calls = (0..32).map(|index| {
        let path = format!("d{}/f{index}", index % 4);
        (
            "file_accept",
            json!({"path": path, "data": STANDARD.encode(path.as_bytes())}),
        )
    });
    let reads = (0..32).map(|_| ("file_provide", json!({"path": "out"})));
    let outcomes = bench.call_all(calls.chain(reads).collect());
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    for index in 0..32 {
        let path = format!("d{}/f{index}", index % 4);
        assert_eq!(bench.provide(&path).unwrap(), path.as_bytes());
    }
    // Of many calls with the same name, one succeeds, and its file is complete.
    let same = |index: u8| {
        (
            "file_accept",
            json!({"path": "one", "data": STANDARD.encode(vec![index; 10_000])}),
        )
    };
    let outcomes = bench.call_all((0..16).map(same).collect());
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    let one = bench.provide("one").unwrap();
    assert!(one.len() == 10_000 && one.iter().all(|byte| *byte == one[0]));
}

#[test]
fn a_call_that_is_given_up_leaves_nothing() {
    let bench = Bench::new();
    let size = usize::try_from(ONE_CALL_MAX).unwrap();
    let arguments = json!({"path": "f", "data": STANDARD.encode(vec![0; size])});
    bench.give_up("file_accept", arguments);
    assert_eq!(bench.entries(), 0);
}
