//! `anklume audit show`: the lines of the log, those that are asked for.

use std::fs::File;
use std::io::BufReader;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;

use crate::audit::chain::{self, LogLine, ReadLine};
use crate::audit::verify::next_line;
use crate::audit::{Call, Event, Verdict};
use crate::cli::{AuditShowArgs, Format};
use crate::command::output::Output;
use crate::error::{Exit, Failure};
use crate::text::Foreign;

/// Runs `anklume audit show`.
pub(crate) fn run(args: &AuditShowArgs, output: &Output) -> anyhow::Result<Exit> {
    let path = &args.log.file;
    let files = super::files(path)?;
    let since = args.since.as_deref().map(since).transpose()?;
    let mut foreign = 0_u64;
    for file in files {
        let name = file.display().to_string();
        let reader = File::open(&file).with_context(|| format!("cannot read `{name}`"))?;
        let mut reader = BufReader::new(reader);
        while let Some((bytes, _)) =
            next_line(&mut reader).with_context(|| format!("cannot read `{name}`"))?
        {
            let ReadLine::Whole(line, _) = chain::read(&bytes) else {
                foreign += 1;
                continue;
            };
            if wanted(&line, args, since) {
                print(&line, &bytes, output)?;
            }
        }
    }
    if foreign > 0 {
        output.say(&format!(
            "warning: {foreign} line(s) are not as they were written; `anklume audit verify` says which"
        ));
    }
    Ok(Exit::Done)
}

fn print(line: &LogLine, bytes: &[u8], output: &Output) -> anyhow::Result<()> {
    match output.format() {
        Format::Json => output.answer(&[chain::printable(bytes), b"\n".to_vec()].concat())?,
        Format::Text => output.answer(as_text(line).as_bytes())?,
    }
    Ok(())
}

fn wanted(line: &LogLine, args: &AuditShowArgs, since: Option<Timestamp>) -> bool {
    let recent = since.is_none_or(|since| {
        line.time
            .parse::<Timestamp>()
            .is_ok_and(|time| time >= since)
    });
    let fits = |filter: &Option<String>, value: Option<&str>| {
        filter.as_deref().is_none_or(|wanted| value == Some(wanted))
    };
    let (caller, service, decision) = match &line.event {
        Event::Call(call) => (
            Some(call.caller.raw().as_str()),
            Some(call.service.raw().as_str()),
            Some(call.decision),
        ),
        Event::Counted {
            caller,
            service,
            decision,
            ..
        } => (
            Some(caller.raw().as_str()),
            Some(service.raw().as_str()),
            Some(*decision),
        ),
        Event::Start { .. }
        | Event::Stop { .. }
        | Event::Reload { .. }
        | Event::Rotated { .. }
        | Event::Torn { .. } => (None, None, None),
    };
    recent
        && fits(&args.caller, caller)
        && fits(&args.service, service)
        && args.decision.is_none_or(|wanted| decision == Some(wanted))
}

fn as_text(line: &LogLine) -> String {
    let what = match &line.event {
        Event::Call(call) => call_text(call),
        Event::Counted {
            caller,
            service,
            decision,
            reason,
            count,
        } => format!(
            "{decision}  {}  {}  {count} times more: {}",
            caller.escaped(),
            service.escaped(),
            reason.escaped()
        ),
        Event::Start {
            version, policy, ..
        } => {
            format!(
                "server started (anklume {}, policy {})",
                version.escaped(),
                short(policy)
            )
        }
        Event::Stop { .. } => "server stopped".to_owned(),
        Event::Reload {
            policy,
            refused: None,
        } => {
            format!("policy {} in force", short(policy))
        }
        Event::Reload {
            policy,
            refused: Some(reason),
        } => format!(
            "new services file refused, policy {} stays in force: {}",
            short(policy),
            reason.escaped()
        ),
        Event::Rotated { .. } => "log goes on in a new file".to_owned(),
        Event::Torn { bytes } => format!("{bytes} byte(s) of an unfinished line were taken off"),
    };
    let time = Foreign::new(line.time.as_str());
    let second = time.part(|time| time.split('.').next().unwrap_or_default());
    let second = second.part(|second| second.trim_end_matches('Z'));
    format!("{}Z  {what}\n", second.escaped())
}

fn call_text(call: &Call) -> String {
    let tool = call
        .tool
        .as_ref()
        .filter(|tool| **tool != call.service)
        .map_or_else(String::new, |tool| format!(" ({})", tool.escaped()));
    let head = format!(
        "{}  {}  {}{tool}",
        call.decision,
        call.caller.escaped(),
        call.service.escaped()
    );
    match call.decision {
        Verdict::Allowed => format!(
            "{head}  {}, {} B in, {} B out, {:.1} ms",
            call.outcome,
            call.bytes_in,
            call.bytes_out,
            Duration::from_micros(call.duration_us).as_secs_f64() * 1e3
        ),
        Verdict::Refused | Verdict::Overloaded => {
            format!("{head}  {}", call.reason.escaped())
        }
    }
}

/// The first digits of a digest, enough to tell two apart.
fn short(digest: &Foreign) -> String {
    let digits = digest.part(|digest| digest.chars().take(12).collect::<String>());
    digits.escaped()
}

/// A time (`2026-11-22T10:00:00Z`), or how long ago (`90s`, `15m`, `2h`, `7d`).
fn since(text: &str) -> Result<Timestamp, Failure> {
    let wrong = || {
        Failure::new(
            Exit::Usage,
            format!("`--since {}` is no time", text.escape_debug()),
        )
        .help("write it as 2026-11-22T10:00:00Z, or how long ago: 90s, 15m, 2h, 7d")
    };
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let split = text.len().checked_sub(1).ok_or_else(wrong)?;
    let (number, unit) = text.split_at_checked(split).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let ago = number
        .parse::<u32>()
        .map(|number| Duration::from_secs(u64::from(number) * seconds))
        .map_err(|_| wrong())?;
    Timestamp::now().checked_sub(ago).map_err(|_| wrong())
}
