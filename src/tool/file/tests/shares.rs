//! Tests which files a consumer may put into the portal and take out of it.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::tool::testing::Bench;

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
    // Incoming files are not handed out again; to the consumer, other files do not exist.
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
    // The first existing entry counts, even if it may not be handed out.
    symlink("../all/all", bench.portal().join("outgoing/work-dev/all")).unwrap();
    assert!(bench.provide("all").unwrap_err().contains("symbolic link"));
}

#[test]
fn a_consumer_cannot_fill_the_disk() {
    let bench = Bench::new().called_by("work-dev").with_share(100 * 1024);
    bench.accept("a", &vec![0; 60 * 1024]).unwrap();
    assert_eq!(
        bench.accept("b", &vec![0; 50 * 1024]).unwrap_err(),
        "`incoming/work-dev` holds 61440 bytes, and 53248 bytes more would exceed its limit of 102400 bytes; \
         remove files from it on the provider"
    );
    assert!(!bench.portal().join("incoming/work-dev/b").exists());
    // A file's pieces count until the transfer is abandoned.
    bench.piece("p", 0, &vec![0; 24 * 1024], json!({})).unwrap();
    assert!(
        bench
            .accept("c", &vec![0; 20 * 1024])
            .unwrap_err()
            .contains("would exceed its limit")
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
    // Files that the user removes make room for others.
    fs::remove_file(bench.portal().join("incoming/work-dev/a")).unwrap();
    bench.accept("f", &vec![0; 50 * 1024]).unwrap();
    // The shares of others are unaffected, and the operator has no limit.
    let bench = bench.called_by("pro-dev");
    bench.accept("f", &vec![0; 90 * 1024]).unwrap();
    let bench = bench.called_by_operator();
    bench.accept("f", &vec![0; 200 * 1024]).unwrap();
}
