//! From the arguments as given to the arguments of the call, typed by the tool's schema.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rmcp::model::Tool;
use serde_json::{Map, Number, Value};

use super::raw_args::{Given, GivenValue, object, shown};
use crate::catalogue::ONE_CALL_MAX;
use crate::error::{Exit, Failure};
use crate::mcp::client::pieces::{self, PayloadSource, Pieces};
use crate::name::closest;

/// Maximum length of an object that is read from stdin, in bytes.
const OBJECT_MAX: u64 = 256 * 1024 * 1024;

/// The arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    /// Parts of the message.
    pub(super) object: Map<String, Value>,
    /// What is too large for it and goes in pieces.
    pub(super) payload: Option<ArgumentPayload>,
}

/// A payload that goes in pieces.
#[derive(Debug)]
pub(super) struct ArgumentPayload {
    /// The argument.
    pub(super) name: String,
    /// The tool takes the digest of the whole.
    pub(super) digest: bool,
    /// The bytes.
    pub(super) source: PayloadSource,
}

/// Types what was given by the tool's schema.
pub(super) async fn typed(given: Given, tool: &Tool) -> Result<Arguments, Failure> {
    let mut arguments = Arguments::default();
    match given {
        Given::Object(object) => arguments.object = object,
        Given::Stdin => arguments.object = object_from_stdin().await?,
        Given::Pairs(pairs) => {
            for (key, value) in pairs {
                arguments.add(tool, key, value).await?;
            }
        }
    }
    arguments.split(tool);
    Ok(arguments)
}

async fn object_from_stdin() -> Result<Map<String, Value>, Failure> {
    let bytes = PayloadSource::new(std::io::stdin())
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
    async fn add(&mut self, tool: &Tool, key: String, value: GivenValue) -> Result<(), Failure> {
        known(tool, &key)?;
        match value {
            GivenValue::Json(value) => {
                self.object.insert(key, value);
            }
            GivenValue::Text(_) if pieces::is_base64(tool, &key) => {
                return Err(text_or_base64(&key));
            }
            GivenValue::Text(text) => {
                let value = from_text(tool, &key, text)?;
                self.object.insert(key, value);
            }
            GivenValue::Content { from, source } => {
                self.add_content(tool, key, &from, source).await?;
            }
        }
        Ok(())
    }

    async fn add_content(
        &mut self,
        tool: &Tool,
        key: String,
        from: &str,
        mut source: PayloadSource,
    ) -> Result<(), Failure> {
        let start = source
            .read(ONE_CALL_MAX + 1)
            .await
            .map_err(|why| Failure::new(Exit::Failed, format!("{from} cannot be read: {why}")))?;
        let fits = start.len() as u64 <= ONE_CALL_MAX;
        if !pieces::is_base64(tool, &key) {
            let text = text(&key, from, start, fits)?;
            let value = from_text(tool, &key, text)?;
            self.object.insert(key, value);
        } else if fits {
            self.object.insert(key, STANDARD.encode(&start).into());
        } else if let Pieces::Up { argument, digest } = pieces::of(tool)
            && argument == key
        {
            self.payload = Some(ArgumentPayload {
                name: key,
                digest,
                source: source.after(start),
            });
        } else {
            return Err(too_large(from, &key));
        }
        Ok(())
    }

    /// Takes a payload that is too large for one message out of it; not where the caller says which piece it is.
    fn split(&mut self, tool: &Tool) {
        let Pieces::Up { argument, digest } = pieces::of(tool) else {
            return;
        };
        if self.object.contains_key("offset") || self.object.contains_key("final") {
            return;
        }
        let Some(Value::String(encoded)) = self.object.get(&argument) else {
            return;
        };
        let padding = encoded
            .bytes()
            .rev()
            .take_while(|byte| *byte == b'=')
            .count();
        if (encoded.len() / 4 * 3).saturating_sub(padding) as u64 <= ONE_CALL_MAX {
            return;
        }
        // What is not base64 is left to the server's own words.
        if let Ok(bytes) = STANDARD.decode(encoded) {
            self.object.remove(&argument);
            self.payload = Some(ArgumentPayload {
                name: argument,
                digest,
                source: PayloadSource::new(std::io::Cursor::new(bytes)),
            });
        }
    }
}

/// A text for an argument of bytes: `test` is four bytes as it stands, and three others in base64.
fn text_or_base64(key: &str) -> Failure {
    let key = key.escape_debug();
    let message = format!(
        "`{key}` takes bytes, and plain text is ambiguous: it could be the bytes or their base64"
    );
    Failure::new(Exit::Usage, message).help(format!(
        "a file: `{key}=@FILE`; stdin: `printf TEXT | anklume mcp call … {key}=-`; base64: `{key}:='\"…\"'`"
    ))
}

fn too_large(from: &str, key: &str) -> Failure {
    let limit = ONE_CALL_MAX / 1024 / 1024;
    let message = format!(
        "{from} has more than {limit} MiB, and `{}` takes no more",
        key.escape_debug()
    );
    Failure::new(Exit::Failed, message)
}

fn text(key: &str, from: &str, bytes: Vec<u8>, fits: bool) -> Result<String, Failure> {
    if !fits {
        return Err(too_large(from, key));
    }
    String::from_utf8(bytes).map_err(|why| {
        let at = why.utf8_error().valid_up_to();
        let message = format!(
            "{from} is not UTF-8 at byte {at}, and `{}` is a text",
            key.escape_debug()
        );
        Failure::new(Exit::Failed, message)
    })
}

/// An argument that the tool does not have is a mistake; a tool that says nothing of its arguments takes any.
fn known(tool: &Tool, key: &str) -> Result<(), Failure> {
    let names: Vec<&str> = pieces::arguments(tool).map(String::as_str).collect();
    let open = !tool.input_schema.contains_key("properties")
        && tool.input_schema.get("additionalProperties") != Some(&Value::Bool(false));
    if open || names.contains(&key) {
        return Ok(());
    }
    let tool = shown(&tool.name);
    let message = format!("`{tool}` has no argument `{}`", shown(key));
    let listed: Vec<String> = names.iter().map(|name| shown(name)).collect();
    let all = if names.is_empty() {
        "it takes none".to_owned()
    } else {
        format!("its arguments: {}", listed.join(", "))
    };
    let help = match closest(key, names) {
        Some(near) => format!("did you mean `{}`? {all}", shown(near)),
        None => all,
    };
    Err(Failure::new(Exit::Usage, message).help(help))
}

/// The kinds of value that a schema asks for.
fn kinds<'a>(tool: &'a Tool, key: &str) -> Vec<&'a str> {
    match pieces::argument(tool, key).and_then(|schema| schema.get("type")) {
        Some(Value::String(kind)) => vec![kind],
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// A text as the value that the schema asks for. Where text is possible, it stays text.
fn from_text(tool: &Tool, key: &str, text: String) -> Result<Value, Failure> {
    let kinds = kinds(tool, key);
    let wrong = |expected: &str| {
        let message = format!(
            "argument `{}` is {expected}, not `{}`",
            key.escape_debug(),
            shown(&text)
        );
        Failure::new(Exit::Usage, message)
    };
    match kinds.iter().find(|kind| **kind != "null").copied() {
        _ if kinds.contains(&"string") => Ok(text.into()),
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
    if let Ok(number) = text.parse::<u64>() {
        return Some(number.into());
    }
    text.parse::<i64>().ok().map(Value::from)
}

#[cfg(test)]
mod tests {
    use super::super::raw_args::parse;
    use super::*;

    fn tool() -> Tool {
        let schema = r#"{"name":"t","outputSchema":{"type":"object","properties":{"complete":{}}},
            "inputSchema":{"type":"object","additionalProperties":false,"properties":{
            "text":{"type":"string"},"maybe":{"type":["integer","null"]},"ratio":{"type":"number"},
            "final":{"type":"boolean"},"list":{"type":"array"},"offset":{"type":"integer"},
            "data":{"type":"string"}}},
            "_meta":{"anklume/base64":["data"]}}"#;
        serde_json::from_str(schema).unwrap()
    }

    async fn made(words: &[&str]) -> Result<Arguments, Failure> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        typed(parse(&words)?, &tool()).await
    }

    #[tokio::test]
    async fn values_get_the_type_of_the_schema() {
        let words = [
            "text=1",
            "maybe=-7",
            "ratio=1.5e3",
            "final=true",
            "list:=[1]",
        ];
        let arguments = made(&words).await.unwrap();
        let expected = r#"{"text":"1","maybe":-7,"ratio":1500.0,"final":true,"list":[1]}"#;
        assert_eq!(serde_json::to_string(&arguments.object).unwrap(), expected);
    }

    #[tokio::test]
    async fn a_value_of_another_type_and_an_unknown_key_are_usage_errors() {
        let cases = [
            (
                "maybe=x",
                "argument `maybe` is a whole number, not `x`",
                None,
            ),
            (
                "maybe=1.0",
                "argument `maybe` is a whole number, not `1.0`",
                None,
            ),
            ("ratio=NaN", "argument `ratio` is a number, not `NaN`", None),
            (
                "final=yes",
                "argument `final` is `true` or `false`, not `yes`",
                None,
            ),
            (
                "list=1",
                "argument `list` is an array, not `1`",
                Some("write it in JSON: `list:=…`"),
            ),
            (
                "data=test",
                "`data` takes bytes, and plain text is ambiguous: it could be the bytes or their base64",
                Some(
                    "a file: `data=@FILE`; stdin: `printf TEXT | anklume mcp call … data=-`; base64: `data:='\"…\"'`",
                ),
            ),
            (
                "txet=1",
                "`t` has no argument `txet`",
                Some(
                    "did you mean `text`? its arguments: text, maybe, ratio, final, list, offset, data",
                ),
            ),
        ];
        for (word, message, help) in cases {
            let failure = made(&[word]).await.unwrap_err();
            assert_eq!(
                (
                    failure.exit,
                    failure.message.as_str(),
                    failure.help.as_deref()
                ),
                (Exit::Usage, message, help)
            );
        }
    }

    #[tokio::test]
    async fn files_become_base64_where_the_schema_says_so_and_text_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "é").unwrap();
        let path = path.to_str().unwrap();
        let words = [format!("text=@{path}"), format!("data=@{path}")];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let arguments = made(&words).await.unwrap();
        let expected = r#"{"text":"é","data":"w6k="}"#;
        assert_eq!(serde_json::to_string(&arguments.object).unwrap(), expected);
        std::fs::write(path, [b'a', 0xff]).unwrap();
        let failure = made(&words[..1]).await.unwrap_err();
        let message = format!("`{path}` is not UTF-8 at byte 1, and `text` is a text");
        assert_eq!((failure.exit, failure.message), (Exit::Failed, message));
    }

    #[tokio::test]
    async fn only_what_is_too_large_for_one_call_goes_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let word = format!("data=@{}", path.to_str().unwrap());
        let limit = usize::try_from(ONE_CALL_MAX).unwrap();
        for (size, pieces) in [(limit, false), (limit + 1, true)] {
            std::fs::write(&path, vec![0; size]).unwrap();
            let arguments = made(&[&word]).await.unwrap();
            assert_eq!(arguments.payload.is_some(), pieces, "{size}");
            assert_eq!(arguments.object.contains_key("data"), !pieces, "{size}");
            let object = format!(r#"{{"data":"{}"}}"#, STANDARD.encode(vec![0; size]));
            let arguments = made(&[&object]).await.unwrap();
            assert_eq!(arguments.payload.is_some(), pieces, "{size} in an object");
        }
    }
}
