//! `anklume audit verify`: is the log as it was written?

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use crate::audit;
use crate::audit::verify::{Verifier, VerifyReport};
use crate::cli::{AuditVerifyArgs, Format};
use crate::command::output::Output;
use crate::error::{Exit, Failure};

/// How often is looked again at a log whose last line is not ended.
const LOOKS: usize = 3;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Runs `anklume audit verify`: 0 whole, 1 not.
pub(crate) fn run(args: &AuditVerifyArgs, output: &Output) -> anyhow::Result<Exit> {
    let path = &args.log.file;
    let head = head(args.head.as_deref())?;
    let mut report = walk(path, head.clone())?;
    for _ in 0..LOOKS {
        if !report.unfinished {
            break;
        }
        // A server that is just writing the line has ended it by then.
        std::thread::sleep(PAUSE);
        report = walk(path, head.clone())?;
    }
    match output.format() {
        Format::Json => output.json(&as_json(&report))?,
        Format::Text => output.answer(as_text(&report).as_bytes())?,
    }
    Ok(if report.is_whole() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// One look at all files.
fn walk(path: &Path, head: Option<String>) -> anyhow::Result<VerifyReport> {
    let files = super::files(path)?;
    let mut verifier = Verifier::new(head);
    if !audit::may_have_dropped(path).map_err(|why| super::hidden(path, &why))? {
        verifier = verifier.from_the_first_line();
    }
    for file in &files {
        let name = file.display().to_string();
        let reader = File::open(file).with_context(|| format!("cannot read `{name}`"))?;
        verifier
            .file(&name, BufReader::new(reader))
            .with_context(|| format!("cannot read `{name}`"))?;
    }
    Ok(verifier.finish())
}

/// A hash as `verify` prints it; anything else would never be found and so is a mistake.
fn head(text: Option<&str>) -> Result<Option<String>, Failure> {
    let Some(text) = text else { return Ok(None) };
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(Some(text.to_ascii_lowercase()));
    }
    Err(Failure::new(
        Exit::Usage,
        format!("`--head {}` is not a hash", text.escape_debug()),
    )
    .help("give the 64 hexadecimal digits that an earlier `anklume audit verify` printed"))
}

fn as_text(report: &VerifyReport) -> String {
    let mut lines: Vec<String> = report
        .findings
        .iter()
        .map(|finding| format!("{}:{}: {}", finding.file, finding.line, finding.fault))
        .collect();
    if report.more > 0 {
        lines.push(format!("and {} more", report.more));
    }
    if report.head_missing {
        let altered = "the end was cut, or the log was written anew";
        lines.push(match report.first {
            0 | 1 => format!("the line with the given head is missing: {altered}"),
            first => format!(
                "the line with the given head is missing: it is older than number {first}, where the log begins now, or {altered}"
            ),
        });
    }
    let word = if report.is_whole() {
        "whole"
    } else {
        "NOT as it was written"
    };
    lines.push(format!(
        "{word}: {} line(s) from number {} on, head {} (number {})",
        report.lines, report.first, report.head.hash, report.head.seq
    ));
    lines.join("\n") + "\n"
}

fn as_json(report: &VerifyReport) -> serde_json::Value {
    let findings: Vec<_> = report
        .findings
        .iter()
        .map(|finding| {
            json!({
                "file": finding.file,
                "line": finding.line,
                "fault": finding.fault.to_string(),
            })
        })
        .collect();
    json!({
        "whole": report.is_whole(),
        "lines": report.lines,
        "first": report.first,
        "head": report.head.hash,
        "seq": report.head.seq,
        "head_missing": report.head_missing,
        "findings": findings,
        "more": report.more,
    })
}
