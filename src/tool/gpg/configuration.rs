//! What of the user's `gpg.conf` holds for a signature: which key signs by default, and where the keys are.
//!
//! Everything else in it is left out (`--no-options`): other options send the signature elsewhere, sign with a second key,
//! or take a part of the content for a passphrase.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// The file, in the folder of keys.
const NAME: &str = "gpg.conf";
/// Most of it that is read, in bytes.
const FILE_MAX: u64 = 1024 * 1024;
/// The options that say where the keys are, and whether a value follows.
const KEYRINGS: [(&str, bool); 3] = [
    ("keyring", true),
    ("primary-keyring", true),
    ("no-default-keyring", false),
];

/// What holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Configuration {
    /// Options of every gpg that is started.
    pub(super) keyrings: Vec<OsString>,
    /// The keys that may be the default one, in the order in which they are tried: gpg takes the last that there is.
    pub(super) default_keys: Vec<String>,
}

impl Configuration {
    /// Reads the file in a folder of keys; without one, nothing holds.
    pub(super) fn read(home: &Path) -> io::Result<Self> {
        let file = match File::open(home.join(NAME)) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            file => file?,
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        let mut bytes = Vec::new();
        file.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_MAX {
            return Err(io::Error::other("it has more than 1 MiB"));
        }
        let text = String::from_utf8(bytes).map_err(io::Error::other)?;
        Ok(Self::of(&text))
    }

    /// Reads lines as gpg does: an option's long name, white space, its value, maybe in quotes; `#` begins a comment.
    fn of(text: &str) -> Self {
        let mut all = Self::default();
        for line in text.lines().map(str::trim) {
            let (name, value) = line
                .split_once(|character: char| character.is_ascii_whitespace())
                .unwrap_or((line, ""));
            let name = name.strip_prefix("--").unwrap_or(name);
            let value = unquoted(value.trim());
            if name == "default-key" && !value.is_empty() {
                all.default_keys.insert(0, value.to_owned());
            }
            let Some((name, valued)) = KEYRINGS.iter().find(|(known, _)| *known == name) else {
                continue;
            };
            all.keyrings.push(format!("--{name}").into());
            if *valued {
                all.keyrings.push(value.into());
            }
        }
        all
    }
}

fn unquoted(value: &str) -> &str {
    let inner = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    inner.unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_default_key_and_the_keyrings_are_kept() {
        let text = "# default-key A\n\
            passphrase-fd 0\n\
            \tdefault-key\tB\n\
            local-user C\n\
            no-default-keyring\n\
            keyring \"~/my keys.kbx\"\n\
            default-key \"Dora <d@example.org>\"\n\
            default-key\n\
            default-keys E\n\
            output /tmp/x";
        assert_eq!(
            Configuration::of(text),
            Configuration {
                keyrings: ["--no-default-keyring", "--keyring", "~/my keys.kbx"]
                    .map(OsString::from)
                    .to_vec(),
                default_keys: vec!["Dora <d@example.org>".to_owned(), "B".to_owned()],
            }
        );
        assert_eq!(Configuration::of(""), Configuration::default());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_taken_for_none() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(
            Configuration::read(home.path()).unwrap(),
            Configuration::default()
        );
        let path = home.path().join(NAME);
        std::fs::create_dir(&path).unwrap();
        assert!(Configuration::read(home.path()).is_err());
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, vec![b'#'; 1024 * 1024]).unwrap();
        assert!(Configuration::read(home.path()).is_ok());
        std::fs::write(&path, vec![b'#'; 1024 * 1024 + 1]).unwrap();
        assert!(Configuration::read(home.path()).is_err());
        std::fs::write(&path, b"default-key \xff").unwrap();
        assert!(Configuration::read(home.path()).is_err());
    }
}
