//! The clipboard of a Wayland compositor, read as its owner offers it.

use std::io::Read as _;

use wl_clipboard_rs::paste::{
    ClipboardType, Error, MimeType, Seat, get_contents, get_mime_types_ordered,
};

use super::answer::HolderAnswer;
use super::offer::{ClipboardOffer, Content, Encoding, OfferSource, TYPES_MAX};
use crate::catalogue::CLIPBOARD_MAX;

/// Maximum number of bytes that are read of a content to know how many there are.
const COUNTED_MAX: u64 = 1024 * 1024 * 1024;

/// The compositor that the environment names.
#[derive(Debug)]
pub(super) struct Wayland;

impl Wayland {
    /// A compositor that hands out clipboards; `None`: there is none.
    pub(super) fn find() -> Option<Self> {
        Self::look().ok().map(|_| Self)
    }

    fn look() -> Result<Option<Vec<String>>, Error> {
        match get_mime_types_ordered(ClipboardType::Regular, Seat::Unspecified) {
            Ok(offered) => Ok(Some(offered)),
            Err(Error::ClipboardEmpty | Error::NoSeats) => Ok(None),
            Err(other) => Err(other),
        }
    }
}

impl OfferSource for Wayland {
    fn offered(&mut self) -> Result<Option<ClipboardOffer>, HolderAnswer> {
        let offered = Self::look().map_err(|_| HolderAnswer::Refused)?;
        Ok(offered.map(|mut types| {
            let is_cut = types.len() > TYPES_MAX;
            types.truncate(TYPES_MAX);
            ClipboardOffer {
                // A compositor tells nobody whose it is.
                owner: 0,
                types,
                is_cut,
            }
        }))
    }

    fn content(&mut self, name: &str) -> Result<Option<(Content, Encoding)>, HolderAnswer> {
        let given = get_contents(
            ClipboardType::Regular,
            Seat::Unspecified,
            MimeType::Specific(name),
        );
        let mut pipe = match given {
            Ok((pipe, _)) => pipe.take(COUNTED_MAX),
            Err(Error::ClipboardEmpty | Error::NoMimeType) => return Ok(None),
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
