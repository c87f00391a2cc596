//! A channel as the host sees it: the processes that carry its bytes, and whether the provider's server answers.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::edge::{Edge, HOST_FOLDER};
use crate::host::server_process;
use crate::mcp::client::{Client, ClientError, Patience};
use crate::mcp::server::OVERLOADED;
use crate::plan::Role;

/// Time-out for a provider's server.
const PATIENCE: Duration = Duration::from_secs(5);

/// The result of probing a provider over the host's socket of an edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProxyAnswer {
    /// Its server listed its tools.
    Tools,
    /// Its server says that the consumer has as many connections as it may have.
    Full,
    /// Nobody answered, though the provider's device carries bytes.
    Silent,
    /// The socket is there, and no process behind it.
    NoProcess,
    /// There is no socket.
    NoSocket,
    /// What is there is not the edge's user's alone, so that the consumer's end cannot use it, or others can.
    OddSocket,
    /// This user may not ask.
    NotAllowed,
}

/// Rights of an edge's sockets, on the host and in the consumer.
pub(crate) const SOCKET_MODE: u32 = 0o600;
/// Bits of a mode that are rights.
const RIGHTS: u32 = 0o7777;
/// Most that is read of a process's arguments, in bytes; those of a proxy take a fraction of it.
const ARGUMENTS_MAX: u64 = 64 * 1024;

/// Returns whether something else is at the path of an edge's socket, or it has another owner or other rights.
fn is_odd(edge: &Edge) -> bool {
    fs::symlink_metadata(edge.host_socket()).is_ok_and(|is| {
        let as_made = is.file_type().is_socket()
            && (is.uid(), is.gid()) == (edge.uid, edge.uid)
            && is.mode() & RIGHTS == SOCKET_MODE;
        !as_made
    })
}

/// Asks the provider of an edge what it offers to the consumer, over the host's socket of the edge.
pub(crate) async fn ask(edge: &Edge) -> ProxyAnswer {
    if is_odd(edge) {
        return ProxyAnswer::OddSocket;
    }
    let stream = match UnixStream::connect(edge.host_socket()).await {
        Ok(stream) => stream,
        Err(why) => {
            return match why.kind() {
                ErrorKind::NotFound => ProxyAnswer::NoSocket,
                ErrorKind::PermissionDenied => ProxyAnswer::NotAllowed,
                _ => ProxyAnswer::NoProcess,
            };
        }
    };
    heard(stream).await
}

/// Maximum length of a message of a server's that root reads, in bytes.
const ANSWER_MAX: usize = 64 * 1024;

/// Probes a server over a connection.
async fn heard(stream: UnixStream) -> ProxyAnswer {
    let patience = Patience {
        first: PATIENCE,
        call: PATIENCE,
    };
    // Not `into_split`: its write half ends the stream when it is dropped.
    let (reader, writer) = tokio::io::split(stream);
    let listed = async {
        let mut client = Client::start_within(reader, writer, patience, ANSWER_MAX).await?;
        client.answers().await
    };
    match timeout(PATIENCE, listed).await {
        // A list of many services may be longer than is read here.
        Ok(Ok(()) | Err(ClientError::TooLong(_))) => ProxyAnswer::Tools,
        // Whoever says so is there.
        Ok(Err(ClientError::Refused { refusal, .. })) if refusal.raw().code.0 == OVERLOADED => {
            ProxyAnswer::Full
        }
        Ok(Err(_)) | Err(_) => ProxyAnswer::Silent,
    }
}

/// Counts the connections to the host's socket of an edge, including those that wait.
pub(crate) fn connections(edge: &Edge) -> usize {
    let table = fs::read("/proc/net/unix").unwrap_or_default();
    connections_in(&table, &edge.host_socket())
}

/// Those of a table of the kernel's (proc_net(5)): the listening socket itself bears a flag.
fn connections_in(table: &[u8], socket: &str) -> usize {
    const LISTENS: &[u8] = b"00010000";
    let table = String::from_utf8_lossy(table);
    let lines = table.lines().filter(|line| {
        let mut fields = line.split_ascii_whitespace();
        let flags = fields.nth(3);
        flags.is_some_and(|flags| flags.as_bytes() != LISTENS) && fields.last() == Some(socket)
    });
    lines.count()
}

/// The processes of the host that carry bytes of channels, as they were when they were looked for.
#[derive(Debug)]
pub(crate) struct Proxies(Option<Vec<Proxy>>);

#[derive(Debug)]
struct Proxy {
    uid: u32,
    words: Vec<Vec<u8>>,
}

impl Proxies {
    /// Looks for them, once for all channels.
    pub(crate) fn look() -> Self {
        // Others may not see them (`hidepid` of proc(5)).
        if !rustix::process::geteuid().is_root() {
            return Self(None);
        }
        let own = server_process::namespace(std::process::id());
        let socket = format!("unix:{HOST_FOLDER}/");
        let proxy = |entry: fs::DirEntry| {
            // First, because a machine gives its processes whatever arguments it likes, and can hold up whoever reads them.
            if namespace_of(&entry) != own {
                return None;
            }
            let words = server_process::command_line(&entry.path(), ARGUMENTS_MAX).ok()?;
            let words = words.split(|byte| *byte == 0).map(<[u8]>::to_vec);
            let words: Vec<Vec<u8>> = words.collect();
            let carries = words.iter().any(|one| one.starts_with(socket.as_bytes()));
            let uid = entry.metadata().ok()?.uid();
            (carries && runs(&entry.path())).then_some(Proxy { uid, words })
        };
        let entries = fs::read_dir("/proc").ok();
        Self(entries.map(|all| all.filter_map(Result::ok).filter_map(proxy).collect()))
    }

    /// Returns whether one of them carries the bytes for an edge's end, in the machine whose first process is `first`. Returns
    /// `true` if the processes could not be listed.
    pub(crate) fn carry(&self, edge: &Edge, role: Role, first: u32) -> bool {
        let Some(proxies) = &self.0 else {
            return true;
        };
        let host = format!("unix:{}", edge.host_socket());
        let (inside, uid) = match role {
            Role::Consumer => (edge.consumer_socket(), Some(edge.uid)),
            // Runs as the machine's root, whatever number that has here.
            Role::Provider => (edge.provider_socket(), None),
        };
        let needed = [host, format!("unix:{inside}"), first.to_string()];
        proxies.iter().any(|proxy| {
            let mut needed = needed.iter().map(String::as_bytes);
            uid.is_none_or(|uid| uid == proxy.uid)
                && needed.all(|word| proxy.words.iter().any(|one| one == word))
        })
    }
}

/// The cgroup that tells a host process from a machine's.
fn namespace_of(process: &fs::DirEntry) -> Option<PathBuf> {
    let number = process.file_name().to_str()?.parse().ok()?;
    server_process::namespace(number)
}

/// Returns whether a process is neither stopped nor a corpse (proc(5): the state is behind the name, which is in brackets).
fn runs(process: &Path) -> bool {
    let stat = fs::read(process.join("stat")).unwrap_or_default();
    let mut rest = stat.rsplit(|byte| *byte == b')');
    let state = rest.next().and_then(|rest| rest.get(1));
    state.is_some_and(|state| !b"TtZXx".contains(state))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

    use super::*;
    use crate::mcp::concurrency::too_many_connections;

    /// What is heard from a server that gives the first request this answer and ends.
    async fn answered(answer: &str) -> ProxyAnswer {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let answer = answer.to_owned();
        let server = tokio::spawn(async move {
            let (reader, mut writer) = theirs.into_split();
            let mut line = String::new();
            BufReader::new(reader).read_line(&mut line).await.unwrap();
            writer.write_all(answer.as_bytes()).await.unwrap();
        });
        let heard = heard(ours).await;
        server.await.unwrap();
        heard
    }

    #[tokio::test]
    async fn a_server_that_turns_a_caller_away_is_not_silent() {
        let error =
            serde_json::to_string(&rmcp::model::ErrorData::from(too_many_connections(2))).unwrap();
        let refused = |error: &str| format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{error}}}\n");
        assert_eq!(answered(&refused(&error)).await, ProxyAnswer::Full);
        let other = refused(r#"{"code":-32603,"message":"no"}"#);
        assert_eq!(answered(&other).await, ProxyAnswer::Silent);
        assert_eq!(answered("").await, ProxyAnswer::Silent);
    }

    #[test]
    fn connections_are_counted_by_the_path_that_they_came_to() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path
0: 00000002 00000000 00010000 0001 01 11 /var/lib/anklume/mcp/00.sock
0: 00000003 00000000 00000000 0001 03 12 /var/lib/anklume/mcp/00.sock
0: 00000002 00000000 00000000 0001 02 13 /var/lib/anklume/mcp/00.sock
0: 00000003 00000000 00000000 0001 03 14 /var/lib/anklume/mcp/01.sock
0: 00000003 00000000 00000000 0001 03 15
";
        assert_eq!(connections_in(table, "/var/lib/anklume/mcp/00.sock"), 2);
        assert_eq!(connections_in(table, "/var/lib/anklume/mcp/01.sock"), 1);
        assert_eq!(connections_in(b"", "/var/lib/anklume/mcp/01.sock"), 0);
    }
}
