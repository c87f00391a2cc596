//! Defines the fuzzer's entry points (`--cfg fuzzing`); also built for a test of their seeds.
//! Each takes untrusted bytes and panics if an invariant is violated.

#![expect(clippy::panic, reason = "a violated invariant stops the fuzzer")]

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::time::timeout;

use crate::audit::chain;
use crate::audit::verify::{FINDINGS_MAX, Verifier};
use crate::catalogue;
use crate::edge;
use crate::incus::Incus;
use crate::infra;
use crate::inventory;
use crate::mcp::LINE_MAX;
use crate::mcp::client::{Client, ClientError, Timeouts};
use crate::name::ToolName;
use crate::policy::{self, Caller, Decision, Denial, Request};
use crate::services::Services;
use crate::ssh::agent_protocol::{AgentAnswer, AgentRequest};
use crate::ssh::{self, KeyUse, SessionBind, SignatureRequest, SshKey};

pub use crate::foreign::fuzz_texts as machine;
pub use crate::mcp::server::fuzzing::connection;

/// Maximum duration of a run that reads Incus; a longer run counts as a hang.
const INCUS_MAX: Duration = Duration::from_secs(20);
/// Timeout for each answer from Incus, which comes immediately or never.
const INCUS_TIMEOUT: Duration = Duration::from_millis(20);

/// An SSH key.
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHuFQlNBbiEDuL+yx3WZbWzXOuxA4S3ARorfOYWP+LUm";

/// `infra.yml`.
///
/// # Panics
///
/// Panics if a valid file's services are refused when read back, or if the listed tools differ from the decisions.
pub fn infra(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    match infra::parse("infra.yml", text) {
        Err(faults) => assert!(!faults.to_string().is_empty()),
        Ok(read) => {
            for (_, machine) in read.infra.machines() {
                services(&Services::of(machine).to_file());
            }
            if let Ok(edges) = edge::edges(&read.infra) {
                for file in inventory::files(&read.infra, &edges) {
                    assert!(!file.values().is_empty());
                }
            }
        }
    }
}

/// `services.json`.
///
/// # Panics
///
/// Panics if writing and rereading a valid file changes it, or if a listed service is refused.
pub fn services(bytes: &[u8]) {
    let Ok(services) = Services::from_file(bytes) else {
        return;
    };
    let again = Services::from_file(&services.to_file());
    let again = again.unwrap_or_else(|why| panic!("its own file is refused: {why}"));
    assert_eq!(services.digest(), again.digest());
    let now = jiff::Timestamp::UNIX_EPOCH;
    for consumer in services.consumers() {
        let caller = Caller::Consumer(consumer.clone());
        for offer in policy::offers(&services, &caller, now) {
            let request = Request {
                caller: &caller,
                name: &offer.name,
                arguments: &std::sync::Arc::default(),
                now,
            };
            // An argument may be required, but nothing else refuses an offer.
            let decided = policy::decide(&services, request);
            let is_offered = |denial: &Denial| matches!(denial, Denial::Condition(_) if !offer.conditions.is_none());
            assert!(
                matches!(&decided, Decision::Allowed(_))
                    || matches!(&decided, Decision::Denied(denial) if is_offered(denial)),
                "{decided:?}"
            );
        }
    }
}

/// What an SSH client asks to be signed, as the content of a sign request, after it a session bind; and the messages of its
/// agent.
///
/// # Panics
///
/// Panics if a login is signed although no such host is listed, if a key reads as another one, or if a message that is written
/// reads as another.
pub fn ssh(bytes: &[u8]) {
    let key = SshKey::parse(KEY).unwrap_or_else(|fault| panic!("{fault}"));
    let length = bytes
        .first_chunk()
        .map_or(0, |length| u16::from_be_bytes(*length));
    let rest = bytes.get(2..).unwrap_or_default();
    let (data, bind) = rest.split_at_checked(length.into()).unwrap_or((rest, &[]));
    let request = SignatureRequest {
        key,
        allow: vec![KeyUse::Git, KeyUse::Login],
        hosts: vec!["SHA256:jD/lvnsfuWButJYXU5Nn1O1d4YZYNe+9wVofIYGHkJo".to_owned()],
        data: data.to_vec(),
        flags: 0,
        binds: SessionBind::parse(bind).into_iter().collect(),
    };
    if let Ok(purpose) = ssh::authorize(&request) {
        let purpose = purpose.to_string();
        assert!(
            purpose == "git"
                || purpose
                    .starts_with("login to SHA256:jD/lvnsfuWButJYXU5Nn1O1d4YZYNe+9wVofIYGHkJo as "),
            "{purpose}"
        );
    }
    for bind in &request.binds {
        let _ = bind.check();
        assert_eq!(SessionBind::parse(&bind.to_bytes()).as_ref(), Some(bind));
    }
    if let Ok(key) = SshKey::from_blob(bytes) {
        assert_eq!(key.blob(), bytes);
    }
    let message = AgentRequest::parse(bytes);
    if !matches!(message, AgentRequest::Other | AgentRequest::UnreadableBind) {
        assert_eq!(message.to_bytes(), bytes);
    }
    let answer = AgentAnswer::parse(bytes);
    assert_eq!(AgentAnswer::parse(&answer.to_bytes()), answer);
}

/// Lines of a call log.
///
/// # Panics
///
/// Panics if too many findings are kept, or if a control character would be printed.
pub fn audit(bytes: &[u8]) {
    let mut verifier = Verifier::new(None);
    let read = verifier.file("audit.jsonl", bytes);
    assert!(read.is_ok());
    let report = verifier.finish();
    assert!(report.findings.len() <= FINDINGS_MAX);
    for line in bytes.split(|byte| *byte == b'\n') {
        if let chain::ReadLine::Whole(..) = chain::read(line) {
            let printed = chain::printable(line);
            assert!(
                printed.iter().all(|byte| (0x20..0x7f).contains(byte)),
                "{printed:?}"
            );
        }
    }
}

/// A client connection on which the server sends these bytes and nothing else.
///
/// # Panics
///
/// Panics if the client hangs or would print a control character.
pub fn client(bytes: &[u8]) {
    /// Maximum duration of a run; a client that takes longer counts as hanging.
    const TIMEOUT: Duration = Duration::from_secs(20);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap_or_else(|error| panic!("no runtime: {error}"));
    let result = runtime.block_on(async { timeout(TIMEOUT, list_and_call(bytes)).await });
    let result = result.unwrap_or_else(|_| panic!("the client does not finish"));
    let text = result.unwrap_or_else(|why| why.to_string());
    assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
}

async fn list_and_call(bytes: &[u8]) -> Result<String, ClientError> {
    let reader = std::io::Cursor::new(bytes.to_vec());
    let writer = tokio::io::sink();
    let mut client = Client::start(reader, writer, Timeouts::default(), LINE_MAX).await?;
    client.tools().await?;
    let called = client.call("a", Map::new(), false).await?;
    Ok(called.is_refused().to_string())
}

/// Tool arguments, as a caller sends them.
pub fn arguments(bytes: &[u8]) {
    if let Ok(Value::Object(arguments)) = serde_json::from_slice(bytes) {
        for tool in ToolName::ALL {
            let _ = catalogue::Definition::BuiltIn(tool).check_some(&arguments);
        }
    }
}

/// Answers every read request to Incus with these bytes, as another version of Incus or another program at its socket might.
///
/// # Panics
///
/// Panics if the reader does not finish.
pub fn incus(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap_or_else(|error| panic!("no runtime: {error}"));
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("no folder: {error}"));
    let socket = folder.path().join("socket");
    let asking = async {
        let listener = UnixListener::bind(&socket).unwrap_or_else(|error| panic!("{error}"));
        let bytes = bytes.to_vec();
        let answering = tokio::spawn(async move {
            let Ok((mut stream, _)) = listener.accept().await else {
                return;
            };
            let mut request = [0; 4096];
            while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                if stream.write_all(&bytes).await.is_err() || bytes.is_empty() {
                    return;
                }
            }
        });
        if let Ok(mut incus) = Incus::connect(socket.clone(), INCUS_TIMEOUT).await {
            // All that matters is that they finish, not their results.
            let _ = incus.server().await;
            let _ = incus.state().await;
        }
        answering.abort();
    };
    let asked = runtime.block_on(async { timeout(INCUS_MAX, asking).await });
    assert!(asked.is_ok(), "the reader does not finish");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// The folder of an entry point's seeds, and the entry point.
    type EntryPoint = (&'static str, fn(&[u8]));

    #[test]
    fn every_seed_goes_through_its_door() {
        let entry_points: [EntryPoint; 8] = [
            ("audit", super::audit),
            ("client", super::client),
            ("connection", super::connection),
            ("incus", super::incus),
            ("infra", super::infra),
            ("machine", super::machine),
            ("services", super::services),
            ("ssh", super::ssh),
        ];
        let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds");
        for (name, door) in entry_points {
            let seeds: Vec<_> = std::fs::read_dir(all.join(name)).unwrap().collect();
            assert!(seeds.len() > 1, "{name}");
            for seed in seeds {
                door(&std::fs::read(seed.unwrap().path()).unwrap());
            }
        }
    }
}
