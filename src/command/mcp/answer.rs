//! What a tool gave back, on stdout: its text as it is, or the whole result in JSON.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Seek as _, Write as _};

use base64::engine::general_purpose::STANDARD;
use base64::write::EncoderWriter;
use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};
use serde_json::Value;

use crate::cli::Format;
use crate::command::output::Output;
use crate::error::{Exit, Failure};
use crate::mcp::client::{Called, WORDS_SHOWN};
use crate::text::{self, Foreign, write_json};
use crate::transport::Transport;

/// The answer.
#[derive(Debug)]
pub(super) enum CallAnswer {
    /// All in the message.
    Whole(Called),
    /// The content lies in a file, as bytes; the result is without it.
    Kept {
        /// The rest of the result.
        result: Foreign<CallToolResult>,
        /// The content, checked.
        file: File,
    },
}

/// Prints an answer; a tool that failed is a failure, and so is a call that was refused.
pub(super) fn report(
    tool: &str,
    answer: CallAnswer,
    channel: &Transport,
    output: &Output,
) -> anyhow::Result<Exit> {
    let called = match answer {
        CallAnswer::Whole(called) => called,
        CallAnswer::Kept { result, file } => {
            return print_kept(&result, file, output.format()).map(|()| Exit::Done);
        }
    };
    let failed = called.has_failed();
    match output.format() {
        Format::Json => {
            output.json(&called.value()?)?;
        }
        Format::Text if failed => {}
        Format::Text => output.answer(text_out(&text(called.result.raw())).as_bytes())?,
    }
    if failed {
        let words = words(&text(called.result.raw()));
        let tool = tool.escape_debug();
        let refused = matches!(channel, Transport::Socket(_)) && called.is_refused();
        return Err(if refused {
            Failure::new(Exit::Refused, format!("`{tool}` is refused: {words}"))
                .help("leave it out: the provider sets it")
        } else {
            Failure::new(Exit::Failed, format!("`{tool}` failed: {words}"))
        }
        .into());
    }
    Ok(Exit::Done)
}

/// The text that a shell user wants: what the tool wrote; a line for what is no text.
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

/// A server's word in a line of ours, which is escaped in a pipe too: it is no text of the tool's.
fn word(text: &str) -> String {
    /// Characters that are shown of it.
    const SHOWN: usize = 500;
    Foreign::new(text).one_line(SHOWN)
}

/// In a pipe a text is what the tool wrote, byte for byte. On a terminal it is escaped and ends its line.
fn text_out(text: &Foreign) -> String {
    if !io::stdout().is_terminal() {
        return text.raw().clone();
    }
    let mut safe = text.lines();
    if !safe.is_empty() && !safe.ends_with('\n') {
        safe.push('\n');
    }
    safe
}

/// A server's words about a failure; further lines are marked, so that they are not taken for ours.
fn words(said: &Foreign) -> String {
    let start = |said: &String| {
        said.trim_end()
            .chars()
            .take(WORDS_SHOWN)
            .collect::<String>()
    };
    let said = said.part(|said| start(said).trim().to_owned()).lines();
    match said.as_str() {
        "" => "it does not say why".to_owned(),
        said => said.replace('\n', "\n  | "),
    }
}

/// Prints content that came in pieces as if it had come in one: base64, in flat memory.
fn print_kept(
    result: &Foreign<CallToolResult>,
    mut file: File,
    format: Format,
) -> anyhow::Result<()> {
    file.rewind()?;
    let mut stdout = io::stdout().lock();
    match format {
        Format::Text => {
            print_base64(&mut file, &mut stdout)?;
            if stdout.is_terminal() {
                stdout.write_all(b"\n")?;
            }
        }
        Format::Json => {
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
        }
    }
    Ok(stdout.flush()?)
}

fn print_base64(file: &mut File, stdout: &mut impl io::Write) -> io::Result<()> {
    let mut encoder = EncoderWriter::new(stdout, &STANDARD);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            encoder.finish()?;
            return Ok(());
        }
        encoder.write_all(buffer.get(..read).unwrap_or_default())?;
    }
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
