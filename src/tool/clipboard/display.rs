//! Runs a process for the display: it reads the clipboard, or holds a text on it.
//!
//! Runs in a process of its own, started by [`super::holder`] with the hidden subcommand [`super::answer::COMMAND`].

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use arboard::{Clipboard, Error, SetExtLinux as _};

use super::answer::HolderAnswer;
use super::offer::text_of;
use super::wayland::Wayland;
use super::x11::X11;

/// Number of checks that a text that was set is there.
const SETTLE: Duration = Duration::from_millis(2);
/// Interval at which a holder checks that its display is still there.
const LOOK: Duration = Duration::from_secs(2);

/// Reads the clipboard of the display that the environment names; `passwords`: also what is marked as one.
pub(crate) fn read(passwords: bool) -> HolderAnswer {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if is_set("WAYLAND_DISPLAY")
        && let Some(wayland) = Wayland::find()
    {
        return text_of(wayland, passwords);
    }
    if !is_set("DISPLAY") {
        return HolderAnswer::Unreachable;
    }
    X11::connect().map_or_else(|why| why, |x11| text_of(x11, passwords))
}

/// Holds a text on the clipboard until something else is put there or the display ends.
///
/// `answer` is called once, as soon as it is known whether the text is there.
pub(crate) fn hold(text: String, answer: impl FnOnce(HolderAnswer)) {
    // A second handle of the same clipboard, to look at it while the first waits.
    let (Ok(mut setter), Ok(mut looker)) = (Clipboard::new(), Clipboard::new()) else {
        return answer(HolderAnswer::Unreachable);
    };
    let wanted = text.clone();
    let (sender, replaced) = mpsc::channel();
    thread::spawn(move || {
        let held = setter.set().wait().text(text);
        // Nobody listens when this process is ending anyway.
        let _ = sender.send(held.is_ok());
    });
    loop {
        match replaced.recv_timeout(SETTLE) {
            // Set, and replaced already.
            Ok(true) => return answer(HolderAnswer::Text(String::new())),
            Ok(false) | Err(RecvTimeoutError::Disconnected) => {
                return answer(HolderAnswer::Refused);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if looker.get_text().is_ok_and(|there| there == wanted) {
            break;
        }
    }
    answer(HolderAnswer::Text(String::new()));
    // arboard does not notice that an X server ends; asking it for the clipboard does.
    while matches!(replaced.recv_timeout(LOOK), Err(RecvTimeoutError::Timeout)) {
        match looker.get_text() {
            Ok(_) | Err(Error::ContentNotAvailable | Error::ConversionFailure) => {}
            Err(_) => return,
        }
    }
}
