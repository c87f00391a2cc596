//! `anklume clipboard-holder`: its errand.

use clap::{Args, ValueEnum};

/// `anklume clipboard-holder`
#[derive(Debug, Args)]
pub struct ClipboardHolderArgs {
    /// What to do with the clipboard
    #[arg(value_enum)]
    pub errand: ClipboardErrand,
}

/// What a process is sent to the display for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClipboardErrand {
    /// Print what is on the clipboard, unless it is marked as a password
    Read,
    /// Print what is on the clipboard
    ReadPassword,
    /// Hold the text from stdin on it until something else is put there
    Hold,
}
