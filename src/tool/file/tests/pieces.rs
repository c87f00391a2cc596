//! Tests piecewise transfers of files: complete or absent, private to a connection, limited in number.

use std::fs;
use std::os::unix::fs::symlink;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{mode, structured};
use crate::catalogue::{ONE_CALL_MAX, PIECE, TWO_COPIES_MAX};
use crate::digest::sha256;
use crate::tool::ToolOutcome;
use crate::tool::file::TRANSFERS_MAX;
use crate::tool::testing::Bench;

impl Bench {
    pub(super) fn piece(
        &self,
        path: &str,
        offset: u64,
        bytes: &[u8],
        more: Value,
    ) -> Result<ToolOutcome, String> {
        let base = json!({"path": path, "data": STANDARD.encode(bytes), "offset": offset});
        let mut arguments = structured(base);
        arguments.extend(structured(more));
        self.call("file_accept", Value::Object(arguments))
    }

    fn read_piece(&self, path: &str, offset: u64, length: u64) -> Result<ToolOutcome, String> {
        self.call(
            "file_provide",
            json!({"path": path, "offset": offset, "length": length}),
        )
    }
}

#[test]
fn what_is_too_large_for_one_call_goes_in_pieces() {
    let bench = Bench::new();
    let size = usize::try_from(ONE_CALL_MAX).unwrap();
    let most = vec![7; size];
    bench.accept("most", &most).unwrap();
    assert_eq!(
        bench.provide("most").unwrap_err(),
        "`most` has 8388608 bytes, but one call returns at most 3145728; \
         read it in pieces with `offset` and `length`, 1048576 bytes each"
    );
    let piece = bench.read_piece("most", 0, ONE_CALL_MAX).unwrap();
    assert_eq!(
        (&piece.structured["length"], &piece.structured["complete"]),
        (&json!(TWO_COPIES_MAX), &json!(false))
    );
    assert_eq!(piece.structured["data"], piece.text);
    fs::write(bench.portal().join("less"), &most[..size - 5 * 1024 * 1024]).unwrap();
    assert_eq!(bench.provide("less").unwrap().len() as u64, TWO_COPIES_MAX);
    let refused = bench.accept("more", &vec![7; size + 1]).unwrap_err();
    assert_eq!(
        refused,
        "`data` contains 8388609 bytes, but one call takes at most 8388608; send it in pieces with `offset` and `final`"
    );
    let bench = bench.with_one_copy();
    assert_eq!(bench.provide("most").unwrap(), most);
    let piece = bench.read_piece("most", 0, ONE_CALL_MAX).unwrap();
    assert_eq!(
        (&piece.structured["complete"], piece.structured.get("data")),
        (&json!(true), None)
    );
    fs::write(bench.portal().join("more"), vec![7; size + 1]).unwrap();
    assert_eq!(
        bench.provide("more").unwrap_err(),
        "`more` has 8388609 bytes, but one call returns at most 8388608; \
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
        "100000 bytes received; the next piece begins at that offset"
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
    // A bad piece does not end the transfer.
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
    let empty = "`data` is empty, but only the last piece (`final`) may be";
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
fn an_announced_size_is_the_size_of_the_file_or_there_is_none() {
    let bench = Bench::new();
    // An empty first piece only announces it, and the content follows from the beginning.
    bench.piece("f", 0, b"", json!({"size": 6})).unwrap();
    bench.piece("f", 0, b"abc", json!({})).unwrap();
    let differs = bench.piece("f", 3, b"d", json!({"size": 7})).unwrap_err();
    assert_eq!(differs, "`size` differs from that of an earlier piece");
    bench.piece("f", 3, b"def", json!({"final": true})).unwrap();
    assert_eq!(fs::read(bench.portal().join("f")).unwrap(), b"abcdef");
    // Too little, and too much.
    bench.piece("g", 0, b"abc", json!({"size": 6})).unwrap();
    let short = bench
        .piece("g", 3, b"", json!({"final": true}))
        .unwrap_err();
    assert_eq!(
        short,
        "`size` differs from the size of the content, 3; nothing was written"
    );
    let long = bench.piece("h", 0, b"abc", json!({"size": 2})).unwrap_err();
    assert_eq!(
        long,
        "the content has more than the announced 2 bytes; nothing was written"
    );
    // More than any disk holds.
    let huge = json!({"size": 9_007_199_254_740_991_u64});
    let huge = bench.piece("i", 0, b"", huge).unwrap_err();
    let begin = "9007199254740991 bytes do not fit: the portal's disk has ";
    assert!(huge.starts_with(begin) && huge.ends_with(" left"), "{huge}");
    assert_eq!(bench.entries(), 1);
}

#[test]
fn pieces_die_with_their_connection() {
    let bench = Bench::new();
    bench.piece("f", 0, b"abc", json!({})).unwrap();
    let bench = bench.reconnect();
    assert_eq!(
        bench.piece("f", 3, b"d", json!({})).unwrap_err(),
        "no transfer of `f` is under way on this connection (an idle one is abandoned after 60 s); begin at offset 0"
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
    assert!(refused.contains("already exists"), "{refused}");
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
    for index in 0..TRANSFERS_MAX {
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
    // A read from the middle returns the bytes, but no digest.
    let middle = bench.read_piece("f", 249_999, 10).unwrap();
    assert_eq!(STANDARD.decode(middle.text).unwrap(), whole[249_999..]);
    assert_eq!(middle.structured.get("sha256"), None);
    assert_eq!(bench.read_piece("f", 250_000, 10).unwrap().text, "");
    assert_eq!(
        bench.read_piece("f", 250_001, 10).unwrap_err(),
        "`offset` is 250001, and `f` has 250000 bytes"
    );
    // Without `length`, a piece has the default size.
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
fn one_byte_is_one_byte() {
    let bench = Bench::new();
    let taken = bench.piece("f", 0, b"x", json!({})).unwrap();
    assert_eq!(
        taken.text,
        "1 byte received; the next piece begins at that offset"
    );
    bench.piece("f", 1, b"", json!({"final": true})).unwrap();
    assert_eq!(
        bench.read_piece("f", 2, 1).unwrap_err(),
        "`offset` is 2, and `f` has 1 byte"
    );
}
