//! `anklume audit …`: its flags, and which log.

use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Args, Subcommand, ValueEnum};

use crate::audit::Verdict;

/// `anklume audit …`
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Show the calls
    Show(AuditShowArgs),
    /// Find edited, removed, moved and inserted lines: 0 whole, 1 not
    Verify(AuditVerifyArgs),
}

/// The log.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// The log; its older files (FILE.1, FILE.2 ...) belong to it
    #[arg(
        long,
        value_name = "FILE",
        env = "ANKLUME_AUDIT_LOG",
        default_value = "/var/log/anklume/audit.jsonl"
    )]
    pub file: PathBuf,
}

/// `anklume audit show`
#[derive(Debug, Args)]
pub struct AuditShowArgs {
    /// The log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Calls of this caller only; '(operator)' for the operator's own
    #[arg(long, value_name = "MACHINE")]
    pub caller: Option<String>,
    /// Calls of this service only
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Not older than this: 2026-11-22T10:00:00Z, or 90s, 15m, 2h, 7d ago
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Calls with this decision only
    #[arg(long, value_enum, value_name = "DECISION")]
    pub decision: Option<Verdict>,
}

impl ValueEnum for Verdict {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Allowed, Self::Refused, Self::Overloaded]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::Allowed => "The call could run",
            Self::Refused => "It could not",
            Self::Overloaded => "The server had too much to do",
        };
        Some(PossibleValue::new(self.as_str()).help(help))
    }
}

/// `anklume audit verify`
#[derive(Debug, Args)]
pub struct AuditVerifyArgs {
    /// The log.
    #[command(flatten)]
    pub log: LogArgs,
    /// A hash that an earlier verify printed; its line must still be there
    #[arg(long, value_name = "HASH")]
    pub head: Option<String>,
}
