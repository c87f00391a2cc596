//! Prints a tool's result: its text, or the whole result as JSON.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _, Seek as _, Write as _};

use base64::engine::general_purpose::STANDARD;
use base64::write::EncoderWriter;
use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};
use serde_json::Value;

use crate::command::output::Output;
use crate::error::{Exit, Failure};
use crate::mcp::client::{Called, WORDS_SHOWN};
use crate::text::{self, Foreign, write_json};
use crate::transport::Transport;

/// The answer to a call.
#[derive(Debug)]
pub(super) enum CallAnswer {
    /// The whole result is in the message.
    Whole(Called),
    /// The content is in a file, as bytes, and not in the result.
    InFile {
        /// The rest of the result.
        result: Foreign<CallToolResult>,
        /// The content, already checked.
        file: File,
    },
}

/// Prints an answer; a failed tool or a refused call is a failure.
pub(super) fn report(
    tool: &str,
    answer: CallAnswer,
    channel: &Transport,
    output: &Output,
) -> anyhow::Result<Exit> {
    let called = match answer {
        CallAnswer::Whole(called) => called,
        CallAnswer::InFile { result, file } => {
            print_file(&result, file, output.is_json())?;
            return Ok(Exit::Done);
        }
    };
    if output.is_json() {
        output.json(&called.value()?)?;
    }
    if !called.has_failed() {
        if !output.is_json() {
            output.answer(text_out(&text(called.result.raw())).as_bytes())?;
            note_rest(called.result.raw(), output);
        }
        return Ok(Exit::Done);
    }
    let (tool, reason) = (tool.escape_debug(), reason(&text(called.result.raw())));
    let failure = if matches!(channel, Transport::Socket(_)) && called.is_refused() {
        let failure = Failure::new(Exit::Refused, format!("`{tool}` is refused: {reason}"));
        failure.help("leave it out: the provider sets it")
    } else {
        Failure::new(Exit::Failed, format!("`{tool}` failed: {reason}"))
    };
    if output.is_json() {
        // The result, already printed, holds the reason.
        output.failure(&failure.message, failure.help.as_deref());
        return Ok(failure.exit);
    }
    Err(failure.into())
}

/// Notes that an answer is only a part of its content.
fn note_rest(result: &CallToolResult, output: &Output) {
    let member = |name: &str| result.structured_content.as_ref()?.get(name);
    let number = |name: &str| member(name).and_then(Value::as_u64);
    if let (Some(Value::Bool(false)), Some(size), Some(offset), Some(length)) = (
        member("complete"),
        number("size"),
        number("offset"),
        number("length"),
    ) {
        let next = offset.saturating_add(length);
        output.say(&format!(
            "note: {length} of {size} bytes; the rest begins at offset {next}"
        ));
    }
}

/// Returns the text for a shell user: the tool's text, and a line for each item of another kind.
fn text(result: &CallToolResult) -> Foreign {
    if result.content.is_empty()
        && let Some(structured) = &result.structured_content
    {
        return Foreign::new(structured.to_string());
    }
    let blocks: Vec<String> = result.content.iter().map(block).collect();
    Foreign::new(blocks.join("\n"))
}

fn block(block: &ContentBlock) -> String {
    match block {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(image) => encoded("image", &image.mime_type, &image.data),
        ContentBlock::Audio(audio) => encoded("audio", &audio.mime_type, &audio.data),
        ContentBlock::Resource(resource) => match &resource.resource {
            ResourceContents::TextResourceContents { uri, .. }
            | ResourceContents::BlobResourceContents { uri, .. } => named(uri),
            _ => "[resource]".to_owned(),
        },
        ContentBlock::ResourceLink(link) => named(&link.uri),
        _ => "[content of an unknown kind]".to_owned(),
    }
}

fn encoded(kind: &str, mime: &str, data: &str) -> String {
    let (mime, size) = (word(mime), text::bytes(data.len()));
    format!("[{kind} {mime}, {size} in base64]")
}

fn named(uri: &str) -> String {
    format!("[resource {}]", word(uri))
}

/// Escapes a server's text for use in anklume's own lines, even for a pipe, because it is not the tool's text.
fn word(text: &str) -> String {
    /// Maximum length, in characters.
    const MAX: usize = 500;
    Foreign::new(text).one_line(MAX)
}

/// Returns the tool's text: unchanged for a pipe; for a terminal, escaped and with a final newline.
pub(in crate::command) fn text_out(text: &Foreign) -> String {
    if !io::stdout().is_terminal() {
        return text.raw().clone();
    }
    let mut safe = text.lines();
    if !safe.is_empty() && !safe.ends_with('\n') {
        safe.push('\n');
    }
    safe
}

/// Returns a server's reason for a failure, with continuation lines marked to distinguish them from anklume's own.
fn reason(text: &Foreign) -> String {
    let reason = text.part(|text| {
        let cut: String = text.trim_end().chars().take(WORDS_SHOWN).collect();
        cut.trim().to_owned()
    });
    match reason.lines().as_str() {
        "" => "it gives no reason".to_owned(),
        reason => reason.replace('\n', "\n  | "),
    }
}

/// Prints content that came in pieces as if it had come as a whole: as base64, using constant memory.
fn print_file(
    result: &Foreign<CallToolResult>,
    mut file: File,
    is_json: bool,
) -> anyhow::Result<()> {
    file.rewind()?;
    let mut stdout = io::stdout().lock();
    if is_json {
        let mut rest = serde_json::to_value(result)?;
        if let Value::Object(rest) = &mut rest {
            rest.remove("content");
        }
        stdout.write_all(br#"{"content":[{"type":"text","text":""#)?;
        print_base64(&mut file, &mut stdout)?;
        stdout.write_all(br#""}],"#)?;
        let mut text = Vec::new();
        write_json(&mut text, &rest)?;
        stdout.write_all(text.strip_prefix(b"{").unwrap_or(&text))?;
    } else {
        print_base64(&mut file, &mut stdout)?;
        if stdout.is_terminal() {
            stdout.write_all(b"\n")?;
        }
    }
    Ok(stdout.flush()?)
}

fn print_base64(file: &mut File, stdout: &mut impl io::Write) -> io::Result<()> {
    let mut encoder = EncoderWriter::new(stdout, &STANDARD);
    io::copy(&mut BufReader::with_capacity(64 * 1024, file), &mut encoder)?;
    encoder.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_described_on_one_line_without_escapes() {
        let cases = [
            (
                r#"{"type":"image","data":"AAAA","mimeType":"a\u001b[2J\nb"}"#,
                "[image a\\u{1b}[2J, 4 bytes in base64]",
            ),
            (
                r#"{"type":"resource_link","uri":"file:\u202e","name":"x"}"#,
                "[resource file:\\u{202e}]",
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(block(&serde_json::from_str(json).unwrap()), expected);
        }
    }
}
