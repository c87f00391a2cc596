//! The clipboard of a display, through a process of this same program.
//!
//! X11 and Wayland keep no copy: whoever set a text must stay to hand it out, so a process of its own stays when the
//! server ends, until something else is put on the clipboard. Reading goes the same way, because a program that owns
//! the clipboard and does not answer can then be given up. What that process does: [`super::display`].

use std::process::Stdio;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::answer::{COMMAND, HolderAnswer, HolderTask};
use super::{not_text, too_large};
use crate::catalogue::CLIPBOARD_MAX;
use crate::tool::{Display, Settings, ToolError, environment};

/// A process that is killed when nobody waits for it any more, unless it was told to stay.
#[derive(Debug)]
struct Holder {
    child: Child,
    stays: bool,
}

impl Drop for Holder {
    fn drop(&mut self) {
        if !self.stays {
            // Gone already is as good.
            let _ = self.child.start_kill();
        }
    }
}

/// Reads the display's clipboard; no text is an empty text. `passwords`: also what is marked as one.
pub(super) async fn read(
    settings: &Settings,
    display: &Display,
    passwords: bool,
) -> Result<String, ToolError> {
    let errand = if passwords {
        HolderTask::ReadPassword
    } else {
        HolderTask::Read
    };
    match ask(settings, display, errand, "").await?.0 {
        HolderAnswer::Text(text) => Ok(text),
        HolderAnswer::Nothing => Ok(String::new()),
        other => Err(refusal(&other, display)),
    }
}

/// Puts a text on the display's clipboard, where it stays.
pub(super) async fn hold(
    settings: &Settings,
    display: &Display,
    text: &str,
) -> Result<(), ToolError> {
    match ask(settings, display, HolderTask::Hold, text).await? {
        (HolderAnswer::Text(_), mut holder) => {
            holder.stays = true;
            Ok(())
        }
        (other, _) => Err(refusal(&other, display)),
    }
}

/// Sends a process on an errand and waits for its answer.
async fn ask(
    settings: &Settings,
    display: &Display,
    errand: HolderTask,
    text: &str,
) -> Result<(HolderAnswer, Holder), ToolError> {
    let mut holder = start(settings, display, errand)?;
    let asked = tokio::time::timeout(settings.display_wait, talk(&mut holder.child, text)).await;
    match asked {
        Ok(answer) => Ok((answer, holder)),
        Err(_) => Err(ToolError::TimedOut(format!(
            "the display, or the program that owns its clipboard, did not answer within {} s",
            settings.display_wait.as_secs()
        ))),
    }
}

fn start(settings: &Settings, display: &Display, errand: HolderTask) -> Result<Holder, ToolError> {
    let mut command = Command::new(&settings.program);
    command
        .arg0("anklume")
        .env_clear()
        .envs(environment())
        .args([COMMAND, errand.as_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    for (name, value) in [
        ("WAYLAND_DISPLAY", &display.wayland),
        ("DISPLAY", &display.x11),
    ] {
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

/// Hands the text over and reads the answer, which ends with the process's stdout.
async fn talk(child: &mut Child, text: &str) -> HolderAnswer {
    if let Some(mut stdin) = child.stdin.take() {
        // A process that does not read says why on stdout.
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let most = u64::try_from(CLIPBOARD_MAX).unwrap_or(u64::MAX);
        // One byte says what the answer is.
        let most = most.saturating_add(1);
        let _ = stdout.take(most).read_to_end(&mut answer).await;
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
            "what is on the clipboard is marked as a password, and this service does not hand it over; \
             whoever runs the host may let it: `with: {passwords: true}`"
                .to_owned(),
        ),
        HolderAnswer::Text(_) | HolderAnswer::Nothing | HolderAnswer::Refused => {
            ToolError::Unavailable(
                "the display, or the program that owns its clipboard, does not hand it over".to_owned(),
            )
        }
    }
}

/// The display by its variables: names, never paths.
fn named(display: &Display) -> String {
    let variables = [
        ("WAYLAND_DISPLAY", &display.wayland),
        ("DISPLAY", &display.x11),
    ];
    let named: Vec<String> = variables
        .into_iter()
        .filter_map(|(name, value)| {
            let value = value.as_ref()?.to_string_lossy();
            let shown = if value.contains('/') {
                "a path"
            } else {
                &value
            };
            Some(format!("({name}={})", shown.escape_debug()))
        })
        .collect();
    named.join(" ")
}
