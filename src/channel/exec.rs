//! A command in a machine, run to its end within bounds: nothing that the machine does makes it long or large.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use super::command::LOCAL_REMOTE;

/// Most that is read of what a command says, in bytes; of each of stdout and stderr.
pub(crate) const SAID_MAX: usize = 64 * 1024;

/// A command in a machine.
#[derive(Debug, Clone)]
pub(crate) struct Errand<'a> {
    /// The machine's project.
    pub(crate) project: &'a str,
    /// The machine.
    pub(crate) machine: &'a str,
    /// User and group number; `None`: root.
    pub(crate) user: Option<(u32, u32)>,
    /// The command and its arguments.
    pub(crate) words: &'a [&'a str],
    /// What it reads.
    pub(crate) stdin: &'a [u8],
    /// How long it may take.
    pub(crate) patience: Duration,
}

/// How a command in a machine ended, in the machine's own words: nothing of it is to be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    /// Its exit code; `None`: it was killed.
    pub(crate) code: Option<i32>,
    /// The beginning of its stdout.
    pub(crate) stdout: Vec<u8>,
    /// The beginning of its stderr.
    pub(crate) stderr: String,
}

/// Why a command in a machine did not end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ErrandError {
    /// `incus` cannot be started.
    #[error("the program `incus` cannot be started: {0}")]
    NotStarted(#[source] std::io::Error),
    /// It took too long.
    #[error("no end within {} s", .0.as_secs())]
    Slow(Duration),
    /// It said too much.
    #[error("it says more than {SAID_MAX} bytes")]
    TooMuch,
}

impl Errand<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new("incus");
        command.args(["exec", self.machine, "--project", self.project]);
        command.args(["-T", "--force-local", "--cwd", "/"]);
        if let Some((uid, gid)) = self.user {
            command.args(["--user", &uid.to_string(), "--group", &gid.to_string()]);
        }
        command.arg("--").args(self.words);
        command.env(LOCAL_REMOTE.0, LOCAL_REMOTE.1);
        // A ^C at the terminal is for whoever waits for this, not for the step in hand.
        command.process_group(0);
        command
    }

    /// Runs it.
    pub(crate) async fn run(&self) -> Result<Said, ErrandError> {
        let mut command = self.command();
        let piped = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = piped.spawn().map_err(ErrandError::NotStarted)?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A command that ends before it has read everything has its reasons.
                let _ = stdin.write_all(self.stdin).await;
            }
        };
        let all = async {
            let ((), stdout, stderr) = tokio::join!(feed, beginning(stdout), beginning(stderr));
            let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
                return Err(ErrandError::TooMuch);
            };
            let status = child.wait().await.map_err(ErrandError::NotStarted)?;
            Ok(Said {
                code: status.code(),
                stdout,
                stderr: String::from_utf8_lossy(&stderr).trim().to_owned(),
            })
        };
        timeout(self.patience, all)
            .await
            .map_err(|_| ErrandError::Slow(self.patience))?
    }
}

/// All that comes, if it is not too much.
async fn beginning(stream: Option<impl AsyncRead + Unpin>) -> Option<Vec<u8>> {
    let mut said = Vec::new();
    if let Some(stream) = stream {
        let most = u64::try_from(SAID_MAX).unwrap_or(u64::MAX) + 1;
        // What cannot be read was not said.
        let _ = stream.take(most).read_to_end(&mut said).await;
    }
    (said.len() <= SAID_MAX).then_some(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_is_taken_than_there_is_room_for() {
        let much = vec![b'x'; SAID_MAX + 1];
        assert_eq!(beginning(Some(much.as_slice())).await, None);
        let enough = vec![b'x'; SAID_MAX];
        assert_eq!(
            beginning(Some(enough.as_slice())).await,
            Some(enough.clone())
        );
        assert_eq!(beginning(None::<&[u8]>).await, Some(Vec::new()));
    }

    #[test]
    fn the_machine_is_named_and_nothing_is_a_flag_by_chance() {
        let errand = Errand {
            project: "vault",
            machine: "signer",
            user: Some((1000, 100)),
            words: &["/opt/anklume/anklume", "mcp", "list"],
            stdin: b"",
            patience: Duration::from_secs(1),
        };
        let words: Vec<String> = errand
            .command()
            .as_std()
            .get_args()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            words.join(" "),
            "exec signer --project vault -T --force-local --cwd / --user 1000 --group 100 -- /opt/anklume/anklume mcp list"
        );
    }
}
