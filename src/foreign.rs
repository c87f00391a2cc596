//! Parses text from machines in an unprivileged child process with little memory.
//! This way, neither malicious text nor a parser bug can compromise root on the host.
//!
//! The child ([`serve`]) parses text and re-serializes it within limits, or reports that it has another type.
//! If the child dies, the machine whose text it was reading is to blame ([`Reader`]); the next text gets a new child.

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
use crate::machine_state::{DefinitionReport, Identity, Offered, SetupReport};
use crate::services::{ServiceOutline, Services};
use crate::text::Foreign;

/// The hidden subcommand that runs [`serve`].
pub(crate) const COMMAND: &str = "foreign-reader";
/// This program, even if its file has been replaced.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// Memory limit of the child, in bytes: enough for a log file and its parsed form.
const MEMORY: u64 = 128 * 1024 * 1024;
/// User and group of a child that root starts: `nobody`, which owns nothing.
const NOBODY: u32 = 65_534;
/// Maximum length of the child's answer, in bytes.
const ANSWER_MAX: usize = 1024 * 1024;
/// Maximum length of a header sent between the two processes, in bytes.
const LINE_MAX: u64 = 4096;
/// Timeout for one text; a full log file takes a second or two.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum length of text kept from a server, in characters.
const WORDS_MAX: usize = 4096;

/// The type of the text to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TextKind {
    Status,
    Identity,
    Report,
    Offered,
    /// The key that signs.
    SigningKey,
    /// Whether an SSH key can be used.
    SshKey,
    /// The definitions of upstreams' tools.
    Definitions,
    /// A services file, to be outlined.
    Services,
    /// Without text: starts verifying a log that must contain the line with this hash.
    Log(Option<String>),
    /// The next file of that log.
    LogFile,
    /// Without text: finishes verifying that log.
    LogEnd,
}

/// A request to the child, followed by the bytes of the text.
#[derive(Debug, Serialize, Deserialize)]
struct ReaderRequest {
    kind: TextKind,
    bytes: usize,
}

/// The child's reply, followed by the bytes of its answer; `None` if the text is not of the requested type.
#[derive(Debug, Serialize, Deserialize)]
struct ReaderReply {
    bytes: Option<usize>,
}

/// The relevant fields of a server's status; all others are skipped, whatever their length.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReportedStatus {
    /// SHA-256 of the policy in force.
    pub(crate) digest: Foreign,
    /// The reason why a newer policy was refused.
    pub(crate) refused: Option<Foreign>,
    /// The first failure.
    #[serde(default)]
    pub(crate) failed: First,
    /// The reason why its log cannot be written.
    #[serde(default)]
    pub(crate) unlogged: Option<Foreign>,
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
            unlogged: self.unlogged.map(cut),
            confinement: self.confinement.map(|in_force| InForce {
                unfiltered: in_force.unfiltered.map(cut),
                capable: in_force.capable.map(cut),
                ..in_force
            }),
        }
    }
}

/// The key that signs, according to a provider.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SigningKey {
    /// Of the primary key, in hexadecimal.
    pub(crate) fingerprint: Foreign,
    /// True if the part that signs can also certify keys.
    pub(crate) certifies: bool,
}

/// Whether a provider's user can sign with an SSH key, according to the provider.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SshKeyState {
    /// The reason why not; `None` if it can.
    pub(crate) fault: Option<Foreign>,
}

/// The first string in a list.
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
    /// Number of its first line, or 0.
    pub(crate) first: u64,
    /// Number of its last line, or 0.
    pub(crate) seq: u64,
    /// Hash of its last line.
    pub(crate) head: String,
    /// Number of faults in it.
    pub(crate) faults: u64,
    /// True if the line that it must contain is missing.
    pub(crate) head_missing: bool,
}

/// Reads the files of a log, oldest first.
#[derive(Debug)]
pub(crate) struct LogWalk(Verifier);

impl LogWalk {
    /// Starts verifying a log that must contain the line with this hash.
    pub(crate) fn new(head: Option<String>) -> Self {
        Self(Verifier::new(head))
    }

    pub(crate) fn file(&mut self, text: &[u8]) {
        // The last line may be unfinished.
        let end = text.iter().rposition(|byte| *byte == b'\n');
        let whole = end.and_then(|end| text.get(..=end)).unwrap_or_default();
        // Reading from memory cannot fail.
        let _ = self.0.file(LOG, whole);
    }

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

/// The reason why text could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForeignError {
    #[error("cannot run the process that parses machine output: {0}")]
    Io(#[from] io::Error),
    /// The child died.
    #[error("the process that parses machine output died")]
    Died,
    /// The child took too long, which may be the fault of a busy computer.
    #[error("the process that parses machine output did not answer within {} s", TIMEOUT.as_secs())]
    Slow,
}

/// The parent's handle to the child, which is started for the first text.
#[derive(Debug, Default)]
pub(crate) struct Reader(Mutex<Option<ReaderProcess>>);

#[derive(Debug)]
struct ReaderProcess {
    /// Killed when dropped.
    _child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Reader {
    /// Reads a server's status. This and the following functions return `None` for text of another type.
    pub(crate) async fn status(&self, text: &[u8]) -> Result<Option<ReportedStatus>, ForeignError> {
        self.read(TextKind::Status, text).await
    }

    /// Reads a machine's identity.
    pub(crate) async fn identity(&self, text: &[u8]) -> Result<Option<Identity>, ForeignError> {
        self.read(TextKind::Identity, text).await
    }

    /// Reads a setup report.
    pub(crate) async fn report(&self, text: &[u8]) -> Result<Option<SetupReport>, ForeignError> {
        self.read(TextKind::Report, text).await
    }

    /// Reads a provider's offer.
    pub(crate) async fn offered(&self, text: &[u8]) -> Result<Option<Offered>, ForeignError> {
        self.read(TextKind::Offered, text).await
    }

    /// Reads which key signs.
    pub(crate) async fn signing_key(
        &self,
        text: &[u8],
    ) -> Result<Option<SigningKey>, ForeignError> {
        self.read(TextKind::SigningKey, text).await
    }

    /// Reads whether an SSH key can be used.
    pub(crate) async fn ssh_key(&self, text: &[u8]) -> Result<Option<SshKeyState>, ForeignError> {
        self.read(TextKind::SshKey, text).await
    }

    /// Reads the definitions of upstreams' tools.
    pub(crate) async fn definitions(
        &self,
        text: &[u8],
    ) -> Result<Option<DefinitionReport>, ForeignError> {
        self.read(TextKind::Definitions, text).await
    }

    /// Outlines the services in a services file.
    pub(crate) async fn services(
        &self,
        text: &[u8],
    ) -> Result<Option<Vec<ServiceOutline>>, ForeignError> {
        self.read(TextKind::Services, text).await
    }

    /// Starts verifying a log that must contain the line with this hash.
    pub(crate) async fn log(&self, head: Option<String>) -> Result<(), ForeignError> {
        self.ask(TextKind::Log(head), &[]).await.map(drop)
    }

    /// Reads the next file of the log, oldest first.
    pub(crate) async fn log_file(&self, file: &[u8]) -> Result<(), ForeignError> {
        self.ask(TextKind::LogFile, file).await.map(drop)
    }

    /// Finishes verifying the log.
    pub(crate) async fn log_end(&self) -> Result<LogSeen, ForeignError> {
        let seen = self.read(TextKind::LogEnd, &[]).await?;
        seen.ok_or(ForeignError::Died)
    }

    async fn read<T: DeserializeOwned>(
        &self,
        kind: TextKind,
        text: &[u8],
    ) -> Result<Option<T>, ForeignError> {
        let answer = self.ask(kind, text).await?;
        let typed = answer.map(|answer| serde_json::from_slice(&answer));
        typed.transpose().map_err(|_| ForeignError::Died)
    }

    async fn ask(&self, kind: TextKind, text: &[u8]) -> Result<Option<Vec<u8>>, ForeignError> {
        let mut process = self.0.lock().await;
        let mut running = match process.take() {
            Some(running) => running,
            None => ReaderProcess::start()?,
        };
        let answer = timeout(TIMEOUT, running.ask(kind, text)).await;
        let answer = answer.map_err(|_| ForeignError::Slow)?;
        let answer = answer.map_err(|_| ForeignError::Died)?;
        // Only a child that answered in time is reused.
        *process = Some(running);
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
            // A ^C at the terminal reaches only the parent.
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

    async fn ask(&mut self, kind: TextKind, text: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let bytes = text.len();
        let mut line = serde_json::to_vec(&ReaderRequest { kind, bytes })?;
        line.push(b'\n');
        self.stdin.write_all(&line).await?;
        self.stdin.write_all(text).await?;
        self.stdin.flush().await?;
        let mut line = Vec::new();
        (&mut self.stdout)
            .take(LINE_MAX)
            .read_until(b'\n', &mut line)
            .await?;
        let ReaderReply { bytes } = serde_json::from_slice(&line)?;
        let Some(bytes) = bytes else {
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

/// Drops this process's privileges, then parses texts until stdin ends.
/// Fails if a privilege cannot be dropped, or if the parent is gone or sends an invalid request.
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
        let ReaderRequest { kind, bytes } = serde_json::from_slice(&line)?;
        let mut text = vec![0; bytes];
        input.read_exact(&mut text)?;
        let answer = read(kind, &text, &mut log);
        let answer = answer.filter(|answer| answer.len() <= ANSWER_MAX);
        let bytes = answer.as_ref().map(Vec::len);
        serde_json::to_writer(&mut output, &ReaderReply { bytes })?;
        output.write_all(b"\n")?;
        output.write_all(&answer.unwrap_or_default())?;
        output.flush()?;
    }
}

/// Parses one text and re-serializes it; `None` if it is not of the requested type.
fn read(kind: TextKind, text: &[u8], log: &mut LogWalk) -> Option<Vec<u8>> {
    let written = match kind {
        TextKind::Status => {
            let status: ReportedStatus = serde_json::from_slice(text).ok()?;
            serde_json::to_vec(&status.bounded())
        }
        TextKind::Identity => serde_json::to_vec(&Identity::from_file(text)?),
        TextKind::Report => serde_json::to_vec(&serde_json::from_slice::<SetupReport>(text).ok()?),
        TextKind::Offered => serde_json::to_vec(&serde_json::from_slice::<Offered>(text).ok()?),
        TextKind::SigningKey => {
            serde_json::to_vec(&serde_json::from_slice::<SigningKey>(text).ok()?)
        }
        TextKind::SshKey => serde_json::to_vec(&serde_json::from_slice::<SshKeyState>(text).ok()?),
        TextKind::Definitions => {
            serde_json::to_vec(&serde_json::from_slice::<DefinitionReport>(text).ok()?)
        }
        TextKind::Services => serde_json::to_vec(&Services::from_file(text).ok()?.outline()),
        TextKind::Log(head) => {
            *log = LogWalk::new(head);
            Ok(Vec::new())
        }
        TextKind::LogFile => {
            log.file(text);
            Ok(Vec::new())
        }
        TextKind::LogEnd => {
            let ended = std::mem::replace(log, LogWalk::new(None));
            serde_json::to_vec(&ended.end())
        }
    };
    written.ok()
}

/// Parses bytes as each type of text; used by the fuzzer.
///
/// # Panics
///
/// Panics if a second reading produces a different result.
#[cfg(any(test, fuzzing))]
pub fn fuzz_texts(bytes: &[u8]) {
    let mut log = LogWalk::new(None);
    for kind in [
        TextKind::Status,
        TextKind::Identity,
        TextKind::Report,
        TextKind::Offered,
        TextKind::SigningKey,
        TextKind::SshKey,
        TextKind::Definitions,
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
