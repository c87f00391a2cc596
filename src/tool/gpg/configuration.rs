//! Reads from the user's `gpg.conf` the default key and the places of keys.
//!
//! Other options are ignored (`--no-options`): some send the signature elsewhere, sign with a second key, or take a part of the
//! content for a passphrase.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

const NAME: &str = "gpg.conf";
/// The file for all of GnuPG's programs, from 2.3.8 on.
const COMMON: &str = "common.conf";
/// The byte order mark, which gpg skips.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Maximum size of a configuration file, in bytes.
const FILE_MAX: u64 = 1024 * 1024;
/// The user's options that apply.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Configuration {
    /// Options for every gpg.
    pub(super) keyrings: Vec<OsString>,
    /// True if keyboxd keeps the public keys; gpg starts it only if it may start servers.
    pub(super) uses_keyboxd: bool,
    /// Candidates for the default key, in the order in which they are tried: gpg takes the last existing one.
    pub(super) default_keys: Vec<String>,
}

impl Configuration {
    /// Returns the files of the keyrings, as gpg resolves them: those without a slash in the folder of keys.
    pub(super) fn files(&self, home: &Path) -> Vec<PathBuf> {
        let user = env::var_os("HOME").map(PathBuf::from);
        let named = self.keyrings.iter().map(Path::new);
        let files = named.filter(|name| !name.to_string_lossy().starts_with("--"));
        files
            .map(|name| match (name.strip_prefix("~"), &user) {
                (Ok(below), Some(user)) => user.join(below),
                _ => home.join(name),
            })
            .collect()
    }

    /// Reads the files in a folder of keys; a missing file is an empty one.
    pub(super) fn read(home: &Path) -> io::Result<Self> {
        let mut all = Self::of(&contents(&home.join(NAME))?)?;
        let common = contents(&home.join(COMMON))?;
        let mut lines = common.split(|byte| *byte == b'\n');
        all.uses_keyboxd = lines.any(|line| line.trim_ascii() == b"use-keyboxd");
        Ok(all)
    }

    /// Reads lines as gpg does: an option's long name, white space, its value, maybe in quotes; `#` begins a comment.
    fn of(bytes: &[u8]) -> io::Result<Self> {
        let mut all = Self::default();
        let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
        for line in bytes.split(|byte| *byte == b'\n') {
            if line.trim_ascii_start().starts_with(b"#") {
                continue;
            }
            let line = str::from_utf8(line)
                .map_err(io::Error::other)?
                .trim_matches(is_space);
            let (name, value) = line.split_once(is_space).unwrap_or((line, ""));
            let value = unquoted(value.trim_matches(is_space));
            if value.contains('\0') {
                return Err(io::Error::other("a value in it has a zero byte"));
            }
            match name {
                "default-key" if !value.is_empty() => all.default_keys.insert(0, value.to_owned()),
                "keyring" | "primary-keyring" if !value.is_empty() => {
                    let option = format!("--{name}");
                    all.keyrings.extend([option.into(), value.into()]);
                }
                "no-default-keyring" => all.keyrings.push("--no-default-keyring".into()),
                // Ignored: see the head of this file.
                _ => {}
            }
        }
        Ok(all)
    }
}

/// Reads a file; empty if it is missing.
fn contents(path: &Path) -> io::Result<Vec<u8>> {
    // Not to wait for the writer of a pipe.
    let nonblock = OFlags::NONBLOCK.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(nonblock).open(path);
    let file = match opened {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
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
    Ok(bytes)
}

/// Returns whether a character is white space for C's `isspace`.
const fn is_space(character: char) -> bool {
    character.is_ascii_whitespace() || character == '\u{b}'
}

fn unquoted(value: &str) -> &str {
    let Some(inner) = value.strip_prefix('"') else {
        return value;
    };
    inner.strip_suffix('"').unwrap_or(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_default_key_and_the_keyrings_are_kept() {
        let text = "\u{feff}# default-key A\n\
            --default-key A\n\
            default-key\u{a0}A\n\
            keyring\n\
            passphrase-fd 0\n\
            \tdefault-key\u{b}B\r\n\
            local-user C\n\
            no-default-keyring\n\
            keyring \"~/my keys.kbx\"\n\
            default-key \"Dora <d@example.org>\"\n\
            default-key\n\
            default-keys E\n\
            output /tmp/x";
        assert_eq!(
            Configuration::of(text.as_bytes()).unwrap(),
            Configuration {
                keyrings: ["--no-default-keyring", "--keyring", "~/my keys.kbx"]
                    .map(OsString::from)
                    .to_vec(),
                uses_keyboxd: false,
                default_keys: vec!["Dora <d@example.org>".to_owned(), "B".to_owned()],
            }
        );
        assert_eq!(Configuration::of(b"").unwrap(), Configuration::default());
        let latin = Configuration::of(b"# caf\xe9\ndefault-key \"A B").unwrap();
        assert_eq!(latin.default_keys, ["A B"]);
        assert!(Configuration::of(b"default-key A\0").is_err());
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
        std::fs::remove_file(&path).unwrap();
        std::fs::write(home.path().join(COMMON), "# x\n use-keyboxd\n").unwrap();
        assert!(Configuration::read(home.path()).unwrap().uses_keyboxd);
    }
}
