//! Reads a call's arguments from the command line before the tool is known, then converts them to its schema's types.

use std::fs::File;
use std::io::{self, Seek as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rmcp::model::Tool;
use serde_json::{Map, Number, Value};

use crate::catalogue::ONE_CALL_MAX;
use crate::dir::closest_file;
use crate::error::{Exit, Failure};
use crate::mcp::client::pieces::{self, ArgumentPayload, PayloadSource, Pieces};
use crate::mcp::framing::json;
use crate::name::closest;
use crate::text;

/// Maximum length of an object read from stdin, in bytes.
const OBJECT_MAX: u64 = 256 * 1024 * 1024;
/// Maximum length of a user's word in a message, in characters.
const WORD_MAX: usize = 60;
/// Forms of arguments after the tool's name.
const FORMS: &str = "write `key=value`, `key=@FILE`, `key=-` (stdin), `key:=JSON`, one JSON object, or `-` (the object from stdin)";

const ALONE: &str = "one JSON object, or `-`, must be the only argument";

/// The arguments on the command line.
#[derive(Debug)]
pub(super) enum RawArguments {
    /// One JSON object.
    Object(Map<String, Value>),
    /// One JSON object, on stdin.
    Stdin,
    /// Separate arguments, in order; keys are unique. Empty if there are no arguments.
    Pairs(Vec<(String, RawArgument)>),
}

/// One value on the command line.
#[derive(Debug)]
pub(super) enum RawArgument {
    /// `key=value`
    Text(String),
    /// `key:=JSON`
    Json(Value),
    /// `key=@FILE` or `key=-`, already opened.
    Content {
        /// For messages: the file's path, or `stdin`.
        from: String,
        /// The bytes.
        source: PayloadSource,
    },
}

impl RawArguments {
    /// Returns whether no arguments were given.
    pub(super) const fn is_empty(&self) -> bool {
        matches!(self, Self::Pairs(pairs) if pairs.is_empty())
    }
}

/// Parses the arguments after the tool's name and opens files, so that a missing file is reported before any request.
pub(super) fn parse(args: &[String]) -> Result<RawArguments, Failure> {
    if let [arg] = args {
        if arg == "-" {
            return Ok(RawArguments::Stdin);
        }
        if arg.trim_start().starts_with('{') {
            return object(arg).map(RawArguments::Object);
        }
    }
    let mut pairs: Vec<(String, RawArgument)> = Vec::new();
    let mut stdin_taken = false;
    for arg in args {
        let malformed = || {
            let message = format!("`{}` is not an argument", escaped(arg));
            let is_object = arg == "-" || arg.trim_start().starts_with('{');
            let help = if is_object { ALONE } else { FORMS };
            Failure::new(Exit::Usage, message).help(help)
        };
        let (key, text) = arg.split_once('=').ok_or_else(malformed)?;
        let (key, json) = match key.strip_suffix(':') {
            Some(key) => (key, Some(json_value(key, text)?)),
            None => (key, None),
        };
        if key.is_empty() {
            return Err(malformed());
        }
        if pairs.iter().any(|(earlier, _)| earlier == key) {
            let message = format!("argument `{}` is given twice", key.escape_debug());
            return Err(Failure::new(Exit::Usage, message));
        }
        let value = match json {
            Some(value) => RawArgument::Json(value),
            None => open_value(key, text, &mut stdin_taken)?,
        };
        pairs.push((key.to_owned(), value));
    }
    Ok(RawArguments::Pairs(pairs))
}

/// Returns stdin as a payload; its size is known if it is a file that is read from its beginning.
fn stdin() -> PayloadSource {
    if let Ok(mut file) = io::stdin().as_fd().try_clone_to_owned().map(File::from)
        && file.stream_position().is_ok_and(|position| position == 0)
    {
        return PayloadSource::of_file(file);
    }
    PayloadSource::new(io::stdin())
}

fn open_value(key: &str, text: &str, stdin_taken: &mut bool) -> Result<RawArgument, Failure> {
    if text == "-" || text == "@-" {
        if std::mem::replace(stdin_taken, true) {
            let message = "only one argument can come from stdin";
            return Err(Failure::new(Exit::Usage, message));
        }
        return Ok(RawArgument::Content {
            from: "stdin".to_owned(),
            source: stdin(),
        });
    }
    let Some(path) = text.strip_prefix('@') else {
        return Ok(RawArgument::Text(text.to_owned()));
    };
    Ok(RawArgument::Content {
        from: format!("`{}`", path.escape_debug()),
        source: PayloadSource::of_file(open_file(key, path)?),
    })
}

/// Opens a file or a pipe. Rejects a device, which may never end.
fn open_file(key: &str, path: &str) -> Result<File, Failure> {
    let kind = std::fs::metadata(path).map(|metadata| metadata.file_type());
    if kind.is_ok_and(|kind| kind.is_char_device() || kind.is_block_device()) && path != "/dev/null"
    {
        let message = format!("`{}` is a device, not a file", path.escape_debug());
        return Err(Failure::new(Exit::Failed, message)
            .help("to type the value, use `key=-`; for part of a device: `head -c BYTES DEVICE | anklume mcp call … key=-`"));
    }
    File::open(path).map_err(|why| {
        let message = format!("`{}` cannot be read: {why}", path.escape_debug());
        let key = key.escape_debug();
        let text = format!(
            "`@` before a name means a file; for text that begins with it: {key}:='\"@…\"'"
        );
        let help = match (why.kind(), closest_file(Path::new(path))) {
            (io::ErrorKind::NotFound, Some(near)) => format!("did you mean `{near}`? {text}"),
            _ => text,
        };
        Failure::new(Exit::Failed, message).help(help)
    })
}

fn json_value(key: &str, text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).map_err(|why| {
        let message = format!("argument `{}` is not JSON: {why}", key.escape_debug());
        Failure::new(Exit::Usage, message).help(
            "JSON text needs quotes, and the shell needs its own around them: key:='\"text\"'",
        )
    })
}

/// Parses a JSON object as strictly as a server does: a key may not occur twice.
fn object(text: &str) -> Result<Map<String, Value>, Failure> {
    json::read_object(text.as_bytes()).map_err(|why| {
        let message = format!("the arguments are not a JSON object: {why}");
        Failure::new(Exit::Usage, message)
    })
}

/// Escapes and truncates a user's word for a message.
pub(super) fn escaped(word: &str) -> String {
    text::shown(word, WORD_MAX)
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    /// The arguments in the message.
    pub(super) object: Map<String, Value>,
    /// An argument too large for the message.
    pub(super) payload: Option<ArgumentPayload>,
}

/// Types raw arguments according to the tool's schema.
pub(super) async fn typed(raw: RawArguments, tool: &Tool) -> Result<Arguments, Failure> {
    let mut arguments = Arguments::default();
    match raw {
        RawArguments::Object(object) => arguments.object = object,
        RawArguments::Stdin => arguments.object = object_from_stdin().await?,
        RawArguments::Pairs(pairs) => {
            for (key, value) in pairs {
                arguments.add(tool, key, value).await?;
            }
        }
    }
    arguments.split(tool);
    Ok(arguments)
}

async fn object_from_stdin() -> Result<Map<String, Value>, Failure> {
    let bytes = PayloadSource::new(io::stdin())
        .read(OBJECT_MAX + 1)
        .await
        .map_err(|why| Failure::new(Exit::Failed, format!("stdin cannot be read: {why}")))?;
    if bytes.len() as u64 > OBJECT_MAX {
        let message = format!("the object on stdin has more than {OBJECT_MAX} bytes");
        return Err(Failure::new(Exit::Usage, message).help("`key=@FILE` takes up to 4 GiB"));
    }
    let text = String::from_utf8(bytes).map_err(|why| {
        let at = why.utf8_error().valid_up_to();
        Failure::new(Exit::Usage, format!("stdin is not UTF-8 at byte {at}"))
    })?;
    object(&text)
}

impl Arguments {
    async fn add(&mut self, tool: &Tool, key: String, raw: RawArgument) -> Result<(), Failure> {
        check_known(tool, &key)?;
        let is_base64 = pieces::is_base64(tool, &key);
        let value = match raw {
            RawArgument::Json(value) => value,
            RawArgument::Text(_) if is_base64 => return Err(text_or_base64(&key)),
            RawArgument::Text(text) => from_text(tool, &key, text)?,
            RawArgument::Content { from, mut source } => {
                let start = source.read(ONE_CALL_MAX + 1).await.map_err(|why| {
                    Failure::new(Exit::Failed, format!("{from} cannot be read: {why}"))
                })?;
                match (pieces::of(tool), start.len() as u64 <= ONE_CALL_MAX) {
                    (_, true) if is_base64 => STANDARD.encode(&start).into(),
                    (_, true) => from_text(tool, &key, utf8(&key, &from, start)?)?,
                    (
                        Pieces::Up {
                            argument,
                            size,
                            digest,
                        },
                        false,
                    ) if is_base64 && argument == key => {
                        self.payload = Some(ArgumentPayload {
                            name: key,
                            size,
                            digest,
                            resume: false,
                            source: source.after(start),
                        });
                        return Ok(());
                    }
                    (_, false) => return Err(too_large(tool, &from, &key)),
                }
            }
        };
        self.object.insert(key, value);
        Ok(())
    }

    /// Moves a payload that is too large for one message out of the object, unless the user sends pieces.
    fn split(&mut self, tool: &Tool) {
        let Pieces::Up {
            argument,
            size,
            digest,
        } = pieces::of(tool)
        else {
            return;
        };
        if self.object.contains_key("offset") || self.object.contains_key("final") {
            return;
        }
        let Some(Value::String(encoded)) = self.object.get(&argument) else {
            return;
        };
        let padding = encoded.len() - encoded.trim_end_matches('=').len();
        if (encoded.len() / 4 * 3).saturating_sub(padding) as u64 <= ONE_CALL_MAX {
            return;
        }
        // The server explains invalid base64.
        if let Ok(bytes) = STANDARD.decode(encoded) {
            self.object.remove(&argument);
            self.payload = Some(ArgumentPayload {
                name: argument,
                size,
                digest,
                resume: false,
                source: PayloadSource::new(io::Cursor::new(bytes)),
            });
        }
    }
}

/// Reports that plain text for bytes is ambiguous: `test` could be four bytes, or base64 for three others.
fn text_or_base64(key: &str) -> Failure {
    let key = key.escape_debug();
    let message = format!(
        "`{key}` takes bytes, and plain text is ambiguous: it could be the bytes or their base64"
    );
    Failure::new(Exit::Usage, message).help(format!(
        "a file: `{key}=@FILE`; stdin: `printf TEXT | anklume mcp call … {key}=-`; base64: `{key}:='\"…\"'`"
    ))
}

fn too_large(tool: &Tool, from: &str, key: &str) -> Failure {
    let max = pieces::argument(tool, key).and_then(|schema| schema.get("maxLength"));
    let limit = match max.and_then(Value::as_u64) {
        Some(max) if !pieces::is_base64(tool, key) => format!("{max} characters"),
        _ => format!("{} MiB", ONE_CALL_MAX / 1024 / 1024),
    };
    let key = key.escape_debug();
    let message = format!("{from} is too large for `{key}`, which takes at most {limit}");
    Failure::new(Exit::Failed, message)
}

fn utf8(key: &str, from: &str, bytes: Vec<u8>) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|why| {
        let at = why.utf8_error().valid_up_to();
        let message = format!(
            "{from} is not UTF-8 at byte {at}, but `{}` is a string",
            key.escape_debug()
        );
        Failure::new(Exit::Failed, message)
    })
}

/// Rejects an argument that the tool does not have; a tool without a schema accepts any.
fn check_known(tool: &Tool, key: &str) -> Result<(), Failure> {
    let names: Vec<&str> = pieces::arguments(tool).map(String::as_str).collect();
    let open = !tool.input_schema.contains_key("properties")
        && tool.input_schema.get("additionalProperties") != Some(&Value::Bool(false));
    if open || names.contains(&key) {
        return Ok(());
    }
    let tool = escaped(&tool.name);
    let message = format!("`{tool}` has no argument `{}`", escaped(key));
    let listed: Vec<String> = names.iter().map(|name| escaped(name)).collect();
    let all = if names.is_empty() {
        "it takes none".to_owned()
    } else {
        format!("its arguments: {}", listed.join(", "))
    };
    let help = match closest(key, names) {
        Some(near) => format!("did you mean `{}`? {all}", escaped(near)),
        None => all,
    };
    Err(Failure::new(Exit::Usage, message).help(help))
}

/// Rejects a call that lacks an argument that the tool requires.
pub(super) fn check_required(tool: &Tool, arguments: &Arguments) -> Result<(), Failure> {
    let required = tool.input_schema.get("required").and_then(Value::as_array);
    let required = required.into_iter().flatten().filter_map(Value::as_str);
    let given = |name: &str| {
        let payload = arguments.payload.as_ref();
        arguments.object.contains_key(name) || payload.is_some_and(|payload| payload.name == name)
    };
    let missing: Vec<&str> = required.filter(|name| !given(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = missing
        .iter()
        .map(|name| format!("`{}`", escaped(name)))
        .collect();
    let message = format!("`{}` needs {}", escaped(&tool.name), names.join(" and "));
    let forms = missing.iter().map(|name| {
        let value = if pieces::is_base64(tool, name) {
            "@FILE"
        } else {
            "VALUE"
        };
        format!("{}={value}", escaped(name))
    });
    let forms: Vec<String> = forms.collect();
    let help = format!(
        "write `{}`; `-` instead of a value reads stdin",
        forms.join(" ")
    );
    Err(Failure::new(Exit::Usage, message).help(help))
}

/// Rejects a part of a transfer, which would end with this command's connection.
pub(super) fn check_pieces(tool: &Tool, arguments: &Arguments) -> Result<(), Failure> {
    let object = &arguments.object;
    let is_part = object.contains_key("offset") || object.contains_key("final");
    let is_last = object.get("final") == Some(&true.into())
        && object.get("offset") == Some(&0.into())
        && arguments.payload.is_none();
    if !is_part || is_last || !matches!(pieces::of(tool), Pieces::Up { .. }) {
        return Ok(());
    }
    let message = "a transfer in pieces ends with the connection, and so with this command";
    Err(Failure::new(Exit::Usage, message)
        .help("leave out `offset` and `final`: large content is sent in pieces automatically"))
}

/// Returns the JSON types that a schema allows.
fn types<'a>(tool: &'a Tool, key: &str) -> Vec<&'a str> {
    match pieces::argument(tool, key).and_then(|schema| schema.get("type")) {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(types)) => types.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// Converts text to the type in the schema; it stays a string if the schema allows one.
fn from_text(tool: &Tool, key: &str, text: String) -> Result<Value, Failure> {
    let types = types(tool, key);
    let wrong = |expected: &str| {
        let message = format!(
            "argument `{}` must be {expected}, not `{}`",
            key.escape_debug(),
            escaped(&text)
        );
        Failure::new(Exit::Usage, message)
    };
    match types.iter().find(|one| **one != "null").copied() {
        _ if types.contains(&"string") => Ok(text.into()),
        Some("integer") => whole_number(&text).ok_or_else(|| wrong("a whole number")),
        Some("number") => serde_json::from_str::<Number>(&text)
            .map(Value::Number)
            .map_err(|_| wrong("a number")),
        Some("boolean") => match text.as_str() {
            "true" => Ok(true.into()),
            "false" => Ok(false.into()),
            _ => Err(wrong("`true` or `false`")),
        },
        Some(kind @ ("object" | "array")) => Err(wrong(&format!("an {kind}"))
            .help(format!("write it in JSON: `{}:=…`", key.escape_debug()))),
        _ => Ok(text.into()),
    }
}

fn whole_number(text: &str) -> Option<Value> {
    let positive = text.parse::<u64>().map(Value::from);
    positive
        .or_else(|_| text.parse::<i64>().map(Value::from))
        .ok()
}

#[cfg(test)]
mod tests;
