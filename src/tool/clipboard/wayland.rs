//! The clipboard of a Wayland compositor, read as its owner offers it.

use std::io::Read as _;

use wl_clipboard_rs::paste::{
    ClipboardType, Error, MimeType, Seat, get_contents, get_mime_types_ordered,
};

use super::answer::Answer;
use super::offer::{Content, Encoding, Source};
use crate::catalogue::CLIPBOARD_MAX;

/// Most bytes that are read of a content to know how many there are.
const COUNTED_MAX: u64 = 1024 * 1024 * 1024;

/// The compositor that the environment names.
#[derive(Debug)]
pub(super) struct Wayland {
    offered: Option<Vec<String>>,
}

impl Wayland {
    /// Asks the compositor what there is; `None`: it does not hand out clipboards.
    pub(super) fn ask() -> Option<Result<Self, Answer>> {
        match get_mime_types_ordered(ClipboardType::Regular, Seat::Unspecified) {
            Ok(offered) => Some(Ok(Self {
                offered: Some(offered),
            })),
            Err(Error::ClipboardEmpty | Error::NoSeats) => Some(Ok(Self { offered: None })),
            Err(_) => None,
        }
    }
}

impl Source for Wayland {
    fn offered(&mut self) -> Result<Option<Vec<String>>, Answer> {
        Ok(self.offered.clone())
    }

    fn content(&mut self, name: &str) -> Result<Option<(Content, Encoding)>, Answer> {
        let given = get_contents(
            ClipboardType::Regular,
            Seat::Unspecified,
            MimeType::Specific(name),
        );
        let mut pipe = match given {
            Ok((pipe, _)) => pipe.take(COUNTED_MAX),
            Err(Error::ClipboardEmpty | Error::NoMimeType) => return Ok(None),
            Err(_) => return Err(Answer::Refused),
        };
        let mut content = Content::default();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => content.add(buffer.get(..read).unwrap_or_default(), CLIPBOARD_MAX),
                Err(_) => return Err(Answer::Refused),
            }
        }
        Ok(Some((content, Encoding::Utf8)))
    }
}
