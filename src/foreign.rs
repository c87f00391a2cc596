//! What machines say, read by a child process that has no rights and little memory: what is wrong with their words, or with the
//! reading of them, is not done to root on the host.
//!
//! The child ([`serve`]) parses and answers with the same, written anew by itself and bounded, or says that it is none of what was
//! asked for. When it dies, that is the fault of the machine whose words it read ([`Reader`]); the next words get another child.

use std::io::{self, BufRead, Read as _, Write};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Gid, Resource, Rlimit, Uid, geteuid, setrlimit};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde::de::{DeserializeOwned, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::audit::LOG;
use crate::audit::verify::Verifier;
use crate::confinement::{self, AllowedCalls, InForce, ProcessLimits};
use crate::machine_state::{Identity, Offered, SetupReport, summary};
use crate::text::Foreign;

/// The hidden subcommand that [`serve`]s.
pub(crate) const COMMAND: &str = "foreign-reader";
/// This program, also where its file was replaced.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// Memory of the child, in bytes: a file of a log, and what is made of it.
const MEMORY: u64 = 128 * 1024 * 1024;
/// Whom the child runs as where root runs this: the user that owns nothing (`nobody`).
const NOBODY: u32 = 65_534;
/// Maximum length of an answer of the child, in bytes.
const ANSWER_MAX: usize = 1024 * 1024;
/// Maximum length of a line between the two processes, in bytes.
const LINE_MAX: u64 = 4096;
/// Maximum time that the child may take for one text: a full file of a log takes a second or two.
const PATIENCE: Duration = Duration::from_secs(30);
/// Maximum length of a text from a server that is kept, in characters.
const WORDS_MAX: usize = 4096;

/// The type of a text to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TextKind {
    /// A server's status.
    Status,
    /// The identity of a machine.
    Identity,
    /// The result of an order.
    Report,
    /// A provider's offer.
    Offered,
    /// A services file, of which a plan shows a few words.
    Services,
    /// Nothing is read: a log begins, which must hold this line.
    Log(Option<String>),
    /// The next file of that log.
    LogFile,
    /// Nothing is read: the log ends.
    LogEnd,
}

/// A request to the child; that many bytes follow.
#[derive(Debug, Serialize, Deserialize)]
struct ReaderRequest {
    kind: TextKind,
    bytes: usize,
}

/// The child's answer; that many bytes follow. `None`: the text is not of the requested type.
#[derive(Debug, Serialize, Deserialize)]
struct ReaderReply {
    bytes: Option<usize>,
}

/// What of a server's status is looked at. The rest is as long as the machine likes, and is read over.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReportedStatus {
    /// SHA-256 of the policy in force.
    pub(crate) digest: Foreign,
    /// The reason why a newer one was refused.
    pub(crate) refused: Option<Foreign>,
    /// The first thing that cannot be done.
    #[serde(default)]
    pub(crate) failed: First,
    /// Its confinement.
    #[serde(default)]
    pub(crate) confinement: Option<InForce>,
}

impl ReportedStatus {
    fn bounded(self) -> Self {
        let cut = |text: Foreign| Foreign::new(text.raw().chars().take(WORDS_MAX).collect());
        Self {
            digest: cut(self.digest),
            refused: self.refused.map(cut),
            failed: First(self.failed.0.map(cut)),
            confinement: self.confinement.map(|in_force| InForce {
                unfiltered: in_force.unfiltered.map(cut),
                capable: in_force.capable.map(cut),
                ..in_force
            }),
        }
    }
}

/// The first text of a list.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct First(pub(crate) Option<Foreign>);

impl Serialize for First {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(&self.0)
    }
}

impl<'de> Deserialize<'de> for First {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(Self::default())
    }
}

impl<'de> Visitor<'de> for First {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of texts")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        let first = Self(list.next_element()?);
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(first)
    }
}

/// The result of reading a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogSeen {
    /// Number of its first line; 0 where there is none.
    pub(crate) first: u64,
    /// Number of its last line; 0 where there is none.
    pub(crate) seq: u64,
    /// Hash of that line.
    pub(crate) head: String,
    /// Number of lines that were changed.
    pub(crate) faults: u64,
    /// The line that it must hold is not in it.
    pub(crate) head_missing: bool,
}

/// A walk over the files of a log, oldest first.
#[derive(Debug)]
pub(crate) struct LogWalk(Verifier);

impl LogWalk {
    /// Over a log that must hold the line of this hash.
    pub(crate) fn new(head: Option<String>) -> Self {
        Self(Verifier::new(head))
    }

    /// Walks the next file.
    pub(crate) fn file(&mut self, text: &[u8]) {
        // A line that is just being written is nobody's fault.
        let end = text.iter().rposition(|byte| *byte == b'\n');
        let whole = end.and_then(|end| text.get(..=end)).unwrap_or_default();
        // Memory can always be read.
        let _ = self.0.file(LOG, whole);
    }

    /// The result.
    pub(crate) fn end(self) -> LogSeen {
        let report = self.0.finish();
        LogSeen {
            first: report.first,
            seq: report.head.seq,
            head: report.head.hash,
            faults: report.findings.len() as u64 + report.more,
            head_missing: report.head_missing,
        }
    }
}

/// The reason why words of a machine could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForeignError {
    /// The child cannot be started.
    #[error("cannot run the process that reads what machines say: {0}")]
    Io(#[from] io::Error),
    /// It ended while it read, or takes too long.
    #[error("the process that reads what machines say did not survive it")]
    Died,
}

/// The child, as the process sees it that started it; none runs before it is asked.
#[derive(Debug, Default)]
pub(crate) struct Reader(Mutex<Option<ReaderProcess>>);

#[derive(Debug)]
struct ReaderProcess {
    /// Killed when it is dropped.
    _child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Reader {
    /// Reads a server's status; `None` if the text is none.
    pub(crate) async fn status(&self, text: &[u8]) -> Result<Option<ReportedStatus>, ForeignError> {
        self.typed(TextKind::Status, text).await
    }

    /// The identity of a machine.
    pub(crate) async fn identity(&self, text: &[u8]) -> Result<Option<Identity>, ForeignError> {
        self.typed(TextKind::Identity, text).await
    }

    /// The result of an order.
    pub(crate) async fn report(&self, text: &[u8]) -> Result<Option<SetupReport>, ForeignError> {
        self.typed(TextKind::Report, text).await
    }

    /// A provider's offer.
    pub(crate) async fn offered(&self, text: &[u8]) -> Result<Option<Offered>, ForeignError> {
        self.typed(TextKind::Offered, text).await
    }

    /// Describes what a services file serves.
    pub(crate) async fn services(&self, text: &[u8]) -> Result<Option<Foreign>, ForeignError> {
        self.typed(TextKind::Services, text).await
    }

    /// Begins a log, which must hold the line of this hash.
    pub(crate) async fn log(&self, head: Option<String>) -> Result<(), ForeignError> {
        self.ask(&TextKind::Log(head), &[]).await.map(drop)
    }

    /// Reads the next file of the log that was begun, oldest first.
    pub(crate) async fn log_file(&self, file: &[u8]) -> Result<(), ForeignError> {
        self.ask(&TextKind::LogFile, file).await.map(drop)
    }

    /// Ends the log that was begun; returns the result.
    pub(crate) async fn log_end(&self) -> Result<LogSeen, ForeignError> {
        let seen = self.typed(TextKind::LogEnd, &[]).await?;
        seen.ok_or(ForeignError::Died)
    }

    async fn typed<T: DeserializeOwned>(
        &self,
        kind: TextKind,
        text: &[u8],
    ) -> Result<Option<T>, ForeignError> {
        let answer = self.ask(&kind, text).await?;
        let Some(answer) = answer else {
            return Ok(None);
        };
        // What the child wrote itself.
        serde_json::from_slice(&answer).map_err(|_| ForeignError::Died)
    }

    async fn ask(&self, kind: &TextKind, text: &[u8]) -> Result<Option<Vec<u8>>, ForeignError> {
        let mut place = self.0.lock().await;
        let mut running = match place.take() {
            Some(running) => running,
            None => ReaderProcess::start()?,
        };
        let answered = timeout(PATIENCE, running.ask(kind, text)).await;
        let answer = answered.map_err(|_| ForeignError::Died)?;
        let answer = answer.map_err(|_| ForeignError::Died)?;
        // One that died is not asked again.
        *place = Some(running);
        Ok(answer)
    }
}

impl ReaderProcess {
    fn start() -> Result<Self, ForeignError> {
        let mut child = Command::new(THIS_PROGRAM)
            .arg(COMMAND)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A ^C at the terminal is for whoever waits for this.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        };
        Ok(Self {
            _child: child,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }

    async fn ask(&mut self, kind: &TextKind, text: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let asked = ReaderRequest {
            kind: kind.clone(),
            bytes: text.len(),
        };
        let mut line = serde_json::to_vec(&asked)?;
        line.push(b'\n');
        self.stdin.write_all(&line).await?;
        self.stdin.write_all(text).await?;
        self.stdin.flush().await?;
        let mut line = Vec::new();
        (&mut self.stdout)
            .take(LINE_MAX)
            .read_until(b'\n', &mut line)
            .await?;
        let answered: ReaderReply = serde_json::from_slice(&line)?;
        let Some(bytes) = answered.bytes else {
            return Ok(None);
        };
        if bytes > ANSWER_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut answer = vec![0; bytes];
        self.stdout.read_exact(&mut answer).await?;
        Ok(Some(answer))
    }
}

/// Gives up what this process may do, and reads what it is sent until its stdin ends.
///
/// # Errors
///
/// Rights that cannot be given up, and a parent that is gone or sends what is no request.
pub(crate) fn serve(mut input: impl BufRead, mut output: impl Write) -> anyhow::Result<()> {
    let data = Rlimit {
        current: Some(MEMORY),
        maximum: Some(MEMORY),
    };
    setrlimit(Resource::Data, data)?;
    if geteuid().is_root() {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
    }
    confinement::enter(&ProcessLimits {
        calls: AllowedCalls::Worker { files: false },
        files: Some(Vec::new()),
        network: false,
    })?;
    let mut log = LogWalk::new(None);
    loop {
        let mut line = Vec::new();
        input.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        let asked: ReaderRequest = serde_json::from_slice(&line)?;
        let mut text = vec![0; asked.bytes];
        input.read_exact(&mut text)?;
        let answer = read(asked.kind, &text, &mut log);
        let answer = answer.filter(|answer| answer.len() <= ANSWER_MAX);
        let answered = ReaderReply {
            bytes: answer.as_ref().map(Vec::len),
        };
        serde_json::to_writer(&mut output, &answered)?;
        output.write_all(b"\n")?;
        output.write_all(&answer.unwrap_or_default())?;
        output.flush()?;
    }
}

/// Reads one text; `None`: it is none of what was asked for.
fn read(kind: TextKind, text: &[u8], log: &mut LogWalk) -> Option<Vec<u8>> {
    match kind {
        TextKind::Status => {
            let status: ReportedStatus = serde_json::from_slice(text).ok()?;
            written(&status.bounded())
        }
        TextKind::Identity => written(&Identity::from_file(text)?),
        TextKind::Report => written(&serde_json::from_slice::<SetupReport>(text).ok()?),
        TextKind::Offered => written(&serde_json::from_slice::<Offered>(text).ok()?),
        TextKind::Services => written(&Foreign::new(summary(text)?)),
        TextKind::Log(head) => {
            *log = LogWalk::new(head);
            Some(Vec::new())
        }
        TextKind::LogFile => {
            log.file(text);
            Some(Vec::new())
        }
        TextKind::LogEnd => written(&std::mem::replace(log, LogWalk::new(None)).end()),
    }
}

fn written(content: &impl Serialize) -> Option<Vec<u8>> {
    serde_json::to_vec(content).ok()
}

/// Reads bytes as each of the things that a machine says; for the fuzzer.
///
/// # Panics
///
/// When what is made of them is longer than may be, or not the same when it is read again.
#[cfg(any(test, fuzzing))]
pub fn words(bytes: &[u8]) {
    let mut log = LogWalk::new(None);
    for kind in [
        TextKind::Status,
        TextKind::Identity,
        TextKind::Report,
        TextKind::Offered,
    ] {
        if let Some(answer) = read(kind.clone(), bytes, &mut log) {
            let again = read(kind, &answer, &mut log);
            assert_eq!(again.as_deref(), Some(answer.as_slice()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str) -> Option<ReportedStatus> {
        let answer = read(TextKind::Status, text.as_bytes(), &mut LogWalk::new(None))?;
        Some(serde_json::from_slice(&answer).unwrap())
    }

    #[test]
    fn of_a_status_four_things_are_kept_whatever_else_it_holds() {
        let text = r#"{"digest":"d","refused":null,"services":[[[{}]]],"failed":["a",{},1],"pid":[],
            "confinement":{"landlock":7,"more":[]}}"#;
        let said = status(text).unwrap();
        assert_eq!((said.digest, said.failed.0), ("d".into(), Some("a".into())));
        assert_eq!(said.confinement.unwrap().landlock, 7);
        let old = status(r#"{"digest":"d","failed":[]}"#).unwrap();
        assert_eq!(
            (old.refused, old.failed.0, old.confinement),
            (None, None, None)
        );
        for none in ["{}", r#"{"digest":"d","failed":{}}"#, "[]", ""] {
            assert_eq!(status(none), None, "{none}");
        }
        let long = format!(r#"{{"digest":"{}"}}"#, "é".repeat(WORDS_MAX + 1));
        assert_eq!(status(&long).unwrap().digest, "é".repeat(WORDS_MAX).into());
    }
}
