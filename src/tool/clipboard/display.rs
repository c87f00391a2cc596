//! What a process does that was sent to the display: read its clipboard, or hold a text on it.
//!
//! Runs in a process of its own, started by [`super::holder`] with the hidden subcommand [`COMMAND`].

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use arboard::{Clipboard, Error, SetExtLinux as _};

use crate::catalogue::CLIPBOARD_MAX;

/// The hidden subcommand.
pub(crate) const COMMAND: &str = "clipboard-holder";
/// How often it is asked whether a text that was set is there already.
const SETTLE: Duration = Duration::from_millis(2);
/// How often a holder looks whether its display is still there.
const LOOK: Duration = Duration::from_secs(2);

/// What a process was sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Errand {
    /// Read the clipboard.
    Read,
    /// Put the text from stdin on it and hold it there.
    Hold,
}

impl Errand {
    /// The word on the command line.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Hold => "hold",
        }
    }
}

/// What the process answers on stdout: one byte that says what, then the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The text on the clipboard; empty from a holder that holds.
    Text(String),
    /// Nothing is on the clipboard, or nothing that is text.
    Nothing,
    /// More bytes than are handed over.
    TooLong(u64),
    /// Text that is no UTF-8.
    NotText,
    /// No display answers.
    Unreachable,
    /// The display or its clipboard failed otherwise.
    Refused,
}

impl Answer {
    /// The answer as it goes over the pipe.
    pub(crate) fn write(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => [b"T", text.as_bytes()].concat(),
            Self::Nothing => b"N".to_vec(),
            Self::TooLong(bytes) => format!("L{bytes}").into_bytes(),
            Self::NotText => b"X".to_vec(),
            Self::Unreachable => b"U".to_vec(),
            Self::Refused => b"R".to_vec(),
        }
    }

    /// The answer as it came; anything odd, such as that of a process that died, is a refusal.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let Some((kind, rest)) = bytes.split_first() else {
            return Self::Refused;
        };
        let rest = str::from_utf8(rest);
        match (kind, rest) {
            (b'T', Ok(text)) => Self::Text(text.to_owned()),
            (b'N', Ok("")) => Self::Nothing,
            (b'L', Ok(bytes)) => bytes.parse().map_or(Self::Refused, Self::TooLong),
            (b'X', Ok("")) => Self::NotText,
            (b'U', Ok("")) => Self::Unreachable,
            _ => Self::Refused,
        }
    }
}

/// Reads the clipboard of the display that the environment names.
pub(crate) fn read() -> Answer {
    let Ok(mut clipboard) = Clipboard::new() else {
        return Answer::Unreachable;
    };
    match clipboard.get_text() {
        Ok(text) if text.len() > CLIPBOARD_MAX => {
            Answer::TooLong(u64::try_from(text.len()).unwrap_or(u64::MAX))
        }
        Ok(text) => Answer::Text(text),
        Err(Error::ContentNotAvailable) => Answer::Nothing,
        Err(Error::ConversionFailure) => Answer::NotText,
        Err(_) => Answer::Refused,
    }
}

/// Holds a text on the clipboard until something else is put there or the display ends.
///
/// `answer` is called once, as soon as it is known whether the text is there.
pub(crate) fn hold(text: String, answer: impl FnOnce(Answer)) {
    // A second handle of the same clipboard, to look at it while the first waits.
    let (Ok(mut setter), Ok(mut looker)) = (Clipboard::new(), Clipboard::new()) else {
        return answer(Answer::Unreachable);
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
            Ok(true) => return answer(Answer::Text(String::new())),
            Ok(false) | Err(RecvTimeoutError::Disconnected) => return answer(Answer::Refused),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if looker.get_text().is_ok_and(|there| there == wanted) {
            break;
        }
    }
    answer(Answer::Text(String::new()));
    // arboard does not notice that an X server ends; asking it for the clipboard does.
    while matches!(replaced.recv_timeout(LOOK), Err(RecvTimeoutError::Timeout)) {
        match looker.get_text() {
            Ok(_) | Err(Error::ContentNotAvailable | Error::ConversionFailure) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_back_as_they_went() {
        for answer in [
            Answer::Text("T".to_owned()),
            Answer::Text(String::new()),
            Answer::Nothing,
            Answer::TooLong(70_000),
            Answer::NotText,
            Answer::Unreachable,
            Answer::Refused,
        ] {
            assert_eq!(Answer::read(&answer.write()), answer);
        }
    }

    #[test]
    fn an_odd_answer_is_a_refusal() {
        for odd in [&b""[..], b"Z", b"T\xff", b"Nx", b"L", b"Lx"] {
            assert_eq!(Answer::read(odd), Answer::Refused, "{odd:?}");
        }
    }
}
