//! Runs in the process that [`super`] starts: reads the display's clipboard, or holds text on it.

use std::io::Read as _;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use arboard::{Clipboard, Error, SetExtLinux as _};
use wl_clipboard_rs::paste::{
    self, ClipboardType, MimeType, Seat, get_contents, get_mime_types_ordered,
};

use super::HolderAnswer;
use super::offer::{ClipboardOffer, Content, Encoding, OfferSource, TYPES_MAX, text_of};
use super::x11::X11;
use crate::catalogue::CLIPBOARD_MAX;

/// Interval at which a holder checks whether its text is on the clipboard.
const SETTLE_INTERVAL: Duration = Duration::from_millis(2);
/// Interval at which a holder checks that its display still exists.
const DISPLAY_INTERVAL: Duration = Duration::from_secs(2);
/// Maximum number of content bytes to count.
const COUNTED_MAX: u64 = 1024 * 1024 * 1024;

/// Reads the clipboard of the display that the environment names; with `passwords`, even text marked as a password.
pub(crate) fn read(passwords: bool) -> HolderAnswer {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if is_set("WAYLAND_DISPLAY") && mime_types().is_ok() {
        return text_of(Wayland, passwords);
    }
    if !is_set("DISPLAY") {
        return HolderAnswer::Unreachable;
    }
    X11::connect().map_or_else(|why| why, |x11| text_of(x11, passwords))
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
            Ok(true) => return answer(HolderAnswer::Text(String::new())),
            Ok(false) | Err(RecvTimeoutError::Disconnected) => {
                return answer(HolderAnswer::Refused);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if reader.get_text().is_ok_and(|current| current == wanted) {
            break;
        }
    }
    answer(HolderAnswer::Text(String::new()));
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

    fn content(&mut self, name: &str) -> Result<Option<(Content, Encoding)>, HolderAnswer> {
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
                Ok(read) => content.add(buffer.get(..read).unwrap_or_default(), CLIPBOARD_MAX),
                Err(_) => return Err(HolderAnswer::Refused),
            }
        }
        Ok(Some((content, Encoding::Utf8)))
    }
}
