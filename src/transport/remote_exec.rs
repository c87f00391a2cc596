//! Runs a command of this program in a machine: sends one line and reads one line, in bounded time and memory.
//!
//! On a busy host, Incus loses the output of a command that ends before its streams are joined (lxd #11422). So the
//! command writes its line and waits for its stdin to be closed ([`crate::command`]'s `errand`).

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::program;
use crate::text::Foreign;

/// Maximum output of a command on each of stdout and stderr, in bytes.
const OUTPUT_MAX: usize = 1024 * 1024;
/// Maximum length of a command's stderr in a message, in characters.
const WORDS_MAX: usize = 300;
/// Maximum size of one read, in bytes.
const CHUNK: usize = 8 * 1024;

/// A command of this program to run in a machine.
#[derive(Debug)]
pub(crate) struct RemoteExec<'a> {
    pub(crate) project: &'a str,
    pub(crate) machine: &'a str,
    /// User and group numbers; `None` for root.
    pub(crate) user: Option<(u32, u32)>,
    /// The command and its arguments.
    pub(crate) argv: &'a [&'a str],
    /// The line that it reads, without its newline.
    pub(crate) input: &'a [u8],
    pub(crate) timeout: Duration,
}

/// The untrusted output of a command in a machine.
#[derive(Debug)]
pub(crate) struct ExecOutput {
    /// The line that it wrote, or all its output if it ended without a newline.
    pub(crate) answer: Vec<u8>,
    /// Its stderr, or that of `incus`.
    pub(crate) stderr: Foreign,
}

/// The reason why a command in a machine failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteExecError {
    #[error("the program `incus` cannot be started: {0}")]
    NotStarted(#[source] std::io::Error),
    #[error("it did not end within {} s", .0.as_secs())]
    Slow(Duration),
    #[error("its output exceeds {OUTPUT_MAX} bytes")]
    TooMuch,
    #[error("its output is incomplete{}", if .0.raw().is_empty() { String::new() } else { format!("; its stderr: {}", .0.shown(WORDS_MAX)) })]
    Incomplete(Foreign),
    #[error("its output cannot be read: {0}")]
    Unreadable(#[source] std::io::Error),
}

impl RemoteExec<'_> {
    /// Starts the command, with its streams in pipes.
    fn start(&self) -> Result<Child, RemoteExecError> {
        let incus = program::incus().map_err(RemoteExecError::NotStarted)?;
        let piped = &mut self.command(incus);
        piped
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        piped.spawn().map_err(RemoteExecError::NotStarted)
    }

    fn command(&self, mut command: Command) -> Command {
        command.args(["exec", self.machine, "--project", self.project]);
        command.args(["-T", "--force-local", "--cwd", "/"]);
        if let Some((uid, gid)) = self.user {
            command.args(["--user", &uid.to_string(), "--group", &gid.to_string()]);
        }
        command.arg("--").args(self.argv);
        // A ^C at the terminal must reach only this process.
        command.process_group(0);
        command
    }

    pub(crate) async fn run(&self) -> Result<ExecOutput, RemoteExecError> {
        let mut child = self.start()?;
        let mut stdin = child.stdin.take();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let exchange = async {
            let write = async {
                if let Some(stdin) = &mut stdin {
                    // A command may end before it has read everything.
                    let line = [self.input, b"\n"].concat();
                    let _ = stdin.write_all(&line).await;
                    let _ = stdin.flush().await;
                }
            };
            let ((), answer) = tokio::join!(write, line(stdout));
            // Lets the command end.
            drop(stdin);
            answer.ok_or(RemoteExecError::TooMuch)
        };
        let words = async { all(stderr).await.ok_or(RemoteExecError::TooMuch) };
        let whole = async {
            let (answer, stderr) = tokio::try_join!(exchange, words)?;
            child.wait().await.map_err(RemoteExecError::NotStarted)?;
            Ok(ExecOutput {
                answer,
                stderr: String::from_utf8_lossy(&stderr).trim().into(),
            })
        };
        timeout(self.timeout, whole)
            .await
            .map_err(|_| RemoteExecError::Slow(self.timeout))?
    }
}

impl RemoteExec<'_> {
    /// Runs a command that writes lines of at most [`OUTPUT_MAX`] bytes, then an empty one; passes each to `take` as it
    /// comes. `timeout` is the maximum wait for a line.
    ///
    /// # Errors
    ///
    /// Also fails if `take` does, and then ends the command.
    pub(crate) async fn lines(
        &self,
        mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<(), RemoteExecError> {
        let mut child = self.start()?;
        let _stdin = child.stdin.take();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let words = tokio::spawn(all(stderr));
        let Some(stdout) = stdout else {
            return Err(RemoteExecError::Incomplete(Foreign::new(String::new())));
        };
        let mut stdout = BufReader::new(stdout);
        let max = OUTPUT_MAX as u64 + 1;
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut limited = (&mut stdout).take(max);
            let read = timeout(self.timeout, limited.read_until(b'\n', &mut line)).await;
            match read.map_err(|_| RemoteExecError::Slow(self.timeout))? {
                Err(why) => return Err(RemoteExecError::Unreadable(why)),
                Ok(_) if line == b"\n" => return Ok(()),
                Ok(read) if read as u64 == max => return Err(RemoteExecError::TooMuch),
                Ok(_) => {}
            }
            let Some(whole) = line.strip_suffix(b"\n") else {
                let words = words.await.ok().flatten().unwrap_or_default();
                let words = String::from_utf8_lossy(&words).trim().into();
                return Err(RemoteExecError::Incomplete(words));
            };
            take(whole).map_err(RemoteExecError::Unreadable)?;
        }
    }
}

/// Reads a line without its newline, or all output if the stream ends first; `None` if it is too long.
async fn line(stream: Option<impl AsyncRead + Unpin>) -> Option<Vec<u8>> {
    read(stream, |output| memchr::memchr(b'\n', output)).await
}

/// Reads all output; `None` if there is too much of it.
async fn all(stream: Option<impl AsyncRead + Unpin>) -> Option<Vec<u8>> {
    read(stream, |_| None).await
}

/// Reads until `end` finds the end in the new bytes, or the stream ends; `None` if there is too much output.
async fn read(
    stream: Option<impl AsyncRead + Unpin>,
    end: impl Fn(&[u8]) -> Option<usize>,
) -> Option<Vec<u8>> {
    let mut output = Vec::new();
    let Some(mut stream) = stream else {
        return Some(output);
    };
    while output.len() <= OUTPUT_MAX {
        let known = output.len();
        output.reserve(CHUNK);
        // A stream that cannot be read counts as ended.
        if stream.read_buf(&mut output).await.unwrap_or_default() == 0 {
            return Some(output);
        }
        if let Some(more) = output.get(known..).and_then(&end) {
            output.truncate(known + more);
            return Some(output);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_is_taken_than_there_is_room_for() {
        let much = vec![b'x'; OUTPUT_MAX + 1];
        assert_eq!(all(Some(much.as_slice())).await, None);
        assert_eq!(line(Some(much.as_slice())).await, None);
        let enough = vec![b'x'; OUTPUT_MAX];
        assert_eq!(all(Some(enough.as_slice())).await, Some(enough.clone()));
        assert_eq!(all(None::<&[u8]>).await, Some(Vec::new()));
    }

    #[tokio::test]
    async fn an_answer_is_a_line_and_does_not_wait_for_more() {
        let (mut machine, host) = tokio::io::duplex(64);
        machine.write_all(b"{}\nmore").await.unwrap();
        // The machine's end stays open: the machine waits for ours to close.
        assert_eq!(line(Some(host)).await, Some(b"{}".to_vec()));
        drop(machine);
        assert_eq!(line(Some(&b"cut"[..])).await, Some(b"cut".to_vec()));
    }

    #[test]
    fn the_machine_is_named_and_nothing_is_a_flag_by_chance() {
        let errand = RemoteExec {
            project: "vault",
            machine: "signer",
            user: Some((1000, 100)),
            argv: &["/opt/anklume/anklume", "machine-ask", "vault"],
            input: b"",
            timeout: Duration::from_secs(1),
        };
        let words: Vec<String> = errand
            .command(Command::new("incus"))
            .as_std()
            .get_args()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            words.join(" "),
            "exec signer --project vault -T --force-local --cwd / --user 1000 --group 100 -- /opt/anklume/anklume machine-ask vault"
        );
    }
}
