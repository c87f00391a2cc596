//! `clipboard_get` and `clipboard_set`: the clipboard of the display or, without a display, a private file.
//!
//! X11 and Wayland keep no copy: the content's owner must keep running to hand it out. So a process of this program
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

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::catalogue::{
    BadArguments, CLIPBOARD_MAX, Clipboard, ClipboardGet, ClipboardSet, Clipped, OFFERED_ONLY,
    ONE_CALL_MAX, PNG_START, Payload, parse,
};
use crate::name::{MachineName, ToolName};
use crate::policy::Grant;
use crate::text;

use super::{
    Copies, Display, Settings, ToolError, ToolOutcome, ToolSession, blocking, environment,
};

/// Returns the maximum size of an answer in memory, in bytes: a text twice, or, where a display is, an image.
pub(super) fn largest_answer(
    arguments: &Map<String, Value>,
    settings: &Settings,
    copies: Copies,
) -> usize {
    let is_offer = arguments.get(OFFERED_ONLY) == Some(&Value::Bool(true));
    if is_offer || settings.display.is_none() {
        return 2 * CLIPBOARD_MAX;
    }
    copies.memory_of(copies.payload_max())
}

pub(super) async fn get(
    grant: &Grant,
    session: &ToolSession,
    copies: Copies,
) -> Result<ToolOutcome, ToolError> {
    let ClipboardGet {
        passwords,
        offered_only,
    } = parse(ToolName::ClipboardGet, grant.arguments())?;
    let settings = &session.settings;
    let text = if offered_only == Some(true) {
        let (folder, caller) = (settings.runtime.clone(), grant.caller().clone());
        blocking(move |stop| one_time::take(&folder, &caller, stop)).await?
    } else if let Some(display) = &settings.display {
        let task = match passwords {
            Some(true) => HolderTask::ReadPassword,
            _ => HolderTask::Read,
        };
        match ask(settings, display, task, b"").await?.0 {
            HolderAnswer::Text(text) => text,
            HolderAnswer::Nothing => String::new(),
            HolderAnswer::Image(png) => return image(&png, copies),
            other => return Err(refusal(&other, display)),
        }
    } else {
        let folder = settings.runtime.clone();
        blocking(move |_| file::read(&folder)).await?
    };
    let clipboard = Clipboard {
        bytes: length(&text),
        text: text.clone(),
        image: None,
    };
    ToolOutcome::new(text, &clipboard)
}

/// Returns a PNG, which is not decoded: a small file may be a huge image.
fn image(png: &[u8], copies: Copies) -> Result<ToolOutcome, ToolError> {
    let (bytes, max) = (png.len() as u64, copies.payload_max());
    if bytes > max {
        return Err(image_too_large(bytes, max));
    }
    let data = STANDARD.encode(png);
    let clipboard = Clipboard {
        text: String::new(),
        bytes,
        image: (copies == Copies::Two).then(|| Payload::of(data.clone())),
    };
    let outcome = ToolOutcome::new(data, &clipboard)?;
    Ok(ToolOutcome {
        is_png: true,
        ..outcome
    })
}

pub(super) async fn set(grant: &Grant, session: &ToolSession) -> Result<ToolOutcome, ToolError> {
    let ClipboardSet {
        content,
        image,
        offer_to,
    } = parse(ToolName::ClipboardSet, grant.arguments())?;
    let settings = &session.settings;
    let content = match (content, image) {
        (Some(content), None) => content,
        (None, Some(image)) => return set_image(settings, &image, offer_to.as_deref()).await,
        _ => {
            let message = "either `content` or `image` must be there, and only one of them";
            return Err(BadArguments::from(message).into());
        }
    };
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
        hold(settings, display, HolderTask::Hold, content.as_bytes()).await?;
    } else {
        let folder = settings.runtime.clone();
        blocking(move |stop| file::write(&folder, &content, stop)).await?;
    }
    on_the_clipboard(bytes)
}

async fn set_image(
    settings: &Settings,
    image: &Payload,
    offer_to: Option<&str>,
) -> Result<ToolOutcome, ToolError> {
    if offer_to.is_some() {
        return Err(BadArguments::from("only a text can be offered, not an image").into());
    }
    let png = Payload::decode_png(image.as_str())?;
    let Some(display) = &settings.display else {
        let message = "the provider's user has no display, and without one, the clipboard holds only text; send the image as a file";
        return Err(ToolError::Unavailable(message.to_owned()));
    };
    hold(settings, display, HolderTask::HoldImage, &png).await?;
    on_the_clipboard(png.len() as u64)
}

/// Puts content on the clipboard of a display, where it stays until something else is put there.
async fn hold(
    settings: &Settings,
    display: &Display,
    task: HolderTask,
    content: &[u8],
) -> Result<(), ToolError> {
    match ask(settings, display, task, content).await? {
        (HolderAnswer::Held, mut holder) => {
            holder.stays = true;
            Ok(())
        }
        (HolderAnswer::Refused, _) => Err(ToolError::Unavailable(
            "the display did not take the content; try again, or send it as a file".to_owned(),
        )),
        (other, _) => Err(refusal(&other, display)),
    }
}

fn on_the_clipboard(bytes: u64) -> Result<ToolOutcome, ToolError> {
    let text = format!("{} on the clipboard", text::bytes(bytes));
    ToolOutcome::new(text, &Clipped { bytes })
}

fn length(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

fn too_large(bytes: u64) -> ToolError {
    ToolError::TooLarge(format!(
        "the clipboard holds {bytes} bytes; at most {CLIPBOARD_MAX} can be returned"
    ))
}

fn image_too_large(bytes: u64, max: u64) -> ToolError {
    ToolError::TooLarge(format!(
        "the clipboard holds an image of {bytes} bytes; at most {max} can be returned"
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
    /// Put the PNG from stdin on the clipboard and hold it there.
    HoldImage,
}

impl HolderTask {
    /// Returns the subcommand's argument.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::ReadPassword => "read-password",
            Self::Hold => "hold",
            Self::HoldImage => "hold-image",
        }
    }
}

/// The process's answer on stdout: one byte for its kind, then the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HolderAnswer {
    /// The text on the clipboard.
    Text(String),
    /// The PNG on the clipboard; there is no plain text beside it.
    Image(Vec<u8>),
    /// The content from stdin is on the clipboard.
    Held,
    /// The clipboard is empty, or contains neither text nor a PNG.
    Nothing,
    /// A text with too many bytes to return; their number.
    TooLong(u64),
    /// An image with too many bytes to return; their number.
    ImageTooLong(u64),
    /// Text that is not UTF-8.
    NotText,
    /// An image that is offered as PNG and is none.
    NotPng,
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
            Self::Image(png) => [b"I", png.as_slice()].concat(),
            Self::Held => b"H".to_vec(),
            Self::Nothing => b"N".to_vec(),
            Self::TooLong(bytes) => format!("L{bytes}").into_bytes(),
            Self::ImageTooLong(bytes) => format!("M{bytes}").into_bytes(),
            Self::NotText => b"X".to_vec(),
            Self::NotPng => b"G".to_vec(),
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
        if *kind == b'I' && rest.starts_with(PNG_START) {
            return Self::Image(rest.to_vec());
        }
        match (kind, str::from_utf8(rest)) {
            (b'T', Ok(text)) => Self::Text(text.to_owned()),
            (b'H', Ok("")) => Self::Held,
            (b'N', Ok("")) => Self::Nothing,
            (b'L', Ok(bytes)) => bytes.parse().map_or(Self::Refused, Self::TooLong),
            (b'M', Ok(bytes)) => bytes.parse().map_or(Self::Refused, Self::ImageTooLong),
            (b'X', Ok("")) => Self::NotText,
            (b'G', Ok("")) => Self::NotPng,
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
    content: &[u8],
) -> Result<(HolderAnswer, Holder), ToolError> {
    let mut holder = start(settings, display, task)?;
    let answer = tokio::time::timeout(settings.display_wait, talk(&mut holder.child, content));
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

/// Sends the content and reads the answer, up to the end of the process's stdout.
async fn talk(child: &mut Child, content: &[u8]) -> HolderAnswer {
    if let Some(mut stdin) = child.stdin.take() {
        // Its length comes first, so that a part of it is not taken for the whole if this process is killed. A process that
        // does not read its stdin states the reason on stdout.
        let length = (content.len() as u64).to_le_bytes();
        let _ = stdin.write_all(&[&length, content].concat()).await;
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        // One more byte, for the kind of answer.
        let max = ONE_CALL_MAX + 1;
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
        HolderAnswer::ImageTooLong(bytes) => image_too_large(*bytes, ONE_CALL_MAX),
        HolderAnswer::NotText => not_text(),
        HolderAnswer::NotPng => {
            ToolError::Refused("the clipboard's owner offers an image as PNG that is none; copy it with another program".to_owned())
        }
        HolderAnswer::Password => ToolError::Refused(
            "the clipboard's content is marked as a password, and this service does not hand passwords over; \
             the operator can allow it: `with: {passwords: true}`"
                .to_owned(),
        ),
        HolderAnswer::Text(_)
        | HolderAnswer::Image(_)
        | HolderAnswer::Held
        | HolderAnswer::Nothing
        | HolderAnswer::Refused => {
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
            HolderAnswer::Image([PNG_START, b"\xff\0"].concat()),
            HolderAnswer::Held,
            HolderAnswer::Nothing,
            HolderAnswer::TooLong(70_000),
            HolderAnswer::ImageTooLong(70_000),
            HolderAnswer::NotText,
            HolderAnswer::NotPng,
            HolderAnswer::Password,
            HolderAnswer::Unreachable,
            HolderAnswer::Refused,
        ] {
            assert_eq!(HolderAnswer::read(&answer.write()), answer);
        }
    }

    #[test]
    fn an_odd_answer_is_a_refusal() {
        for odd in [&b""[..], b"Z", b"T\xff", b"Nx", b"L", b"Lx", b"I", b"IGIF"] {
            assert_eq!(HolderAnswer::read(odd), HolderAnswer::Refused, "{odd:?}");
        }
    }
}
