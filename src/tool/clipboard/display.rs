//! Runs in the process that [`super`] starts: reads the display's clipboard, or holds a text or an image on it.

use std::io::Read as _;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use arboard::{Clipboard, Error, SetExtLinux as _};
use wl_clipboard_rs::copy;
use wl_clipboard_rs::paste::{
    self, ClipboardType, MimeType, Seat, get_contents, get_mime_types_ordered,
};

use super::HolderAnswer;
use super::offer::{
    ClipboardOffer, Content, Encoding, IMAGE_MAX, OfferSource, TYPES_MAX, content_of,
};
use super::x11::X11;
use crate::catalogue::PNG;

/// Interval at which a holder checks whether its text is on the clipboard.
const SETTLE_INTERVAL: Duration = Duration::from_millis(2);
/// Interval at which a holder checks that its display still exists.
const DISPLAY_INTERVAL: Duration = Duration::from_secs(2);
/// Maximum number of content bytes to count.
const COUNTED_MAX: u64 = 1024 * 1024 * 1024;

/// Reads the clipboard of the display that the environment names; with `passwords`, even content marked as a password.
pub(crate) fn read(passwords: bool) -> HolderAnswer {
    if is_wayland() {
        return content_of(Wayland, passwords);
    }
    x11().map_or_else(|why| why, |x11| content_of(x11, passwords))
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// Returns whether the environment names a compositor that answers.
fn is_wayland() -> bool {
    is_set("WAYLAND_DISPLAY") && mime_types().is_ok()
}

fn x11() -> Result<X11, HolderAnswer> {
    if is_set("DISPLAY") {
        X11::connect()
    } else {
        Err(HolderAnswer::Unreachable)
    }
}

/// Holds a PNG on the clipboard as [`hold`] does a text.
pub(crate) fn hold_image(png: Vec<u8>, answer: impl FnOnce(HolderAnswer)) {
    if is_wayland() {
        return hold_on_wayland(png, answer);
    }
    match x11() {
        // Once it is held, nobody waits for the reason why that ends.
        Ok(x11) => drop(x11.hold(&png, answer)),
        Err(why) => answer(why),
    }
}

fn hold_on_wayland(png: Vec<u8>, answer: impl FnOnce(HolderAnswer)) {
    let wanted = png.clone();
    let holding = thread::spawn(move || {
        let mut options = copy::Options::new();
        options.foreground(true);
        let kind = copy::MimeType::Specific(PNG.to_owned());
        let prepared = options.prepare_copy(copy::Source::Bytes(png.into()), kind);
        prepared.and_then(copy::PreparedCopy::serve).is_ok()
    });
    while !holding.is_finished() {
        // The types come from the compositor; the content, from the owner, which may be another one that does not answer.
        let types = mime_types();
        if matches!(types, Ok(Some(types)) if types == [PNG])
            && matches!(Wayland.content(PNG, IMAGE_MAX), Ok(Some((content, _))) if content.kept == wanted)
        {
            answer(HolderAnswer::Held);
            // Until another program takes the clipboard over, or the display ends.
            let _ = holding.join();
            return;
        }
        thread::sleep(SETTLE_INTERVAL);
    }
    answer(match holding.join() {
        // It was there, and has already been replaced.
        Ok(true) => HolderAnswer::Held,
        Ok(false) | Err(_) => HolderAnswer::Refused,
    });
}

/// Holds text on the clipboard until something else is put there or the display ends; calls `answer` once, as soon
/// as the text is there or it is clear that it cannot be put there.
pub(crate) fn hold(text: String, answer: impl FnOnce(HolderAnswer)) {
    // A second handle to the same clipboard reads it while the first one waits.
    let (Ok(mut setter), Ok(mut reader)) = (Clipboard::new(), Clipboard::new()) else {
        return answer(HolderAnswer::Unreachable);
    };
    let wanted = text.clone();
    let (sender, replaced) = mpsc::channel();
    thread::spawn(move || {
        let held = setter.set().wait().text(text);
        // Fails only when this process is ending.
        let _ = sender.send(held.is_ok());
    });
    loop {
        match replaced.recv_timeout(SETTLE_INTERVAL) {
            // The text was set, and has already been replaced.
            Ok(true) => return answer(HolderAnswer::Held),
            Ok(false) | Err(RecvTimeoutError::Disconnected) => {
                return answer(HolderAnswer::Refused);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if reader.get_text().is_ok_and(|current| current == wanted) {
            break;
        }
    }
    answer(HolderAnswer::Held);
    // arboard does not notice when an X server ends; reading the clipboard reveals it.
    while matches!(
        replaced.recv_timeout(DISPLAY_INTERVAL),
        Err(RecvTimeoutError::Timeout)
    ) {
        match reader.get_text() {
            Ok(_) | Err(Error::ContentNotAvailable | Error::ConversionFailure) => {}
            Err(_) => return,
        }
    }
}

/// The compositor that the environment names.
struct Wayland;

/// Lists the types on the clipboard; `None` if it is empty.
fn mime_types() -> Result<Option<Vec<String>>, paste::Error> {
    match get_mime_types_ordered(ClipboardType::Regular, Seat::Unspecified) {
        Ok(types) => Ok(Some(types)),
        Err(paste::Error::ClipboardEmpty | paste::Error::NoSeats) => Ok(None),
        Err(other) => Err(other),
    }
}

impl OfferSource for Wayland {
    fn offered(&mut self) -> Result<Option<ClipboardOffer>, HolderAnswer> {
        let offered = mime_types().map_err(|_| HolderAnswer::Refused)?;
        Ok(offered.map(|mut types| {
            let is_cut = types.len() > TYPES_MAX;
            types.truncate(TYPES_MAX);
            ClipboardOffer {
                // A compositor does not identify the owner.
                owner: 0,
                types,
                is_cut,
            }
        }))
    }

    fn content(
        &mut self,
        name: &str,
        max: usize,
    ) -> Result<Option<(Content, Encoding)>, HolderAnswer> {
        let kind = MimeType::Specific(name);
        let mut pipe = match get_contents(ClipboardType::Regular, Seat::Unspecified, kind) {
            Ok((pipe, _)) => pipe.take(COUNTED_MAX),
            Err(paste::Error::ClipboardEmpty | paste::Error::NoMimeType) => return Ok(None),
            Err(_) => return Err(HolderAnswer::Refused),
        };
        let mut content = Content::default();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => content.add(buffer.get(..read).unwrap_or_default(), max),
                Err(_) => return Err(HolderAnswer::Refused),
            }
        }
        Ok(Some((content, Encoding::Utf8)))
    }
}
