//! Tests uploads and reads that go on over another connection, and the listing of folders.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::structured;
use crate::digest::sha256;
use crate::tool::testing::Bench;

/// The names in a folder of the portal, in order.
fn names(bench: &Bench, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(bench.portal().join(folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Begins or resumes `d/f`; returns the size and the digest of what was received.
fn begin(bench: &Bench, size: u64) -> Result<(Value, Value), String> {
    let more = json!({"resume": true, "size": size, "modified": "2026-07-01T12:00:00Z"});
    let begun = bench.piece("d/f", 0, b"", more)?.structured;
    Ok((begun["size"].clone(), begun["sha256"].clone()))
}

#[test]
fn what_was_received_outlives_its_connection_under_a_hidden_name() {
    let bench = Bench::new().called_by("alice");
    let nothing = (json!(0), json!(sha256(b"")));
    assert_eq!(begin(&bench, 6).unwrap(), nothing);
    bench.piece("d/f", 0, b"abc", json!({})).unwrap();
    // Two connections at once do not write the same file.
    let second = bench.beside();
    assert_eq!(
        begin(&second, 6).unwrap_err(),
        "another connection is sending `incoming/alice/d/f`"
    );
    drop(second);
    let bench = bench.reconnect();
    let [hidden] = &names(&bench, "incoming/alice")[..] else {
        panic!("{:?}", names(&bench, "incoming/alice"));
    };
    assert!(crate::tool::file::partial::is_reserved(hidden), "{hidden}");
    // Another size is another file.
    assert_eq!(begin(&bench, 7).unwrap(), nothing);
    let bench = bench.reconnect();
    assert_eq!(begin(&bench, 6).unwrap(), (json!(3), json!(sha256(b"abc"))));
    let whole = json!({"final": true, "sha256": sha256(b"abcdef")});
    bench.piece("d/f", 3, b"def", whole).unwrap();
    let path = bench.portal().join("incoming/alice/d/f");
    assert_eq!(fs::read(&path).unwrap(), b"abcdef");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_782_907_200);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), time);
}

#[test]
fn what_was_received_is_discarded_by_a_last_piece_that_does_not_fit() {
    let bench = Bench::new().called_by("alice");
    for (received, last) in [
        (&b"ab"[..], json!({"final": true})),
        (b"abc", json!({"final": true, "sha256": sha256(b"other")})),
    ] {
        begin(&bench, 3).unwrap();
        bench.piece("d/f", 0, received, json!({})).unwrap();
        bench
            .piece("d/f", received.len() as u64, b"", last)
            .unwrap_err();
        assert!(names(&bench, "incoming/alice").is_empty());
    }
}

#[test]
fn only_an_empty_first_piece_with_a_size_resumes_and_nobody_names_a_hidden_file() {
    let bench = Bench::new();
    let fault = "`resume` belongs to the first piece, which is empty and has `size`";
    for (offset, bytes, more) in [
        (0, &b""[..], json!({"resume": true})),
        (0, b"x", json!({"resume": true, "size": 2})),
        (1, b"", json!({"resume": true, "size": 2})),
    ] {
        assert_eq!(bench.piece("f", offset, bytes, more).unwrap_err(), fault);
    }
    let hidden = ".anklume-0.part";
    assert_eq!(
        bench.accept(hidden, b"").unwrap_err(),
        "the path is `.anklume-0.part`, a name that anklume uses for incomplete files"
    );
    let inside = ".anklume-0.part/f";
    assert_eq!(
        bench.accept(inside, b"").unwrap_err(),
        "the path is `.anklume-0.part/f`, a name that anklume uses for incomplete files"
    );
    assert_eq!(bench.entries(), 0);
    // Nor fetches one, even as the operator.
    for path in [hidden, inside] {
        fs::create_dir_all(bench.portal().join(path).parent().unwrap()).unwrap();
        fs::write(bench.portal().join(path), "half").unwrap();
        let none = format!("no file `{path}` in the portal");
        assert_eq!(bench.provide(path).unwrap_err(), none);
        fs::remove_file(bench.portal().join(path)).unwrap();
    }
}

#[test]
fn what_nobody_finishes_is_removed_after_a_day_and_a_link_in_its_place_is_not_followed() {
    let bench = Bench::new().called_by("alice");
    let folder = bench.portal().join("incoming/alice");
    begin(&bench, 3).unwrap();
    let bench = bench.reconnect();
    let [old] = &names(&bench, "incoming/alice")[..] else {
        panic!("{:?}", names(&bench, "incoming/alice"));
    };
    let outside = bench.outside().join("f");
    fs::write(&outside, "abcdef").unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(24 * 60 * 60 + 60);
    for path in [&folder.join(old), &outside] {
        let file = fs::File::options().append(true).open(path).unwrap();
        file.set_modified(long_ago).unwrap();
    }
    symlink(&outside, folder.join(".anklume-1.part")).unwrap();
    // Another upload removes it.
    begin(&bench, 4).unwrap();
    assert!(!folder.join(old).exists());
    assert_eq!(fs::read(&outside).unwrap(), b"abcdef");
    // Its name as a link: nothing is read or written through it.
    symlink(&outside, folder.join(old)).unwrap();
    let bench = bench.reconnect();
    assert!(begin(&bench, 3).is_err());
    assert_eq!(fs::read(&outside).unwrap(), b"abcdef");
}

#[test]
fn what_nobody_finishes_makes_room_for_other_files_wherever_it_is() {
    let bench = Bench::new().called_by("alice").with_share(40 * 1024);
    bench.accept("d/small", b"x").unwrap();
    begin(&bench, 30 * 1024).unwrap();
    bench
        .piece("d/f", 0, &vec![0; 28 * 1024], json!({}))
        .unwrap();
    let bench = bench.reconnect();
    let large = vec![0; 24 * 1024];
    bench.accept("other", &large).unwrap_err();
    let folder = bench.portal().join("incoming/alice/d");
    let hidden = names(&bench, "incoming/alice/d");
    let hidden = hidden.iter().find(|name| name.starts_with('.')).unwrap();
    let file = fs::File::options()
        .append(true)
        .open(folder.join(hidden))
        .unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(24 * 60 * 60 + 60);
    file.set_modified(long_ago).unwrap();
    bench.accept("other", &large).unwrap();
    assert_eq!(names(&bench, "incoming/alice/d"), ["small"]);
}

#[test]
fn a_resumed_file_counts_once_against_the_quota() {
    let bench = Bench::new().called_by("alice").with_share(40 * 1024);
    begin(&bench, 30 * 1024).unwrap();
    bench
        .piece("d/f", 0, &vec![0; 20 * 1024], json!({}))
        .unwrap();
    // The rest of it is reserved.
    bench.beside().accept("other", &[0; 12 * 1024]).unwrap_err();
    let bench = bench.reconnect();
    assert_eq!(begin(&bench, 30 * 1024).unwrap().0, json!(20 * 1024));
    bench.beside().accept("other", &[0; 12 * 1024]).unwrap_err();
    let last = json!({"final": true});
    bench
        .piece("d/f", 20 * 1024, &vec![0; 10 * 1024], last)
        .unwrap();
    bench.accept("small", b"x").unwrap();
    bench.accept("other", &[0; 12 * 1024]).unwrap_err();
}

#[test]
fn what_dropped_connections_leave_counts_against_the_quota() {
    let mut bench = Bench::new().called_by("alice").with_share(200 * 1024);
    let mut stored = 0;
    for index in 0..20 {
        let path = format!("f{index}");
        let more = json!({"resume": true, "size": 40 * 1024});
        if bench.piece(&path, 0, b"", more).is_ok()
            && bench
                .piece(&path, 0, &vec![0; 32 * 1024], json!({}))
                .is_ok()
        {
            stored += 1;
        }
        bench = bench.reconnect();
    }
    assert!((1..=6).contains(&stored), "{stored}");
}

#[test]
fn a_read_that_goes_on_has_the_digest_of_the_whole() {
    let bench = Bench::new();
    fs::write(bench.portal().join("f"), "0123456789").unwrap();
    let read = |bench: &Bench, offset: u64, resume| {
        let arguments = json!({"path": "f", "offset": offset, "length": 5, "resume": resume});
        bench.call("file_provide", arguments)
    };
    read(&bench, 0, false).unwrap();
    let bench = bench.reconnect();
    let last = read(&bench, 5, true).unwrap();
    assert_eq!(STANDARD.decode(last.text).unwrap(), b"56789");
    assert_eq!(last.structured["sha256"], json!(sha256(b"0123456789")));
    let bench = bench.reconnect();
    let last = read(&bench, 5, false).unwrap();
    assert_eq!(last.structured.get("sha256"), None);
    for (offset, fault) in [
        (11, "`offset` is 11, and `f` has 10 bytes"),
        (
            4_294_967_297,
            "with `resume`, `offset` is at most 4294967296",
        ),
    ] {
        assert_eq!(read(&bench, offset, true).unwrap_err(), fault);
    }
}

#[test]
fn folders_are_made_alone_and_counted() {
    let bench = Bench::new().called_by("alice").with_share(20 * 1024);
    let make = |path: &str, more: Value| {
        let mut arguments = structured(json!({"path": path, "data": "", "folder": true}));
        arguments.extend(structured(more));
        bench.call("file_accept", Value::Object(arguments))
    };
    let answer = make("a/b", json!({})).unwrap();
    assert_eq!(answer.text, "incoming/alice/a/b");
    assert_eq!(
        answer.structured,
        structured(json!({"path": "incoming/alice/a/b", "size": 0, "complete": true}))
    );
    assert!(bench.portal().join("incoming/alice/a/b").is_dir());
    // It may be there already; a file of this name may not.
    make("a/b", json!({})).unwrap();
    bench.accept("f", b"").unwrap();
    make("f", json!({})).unwrap_err();
    let alone = "a `folder` has only a `path`, and its `data` is empty";
    for more in [
        json!({"data": "aGk="}),
        json!({"mode": "0755"}),
        json!({"size": 0}),
    ] {
        assert_eq!(make("c", more).unwrap_err(), alone);
    }
    let mut count = 0;
    while make(&format!("c{count}"), json!({})).is_ok() {
        count += 1;
        assert!(count < 10);
    }
    assert!(count > 0);
}

#[test]
fn a_long_folder_is_listed_in_parts_and_one_that_is_too_long_is_refused() {
    let bench = Bench::new();
    let list = |path: &str, offset: u64| {
        let arguments = json!({"path": path, "entries": true, "offset": offset});
        bench.call("file_provide", arguments)
    };
    fs::create_dir(bench.portal().join("d")).unwrap();
    let fill = |numbers: std::ops::Range<u32>| {
        for index in numbers {
            fs::write(bench.portal().join(format!("d/{index:05}")), "").unwrap();
        }
    };
    fill(0..1001);
    let first = list("d", 0).unwrap();
    assert_eq!(first.text.lines().count(), 1000);
    let keys = ["size", "offset", "length", "complete", "left_out"];
    let counts = keys.map(|key| first.structured[key].clone());
    let expected = [json!(1001), json!(0), json!(1000), json!(false), json!(0)];
    assert_eq!(counts, expected);
    let rest = list("d", 1000).unwrap();
    assert_eq!(rest.text, "01000\n");
    assert_eq!(rest.structured["complete"], json!(true));
    assert_eq!(
        list("d", 1002).unwrap_err(),
        "`offset` is 1002, and `d` has 1001 entries"
    );
    fill(1001..10_001);
    assert_eq!(
        list("d", 0).unwrap_err(),
        "`d` has more than 10000 entries; name the files"
    );
    assert_eq!(list(".", 0).unwrap().text, "d/\n");
    symlink(bench.outside(), bench.portal().join("link")).unwrap();
    assert_eq!(
        list("link", 0).unwrap_err(),
        "`link` leads through a symbolic link, which is not followed"
    );
    assert_eq!(list("d/00000", 0).unwrap_err(), "`d/00000` is not a folder");
}
