//! The portal from the outside: every fault that the forerunner's server had with files, and pieces, shares, races.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::{Map, Value, json};

use crate::catalogue::{ONE_CALL_MAX, PIECE};
use crate::digest::sha256;
use crate::tool::Outcome;
use crate::tool::testing::{Bench, is_root, sentence};

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

    fn piece(&self, path: &str, offset: u64, bytes: &[u8], more: Value) -> Result<Outcome, String> {
        let base = json!({"path": path, "data": STANDARD.encode(bytes), "offset": offset});
        let mut arguments = structured(base);
        arguments.extend(structured(more));
        self.call("file_accept", Value::Object(arguments))
    }

    fn read_piece(&self, path: &str, offset: u64, length: u64) -> Result<Outcome, String> {
        self.call(
            "file_provide",
            json!({"path": path, "offset": offset, "length": length}),
        )
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
    assert_eq!(
        outcome.structured,
        structured(json!({
            "path": "a/b/c.txt", "size": 2, "offset": 0, "length": 2, "complete": true, "sha256": sha256(b"hi")
        }))
    );
    // An empty file is a file.
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
        // Refused before it was written, not after.
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
        "`f` exists already, and nothing is overwritten; choose another name"
    );
    fs::create_dir(bench.portal().join("folder")).unwrap();
    symlink("nowhere", bench.portal().join("link")).unwrap();
    for taken in ["folder", "link"] {
        assert!(
            bench
                .accept(taken, b"x")
                .unwrap_err()
                .contains("exists already")
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
        "`out/secret` leads through a symbolic link, and none is followed"
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
            sentence(&bench.provide(path).unwrap_err()).contains("`path`"),
            "{path:?}"
        );
        assert!(
            sentence(&bench.accept(path, b"x").unwrap_err()).contains("`path`"),
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
            "`folder` is a folder; only regular files are given",
        ),
        // The forerunner waited here for ever.
        (
            "pipe",
            "`pipe` is a named pipe; only regular files are given",
        ),
        (
            "socket",
            "`socket` is a socket; only regular files are given",
        ),
        (
            "hard",
            "`hard` has a second name (a hard link), which may lie outside the portal; only regular files are given",
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
        "`null` is a device; only regular files are given"
    );
}

#[test]
fn what_is_too_large_for_one_call_goes_in_pieces() {
    let bench = Bench::new();
    let size = usize::try_from(ONE_CALL_MAX).unwrap();
    let most = vec![7; size];
    bench.accept("most", &most).unwrap();
    assert_eq!(bench.provide("most").unwrap(), most);
    let refused = bench.accept("more", &vec![7; size + 1]).unwrap_err();
    assert_eq!(
        refused,
        "`data` holds 8388609 bytes, and one call takes at most 8388608; send it in pieces with `offset` and `final`"
    );
    fs::write(bench.portal().join("more"), vec![7; size + 1]).unwrap();
    assert_eq!(
        bench.provide("more").unwrap_err(),
        "`more` has 8388609 bytes, and one call gives at most 8388608; \
         read it in pieces with `offset` and `length`, 1048576 bytes each"
    );
}

#[test]
fn pieces_in_make_one_file_that_nobody_sees_before() {
    let bench = Bench::new();
    let whole: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let first = bench
        .piece("new/f", 0, &whole[..100_000], json!({"mode": "0640"}))
        .unwrap();
    assert_eq!(
        first.text,
        "100000 bytes taken; the next piece begins there"
    );
    assert_eq!(
        first.structured,
        structured(json!({"path": "new/f", "size": 100_000, "complete": false}))
    );
    assert_eq!(
        bench.entries(),
        0,
        "neither the file nor its folder is there yet"
    );
    assert_eq!(
        bench.piece("new/f", 99_999, b"x", json!({})).unwrap_err(),
        "the next piece of `new/f` begins at offset 100000, not 99999"
    );
    // A bad piece loses nothing.
    let bad = json!({"path": "new/f", "data": "!!!", "offset": 100_000});
    assert!(
        bench
            .call("file_accept", bad)
            .unwrap_err()
            .contains("not base64")
    );
    assert_eq!(
        bench
            .piece("new/f", 100_000, b"x", json!({"mode": "0600"}))
            .unwrap_err(),
        "`mode` differs from that of an earlier piece"
    );
    let empty = "`data` is empty, and only the last piece (`final`) may be";
    for (path, offset) in [("new/f", 100_000), ("new/g", 0)] {
        let refused = bench.piece(path, offset, b"", json!({})).unwrap_err();
        assert_eq!(refused, empty);
    }
    bench
        .piece("new/f", 100_000, &whole[100_000..200_000], json!({}))
        .unwrap();
    let last = json!({"final": true, "sha256": sha256(&whole).to_uppercase()});
    let last = bench
        .piece("new/f", 200_000, &whole[200_000..], last)
        .unwrap();
    assert_eq!(last.text, "new/f");
    assert_eq!(last.structured["sha256"], json!(sha256(&whole)));
    assert_eq!(fs::read(bench.portal().join("new/f")).unwrap(), whole);
    assert_eq!(mode(&bench.portal().join("new/f")), 0o640);
}

#[test]
fn pieces_die_with_their_connection() {
    let bench = Bench::new();
    bench.piece("f", 0, b"abc", json!({})).unwrap();
    let bench = bench.reconnect();
    assert_eq!(
        bench.piece("f", 3, b"d", json!({})).unwrap_err(),
        "no transfer of `f` is under way on this connection; begin at offset 0"
    );
    assert_eq!(bench.entries(), 0);
}

#[test]
fn another_digest_than_announced_writes_nothing() {
    let bench = Bench::new();
    let announced = sha256(b"other");
    let arguments = json!({"path": "f", "data": "aGk=", "sha256": announced});
    assert_eq!(
        bench.call("file_accept", arguments).unwrap_err(),
        format!(
            "the SHA-256 of what arrived is {}, not {announced}; nothing was written",
            sha256(b"hi")
        )
    );
    assert_eq!(bench.entries(), 0);
}

#[test]
fn a_name_taken_between_the_pieces_is_not_overwritten() {
    let bench = Bench::new();
    bench.piece("f", 0, b"abc", json!({})).unwrap();
    fs::write(bench.portal().join("f"), "theirs").unwrap();
    let refused = bench
        .piece("f", 3, b"", json!({"final": true}))
        .unwrap_err();
    assert!(refused.contains("exists already"), "{refused}");
    assert_eq!(bench.provide("f").unwrap(), b"theirs");
    assert_eq!(bench.entries(), 1);
}

#[test]
fn a_folder_that_became_a_link_between_the_pieces_leads_nowhere() {
    let bench = Bench::new();
    fs::create_dir(bench.portal().join("d")).unwrap();
    bench.piece("d/f", 0, b"abc", json!({})).unwrap();
    fs::remove_dir(bench.portal().join("d")).unwrap();
    symlink(bench.outside(), bench.portal().join("d")).unwrap();
    let refused = bench
        .piece("d/f", 3, b"", json!({"final": true}))
        .unwrap_err();
    assert!(refused.contains("symbolic link"), "{refused}");
    assert_eq!(fs::read_dir(bench.outside()).unwrap().count(), 0);
}

#[test]
fn transfers_at_once_are_few() {
    let bench = Bench::new();
    for index in 0..super::TRANSFERS_MAX {
        bench
            .piece(&format!("f{index}"), 0, b"x", json!({}))
            .unwrap();
    }
    assert_eq!(
        bench.piece("one-more", 0, b"x", json!({})).unwrap_err(),
        "8 transfers are under way on this connection; finish one first"
    );
    bench.piece("f0", 1, b"", json!({"final": true})).unwrap();
    bench.piece("one-more", 0, b"x", json!({})).unwrap();
}

#[test]
fn pieces_out_carry_the_digest_of_the_whole_with_the_last() {
    let bench = Bench::new();
    let whole: Vec<u8> = (0..=255).cycle().take(250_000).collect();
    fs::write(bench.portal().join("f"), &whole).unwrap();
    let mut read = Vec::new();
    for offset in [0, 100_000, 200_000] {
        let piece = bench.read_piece("f", offset, 100_000).unwrap();
        read.extend(STANDARD.decode(&piece.text).unwrap());
        let last = offset == 200_000;
        assert_eq!(piece.structured["complete"], json!(last));
        assert_eq!(piece.structured["size"], json!(250_000));
        assert_eq!(piece.structured.get("sha256").is_some(), last);
        if last {
            assert_eq!(piece.structured["sha256"], json!(sha256(&whole)));
            assert_eq!(piece.structured["length"], json!(50_000));
        }
    }
    assert_eq!(read, whole);
    // From the middle: the bytes, and no digest that nobody computed.
    let middle = bench.read_piece("f", 249_999, 10).unwrap();
    assert_eq!(STANDARD.decode(middle.text).unwrap(), whole[249_999..]);
    assert_eq!(middle.structured.get("sha256"), None);
    assert_eq!(bench.read_piece("f", 250_000, 10).unwrap().text, "");
    assert_eq!(
        bench.read_piece("f", 250_001, 10).unwrap_err(),
        "`offset` is 250001, and `f` has 250000 bytes"
    );
    // Without `length`, a piece is a piece.
    fs::write(
        bench.portal().join("large"),
        vec![0; usize::try_from(PIECE).unwrap() + 1],
    )
    .unwrap();
    let piece = bench
        .call("file_provide", json!({"path": "large", "offset": 0}))
        .unwrap();
    assert_eq!(piece.structured["length"], json!(PIECE));
}

#[test]
fn a_file_that_changes_between_the_pieces_is_an_error() {
    let bench = Bench::new();
    let path = bench.portal().join("f");
    fs::write(&path, "0123456789").unwrap();
    bench.read_piece("f", 0, 4).unwrap();
    // Another file of the same size under the same name.
    fs::write(bench.portal().join("g"), "9876543210").unwrap();
    fs::rename(bench.portal().join("g"), &path).unwrap();
    assert_eq!(
        bench.read_piece("f", 4, 4).unwrap_err(),
        "`f` changed while it was read; begin again"
    );
    bench.read_piece("f", 0, 4).unwrap();
    bench.read_piece("f", 4, 4).unwrap();
    fs::write(&path, "short").unwrap();
    assert!(bench.read_piece("f", 8, 2).is_err());
}

#[test]
fn a_consumer_hands_in_to_its_own_folder_and_fetches_from_its_own_and_the_common_one() {
    let bench = Bench::new().called_by("work-dev");
    let outcome = bench
        .call("file_accept", json!({"path": "r/f.txt", "data": "aGk="}))
        .unwrap();
    assert_eq!(outcome.text, "incoming/work-dev/r/f.txt");
    assert_eq!(
        fs::read(bench.portal().join("incoming/work-dev/r/f.txt")).unwrap(),
        b"hi"
    );
    // What came in is not handed out again, and what lies elsewhere is not there for it.
    fs::write(bench.portal().join("top"), "top").unwrap();
    for (folder, text) in [
        ("all", "for all"),
        ("work-dev", "for it"),
        ("other", "for another"),
    ] {
        fs::create_dir_all(bench.portal().join("outgoing").join(folder)).unwrap();
        fs::write(bench.portal().join("outgoing").join(folder).join("f"), text).unwrap();
        fs::write(
            bench.portal().join("outgoing").join(folder).join(folder),
            text,
        )
        .unwrap();
    }
    assert_eq!(bench.provide("f").unwrap(), b"for it");
    assert_eq!(bench.provide("all").unwrap(), b"for all");
    let outcome = bench.call("file_provide", json!({"path": "all"})).unwrap();
    assert_eq!(outcome.structured["path"], json!("outgoing/all/all"));
    for hidden in [
        "top",
        "other",
        "r/f.txt",
        "incoming/work-dev/r/f.txt",
        "outgoing/other/f",
    ] {
        assert_eq!(
            bench.provide(hidden).unwrap_err(),
            format!("no file `{hidden}` in the portal")
        );
    }
    // The first that is there counts, even when it is not for giving.
    symlink("../all/all", bench.portal().join("outgoing/work-dev/all")).unwrap();
    assert!(bench.provide("all").unwrap_err().contains("symbolic link"));
}

#[test]
fn a_consumer_cannot_fill_the_disk() {
    let bench = Bench::new().called_by("work-dev").with_share(100 * 1024);
    bench.accept("a", &vec![0; 60 * 1024]).unwrap();
    assert_eq!(
        bench.accept("b", &vec![0; 50 * 1024]).unwrap_err(),
        "`incoming/work-dev` holds 61440 bytes, and 53248 more would pass its limit of 102400; \
         take files out of it on the provider"
    );
    assert!(!bench.portal().join("incoming/work-dev/b").exists());
    // Pieces on their way count, and given up they count no more.
    bench.piece("p", 0, &vec![0; 24 * 1024], json!({})).unwrap();
    assert!(
        bench
            .accept("c", &vec![0; 20 * 1024])
            .unwrap_err()
            .contains("would pass its limit")
    );
    let bench = bench.reconnect();
    bench.accept("c", &vec![0; 20 * 1024]).unwrap();
    // Empty files count too, and so do their folders.
    let mut made = 0;
    while bench.accept(&format!("d{made}/e"), b"").is_ok() {
        made += 1;
        assert!(made < 10);
    }
    assert!(made > 0);
    // What the user takes out makes room.
    fs::remove_file(bench.portal().join("incoming/work-dev/a")).unwrap();
    bench.accept("f", &vec![0; 50 * 1024]).unwrap();
    // Nobody else's share is touched, and the operator has none.
    let bench = bench.called_by("pro-dev");
    bench.accept("f", &vec![0; 90 * 1024]).unwrap();
    let bench = bench.called_by_operator();
    bench.accept("f", &vec![0; 200 * 1024]).unwrap();
}

#[test]
fn the_portal_is_made_for_the_first_file_and_where_it_is_safe() {
    let bench = Bench::without_portal();
    assert_eq!(
        bench.provide("f").unwrap_err(),
        "the provider has no portal folder yet; `file_accept` makes it, or its owner does"
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
            .starts_with("cannot make the portal folder: ")
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
    // One name, many at once: one gets it, and it is whole.
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
