//! `anklume audit …`: shows and verifies the audit log.

mod follow;
mod transfer_lines;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::mcp::{interruptible, machine_on_host};
use super::on_host_only;
use super::output::{Output, done_or_failed};
use crate::account::Account;
use crate::audit::chain::{self, LogLine, ReadLine};
use crate::audit::verify::{LINE_MAX, Verifier, VerifyReport, next_line};
use crate::audit::{self, Call, Event, Verdict};
use crate::cli::{AuditCommand, AuditShowArgs, AuditVerifyArgs};
use crate::error::{Exit, Failure};
use crate::machine_state::PROGRAM;
use crate::text::Foreign;
use crate::transport::{RemoteExec, RemoteExecError, RouteContext};
use follow::{LogReader, follow};
use transfer_lines::{ShownLine, TransferLines};

/// Maximum number of times to reread a log whose last line is unfinished.
const RETRIES: usize = 3;
/// Maximum wait for a line of a machine's log.
const REMOTE_LINE: Duration = Duration::from_secs(30);
/// Pause before rereading: a server that is writing the line will have finished by then.
const PAUSE: Duration = Duration::from_millis(50);

/// The line with which a machine says that it has sent all lines of its log so far; no line of a log.
const CAUGHT_UP: &[u8] = b"\t";

/// Runs `anklume audit …`.
pub(crate) fn run(command: &AuditCommand, output: &Output) -> anyhow::Result<Exit> {
    match command {
        AuditCommand::Show(args) => show(args, output),
        AuditCommand::Verify(args) => verify(args, output),
    }
}

/// Returns the files of a log, oldest first; at least one.
fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let files = audit::files(path).map_err(|why| unreadable(path, &why))?;
    if files.is_empty() {
        let message = format!("no audit log found at `{}`", path.display());
        let help = if RouteContext::look().in_machine {
            "a provider logs the calls that it gets; on the host, `anklume audit show -i PROVIDER` shows its log"
        } else {
            "a provider's log is in its machine: `anklume audit show -i PROVIDER`; name another log with --file"
        };
        return Err(Failure::new(Exit::Failed, message).help(help));
    }
    Ok(files)
}

/// Reports that the existence of a log cannot be determined.
fn unreadable(path: &Path, why: &io::Error) -> Failure {
    let path = path.display();
    let message = format!("cannot check for an audit log at `{path}`: {why}");
    Failure::new(Exit::Failed, message).help("run this as root or as the server's user")
}

/// Runs `anklume audit show`.
fn show(args: &AuditShowArgs, output: &Output) -> anyhow::Result<Exit> {
    let args = &AuditShowArgs {
        instance: args.provider.clone().or_else(|| args.instance.clone()),
        ..args.clone()
    };
    let mut shown = ShownLog {
        args,
        output,
        since: args.since.as_deref().map(since).transpose()?,
        foreign: 0,
        warned: 0,
        lines: 0,
        shown: 0,
        transfers: TransferLines::default(),
        last: args.lines.map(|_| VecDeque::new()),
        is_following: false,
    };
    let read = read_log(args, output, &mut shown);
    // What was read before an error is shown as well.
    shown.end()?;
    shown.warn();
    if read? == Exit::Interrupted {
        return Ok(Exit::Interrupted);
    }
    let ShownLog { lines, shown, .. } = shown;
    if let (Some(machine), 0) = (&args.instance, lines) {
        let message = format!("`{}` has no audit log", machine.escape_debug());
        let help = "only a machine that offers services has one: `anklume policy list`";
        return Err(Failure::new(Exit::Failed, message).help(help).into());
    }
    if lines > 0 && shown == 0 && !args.remote && !output.is_json() {
        output.say(&format!("note: none of {lines} line(s) matches"));
    }
    Ok(Exit::Done)
}

/// The lines of a log that the flags select, as they are shown.
struct ShownLog<'a> {
    args: &'a AuditShowArgs,
    output: &'a Output,
    since: Option<Timestamp>,
    /// Number of lines that are not intact.
    foreign: u64,
    /// Number of those that the user knows of.
    warned: u64,
    /// Number of lines.
    lines: u64,
    /// Number of selected lines.
    shown: u64,
    transfers: TransferLines,
    /// With `-n`, until all lines that are there have been read: the last ones.
    last: Option<VecDeque<String>>,
    /// True for new lines.
    is_following: bool,
}

impl ShownLog<'_> {
    fn print(&mut self, text: String) -> io::Result<()> {
        match &mut self.last {
            Some(last) => {
                last.push_back(text);
                if last.len() > self.args.lines.unwrap_or_default() {
                    last.pop_front();
                }
                Ok(())
            }
            None => self.output.text(&text),
        }
    }

    fn print_all(&mut self, lines: &[ShownLine]) -> io::Result<()> {
        lines
            .iter()
            .try_for_each(|line| self.print(shown_text(line)))
    }

    /// Says how many lines are not intact, if there are more than before.
    fn warn(&mut self) {
        if self.foreign > self.warned {
            self.warned = self.foreign;
            let verify = match &self.args.instance {
                Some(machine) => format!("`anklume audit verify` in `{}`", machine.escape_debug()),
                None => "`anklume audit verify`".to_owned(),
            };
            self.output.say(&format!(
                "warning: {} line(s) are not intact; {verify} lists them",
                self.foreign
            ));
        }
    }

    /// Shows what waits.
    fn end(&mut self) -> io::Result<()> {
        let rest: Vec<ShownLine> = self.transfers.rest().collect();
        self.print_all(&rest)?;
        for text in self.last.take().into_iter().flatten() {
            self.output.text(&text)?;
        }
        Ok(())
    }
}

impl LogReader for ShownLog<'_> {
    fn line(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.args.remote {
            // The host judges every line; an empty one marks the end.
            let bytes = if bytes.is_empty() { b" " } else { bytes };
            let line = [chain::printable(bytes), b"\n".to_vec()].concat();
            return self.output.answer(&line);
        }
        self.lines += 1;
        // No server writes a longer one.
        let read = (bytes.len() <= LINE_MAX).then(|| chain::read(bytes));
        let Some(ReadLine::Whole(line, _)) = read else {
            self.foreign += 1;
            return Ok(());
        };
        if !is_wanted(&line, self.args, self.since) {
            return Ok(());
        }
        self.shown += 1;
        if self.output.is_json() {
            let line = String::from_utf8_lossy(&chain::printable(bytes)).into_owned();
            return self.print(line + "\n");
        }
        let ready = if self.is_following {
            self.transfers.push(line);
            self.transfers.ended(Timestamp::now())
        } else {
            self.transfers.take(line)
        };
        self.print_all(&ready)
    }

    fn caught_up(&mut self) -> io::Result<()> {
        if self.args.remote {
            return self.output.answer(&[CAUGHT_UP, b"\n"].concat());
        }
        if !self.is_following {
            self.is_following = true;
            self.end()?;
        }
        self.warn();
        let ended = self.transfers.ended(Timestamp::now());
        self.print_all(&ended)
    }

    fn replaced(&mut self) {
        if !self.args.remote {
            self.output
                .say("note: the log was removed, replaced or truncated; what it has now follows");
        }
    }
}

/// Reads the log of this machine or of the named one.
fn read_log(
    args: &AuditShowArgs,
    output: &Output,
    reader: &mut impl LogReader,
) -> anyhow::Result<Exit> {
    match &args.instance {
        Some(machine) if !is_this_machine(machine)? => show_remote(machine, args, reader),
        None if args.remote => {
            if audit::files(&args.log.file).is_ok_and(|files| !files.is_empty()) {
                show_files(args, reader)?;
            }
            output.answer(b"\n")?;
            io::copy(&mut io::stdin().lock(), &mut io::sink())?;
            Ok(Exit::Done)
        }
        _ => show_files(args, reader),
    }
}

/// Returns whether this is the named machine; fails in any other machine, which has no Incus to ask.
fn is_this_machine(name: &str) -> Result<bool, Failure> {
    if Account::machine().is_some_and(|own| own.as_str() == name) {
        return Ok(true);
    }
    on_host_only().map_or(Ok(false), Err)
}

fn show_files(args: &AuditShowArgs, reader: &mut impl LogReader) -> anyhow::Result<Exit> {
    let path = &args.log.file;
    let files = files(path)?;
    if args.follow {
        let cannot = || format!("cannot read `{}`", path.display());
        follow(path, args.remote, reader).with_context(cannot)?;
        return Ok(Exit::Done);
    }
    for file in files {
        let cannot = || format!("cannot read `{}`", file.display());
        let mut lines = BufReader::new(File::open(&file).with_context(cannot)?);
        while let Some((bytes, _)) = next_line(&mut lines).with_context(cannot)? {
            reader.line(&bytes)?;
        }
    }
    Ok(Exit::Done)
}

/// Shows the log of a machine: its program sends the lines, and this one checks, selects and prints them.
fn show_remote(
    machine: &str,
    args: &AuditShowArgs,
    reader: &mut impl LogReader,
) -> anyhow::Result<Exit> {
    let file = args.log.file.to_string_lossy();
    let command = [
        PROGRAM, "audit", "show", "--remote", "--format", "json", "--file", &file,
    ];
    let command = command
        .into_iter()
        .chain(args.follow.then_some("--follow"))
        .collect::<Vec<_>>();
    let mut take = |bytes: &[u8]| match bytes {
        CAUGHT_UP if args.follow => reader.caught_up(),
        bytes => reader.line(bytes),
    };
    interruptible(async {
        let channel = machine_on_host(machine, args.project.as_deref()).await?;
        let exec = RemoteExec {
            project: &channel.project,
            machine: &channel.name,
            user: None,
            argv: &command,
            input: b"",
            timeout: REMOTE_LINE,
        };
        exec.lines(&mut take).await.map_err(|why| match why {
            RemoteExecError::Unreadable(why) => anyhow::Error::from(why),
            why => {
                let message = format!("cannot show the log of `{}`: {why}", channel.name);
                Failure::new(Exit::Failed, message).into()
            }
        })?;
        Ok(Exit::Done)
    })
}

fn is_wanted(line: &LogLine, args: &AuditShowArgs, since: Option<Timestamp>) -> bool {
    let recent = since.is_none_or(|since| {
        let time = line.time.parse::<Timestamp>();
        time.is_ok_and(|time| time >= since)
    });
    let (caller, service, decision) = match &line.event {
        Event::Call(call) => (&call.caller, &call.service, call.decision),
        Event::Counted {
            caller,
            service,
            decision,
            ..
        } => (caller, service, *decision),
        _ => {
            let filtered = args.caller.is_some() || args.service.is_some();
            return recent && !filtered && args.decision.is_none();
        }
    };
    let fits = |filter: &Option<String>, value: &Foreign| {
        filter.as_ref().is_none_or(|wanted| value.raw() == wanted)
    };
    recent
        && fits(&args.caller, caller)
        && fits(&args.service, service)
        && args.decision.is_none_or(|wanted| decision == wanted)
}

/// Formats a line, and says how many pieces of a transfer it stands for.
fn shown_text(shown: &ShownLine) -> String {
    let text = line_text(&shown.line);
    let incomplete = if shown.is_incomplete() {
        ", incomplete"
    } else {
        ""
    };
    match shown.pieces {
        // Also a part of a file that somebody reads on purpose.
        0 | 1 => text,
        pieces => format!("{} ({pieces} pieces{incomplete})\n", text.trim_end()),
    }
}

fn line_text(line: &LogLine) -> String {
    let event = match &line.event {
        Event::Call(call) => call_text(call),
        Event::Counted {
            caller,
            service,
            decision,
            reason,
            count,
        } => format!(
            "{}  {}  {}  {count} more times: {}",
            decision.as_str(),
            caller.escaped(),
            service.escaped(),
            reason.escaped()
        ),
        Event::Start {
            version, policy, ..
        } => format!(
            "server started (anklume {}, policy {})",
            version.escaped(),
            short(policy)
        ),
        Event::Stop { .. } => "server stopped".to_owned(),
        Event::Reload { policy, refused } => match refused {
            None => format!("policy {} in force", short(policy)),
            Some(reason) => format!(
                "new services file refused, policy {} stays in force: {}",
                short(policy),
                reason.escaped()
            ),
        },
        Event::Rotated { .. } => "log continues in a new file".to_owned(),
        Event::Torn { bytes } => format!("{bytes} byte(s) of an unfinished line were removed"),
    };
    let time = Foreign::new(line.time.as_str());
    let second = time.part(|time| time.split('.').next().unwrap_or_default());
    let second = second.part(|second| second.trim_end_matches('Z'));
    format!("{}Z  {event}\n", second.escaped())
}

fn call_text(call: &Call) -> String {
    let tool = call.tool.as_ref().filter(|tool| **tool != call.service);
    let tool = tool.map_or_else(String::new, |tool| format!(" ({})", tool.escaped()));
    let head = format!(
        "{}  {}  {}{tool}",
        call.decision.as_str(),
        call.caller.escaped(),
        call.service.escaped()
    );
    match call.decision {
        Verdict::Allowed => format!(
            "{head}{}  {}, {} B in, {} B out, {:.1} ms",
            purpose_text(call),
            call.outcome,
            call.bytes_in,
            call.bytes_out,
            Duration::from_micros(call.duration_us).as_secs_f64() * 1e3
        ),
        Verdict::Refused | Verdict::Overloaded => format!("{head}  {}", call.reason.escaped()),
    }
}

fn purpose_text(call: &Call) -> String {
    let purpose = call.purpose.as_ref();
    purpose.map_or_else(String::new, |purpose| format!("  {}", purpose.escaped()))
}

/// Returns the first digits of a digest, enough to tell digests apart.
fn short(digest: &Foreign) -> String {
    digest
        .part(|digest| digest.chars().take(12).collect::<String>())
        .escaped()
}

/// Parses a time (`2026-11-22T10:00:00Z`) or an age (`90s`, `15m`, `2h`, `7d`).
fn since(text: &str) -> Result<Timestamp, Failure> {
    let wrong = || {
        let message = format!("`--since {}` is not a time", text.escape_debug());
        Failure::new(Exit::Usage, message)
            .help("write it as 2026-11-22, 2026-11-22T10:00:00Z, or how long ago: 90s, 15m, 2h, 7d")
    };
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(time) = format!("{text}T00:00:00Z").parse::<Timestamp>() {
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
    let number: u32 = number.parse().map_err(|_| wrong())?;
    let ago = Duration::from_secs(u64::from(number) * seconds);
    Timestamp::now().checked_sub(ago).map_err(|_| wrong())
}

/// Runs `anklume audit verify`; returns 0 if the log is intact, 1 if not.
fn verify(args: &AuditVerifyArgs, output: &Output) -> anyhow::Result<Exit> {
    let head = args.head.as_deref().map(head).transpose()?;
    let mut report = walk(&args.log.file, head.clone())?;
    for _ in 0..RETRIES {
        if !report.unfinished {
            break;
        }
        std::thread::sleep(PAUSE);
        report = walk(&args.log.file, head.clone())?;
    }
    output.answer_as(&report_json(&report), || report_text(&report))?;
    Ok(done_or_failed(report.is_whole()))
}

/// Verifies all files once.
fn walk(path: &Path, head: Option<String>) -> anyhow::Result<VerifyReport> {
    let files = files(path)?;
    let mut verifier = Verifier::new(head);
    if !audit::may_have_dropped(path).map_err(|why| unreadable(path, &why))? {
        verifier = verifier.from_the_first_line();
    }
    for file in &files {
        let name = file.display().to_string();
        let cannot = || format!("cannot read `{name}`");
        let reader = BufReader::new(File::open(file).with_context(cannot)?);
        verifier.file(&name, reader).with_context(cannot)?;
    }
    Ok(verifier.finish())
}

/// Parses a hash as `verify` prints it; rejects anything else, because no line could have it.
fn head(text: &str) -> Result<String, Failure> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    let message = format!("`--head {}` is not a hash", text.escape_debug());
    Err(Failure::new(Exit::Usage, message)
        .help("pass the 64 hexadecimal digits that an earlier `anklume audit verify` printed"))
}

fn report_text(report: &VerifyReport) -> String {
    let findings = report.findings.iter();
    let mut lines: Vec<String> = findings
        .map(|finding| format!("{}:{}: {}", finding.file, finding.line, finding.fault))
        .collect();
    if report.more > 0 {
        lines.push(format!("and {} more", report.more));
    }
    if report.head_missing {
        let altered = "the log was truncated or rewritten";
        lines.push(match report.first {
            0 | 1 => format!("the line with the given head is missing: {altered}"),
            first => format!(
                "the line with the given head is missing: it is older than number {first}, where the log now begins, or {altered}"
            ),
        });
    }
    let word = if report.is_whole() {
        "intact"
    } else {
        "NOT intact"
    };
    lines.push(format!(
        "{word}: {} line(s) from number {} on, head {} (number {})",
        report.lines, report.first, report.head.hash, report.head.seq
    ));
    lines.join("\n") + "\n"
}

fn report_json(report: &VerifyReport) -> Value {
    let findings = report.findings.iter().map(|finding| {
        json!({
            "file": finding.file,
            "line": finding.line,
            "fault": finding.fault.to_string(),
        })
    });
    json!({
        "whole": report.is_whole(),
        "lines": report.lines,
        "first": report.first,
        "head": report.head.hash,
        "seq": report.head.seq,
        "head_missing": report.head_missing,
        "findings": findings.collect::<Vec<_>>(),
        "more": report.more,
    })
}
