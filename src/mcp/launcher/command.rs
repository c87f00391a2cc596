//! Runs a tool that the machine declares itself, once for each call.

use std::pin::pin;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::slots::ProgramSlot;
use super::{NOT_SET_UP, Programs};
use crate::catalogue::{OwnOutput, OwnTool, STDERR_KEPT, STDOUT_MAX};
use crate::child::{ProgramEnd, RunningProgram, spec, start};
use crate::mcp::framing::json;
use crate::policy::Grant;
use crate::tool::{ToolError, ToolOutcome};

/// Everything that a program printed.
struct Printed {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Length of its whole error output.
    stderr_bytes: usize,
}

/// Runs a tool with the arguments of a grant.
pub(super) async fn run(
    grant: &Grant,
    tool: &OwnTool,
    programs: &Programs,
    slot: ProgramSlot,
) -> Result<ToolOutcome, ToolError> {
    let line = tool.command_line(grant.arguments())?;
    let name = grant.tool();
    let not_set_up = |why: String| {
        (programs.report)(&format!("the tool `{name}` cannot run: {why}"));
        ToolError::Unavailable(NOT_SET_UP.to_owned())
    };
    let spec = spec(line.argv, &tool.process, &programs.user);
    let spec = spec.map_err(|why| not_set_up(why.to_string()))?;
    let program = start(&spec, slot)
        .await
        .map_err(|why| not_set_up(why.to_string()))?;
    let RunningProgram {
        stdin,
        mut stdout,
        mut stderr,
        running,
        mut end,
    } = program;
    let flooded = CancellationToken::new();
    let work = async {
        let output = async {
            let read = read_up_to(&mut stdout, STDOUT_MAX).await;
            if read.is_none() {
                flooded.cancel();
            }
            drop(stdout);
            read
        };
        tokio::join!(
            write(stdin, line.stdin),
            output,
            read_beginning(&mut stderr),
            end.ended()
        )
    };
    let mut work = pin!(work);
    let mut time = pin!(sleep(Duration::from_secs(tool.timeout.into())));
    let mut running = Some(running);
    let mut failed = None;
    let ((), stdout, (stderr, stderr_bytes), ended) = loop {
        tokio::select! {
            done = &mut work => break done,
            () = flooded.cancelled(), if running.is_some() => {
                running = None;
                let text = format!("it was stopped: it printed more than {STDOUT_MAX} bytes");
                failed = Some(ToolError::TooLarge(text));
            }
            () = &mut time, if running.is_some() => {
                running = None;
                let text = format!("it was stopped after {} s, its maximum duration", tool.timeout);
                failed = Some(ToolError::TimedOut(text));
            }
        }
    };
    if let Some(failed) = failed {
        return Err(failed);
    }
    let ended = ended.map_err(|_| {
        (programs.report)(&format!(
            "the process that watches the tool `{name}` was killed"
        ));
        ToolError::Unavailable("it was ended from outside".to_owned())
    })?;
    let printed = Printed {
        stdout: stdout.unwrap_or_default(),
        stderr,
        stderr_bytes,
    };
    outcome(tool.output, ended, &printed)
}

/// Writes the program's input, and closes it.
async fn write(mut stdin: pipe::Sender, input: Option<String>) {
    if let Some(input) = input {
        // The program need not read it.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
}

/// Reads to the end; returns `None` if there are more than `max` bytes.
async fn read_up_to(from: &mut (impl AsyncRead + Unpin), max: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut limited = from.take(max as u64 + 1);
    // A pipe fails only if this process has a fault.
    let _ = limited.read_to_end(&mut bytes).await;
    (bytes.len() <= max).then_some(bytes)
}

/// Reads to the end, and keeps the beginning; also returns the whole length.
async fn read_beginning(from: &mut (impl AsyncRead + Unpin)) -> (Vec<u8>, usize) {
    let mut kept = Vec::new();
    let mut length = 0;
    let mut part = vec![0; 8192];
    while let Ok(read) = from.read(&mut part).await
        && read > 0
    {
        length += read;
        let part = part.get(..read).unwrap_or_default();
        let room = STDERR_KEPT.saturating_sub(kept.len()).min(read);
        kept.extend_from_slice(part.get(..room).unwrap_or_default());
    }
    (kept, length)
}

impl Printed {
    fn stderr(&self) -> String {
        let text = String::from_utf8_lossy(&self.stderr);
        match self.stderr_bytes.saturating_sub(self.stderr.len()) {
            0 => text.into_owned(),
            dropped => format!("{text}\n({dropped} more bytes)\n"),
        }
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

fn outcome(
    output: OwnOutput,
    end: ProgramEnd,
    printed: &Printed,
) -> Result<ToolOutcome, ToolError> {
    let how = match end {
        ProgramEnd::Exited(0) => return succeeded(output, printed),
        ProgramEnd::Exited(status) => format!("it exited with status {status}"),
        ProgramEnd::Killed(signal) => format!("it was ended by signal {signal}"),
        ProgramEnd::OutOfMemory => "it was stopped: it used more memory than it may".to_owned(),
    };
    let streams = [("stdout", printed.stdout()), ("stderr", printed.stderr())];
    let streams = streams.iter().filter_map(|(stream, printed)| {
        let printed = printed.trim_end();
        (!printed.is_empty()).then(|| format!("\n{stream}:\n{printed}"))
    });
    Err(ToolError::Program(how + &streams.collect::<String>()))
}

fn succeeded(output: OwnOutput, printed: &Printed) -> Result<ToolOutcome, ToolError> {
    let text = printed.stdout();
    let mut structured = Map::new();
    match output {
        OwnOutput::Text => structured.insert("stdout".to_owned(), text.as_str().into()),
        OwnOutput::Json => {
            let value = json::read(json::trim(&printed.stdout)).map_err(|fault| {
                ToolError::Program(format!("it did not print one JSON value: {fault}"))
            })?;
            structured.insert("output".to_owned(), value)
        }
    };
    structured.insert("stderr".to_owned(), printed.stderr().into());
    structured.insert("exit_status".to_owned(), Value::from(0));
    Ok(ToolOutcome {
        text,
        is_png: false,
        structured,
    })
}
