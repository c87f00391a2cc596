//! `anklume clipboard-holder`, hidden: the process that the clipboard tools send to the display.

use std::fs::File;
use std::io::{self, Read as _};

use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::catalogue::CLIPBOARD_MAX;
use crate::cli::{ClipboardErrand, ClipboardHolderArgs};
use crate::error::Exit;
use crate::tool::clipboard::{HolderAnswer, display};

use super::output::Output;

/// Runs `anklume clipboard-holder …`.
pub(crate) fn run(args: &ClipboardHolderArgs, output: &Output) -> anyhow::Result<Exit> {
    match args.errand {
        ClipboardErrand::Read => output.answer(&display::read(false).write())?,
        ClipboardErrand::ReadPassword => output.answer(&display::read(true).write())?,
        ClipboardErrand::Hold => hold(output)?,
    }
    Ok(Exit::Done)
}

fn hold(output: &Output) -> anyhow::Result<()> {
    // Away from the server's session and folder: this process outlives both. Refused to a group's leader, who has both already.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/")?;
    let mut text = String::new();
    let most = u64::try_from(CLIPBOARD_MAX)?;
    io::stdin().lock().take(most).read_to_string(&mut text)?;
    let mut told = Ok(());
    display::hold(text, |answer| told = tell(output, &answer));
    told
}

/// Answers, and lets go of stdin, stdout and stderr, so that nobody waits for them.
fn tell(output: &Output, answer: &HolderAnswer) -> anyhow::Result<()> {
    output.answer(&answer.write())?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}
