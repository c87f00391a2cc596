//! Reads a running machine's files from the host through its first process, without asking Incus or copying them.
//! A child process reads the files ([`serve`]), so that a slow or malicious file system affects only the answer for its
//! own machine ([`MachineRoot`]). The child changes nothing. If a path is not as expected in a healthy machine, the
//! child answers [`Look::Unclear`], and the caller asks Incus.

mod view;

use std::io::{self, BufRead, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::incus::{EntryKind, FileEntry};
use view::{View, ViewFailure};

/// This program, even if its file has been replaced.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// The hidden subcommand that runs [`serve`].
pub(crate) const COMMAND: &str = "machine-root";
/// Maximum time for one look; with a local disk, it takes milliseconds.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum total time for all looks into a machine.
const TOTAL: Duration = Duration::from_secs(20);
/// Maximum length of a line between the two processes, in bytes: a path and some overhead.
const LINE_MAX: u64 = 16 * 1024;

/// A request to the child.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RootRequest {
    /// Look at a path.
    Look(String),
    /// Read a regular file, or the target of a link.
    Read {
        path: String,
        kind: EntryKind,
        /// Maximum length, in bytes.
        max: u64,
    },
    /// Compare a file with this program.
    IsThisProgram(String),
}

/// An answer from the child. [`RootAnswer::Content`] is followed by the stated number of bytes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RootAnswer {
    Ready,
    Entry(Option<FileEntry>),
    Content(Option<usize>),
    Program(Option<bool>),
    TooLarge,
    Unclear,
}

/// The result of a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Look<T> {
    /// The value found.
    Is(T),
    /// The file is larger than allowed.
    TooLarge,
    /// The path leads through a link or mount, or cannot be read, or the first process ended. Incus may still know the
    /// answer.
    Unclear,
}

/// The reason why the child did not answer: the machine delayed it, or the child failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineRootError {
    /// The child cannot be started, or communication with it failed.
    #[error("cannot run the process that reads its files: {0}")]
    Io(#[from] io::Error),
    /// The answer took too long.
    #[error("no answer within {} s, or {} s for all answers", TIMEOUT.as_secs(), TOTAL.as_secs())]
    Slow,
}

/// A child that looks at one machine's files; it is killed when this value is dropped.
#[derive(Debug)]
pub(crate) struct MachineRoot {
    /// Killed when dropped.
    _child: Child,
    /// The remainder of [`TOTAL`].
    left: Duration,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl MachineRoot {
    /// Starts a child that reads through the process `first`; returns `None` unless that is the machine's first process.
    pub(crate) async fn open(first: u32, cgroup: &str) -> Result<Option<Self>, MachineRootError> {
        let mut command = Command::new(THIS_PROGRAM);
        command
            .args([COMMAND, &first.to_string(), cgroup])
            .env_clear();
        Self::start(command, TIMEOUT).await
    }

    /// Starts a child and waits until it is ready.
    async fn start(
        mut command: Command,
        limit: Duration,
    ) -> Result<Option<Self>, MachineRootError> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A ^C at the terminal must not end the child before its parent.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        };
        let mut root = Self {
            _child: child,
            left: TOTAL,
            stdin,
            stdout: BufReader::new(stdout),
        };
        let answer = timeout(limit, root.answer()).await;
        match answer.map_err(|_| MachineRootError::Slow)?? {
            RootAnswer::Ready => Ok(Some(root)),
            _ => Ok(None),
        }
    }

    /// Returns the entry at a path; `None` if it does not exist.
    pub(crate) async fn look(
        &mut self,
        path: &str,
    ) -> Result<Look<Option<FileEntry>>, MachineRootError> {
        Ok(
            match self.ask(&RootRequest::Look(path.to_owned())).await?.0 {
                RootAnswer::Entry(entry) => Look::Is(entry),
                _ => Look::Unclear,
            },
        )
    }

    /// Returns the content of a regular file or the target of a link; `None` if the path is neither.
    pub(crate) async fn read(
        &mut self,
        path: &str,
        kind: EntryKind,
        max: u64,
    ) -> Result<Look<Option<Vec<u8>>>, MachineRootError> {
        let request = RootRequest::Read {
            path: path.to_owned(),
            kind,
            max,
        };
        Ok(match self.ask(&request).await? {
            (RootAnswer::Content(length), content) => Look::Is(length.map(|_| content)),
            (RootAnswer::TooLarge, _) => Look::TooLarge,
            _ => Look::Unclear,
        })
    }

    /// Returns whether a file equals this program; `None` if the path is not a regular file.
    pub(crate) async fn is_this_program(
        &mut self,
        path: &str,
    ) -> Result<Look<Option<bool>>, MachineRootError> {
        let request = RootRequest::IsThisProgram(path.to_owned());
        Ok(match self.ask(&request).await?.0 {
            RootAnswer::Program(is) => Look::Is(is),
            _ => Look::Unclear,
        })
    }

    async fn ask(
        &mut self,
        request: &RootRequest,
    ) -> Result<(RootAnswer, Vec<u8>), MachineRootError> {
        let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
        line.push(b'\n');
        let limit = self.left.min(TIMEOUT);
        let start = Instant::now();
        let exchange = async {
            self.stdin.write_all(&line).await?;
            let answer = self.answer().await?;
            let mut content = Vec::new();
            if let RootAnswer::Content(Some(length)) = &answer {
                content = vec![0; *length];
                self.stdout.read_exact(&mut content).await?;
            }
            Ok((answer, content))
        };
        let done = timeout(limit, exchange).await;
        self.left = self.left.saturating_sub(start.elapsed());
        done.map_err(|_| MachineRootError::Slow)?
    }

    async fn answer(&mut self) -> Result<RootAnswer, MachineRootError> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.stdout).take(LINE_MAX);
        bounded.read_until(b'\n', &mut line).await?;
        Ok(serde_json::from_slice(&line).map_err(io::Error::from)?)
    }
}

/// Runs the child's side: answers requests until the input ends.
///
/// # Errors
/// Fails if the parent is gone or sends a line that is not a valid request.
pub(crate) fn serve(
    first: u32,
    cgroup: &str,
    input: impl BufRead,
    mut output: impl Write,
) -> io::Result<()> {
    let Some(view) = View::open(first, cgroup) else {
        return say(&mut output, &RootAnswer::Unclear, b"");
    };
    say(&mut output, &RootAnswer::Ready, b"")?;
    for line in input.split(b'\n') {
        let request = serde_json::from_slice(&line?)?;
        let done = answered(&view, &request);
        // A result is valid only while the machine's first process is alive.
        let (answer, content) = if view.is_alive() {
            done.unwrap_or_else(|why| match why {
                ViewFailure::TooLarge => (RootAnswer::TooLarge, Vec::new()),
                ViewFailure::Unclear => (RootAnswer::Unclear, Vec::new()),
            })
        } else {
            (RootAnswer::Unclear, Vec::new())
        };
        say(&mut output, &answer, &content)?;
    }
    Ok(())
}

fn answered(view: &View, request: &RootRequest) -> Result<(RootAnswer, Vec<u8>), ViewFailure> {
    Ok(match request {
        RootRequest::Look(path) => (RootAnswer::Entry(view.look(path)?), Vec::new()),
        RootRequest::Read { path, kind, max } => {
            let content = view.read(path, *kind, *max)?;
            let length = content.as_ref().map(Vec::len);
            (RootAnswer::Content(length), content.unwrap_or_default())
        }
        RootRequest::IsThisProgram(path) => {
            let is = view.is_same_file(path, THIS_PROGRAM)?;
            (RootAnswer::Program(is), Vec::new())
        }
    })
}

fn say(output: &mut impl Write, answer: &RootAnswer, content: &[u8]) -> io::Result<()> {
    let mut head = serde_json::to_vec(answer)?;
    head.push(b'\n');
    output.write_all(&head)?;
    output.write_all(content)?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts a shell script as the child.
    async fn child(script: &str, limit: Duration) -> Result<Option<MachineRoot>, MachineRootError> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        MachineRoot::start(command, limit).await
    }

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_child_that_hangs_times_out() {
        let held = child("exec sleep 600", SHORT).await;
        assert!(matches!(held, Err(MachineRootError::Slow)), "{held:?}");
        let ready = "echo '\"ready\"'; ";
        let mut root = child(&format!("{ready} exec sleep 600"), LONG)
            .await
            .unwrap()
            .unwrap();
        root.left = SHORT;
        let held = root.look("/etc").await;
        assert!(matches!(held, Err(MachineRootError::Slow)), "{held:?}");
        // A partial answer times out too.
        let half =
            format!("{ready} read request; echo '{{\"content\":10}}'; printf half; exec sleep 600");
        let mut root = child(&half, LONG).await.unwrap().unwrap();
        root.left = SHORT;
        let held = root.read("/etc/name", EntryKind::File, 10).await;
        assert!(matches!(held, Err(MachineRootError::Slow)), "{held:?}");
    }

    #[tokio::test]
    async fn a_child_that_exits_or_sends_garbage_is_an_error_and_a_refusal_is_none() {
        for script in [
            "exit 0",
            "echo nonsense",
            "yes | head -c 100000 | tr -d '\\n'",
        ] {
            let child = child(script, LONG).await;
            assert!(
                matches!(child, Err(MachineRootError::Io(_))),
                "{script}: {child:?}"
            );
        }
        let refuses = child("echo '\"unclear\"'", LONG).await;
        assert!(matches!(refuses, Ok(None)), "{refuses:?}");
    }

    #[test]
    fn serve_answers_unclear_and_ends_if_the_process_is_not_a_machine() {
        let mut said = Vec::new();
        serve(std::process::id(), "vault_signer", io::empty(), &mut said).unwrap();
        assert_eq!(said, b"\"unclear\"\n");
    }
}
