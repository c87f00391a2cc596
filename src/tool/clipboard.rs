//! `clipboard_get` and `clipboard_set`: the clipboard of the display or, without a display, a private file.
//!
//! X11 and Wayland keep no copy: the text's owner must keep running to hand it out. So a process of this program
//! ([`display`]) outlives the server until something else is put on the clipboard. Another such process does the
//! reading, so that it can be killed if the owner does not answer.
//!
//! An unreachable display that the environment names is an error: the file is not the clipboard that the user sees.

pub(crate) mod display;
pub(super) mod file;
mod offer;
mod one_time;
mod x11;

use std::ffi::OsString;
use std::process::Stdio;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::catalogue::{
    BadArguments, CLIPBOARD_MAX, Clipboard, ClipboardGet, ClipboardSet, Clipped, parse,
};
use crate::name::MachineName;
use crate::policy::Grant;
use crate::text;

use super::{Display, Settings, ToolError, ToolOutcome, ToolSession, blocking, environment};

pub(super) async fn get(grant: &Grant, session: &ToolSession) -> Result<ToolOutcome, ToolError> {
    let ClipboardGet {
        passwords,
        offered_only,
    } = parse(grant.tool(), grant.arguments())?;
    let settings = &session.settings;
    let text = if offered_only == Some(true) {
        let (folder, caller) = (settings.runtime.clone(), grant.caller().clone());
        blocking(move |stop| one_time::take(&folder, &caller, stop)).await?
    } else if let Some(display) = &settings.display {
        let task = match passwords {
            Some(true) => HolderTask::ReadPassword,
            _ => HolderTask::Read,
        };
        match ask(settings, display, task, "").await?.0 {
            HolderAnswer::Text(text) => text,
            HolderAnswer::Nothing => String::new(),
            other => return Err(refusal(&other, display)),
        }
    } else {
        let folder = settings.runtime.clone();
        blocking(move |_| file::read(&folder)).await?
    };
    let clipboard = Clipboard {
        bytes: length(&text),
        text: text.clone(),
    };
    ToolOutcome::new(text, &clipboard)
}

pub(super) async fn set(grant: &Grant, session: &ToolSession) -> Result<ToolOutcome, ToolError> {
    let ClipboardSet { content, offer_to } = parse(grant.tool(), grant.arguments())?;
    let settings = &session.settings;
    let bytes = length(&content);
    if let Some(consumer) = offer_to {
        let consumer: MachineName = consumer
            .parse()
            .map_err(|_| BadArguments::from("`offer_to` is not the name of a machine"))?;
        let folder = settings.runtime.clone();
        let said = format!(
            "{} offered to `{consumer}` for {} s",
            text::bytes(bytes),
            one_time::VALID.as_secs()
        );
        blocking(move |stop| one_time::offer(&folder, &consumer, &content, stop)).await?;
        return ToolOutcome::new(said, &Clipped { bytes });
    }
    if let Some(display) = &settings.display {
        match ask(settings, display, HolderTask::Hold, &content).await? {
            (HolderAnswer::Text(_), mut holder) => holder.stays = true,
            (other, _) => return Err(refusal(&other, display)),
        }
    } else {
        let folder = settings.runtime.clone();
        blocking(move |stop| file::write(&folder, &content, stop)).await?;
    }
    ToolOutcome::new(
        format!("{} on the clipboard", text::bytes(bytes)),
        &Clipped { bytes },
    )
}

fn length(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

fn too_large(bytes: u64) -> ToolError {
    ToolError::TooLarge(format!(
        "the clipboard holds {bytes} bytes; at most {CLIPBOARD_MAX} can be returned"
    ))
}

fn not_text() -> ToolError {
    ToolError::Refused("the clipboard's content is not UTF-8 text".to_owned())
}

/// The hidden subcommand.
const COMMAND: &str = "clipboard-holder";

#[derive(Debug, Clone, Copy)]
enum HolderTask {
    /// Read the clipboard, unless it is marked as a password.
    Read,
    /// Read it, marked or not.
    ReadPassword,
    /// Put the text from stdin on the clipboard and hold it there.
    Hold,
}

impl HolderTask {
    /// Returns the subcommand's argument.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::ReadPassword => "read-password",
            Self::Hold => "hold",
        }
    }
}

/// The process's answer on stdout: one byte for its kind, then the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HolderAnswer {
    /// The text on the clipboard; empty if a holder reports that it holds its text.
    Text(String),
    /// The clipboard is empty, or contains no text.
    Nothing,
    /// Too many bytes to return; their number.
    TooLong(u64),
    /// Text that is not UTF-8.
    NotText,
    /// A password manager has marked it as a password.
    Password,
    /// No display answered.
    Unreachable,
    /// The display or its clipboard failed in another way.
    Refused,
}

impl HolderAnswer {
    pub(crate) fn write(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => [b"T", text.as_bytes()].concat(),
            Self::Nothing => b"N".to_vec(),
            Self::TooLong(bytes) => format!("L{bytes}").into_bytes(),
            Self::NotText => b"X".to_vec(),
            Self::Password => b"P".to_vec(),
            Self::Unreachable => b"U".to_vec(),
            Self::Refused => b"R".to_vec(),
        }
    }

    /// Decodes an answer; anything unknown, such as no output from a process that died, counts as a refusal.
    fn read(bytes: &[u8]) -> Self {
        let Some((kind, rest)) = bytes.split_first() else {
            return Self::Refused;
        };
        match (kind, str::from_utf8(rest)) {
            (b'T', Ok(text)) => Self::Text(text.to_owned()),
            (b'N', Ok("")) => Self::Nothing,
            (b'L', Ok(bytes)) => bytes.parse().map_or(Self::Refused, Self::TooLong),
            (b'X', Ok("")) => Self::NotText,
            (b'P', Ok("")) => Self::Password,
            (b'U', Ok("")) => Self::Unreachable,
            _ => Self::Refused,
        }
    }
}

/// A process that is killed when dropped, unless it is meant to keep running.
#[derive(Debug)]
struct Holder {
    child: Child,
    stays: bool,
}

impl Drop for Holder {
    fn drop(&mut self) {
        if !self.stays {
            // Fails if the process has already ended.
            let _ = self.child.start_kill();
        }
    }
}

/// Starts a process for a task and waits for its answer.
async fn ask(
    settings: &Settings,
    display: &Display,
    task: HolderTask,
    text: &str,
) -> Result<(HolderAnswer, Holder), ToolError> {
    let mut holder = start(settings, display, task)?;
    let answer = tokio::time::timeout(settings.display_wait, talk(&mut holder.child, text));
    let answer = answer.await.map_err(|_| {
        ToolError::TimedOut(format!(
            "the display, or the program that owns its clipboard, did not answer within {} s",
            settings.display_wait.as_secs()
        ))
    })?;
    Ok((answer, holder))
}

fn start(settings: &Settings, display: &Display, task: HolderTask) -> Result<Holder, ToolError> {
    let mut command = Command::new(&settings.program);
    command
        .arg0("anklume")
        .env_clear()
        .envs(environment())
        .args([COMMAND, task.as_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    for (name, value) in variables(display) {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let child = command
        .spawn()
        .map_err(|refused| ToolError::system("start the clipboard's holder", refused))?;
    Ok(Holder {
        child,
        stays: false,
    })
}

/// Sends the text and reads the answer, up to the end of the process's stdout.
async fn talk(child: &mut Child, text: &str) -> HolderAnswer {
    if let Some(mut stdin) = child.stdin.take() {
        // A process that does not read its stdin states the reason on stdout.
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        // One more byte, for the kind of answer.
        let max = CLIPBOARD_MAX as u64 + 1;
        let _ = stdout.take(max).read_to_end(&mut answer).await;
    }
    HolderAnswer::read(&answer)
}

fn refusal(answer: &HolderAnswer, display: &Display) -> ToolError {
    match answer {
        HolderAnswer::Unreachable => ToolError::Unavailable(format!(
            "cannot reach the display {}; start it on the provider, or unset the variable there so that \
             the clipboard is a private file",
            named(display)
        )),
        HolderAnswer::TooLong(bytes) => too_large(*bytes),
        HolderAnswer::NotText => not_text(),
        HolderAnswer::Password => ToolError::Refused(
            "the clipboard's content is marked as a password, and this service does not hand passwords over; \
             the operator can allow it: `with: {passwords: true}`"
                .to_owned(),
        ),
        HolderAnswer::Text(_) | HolderAnswer::Nothing | HolderAnswer::Refused => {
            ToolError::Unavailable(
                "the display, or the program that owns its clipboard, did not provide the content".to_owned(),
            )
        }
    }
}

fn variables(display: &Display) -> [(&'static str, &Option<OsString>); 2] {
    [
        ("WAYLAND_DISPLAY", &display.wayland),
        ("DISPLAY", &display.x11),
    ]
}

/// Names the display by its environment variables, without a path.
fn named(display: &Display) -> String {
    let named = variables(display).into_iter().filter_map(|(name, value)| {
        let value = value.as_ref()?.to_string_lossy();
        let is_path = value.contains('/');
        let value = if is_path { "a path" } else { &value };
        Some(format!("({name}={})", value.escape_debug()))
    });
    named.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_back_as_they_went() {
        for answer in [
            HolderAnswer::Text("T".to_owned()),
            HolderAnswer::Text(String::new()),
            HolderAnswer::Nothing,
            HolderAnswer::TooLong(70_000),
            HolderAnswer::NotText,
            HolderAnswer::Password,
            HolderAnswer::Unreachable,
            HolderAnswer::Refused,
        ] {
            assert_eq!(HolderAnswer::read(&answer.write()), answer);
        }
    }

    #[test]
    fn an_odd_answer_is_a_refusal() {
        for odd in [&b""[..], b"Z", b"T\xff", b"Nx", b"L", b"Lx"] {
            assert_eq!(HolderAnswer::read(odd), HolderAnswer::Refused, "{odd:?}");
        }
    }
}
