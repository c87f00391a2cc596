//! Images on the clipboard of an X server.

use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Desk, eventually};
use crate::harness::png;

const SELECTION: [&str; 4] = ["-selection", "clipboard", "-t", "image/png"];

impl Desk {
    fn set_image(&self, png: &[u8]) -> Result<String, String> {
        let outcome = self
            .server
            .call("clipboard_set", json!({"image": STANDARD.encode(png)}))?;
        assert_eq!(
            Value::Object(outcome.structured),
            json!({"bytes": png.len()})
        );
        Ok(outcome.text)
    }

    fn get_image(&self) -> Result<Vec<u8>, String> {
        let outcome = self.server.call("clipboard_get", json!({}))?;
        assert!(outcome.is_png, "{}", outcome.text);
        let png = STANDARD.decode(&outcome.text).unwrap();
        assert_eq!(
            Value::Object(outcome.structured),
            json!({"text": "", "bytes": png.len(), "image": outcome.text})
        );
        Ok(png)
    }

    /// The image as another program reads it.
    fn pasted_image(&self) -> Vec<u8> {
        let mut xclip = self.xclip(&[&SELECTION[..], &["-o"]].concat());
        xclip.stderr(Stdio::null()).output().unwrap().stdout
    }

    /// Makes another program copy an image.
    fn copied_image(&self, png: &[u8]) {
        let arguments = [&["-i"], &SELECTION[..]].concat();
        self.put("xclip", &arguments, png);
        eventually("it is on the clipboard", || self.pasted_image() == png);
    }
}

#[test]
fn an_image_that_is_set_outlives_the_server_and_other_programs_paste_it() {
    let Some(desk) = Desk::new() else { return };
    for size in [8, 100_000, 3 * 1024 * 1024] {
        let image = png(size);
        let said = format!("{size} bytes on the clipboard");
        assert_eq!(desk.set_image(&image), Ok(said));
        assert!(desk.pasted_image() == image, "{size}");
        assert!(desk.get_image().unwrap() == image, "{size}");
        eventually("one holder", || desk.holders() == 1);
    }
    // Whoever asks for a text gets none.
    assert_eq!(desk.pasted(), b"");
    desk.set("a text");
    assert_eq!(desk.get().unwrap(), "a text");
    desk.set_image(&png(9)).unwrap();
    desk.copied(b"other");
    eventually("no holder is left", || desk.holders() == 0);
    assert_eq!(desk.get().unwrap(), "other");
}

#[test]
fn an_image_that_other_programs_copy_is_read_up_to_the_limit() {
    let Some(desk) = Desk::new() else { return };
    // The second one comes in increments, the third one is the largest.
    for size in [8, 700_000, 3 * 1024 * 1024] {
        let image = png(size);
        desk.copied_image(&image);
        assert!(desk.get_image().unwrap() == image, "{size}");
    }
    let too_large = 3 * 1024 * 1024 + 1;
    desk.copied_image(&png(too_large));
    assert_eq!(
        desk.get_image().unwrap_err(),
        "the clipboard holds an image of 3145729 bytes; at most 3145728 can be returned"
    );
    desk.copied_image(&png(9 * 1024 * 1024));
    assert_eq!(
        desk.get_image().unwrap_err(),
        "the clipboard holds an image of 9437184 bytes; at most 8388608 can be returned"
    );
}

#[test]
fn an_image_that_is_not_a_png_is_refused_both_ways() {
    let Some(mut desk) = Desk::new() else { return };
    desk.set("kept");
    assert_eq!(
        desk.set_image(b"GIF89a").unwrap_err(),
        "`image` is not a PNG"
    );
    for (arguments, why) in [
        (
            json!({"content": "x", "image": "iVBORw0KGgo="}),
            "either `content` or `image` must be there, and only one of them",
        ),
        (
            json!({}),
            "either `content` or `image` must be there, and only one of them",
        ),
    ] {
        let refused = desk.server.call("clipboard_set", arguments);
        assert_eq!(refused.unwrap_err(), why);
    }
    assert_eq!(desk.get().unwrap(), "kept");
    desk.copied_image(b"GIF89a");
    assert_eq!(
        desk.get().unwrap_err(),
        "the clipboard's owner offers an image as PNG that is none; copy it with another program"
    );
    // Without a display, there is nothing that could hold one.
    desk.server.settings.display = None;
    assert_eq!(
        desk.set_image(&png(8)).unwrap_err(),
        "the provider's user has no display, and without one, the clipboard holds only text; send the image as a file"
    );
}
