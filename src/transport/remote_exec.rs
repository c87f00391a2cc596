//! An errand in a machine: one line goes in, one line comes back, within bounds; nothing that the machine does makes it
//! long or large.
//!
//! On a busy host Incus loses what a command says that ends before its streams are joined (lxd #11422). So whoever is sent
//! says its line and stays until it is let go, which is when its stdin ends ([`crate::command`]'s `errand`).

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use super::program;
use crate::text::Foreign;

/// Most that is read of what a command says, in bytes; of each of stdout and stderr.
pub(crate) const SAID_MAX: usize = 1024 * 1024;
/// Bytes read at once.
const CHUNK: usize = 8 * 1024;

/// A command of this program's in a machine.
#[derive(Debug, Clone)]
pub(crate) struct RemoteExec<'a> {
    /// The machine's project.
    pub(crate) project: &'a str,
    /// The machine.
    pub(crate) machine: &'a str,
    /// User and group number; `None`: root.
    pub(crate) user: Option<(u32, u32)>,
    /// The command and its arguments.
    pub(crate) words: &'a [&'a str],
    /// The line that it reads, without its end.
    pub(crate) order: &'a [u8],
    /// Time-out for it.
    pub(crate) patience: Duration,
}

/// The result of a command in a machine, in the machine's own words: not to be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExecOutput {
    /// Its exit code; `None`: it was killed.
    pub(crate) code: Option<i32>,
    /// The line that it said; where it ended without one, all that came.
    pub(crate) answer: Vec<u8>,
    /// Its stderr, or that of `incus`.
    pub(crate) stderr: Foreign,
}

/// The reason why a command in a machine did not end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ErrandError {
    /// `incus` cannot be started.
    #[error("the program `incus` cannot be started: {0}")]
    NotStarted(#[source] std::io::Error),
    /// It took too long.
    #[error("no end within {} s", .0.as_secs())]
    Slow(Duration),
    /// It said too much.
    #[error("its output exceeds {SAID_MAX} bytes")]
    TooMuch,
}

impl RemoteExec<'_> {
    fn command(&self, mut command: Command) -> Command {
        command.args(["exec", self.machine, "--project", self.project]);
        command.args(["-T", "--force-local", "--cwd", "/"]);
        if let Some((uid, gid)) = self.user {
            command.args(["--user", &uid.to_string(), "--group", &gid.to_string()]);
        }
        command.arg("--").args(self.words);
        // A ^C at the terminal is for whoever waits for this, not for the step in hand.
        command.process_group(0);
        command
    }

    /// Runs it.
    pub(crate) async fn run(&self) -> Result<ExecOutput, ErrandError> {
        let incus = program::incus().map_err(ErrandError::NotStarted)?;
        let mut command = self.command(incus);
        let piped = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = piped.spawn().map_err(ErrandError::NotStarted)?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let exchange = async {
            let order = async {
                let mut stdin = stdin;
                if let Some(stdin) = &mut stdin {
                    // A command that ends before it has read everything has its reasons.
                    let line = [self.order, b"\n"].concat();
                    let _ = stdin.write_all(&line).await;
                    let _ = stdin.flush().await;
                }
                stdin
            };
            let (stdin, answer) = tokio::join!(order, line(stdout));
            // Let go.
            drop(stdin);
            answer.ok_or(ErrandError::TooMuch)
        };
        let words = async { all(stderr).await.ok_or(ErrandError::TooMuch) };
        let whole = async {
            let (answer, stderr) = tokio::try_join!(exchange, words)?;
            let status = child.wait().await.map_err(ErrandError::NotStarted)?;
            Ok(ExecOutput {
                code: status.code(),
                answer,
                stderr: String::from_utf8_lossy(&stderr).trim().into(),
            })
        };
        timeout(self.patience, whole)
            .await
            .map_err(|_| ErrandError::Slow(self.patience))?
    }
}

/// The first line that comes, without its end; what came, where the stream ends before; `None`: it is too long.
async fn line(stream: Option<impl AsyncRead + Unpin>) -> Option<Vec<u8>> {
    read(stream, |said| said.iter().position(|byte| *byte == b'\n')).await
}

/// All that comes; `None`: it is too much.
async fn all(stream: Option<impl AsyncRead + Unpin>) -> Option<Vec<u8>> {
    read(stream, |_| None).await
}

/// Reads until `end` finds where that is, or the stream ends.
async fn read(
    stream: Option<impl AsyncRead + Unpin>,
    end: impl Fn(&[u8]) -> Option<usize>,
) -> Option<Vec<u8>> {
    let mut said = Vec::new();
    let Some(mut stream) = stream else {
        return Some(said);
    };
    while said.len() <= SAID_MAX {
        let known = said.len();
        said.reserve(CHUNK);
        // What cannot be read was not said.
        if stream.read_buf(&mut said).await.unwrap_or_default() == 0 {
            return Some(said);
        }
        if let Some(more) = said.get(known..).and_then(&end) {
            said.truncate(known + more);
            return Some(said);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_is_taken_than_there_is_room_for() {
        let much = vec![b'x'; SAID_MAX + 1];
        assert_eq!(all(Some(much.as_slice())).await, None);
        assert_eq!(line(Some(much.as_slice())).await, None);
        let enough = vec![b'x'; SAID_MAX];
        assert_eq!(all(Some(enough.as_slice())).await, Some(enough.clone()));
        assert_eq!(all(None::<&[u8]>).await, Some(Vec::new()));
    }

    #[tokio::test]
    async fn an_answer_is_a_line_and_does_not_wait_for_more() {
        let (mut machine, host) = tokio::io::duplex(64);
        machine.write_all(b"{}\nmore").await.unwrap();
        // The other end stays open, as a machine that waits to be let go.
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
            words: &["/opt/anklume/anklume", "machine-ask", "vault"],
            order: b"",
            patience: Duration::from_secs(1),
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
