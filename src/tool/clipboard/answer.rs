//! Defines the requests to a process for the display, and its answers. See [`super::holder`].

/// The hidden subcommand.
pub(crate) const COMMAND: &str = "clipboard-holder";

/// The task of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HolderTask {
    /// Read the clipboard, unless it is marked as a password.
    Read,
    /// Read it, also where it is.
    ReadPassword,
    /// Put the text from stdin on it and hold it there.
    Hold,
}

impl HolderTask {
    /// The word on the command line.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::ReadPassword => "read-password",
            Self::Hold => "hold",
        }
    }
}

/// The process's answer on stdout: one byte for its kind, then the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HolderAnswer {
    /// The text on the clipboard; empty from a holder that holds.
    Text(String),
    /// Nothing is on the clipboard, or nothing that is text.
    Nothing,
    /// More bytes than are handed over.
    TooLong(u64),
    /// Text that is no UTF-8.
    NotText,
    /// A password manager marks it as a password.
    Password,
    /// No display answers.
    Unreachable,
    /// The display or its clipboard failed otherwise.
    Refused,
}

impl HolderAnswer {
    /// The answer as it goes over the pipe.
    pub(crate) fn write(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => [b"T", text.as_bytes()].concat(),
            Self::Nothing => b"N".to_vec(),
            Self::TooLong(bytes) => format!("L{bytes}").into_bytes(),
            Self::NotText => b"X".to_vec(),
            Self::Password => b"P".to_vec(),
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
            (b'P', Ok("")) => Self::Password,
            (b'U', Ok("")) => Self::Unreachable,
            _ => Self::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_back_as_they_went() {
        for answer in [
            HolderAnswer::Text("T".to_owned()),
            HolderAnswer::Text(String::new()),
            HolderAnswer::Nothing,
            HolderAnswer::TooLong(70_000),
            HolderAnswer::NotText,
            HolderAnswer::Password,
            HolderAnswer::Unreachable,
            HolderAnswer::Refused,
        ] {
            assert_eq!(HolderAnswer::read(&answer.write()), answer);
        }
    }

    #[test]
    fn an_odd_answer_is_a_refusal() {
        for odd in [&b""[..], b"Z", b"T\xff", b"Nx", b"L", b"Lx"] {
            assert_eq!(HolderAnswer::read(odd), HolderAnswer::Refused, "{odd:?}");
        }
    }
}
