//! Paths below the portal: checked as text, before any of them reaches the system.

use std::fmt;

use super::legible::{first_illegible, is_odd_space, legible};
use crate::text::escaped;

/// Maximum number of folders and file together in one path.
const COMPONENTS_MAX: usize = 16;
/// Maximum length of a name of a file or folder, in bytes (Linux `NAME_MAX`).
const COMPONENT_BYTES_MAX: usize = 255;
/// Maximum length of a path, in bytes.
const PATH_BYTES_MAX: usize = 1024;

/// A relative path of display-safe names, none of which leads upwards.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PortalPath(String);

impl PortalPath {
    /// Checks a path that a caller sent.
    ///
    /// # Errors
    ///
    /// Its fault, in words.
    pub fn new(text: &str) -> Result<Self, String> {
        let Some(fault) = fault(text) else {
            return Ok(Self(text.to_owned()));
        };
        let such_as = proposed(text).map_or_else(String::new, |path| {
            format!("; it could be `{}`", escaped(&path))
        });
        Err(format!("{fault}{such_as}"))
    }

    /// The same path below a folder whose name is safe already.
    #[must_use]
    pub fn below(&self, folder: &str) -> Self {
        Self(format!("{folder}/{}", self.0))
    }

    /// The folders that lead to the file, outermost first, and the file's name.
    #[must_use]
    pub fn split(&self) -> (Vec<&str>, &str) {
        match self.0.rsplit_once('/') {
            Some((folders, name)) => (folders.split('/').collect(), name),
            None => (Vec::new(), &self.0),
        }
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PortalPath {
    /// Escaped, as it is shown in messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escaped(&self.0))
    }
}

/// Returns why a text cannot be a path.
fn fault(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("`path` is empty".to_owned());
    }
    if text.len() > PATH_BYTES_MAX {
        let length = text.len();
        return Some(format!(
            "`path` has {length} bytes; at most {PATH_BYTES_MAX} are allowed"
        ));
    }
    if text.starts_with('/') {
        let shown = escaped(text);
        return Some(format!(
            "`path` must be relative to the portal, not `{shown}`"
        ));
    }
    let components: Vec<&str> = text.split('/').collect();
    if components.len() > COMPONENTS_MAX {
        let depth = components.len();
        return Some(format!(
            "`path` is {depth} names deep; at most {COMPONENTS_MAX} are allowed"
        ));
    }
    let fault = components.into_iter().find_map(component_fault)?;
    Some(format!("`path` is `{}`, and {fault}", escaped(text)))
}

/// Returns why a text cannot be the name of a file or folder.
fn component_fault(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("a name between two `/` or at the end is empty".to_owned());
    }
    if name == "." || name == ".." {
        return Some(format!("`{name}` is not allowed in it"));
    }
    if name.len() > COMPONENT_BYTES_MAX {
        let length = name.len();
        return Some(format!(
            "a name in it has {length} bytes, where {COMPONENT_BYTES_MAX} are allowed"
        ));
    }
    if name.starts_with('-') {
        return Some(
            "a name must not begin with `-`, which programs take for an option".to_owned(),
        );
    }
    let is_space = |character: char| character == ' ' || is_odd_space(character);
    if name.starts_with(is_space) || name.ends_with(is_space) {
        return Some("a name must not begin or end with a space".to_owned());
    }
    let unseen = first_illegible(name)?;
    Some(format!(
        "the character U+{:04X} is not allowed there, because it does not show as what it is",
        u32::from(unseen)
    ))
}

/// A path like this one that can be one.
fn proposed(path: &str) -> Option<String> {
    if path.len() > PATH_BYTES_MAX {
        // A stranger's text of any length is not looked at.
        return None;
    }
    let names = path.split('/').map(|name| {
        let name = legible(name);
        let name = name.trim();
        match name.strip_prefix('-') {
            Some(rest) => format!("_{rest}"),
            None => name.to_owned(),
        }
    });
    let other = names.collect::<Vec<_>>().join("/");
    (other != path && fault(&other).is_none()).then_some(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_of_all_languages_are_paths() {
        for good in [
            "a",
            ".hidden",
            "a/b/c.txt",
            "with space.txt",
            "résumé.pdf",
            "re\u{301}sume\u{301}.pdf",
            "日本語/ファイル",
            "it's \"quoted\" \\ so",
            "a:b*c?",
            "..a",
            "a..",
            "a\u{a0}b",
            "\u{2b50}\u{fe0f}/\u{1f468}\u{200d}\u{1f469}.png",
            &"x".repeat(255),
        ] {
            assert!(PortalPath::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn what_leads_out_or_misleads_is_refused() {
        for (bad, why) in [
            ("", "`path` is empty"),
            (
                "/etc/passwd",
                "`path` must be relative to the portal, not `/etc/passwd`",
            ),
            (
                "a//b",
                "`path` is `a//b`, and a name between two `/` or at the end is empty",
            ),
            (
                "a/",
                "`path` is `a/`, and a name between two `/` or at the end is empty",
            ),
            ("..", "`path` is `..`, and `..` is not allowed in it"),
            (
                "a/../b",
                "`path` is `a/../b`, and `..` is not allowed in it",
            ),
            ("./a", "`path` is `./a`, and `.` is not allowed in it"),
            (
                "-rf",
                "`path` is `-rf`, and a name must not begin with `-`, which programs take for an option; it could be `_rf`",
            ),
            (
                "a/ b",
                "`path` is `a/ b`, and a name must not begin or end with a space; it could be `a/b`",
            ),
            (
                "a\0b",
                "`path` is `a\\0b`, and the character U+0000 is not allowed there, because it does not show as what it is; it could be `a_b`",
            ),
            (
                "a\n",
                "`path` is `a\\n`, and the character U+000A is not allowed there, because it does not show as what it is; it could be `a_`",
            ),
            (
                "gpj.\u{202e}exe",
                "`path` is `gpj.\\u{202e}exe`, and the character U+202E is not allowed there, because it does not show as what it is; it could be `gpj.exe`",
            ),
        ] {
            assert_eq!(PortalPath::new(bad).unwrap_err(), why, "{bad:?}");
        }
        for bad in [
            "\u{1b}[31m",
            "a\u{200b}b",
            "a\u{200d}b",
            "\u{feff}a",
            "a\u{2028}b",
            "a\u{85}b",
            "a\u{ad}b",
            "a\u{e0001}b",
            "a\u{3164}b",
            "a\u{fe0f}",
            "\u{301}a",
            "a\u{e000}b",
            "a\u{fffe}b",
        ] {
            assert!(PortalPath::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lengths_and_depths_are_exact() {
        assert!(PortalPath::new(&"x".repeat(256)).is_err());
        assert!(PortalPath::new(&vec!["x"; 16].join("/")).is_ok());
        assert!(PortalPath::new(&vec!["x"; 17].join("/")).is_err());
        assert!(PortalPath::new(&vec!["x".repeat(204); 5].join("/")).is_ok());
        assert!(PortalPath::new(&vec!["x".repeat(205); 5].join("/")).is_err());
    }

    #[test]
    fn a_path_splits_into_folders_and_a_name() {
        let path = PortalPath::new("a/b/c").unwrap();
        assert_eq!(path.split(), (vec!["a", "b"], "c"));
        assert_eq!(path.below("incoming/work").as_str(), "incoming/work/a/b/c");
        assert_eq!(PortalPath::new("c").unwrap().split(), (vec![], "c"));
    }
}
