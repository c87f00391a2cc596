//! `clipboard_get` and `clipboard_set`: the clipboard of the display where there is one, a private file where there is none.
//!
//! A display that the environment names and nobody can reach is an error: the file is not the clipboard that the user sees.

pub(crate) mod display;
pub(super) mod file;
pub(crate) mod holder;
mod offer;
mod x11;

use crate::catalogue::{CLIPBOARD_MAX, Clipboard, ClipboardGet, ClipboardSet, Clipped, parse};
use crate::policy::Grant;
use crate::text;

use super::{ToolError, ToolOutcome, ToolSession, blocking};

/// Runs `clipboard_get`.
pub(super) async fn get(grant: &Grant, session: &ToolSession) -> Result<ToolOutcome, ToolError> {
    let ClipboardGet { passwords } = parse(grant.tool(), grant.arguments())?;
    let settings = &session.settings;
    let text = if let Some(display) = &settings.display {
        holder::read(settings, display, passwords == Some(true)).await?
    } else {
        let folder = settings.runtime.clone();
        blocking::run(move |_| file::read(&folder)).await?
    };
    let clipboard = Clipboard {
        bytes: length(&text),
        text: text.clone(),
    };
    ToolOutcome::new(text, &clipboard)
}

/// Runs `clipboard_set`.
pub(super) async fn set(grant: &Grant, session: &ToolSession) -> Result<ToolOutcome, ToolError> {
    let ClipboardSet { content } = parse(grant.tool(), grant.arguments())?;
    let settings = &session.settings;
    let bytes = length(&content);
    if let Some(display) = &settings.display {
        holder::hold(settings, display, &content).await?;
    } else {
        let folder = settings.runtime.clone();
        blocking::run(move |stop| file::write(&folder, &content, stop)).await?;
    }
    ToolOutcome::new(
        format!("{} on the clipboard", text::bytes(bytes)),
        &Clipped { bytes },
    )
}

fn length(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

/// Refuses a clipboard over its limit.
fn too_large(bytes: u64) -> ToolError {
    ToolError::TooLarge(format!(
        "the clipboard holds {bytes} bytes, and at most {CLIPBOARD_MAX} are handed over"
    ))
}

/// Refuses a clipboard without text.
fn not_text() -> ToolError {
    ToolError::Refused("what is on the clipboard is no UTF-8 text".to_owned())
}
