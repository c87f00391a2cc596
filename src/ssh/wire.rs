//! The data types of SSH messages (RFC 4251, section 5), read from and written to bytes in memory.

/// Bytes that are read from the front; a read beyond the end returns `None`.
#[derive(Debug, Clone, Copy)]
pub(super) struct WireReader<'a>(&'a [u8]);

impl<'a> WireReader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Reads a `byte`.
    pub(super) fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    /// Reads a `boolean`; anything but 0 and 1, which RFC 4251 lets pass for true, is refused.
    pub(super) fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    /// Reads a `uint32`.
    pub(super) fn number(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    /// Reads a `string`: a length, and as many bytes.
    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (string, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(string)
    }

    /// Reads a `string` that must be UTF-8.
    pub(super) fn text(&mut self) -> Option<&'a str> {
        str::from_utf8(self.string()?).ok()
    }

    /// Returns what is left.
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// Returns whether nothing is left.
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Appends a `string`.
pub(super) fn put_string(string: &[u8], to: &mut Vec<u8>) {
    // Nothing here is as long as 4 GiB.
    let length = u32::try_from(string.len()).unwrap_or(u32::MAX);
    to.extend(length.to_be_bytes());
    to.extend(string);
}
