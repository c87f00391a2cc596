//! The arguments of a call as they stand on the command line: shape alone, before any tool is known.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt as _;

use serde_json::{Map, Value};

use crate::error::{Exit, Failure};
use crate::mcp::client::pieces::PayloadSource;
use crate::mcp::framing::json;
use crate::text;

/// Forms of arguments after the tool's name.
const FORMS: &str = "write `key=value`, `key=@FILE`, `key=-` (stdin), `key:=JSON`, one JSON object, or `-` (the object from stdin)";

/// The arguments as given.
#[derive(Debug)]
pub(super) enum Given {
    /// One JSON object.
    Object(Map<String, Value>),
    /// One JSON object, on stdin.
    Stdin,
    /// One argument each, in the order given; no key is there twice. Empty: nothing was given.
    Pairs(Vec<(String, GivenValue)>),
}

/// One value as given.
#[derive(Debug)]
pub(super) enum GivenValue {
    /// `key=value`
    Text(String),
    /// `key:=JSON`
    Json(Value),
    /// `key=@FILE` or `key=-`, open.
    Content {
        /// For messages: the file's path, or `stdin`.
        from: String,
        /// The bytes.
        source: PayloadSource,
    },
}

impl Given {
    /// Returns whether there are no arguments at all.
    pub(super) const fn is_nothing(&self) -> bool {
        matches!(self, Self::Pairs(pairs) if pairs.is_empty())
    }
}

/// Reads the words after the tool's name. Files are opened, so that one that is missing is known before anything is asked.
pub(super) fn parse(words: &[String]) -> Result<Given, Failure> {
    if let [word] = words {
        if word == "-" {
            return Ok(Given::Stdin);
        }
        if word.trim_start().starts_with('{') {
            return object(word).map(Given::Object);
        }
    }
    let mut pairs: Vec<(String, GivenValue)> = Vec::new();
    let mut stdin_taken = false;
    for word in words {
        let (key, value) = pair(word)?;
        if pairs.iter().any(|(earlier, _)| *earlier == key) {
            let message = format!("argument `{}` is given twice", key.escape_debug());
            return Err(Failure::new(Exit::Usage, message));
        }
        let value = value.open(&mut stdin_taken)?;
        pairs.push((key, value));
    }
    Ok(Given::Pairs(pairs))
}

/// A value whose source is not open yet.
enum Written<'a> {
    Text(&'a str),
    Json(Value),
    File(&'a str),
    Stdin,
}

fn pair(word: &str) -> Result<(String, Written<'_>), Failure> {
    let shape = || {
        let message = format!("`{}` is not an argument", shown(word));
        Failure::new(Exit::Usage, message).help(FORMS)
    };
    let (key, value) = word.split_once('=').ok_or_else(shape)?;
    let (key, value) = match (key.strip_suffix(':'), value.strip_prefix('@')) {
        (Some(key), _) => (key, Written::Json(json_value(key, value)?)),
        (None, Some("-")) => (key, Written::Stdin),
        (None, Some(path)) => (key, Written::File(path)),
        (None, None) if value == "-" => (key, Written::Stdin),
        (None, None) => (key, Written::Text(value)),
    };
    if key.is_empty() {
        return Err(shape());
    }
    Ok((key.to_owned(), value))
}

impl Written<'_> {
    fn open(self, stdin_taken: &mut bool) -> Result<GivenValue, Failure> {
        match self {
            Self::Text(text) => Ok(GivenValue::Text(text.to_owned())),
            Self::Json(value) => Ok(GivenValue::Json(value)),
            Self::Stdin if *stdin_taken => {
                let message = "stdin can be one argument only";
                Err(Failure::new(Exit::Usage, message))
            }
            Self::Stdin => {
                *stdin_taken = true;
                Ok(GivenValue::Content {
                    from: "stdin".to_owned(),
                    source: PayloadSource::new(io::stdin()),
                })
            }
            Self::File(path) => {
                let file = open(path)?;
                Ok(GivenValue::Content {
                    from: format!("`{}`", path.escape_debug()),
                    source: PayloadSource::new(file),
                })
            }
        }
    }
}

/// Opens a file or a pipe; a device is neither, and may never end.
fn open(path: &str) -> Result<File, Failure> {
    let kind = std::fs::metadata(path).map(|it| it.file_type());
    if kind.is_ok_and(|kind| kind.is_char_device() || kind.is_block_device()) && path != "/dev/null"
    {
        let message = format!("`{}` is a device, not a file", path.escape_debug());
        return Err(Failure::new(Exit::Failed, message)
            .help("what a terminal says comes in with `key=-`; part of a device: `head -c BYTES DEVICE | anklume mcp call … key=-`"));
    }
    File::open(path).map_err(|why| unreadable(path, &why))
}

fn unreadable(path: &str, why: &io::Error) -> Failure {
    let message = format!("`{}` cannot be read: {why}", path.escape_debug());
    Failure::new(Exit::Failed, message)
        .help("a value that begins with `@` is a file; as plain text: key:='\"@…\"'")
}

fn json_value(key: &str, text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).map_err(|why| {
        let message = format!("argument `{}` is not JSON: {why}", key.escape_debug());
        Failure::new(Exit::Usage, message)
            .help("text in JSON has quotes, and a shell wants its own around them: key:='\"text\"'")
    })
}

/// Reads a JSON object, as strictly as a server does: no object in it has a key twice.
pub(super) fn object(text: &str) -> Result<Map<String, Value>, Failure> {
    json::read_object(text.as_bytes()).map_err(|why| {
        let message = format!("the arguments are not a JSON object: {why}");
        Failure::new(Exit::Usage, message)
    })
}

/// A word of the user's, escaped and cut for a message.
pub(super) fn shown(word: &str) -> String {
    /// Characters that tell which word it was.
    const SHOWN: usize = 60;
    text::shown(word, SHOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_help_shows_works_in_a_shell() {
        for (word, expected) in [("key=@/nowhere/x", "@…"), ("key:=x", "text")] {
            let help = parse(&[word.to_owned()]).unwrap_err().help.unwrap();
            let (_, form) = help.split_once(": key").unwrap();
            #[expect(clippy::disallowed_methods, reason = "a shell is what is tested")]
            let shell = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s key{form}")])
                .output()
                .unwrap();
            let typed = String::from_utf8(shell.stdout).unwrap();
            let given = parsed(&[&typed]);
            assert_eq!(
                given,
                format!("Pairs([(\"key\", Json(String({expected:?})))])")
            );
        }
    }

    fn parsed(words: &[&str]) -> String {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        match parse(&words) {
            Ok(given) => format!("{given:?}"),
            Err(failure) => failure.message,
        }
    }

    #[test]
    fn every_form_is_read_and_a_wrong_one_is_named() {
        let cases: [(&[&str], &str); 18] = [
            (&[], "Pairs([])"),
            (&["-"], "Stdin"),
            (&[r#" {"a":1}"#], r#"Object({"a": Number(1)})"#),
            (&["a=b=c"], r#"Pairs([("a", Text("b=c"))])"#),
            (&["a="], r#"Pairs([("a", Text(""))])"#),
            (&["a=--x"], r#"Pairs([("a", Text("--x"))])"#),
            (&["a:=[1]"], r#"Pairs([("a", Json(Array [Number(1)]))])"#),
            (&["a:=\"@x\""], r#"Pairs([("a", Json(String("@x")))])"#),
            (
                &["a=-"],
                r#"Pairs([("a", Content { from: "stdin", source: Source })])"#,
            ),
            (&["a=-", "b=@-"], "stdin can be one argument only"),
            (&["a"], "`a` is not an argument"),
            (&["=a"], "`=a` is not an argument"),
            (&["a=1", "a=2"], "argument `a` is given twice"),
            (
                &["a:=x"],
                "argument `a` is not JSON: expected value at line 1 column 1",
            ),
            (
                &["a=@/nowhere/x"],
                "`/nowhere/x` cannot be read: No such file or directory (os error 2)",
            ),
            (&["a=@/dev/zero"], "`/dev/zero` is a device, not a file"),
            (
                &[r#"{"a":1,"a":2}"#],
                "the arguments are not a JSON object: the key `a` is there twice at line 1 column 10",
            ),
            (
                &[r#"{"a":1} x"#],
                "the arguments are not a JSON object: trailing characters at line 1 column 9",
            ),
        ];
        for (words, expected) in cases {
            assert_eq!(parsed(words), expected, "{words:?}");
        }
    }
}
