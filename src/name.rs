//! Checks names once, on input; afterwards they are trusted.
//!
//! [`crate::infra`] defines where names occur.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Maximum length of a machine name, in bytes: Incus uses the name as a host name (RFC 1123 label).
pub const MACHINE_NAME_MAX: usize = 63;
/// Maximum length of a service name, in bytes.
pub const SERVICE_NAME_MAX: usize = 64;

/// Maximum length of the name of an upstream's tool, in bytes.
pub const UPSTREAM_TOOL_NAME_MAX: usize = 128;

/// The reason why a string is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// An empty string.
    #[error("a {0} name must not be empty")]
    Empty(&'static str),
    /// More bytes than this kind of name allows.
    #[error("a {kind} name can have at most {max} characters; this one has {length}")]
    TooLong {
        /// The kind of name.
        kind: &'static str,
        /// Maximum length, in bytes.
        max: usize,
        /// Length of the string, in bytes.
        length: usize,
    },
    /// A string that does not follow the rule.
    #[error("a {kind} name must consist of {rule}")]
    Shape {
        /// The kind of name.
        kind: &'static str,
        /// The rule in words.
        rule: &'static str,
    },
}

/// Defines a checked name: a private `String` and the traits of every name.
macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $check:ident($kind:literal)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as a string.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameFault;

            fn from_str(text: &str) -> Result<Self, NameFault> {
                $check($kind, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameFault;

            fn try_from(text: String) -> Result<Self, NameFault> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type! {
    /// The name of an Incus instance: a lower-case RFC 1123 label, unique across all domains.
    MachineName, check_label("machine")
}
name_type! {
    /// The name of a group of machines: one Incus project and one bridge.
    DomainName, check_label("domain")
}
name_type! {
    /// The name by which consumers call a service: `[a-z][a-z0-9_]*`, unique on its machine.
    ServiceName, check_service("service")
}

name_type! {
    /// The name of a tool that a machine declares itself: `[a-z][a-z0-9_]*`, unique on its machine.
    OwnToolName, check_service("tool")
}
name_type! {
    /// The name of an MCP server that a machine runs: `[a-z][a-z0-9_]*`, unique on its machine.
    ServerName, check_service("server")
}
name_type! {
    /// The name of a tool as its MCP server has it: letters, digits, `_`, `-`, `.` and `/`.
    UpstreamToolName, check_upstream("tool")
}
name_type! {
    /// The name of an argument of such a tool: `[a-z][a-z0-9_]*`, unique in its tool.
    ArgumentName, check_service("argument")
}

fn check_label(kind: &'static str, text: &str) -> Result<(), NameFault> {
    check_length(kind, text, MACHINE_NAME_MAX)?;
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-') {
        Ok(())
    } else {
        Err(NameFault::Shape {
            kind,
            rule: "lower-case letters, digits and `-`, with a letter or digit at both ends",
        })
    }
}

fn check_service(kind: &'static str, text: &str) -> Result<(), NameFault> {
    check_length(kind, text, SERVICE_NAME_MAX)?;
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if text.bytes().all(inner) && text.starts_with(|first: char| first.is_ascii_lowercase()) {
        Ok(())
    } else {
        Err(NameFault::Shape {
            kind,
            rule: "a lower-case letter, then lower-case letters, digits and `_`",
        })
    }
}

/// The rule of the specification for tool names (MCP 2025-11-25, server/tools), with `/`, which older servers use.
fn check_upstream(kind: &'static str, text: &str) -> Result<(), NameFault> {
    check_length(kind, text, UPSTREAM_TOOL_NAME_MAX)?;
    if text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte))
    {
        Ok(())
    } else {
        Err(NameFault::Shape {
            kind,
            rule: "letters, digits, `_`, `-`, `.` and `/`",
        })
    }
}

fn check_length(kind: &'static str, text: &str, max: usize) -> Result<(), NameFault> {
    match text.len() {
        0 => Err(NameFault::Empty(kind)),
        length if length > max => Err(NameFault::TooLong { kind, max, length }),
        _ => Ok(()),
    }
}

/// anklume's tools: the code behind a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolName {
    /// Create a detached OpenPGP signature of the caller's bytes.
    GpgSign,
    /// Sign for SSH: Git's commits, files, logins.
    SshSign,
    /// Read the machine's clipboard.
    ClipboardGet,
    /// Set the machine's clipboard.
    ClipboardSet,
    /// Accept a file into the machine's portal.
    FileAccept,
    /// Provide a file from the machine's portal.
    FileProvide,
    /// Show a message to the machine's user.
    Notify,
}

impl ToolName {
    /// All tools, in the order of the documentation.
    pub const ALL: [Self; 7] = [
        Self::GpgSign,
        Self::SshSign,
        Self::ClipboardGet,
        Self::ClipboardSet,
        Self::FileAccept,
        Self::FileProvide,
        Self::Notify,
    ];
    /// The tools that the operator lists and calls by their own names.
    pub const LISTED: [Self; 5] = [
        Self::GpgSign,
        Self::ClipboardGet,
        Self::ClipboardSet,
        Self::FileAccept,
        Self::FileProvide,
    ];

    /// The tool's name on the wire and in `infra.yml`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GpgSign => "gpg_sign",
            Self::SshSign => "ssh_sign",
            Self::ClipboardGet => "clipboard_get",
            Self::ClipboardSet => "clipboard_set",
            Self::FileAccept => "file_accept",
            Self::FileProvide => "file_provide",
            Self::Notify => "notify",
        }
    }
}

impl fmt::Display for ToolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A string that names none of the tools.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a tool")]
pub struct UnknownTool;

impl FromStr for ToolName {
    type Err = UnknownTool;

    fn from_str(text: &str) -> Result<Self, UnknownTool> {
        Self::ALL
            .into_iter()
            .find(|tool| tool.as_str() == text)
            .ok_or(UnknownTool)
    }
}

/// The tool behind a service, as `tool:` in `infra.yml` names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ServiceTool {
    /// One of anklume's tools.
    BuiltIn(ToolName),
    /// A tool that the machine declares itself.
    Own(OwnToolName),
    /// A tool of an MCP server that the machine runs.
    Upstream(ServerName, UpstreamToolName),
}

impl ServiceTool {
    /// Returns which of anklume's tools it is; `None` for another one.
    #[must_use]
    pub const fn built_in(&self) -> Option<ToolName> {
        match self {
            Self::BuiltIn(tool) => Some(*tool),
            Self::Own(_) | Self::Upstream(..) => None,
        }
    }

    /// Returns whether it is this tool of anklume.
    #[must_use]
    pub fn is(&self, tool: ToolName) -> bool {
        self.built_in() == Some(tool)
    }
}

impl fmt::Display for ServiceTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(tool) => tool.fmt(f),
            Self::Own(tool) => tool.fmt(f),
            Self::Upstream(server, tool) => write!(f, "{server}/{tool}"),
        }
    }
}

impl FromStr for ServiceTool {
    type Err = NameFault;

    fn from_str(text: &str) -> Result<Self, NameFault> {
        if let Some((server, tool)) = text.split_once('/') {
            return Ok(Self::Upstream(server.parse()?, tool.parse()?));
        }
        match text.parse() {
            Ok(tool) => Ok(Self::BuiltIn(tool)),
            Err(UnknownTool) => text.parse().map(Self::Own),
        }
    }
}

impl TryFrom<String> for ServiceTool {
    type Error = NameFault;

    fn try_from(text: String) -> Result<Self, NameFault> {
        text.parse()
    }
}

impl From<ServiceTool> for String {
    fn from(tool: ServiceTool) -> Self {
        tool.to_string()
    }
}

impl From<ToolName> for ServiceTool {
    fn from(tool: ToolName) -> Self {
        Self::BuiltIn(tool)
    }
}

/// The candidate that a mistyped `text` most likely stands for, if any is similar enough.
#[must_use]
pub fn closest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Jaro-Winkler similarity below which a suggestion is noise (the bound that clap uses).
    const NEAR: f64 = 0.7;
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(text, candidate), candidate))
        .filter(|(likeness, _)| *likeness > NEAR)
        // The first of several equally similar names.
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_names_are_labels() {
        for good in ["a", "work-dev", "0", "a1", &"x".repeat(63)] {
            assert!(good.parse::<MachineName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a_b",
            "a\n",
            "é",
            "a b",
            "../x",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<MachineName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn service_names_start_with_a_letter() {
        for good in ["a", "file_sign", "s2"] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "2s",
            "_a",
            "a-b",
            "A",
            "a\n",
            "../../x y",
            &"x".repeat(65),
        ] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_tool_reads_back_from_its_name() {
        for tool in ToolName::ALL {
            assert_eq!(tool.as_str().parse(), Ok(tool));
        }
        assert_eq!("gpg_sign ".parse::<ToolName>(), Err(UnknownTool));
    }

    #[test]
    fn a_near_miss_is_suggested_and_noise_is_not() {
        let names = ["work-dev", "vault-signer"];
        assert_eq!(closest("wrok-dev", names), Some("work-dev"));
        assert_eq!(closest("zzz", names), None);
    }
}
