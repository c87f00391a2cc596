//! Chooses the text, or else the PNG, from the types that a clipboard's owner offers, unless it is marked as a password.

use super::HolderAnswer;
use crate::catalogue::{CLIPBOARD_MAX, ONE_CALL_MAX, PNG, PNG_START};

/// The type with which password managers (KeePassXC, Bitwarden, 1Password) mark passwords for Klipper, and its content.
const HINT: &str = "x-kde-passwordManagerHint";
const SECRET: &str = "secret";

/// Maximum size of an image, in bytes.
pub(super) const IMAGE_MAX: usize = 8 * 1024 * 1024;
const _: () = assert!(IMAGE_MAX as u64 == ONE_CALL_MAX);
/// Maximum number of types to read; programs typically offer a dozen or two.
pub(super) const TYPES_MAX: usize = 256;

/// Maximum number of attempts while other programs keep taking over the clipboard.
const TRIES: usize = 5;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// Its first bytes.
    pub(super) kept: Vec<u8>,
    /// Its length in bytes.
    pub(super) bytes: u64,
}

impl Content {
    /// Counts bytes, and keeps up to `max` bytes in total.
    pub(super) fn add(&mut self, bytes: &[u8], max: usize) {
        let room = max.saturating_sub(self.kept.len()).min(bytes.len());
        self.kept
            .extend_from_slice(bytes.get(..room).unwrap_or_default());
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClipboardOffer {
    /// The owner, if the display identifies it.
    pub(super) owner: u32,
    pub(super) types: Vec<String>,
    /// True if it offers more than [`TYPES_MAX`] types.
    pub(super) is_cut: bool,
}

/// A display whose clipboard is being read.
pub(super) trait OfferSource {
    /// Asks the clipboard's owner for its types; `None` if there is no owner.
    fn offered(&mut self) -> Result<Option<ClipboardOffer>, HolderAnswer>;

    /// Asks the owner for the content as one of its types, of which `max` bytes are kept; `None` if the owner refuses.
    fn content(
        &mut self,
        name: &str,
        max: usize,
    ) -> Result<Option<(Content, Encoding)>, HolderAnswer>;
}

/// Reads the content of a clipboard; with `passwords`, even content that is marked as a password.
pub(super) fn content_of(mut source: impl OfferSource, passwords: bool) -> HolderAnswer {
    for _ in 0..TRIES {
        match look(&mut source, passwords) {
            Ok(Some(answer)) | Err(answer) => return answer,
            Ok(None) => {}
        }
    }
    HolderAnswer::Refused
}

/// Tries once; `None` if another program has meanwhile taken over the clipboard, whose content may now be marked.
fn look(
    source: &mut impl OfferSource,
    passwords: bool,
) -> Result<Option<HolderAnswer>, HolderAnswer> {
    let before = source.offered()?;
    let Some(offer) = &before else {
        return Ok(Some(HolderAnswer::Nothing));
    };
    let names: Vec<&str> = offer.types.iter().map(String::as_str).collect();
    let may_be_secret = !passwords && (offer.is_cut || names.contains(&HINT));
    if may_be_secret && is_marked(source)? {
        return Ok(Some(HolderAnswer::Password));
    }
    let usable = usable(&names);
    for name in &usable {
        let is_image = name.eq_ignore_ascii_case(PNG);
        let max = if is_image { IMAGE_MAX } else { CLIPBOARD_MAX };
        let Some((content, encoding)) = source.content(name, max)? else {
            continue;
        };
        // The content may have come from another owner that came and went.
        if source.offered()? != before || (may_be_secret && is_marked(source)?) {
            return Ok(None);
        }
        return Ok(Some(if is_image {
            image(content)
        } else {
            text(content, encoding)
        }));
    }
    Ok(Some(match usable.as_slice() {
        [] => HolderAnswer::Nothing,
        _ => HolderAnswer::Refused,
    }))
}

/// Returns whether the owner marks its content as a password; an unreadable mark counts as one.
fn is_marked(source: &mut impl OfferSource) -> Result<bool, HolderAnswer> {
    let hint = source.content(HINT, CLIPBOARD_MAX)?;
    Ok(hint.is_none_or(|(hint, _)| is_secret(&hint.kept)))
}

fn image(content: Content) -> HolderAnswer {
    if content.bytes > ONE_CALL_MAX {
        return HolderAnswer::ImageTooLong(content.bytes);
    }
    if content.kept.starts_with(PNG_START) {
        HolderAnswer::Image(content.kept)
    } else {
        HolderAnswer::NotPng
    }
}

fn text(content: Content, encoding: Encoding) -> HolderAnswer {
    if content.bytes > CLIPBOARD_MAX as u64 {
        return HolderAnswer::TooLong(content.bytes);
    }
    match decode(content.kept, encoding) {
        Some(text) if text.len() > CLIPBOARD_MAX => HolderAnswer::TooLong(text.len() as u64),
        Some(text) => HolderAnswer::Text(text),
        None => HolderAnswer::NotText,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// UTF-8 only.
    Utf8,
    /// UTF-8, which xsel and others send; otherwise ISO 8859-1, as X11 defines its `STRING` (ICCCM §2.6.2).
    Latin1,
}

/// Returns the types that can be handed over, best first: UTF-8 by name, then plain text, then an image, then any other text,
/// such as the HTML that a browser offers with an image.
fn usable<'o>(offered: &[&'o str]) -> Vec<&'o str> {
    let ranked = offered.iter().take(TYPES_MAX).filter_map(|name| {
        let lower = name.to_ascii_lowercase();
        let rank = match lower.as_str() {
            "text/plain;charset=utf-8" | "utf8_string" => 0,
            "text/plain" => 1,
            "string" | "text" => 2,
            other if other.starts_with("text/plain") => 3,
            PNG => 4,
            other if other.starts_with("text/") => 5,
            _ => return None,
        };
        Some((rank, *name))
    });
    let mut ranked: Vec<(i32, &str)> = ranked.collect();
    // A stable sort keeps the owner's order within a rank.
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, name)| name).collect()
}

/// Returns whether the content of [`HINT`] says that the text is a password.
fn is_secret(hint: &[u8]) -> bool {
    hint.trim_ascii() == SECRET.as_bytes()
}

/// Decodes bytes as text; `None` if they are not text.
fn decode(bytes: Vec<u8>, encoding: Encoding) -> Option<String> {
    match (String::from_utf8(bytes), encoding) {
        (Ok(text), _) => Some(text),
        (Err(_), Encoding::Utf8) => None,
        (Err(other), Encoding::Latin1) => {
            Some(other.as_bytes().iter().copied().map(char::from).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The clipboard's successive owners: the types that each one offers, with the text that it returns.
    struct Owners(Vec<Vec<(&'static str, Option<&'static str>)>>);

    impl OfferSource for Owners {
        fn offered(&mut self) -> Result<Option<ClipboardOffer>, HolderAnswer> {
            let owner = self.0.first();
            Ok(owner.map(|types| ClipboardOffer {
                owner: 1,
                types: types.iter().map(|(name, _)| (*name).to_owned()).collect(),
                is_cut: types.len() > 3,
            }))
        }

        fn content(
            &mut self,
            name: &str,
            max: usize,
        ) -> Result<Option<(Content, Encoding)>, HolderAnswer> {
            let owner = self.0.first().cloned().unwrap_or_default();
            let given = owner.iter().find(|(offered, _)| *offered == name);
            if self.0.len() > 1 {
                // The next owner takes the clipboard at the worst moment.
                self.0.remove(0);
            }
            Ok(given.and_then(|(_, text)| *text).map(|text| {
                let mut content = Content::default();
                let bytes = match text {
                    PNG => PNG_START,
                    text => text.as_bytes(),
                };
                content.add(bytes, max);
                (content, Encoding::Utf8)
            }))
        }
    }

    const UTF8: &str = "UTF8_STRING";

    #[test]
    fn plain_text_comes_before_a_png_and_other_types_are_ignored() {
        let text = |text: &str| HolderAnswer::Text(text.to_owned());
        for (owners, expected) in [
            (vec![], HolderAnswer::Nothing),
            (vec![vec![("image/jpeg", Some("x"))]], HolderAnswer::Nothing),
            (vec![vec![(PNG, Some("x"))]], HolderAnswer::NotPng),
            (
                vec![vec![("text/html", Some("<img>")), (PNG, Some(PNG))]],
                HolderAnswer::Image(PNG_START.to_vec()),
            ),
            (
                vec![vec![(PNG, Some(PNG)), ("text/plain", Some("x"))]],
                text("x"),
            ),
            (vec![vec![(PNG, None), ("text/html", Some("x"))]], text("x")),
            (
                vec![vec![(PNG, Some(PNG)), (HINT, Some("secret"))]],
                HolderAnswer::Password,
            ),
            (vec![vec![("text/plain", Some("x"))]], text("x")),
            (
                vec![vec![(UTF8, None), ("text/html", Some("<b>"))]],
                text("<b>"),
            ),
            (vec![vec![(UTF8, None)]], HolderAnswer::Refused),
            (
                vec![vec![(UTF8, Some("x")), (HINT, Some("secret"))]],
                HolderAnswer::Password,
            ),
            (
                vec![vec![(UTF8, Some("x")), (HINT, None)]],
                HolderAnswer::Password,
            ),
            (
                vec![vec![(UTF8, Some("x")), (HINT, Some("public"))]],
                text("x"),
            ),
        ] {
            assert_eq!(
                content_of(Owners(owners.clone()), false),
                expected,
                "{owners:?}"
            );
        }
        let marked = vec![vec![(UTF8, Some("x")), (HINT, Some("secret"))]];
        assert_eq!(content_of(Owners(marked), true), text("x"));
    }

    #[test]
    fn a_password_that_comes_meanwhile_is_not_handed_over() {
        let plain = || vec![(UTF8, Some("plain"))];
        let marked = vec![(UTF8, Some("pass")), (HINT, Some("secret"))];
        let owners = vec![plain(), marked];
        assert_eq!(content_of(Owners(owners), false), HolderAnswer::Password);
        let owners = vec![plain(), vec![("STRING", Some("other"))]];
        assert_eq!(
            content_of(Owners(owners), false),
            HolderAnswer::Text("other".to_owned())
        );
    }

    #[test]
    fn content_over_the_limit_is_counted_but_not_kept() {
        let mut content = Content::default();
        for _ in 0..3 {
            content.add(&vec![b'x'; 40_000], CLIPBOARD_MAX);
        }
        assert_eq!(
            (content.kept.len(), content.bytes),
            (CLIPBOARD_MAX, 120_000)
        );
        assert_eq!(
            text(content, Encoding::Utf8),
            HolderAnswer::TooLong(120_000)
        );
        // Each of these bytes becomes two in UTF-8.
        let mut content = Content::default();
        content.add(&vec![0xe9; 40_000], CLIPBOARD_MAX);
        assert_eq!(
            text(content, Encoding::Latin1),
            HolderAnswer::TooLong(80_000)
        );
        let mut content = Content::default();
        content.add(PNG_START, IMAGE_MAX);
        content.add(&vec![0; IMAGE_MAX], IMAGE_MAX);
        assert_eq!(image(content), HolderAnswer::ImageTooLong(ONE_CALL_MAX + 8));
    }

    #[test]
    fn text_is_taken_where_it_is_offered_and_the_best_first() {
        for (offered, expected) in [
            (&["TARGETS", "image/jpeg"][..], &[][..]),
            (
                &["text/html", "image/png", "TARGETS"],
                &["image/png", "text/html"],
            ),
            (&["text/plain"], &["text/plain"]),
            (
                &["STRING", "TIMESTAMP", "UTF8_STRING", "text/html"],
                &["UTF8_STRING", "STRING", "text/html"],
            ),
            (
                &["text/html", "text/plain;charset=UTF-8"],
                &["text/plain;charset=UTF-8", "text/html"],
            ),
            (
                &["text/uri-list", "application/x-thing"],
                &["text/uri-list"],
            ),
            (
                &["TEXT", "COMPOUND_TEXT", "text/plain;charset=utf-16"],
                &["TEXT", "text/plain;charset=utf-16"],
            ),
            (&[HINT], &[]),
        ] {
            assert_eq!(usable(offered), expected, "{offered:?}");
        }
    }

    #[test]
    fn a_password_is_marked_by_one_word() {
        assert!(is_secret(b"secret") && is_secret(b"secret\n"));
        assert!(!is_secret(b"") && !is_secret(b"public") && !is_secret(b"secrets"));
    }

    #[test]
    fn latin_1_is_text_whatever_it_is_and_utf_8_is_never_taken_for_it() {
        assert_eq!(decode(vec![0xe9], Encoding::Latin1).unwrap(), "é");
        assert_eq!(decode("é".into(), Encoding::Latin1).unwrap(), "é");
        assert_eq!(decode(vec![0xe9], Encoding::Utf8), None);
        assert_eq!(decode("é".into(), Encoding::Utf8).unwrap(), "é");
    }
}
