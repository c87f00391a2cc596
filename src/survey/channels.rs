//! Examines the channels from the host, changing nothing: the processes that relay them, the sockets at both
//! ends, and the answer of the provider's server over each.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use super::instance;
use crate::dir::RIGHTS;
use crate::edge::{Edge, End, HOST_FOLDER};
use crate::host::proxies;
use crate::incus::state::{Instance, InstanceId};
use crate::incus::{FileOwner, State};
use crate::infra::Infra;
use crate::limits::CONNECTIONS;
use crate::machine_state::Serving;
use crate::mcp::OVERLOADED;
use crate::mcp::client::{Client, ClientError, Timeouts};
use crate::plan::{Facts, Proxy, RecreateReason, Role};
use crate::session::{Session, each};

/// Timeout for a provider's server.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Mode of an edge's sockets, on the host and in the consumer.
const SOCKET_MODE: u32 = 0o600;
/// Maximum length of a server's message that root reads, in bytes.
const ANSWER_MAX: usize = 64 * 1024;

/// The result of probing a channel, and the faults of the devices at both ends.
#[derive(Debug, Default)]
struct ObservedChannel {
    provider: Option<RecreateReason>,
    consumer: Option<RecreateReason>,
    result: ProbeResult,
}

/// The result of probing a provider over a channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum ProbeResult {
    /// It was not asked, or this user may not ask.
    #[default]
    Nothing,
    /// Its server listed its tools.
    Answer,
    /// Its server reports that the consumer has its maximum number of connections.
    Full,
    /// No answer, and the consumer has its maximum number of connections, which may be served before this one.
    Crowd,
    Silence,
}

/// Examines each channel. Records full channels, the devices that do not work, and the machines whose server hangs.
pub(super) async fn look(
    session: &Session,
    infra: &Infra,
    edges: &[Edge],
    state: &State,
    facts: &mut Facts,
) {
    let proxies = proxies::list();
    if let Some(all) = &proxies {
        let needed = needed(session, &state.instances).await;
        facts.strays = strays(all, &needed, proxies::own_start());
    }
    let prober = &Prober {
        session,
        infra,
        proxies: proxies.as_deref(),
    };
    let machine = |edge: &Edge, end: &End| {
        // A missing device is created anyway.
        instance(state, &end.domain, &end.machine)
            .filter(|one| one.is_running() && one.devices.contains_key(&edge.device_name()))
    };
    let observed = each(edges, |edge| async move {
        let mut channel = ObservedChannel::default();
        if let Some(provider) = machine(edge, &edge.provider) {
            (channel.result, channel.provider) = prober.provider_end(edge, provider).await;
        }
        if let Some(consumer) = machine(edge, &edge.consumer) {
            channel.consumer = prober.consumer_end(edge, consumer).await;
        }
        channel
    })
    .await;
    let mut results: BTreeMap<_, Vec<ProbeResult>> = BTreeMap::new();
    for (edge, channel) in edges.iter().zip(&observed) {
        let own = results.entry(&edge.provider.machine).or_default();
        own.push(channel.result);
    }
    for (edge, channel) in edges.iter().zip(observed) {
        let provider = &edge.provider;
        let own = results
            .get(&provider.machine)
            .map_or(&[][..], Vec::as_slice);
        let is_crowd = channel.result == ProbeResult::Crowd && lives(own);
        if channel.result == ProbeResult::Full || is_crowd {
            facts.full.insert(edge.hash.clone());
        }
        let faults = [
            (Role::Provider, channel.provider),
            (Role::Consumer, channel.consumer),
        ];
        let faults = faults.into_iter().filter_map(|(role, fault)| {
            let end = (edge.hash.clone(), role);
            Some((end, fault?))
        });
        facts.broken.extend(faults);
        let id = InstanceId::from(provider);
        if let Some(found) = facts.inside.get_mut(&id).filter(|_| hangs(own)) {
            found.serving = Serving::Silent;
        }
    }
}

/// A proxy that a device needs.
struct NeededProxy<'a> {
    listen: &'a str,
    connect: &'a str,
    /// The first process of its machine; `None` if that is unknown, or if the machine is not running.
    first: Option<u32>,
}

impl NeededProxy<'_> {
    fn is(&self, proxy: &Proxy) -> bool {
        [self.listen, self.connect] == proxy.addresses()
            && self.first.is_none_or(|first| proxy.is_in(first))
    }
}

/// Returns the proxies that the channel devices of all machines need. A stopped machine may be starting: Incus says so
/// only once all its devices are set up.
async fn needed<'a>(session: &Session, instances: &'a [Instance]) -> Vec<NeededProxy<'a>> {
    let found = each(instances, |machine| async move {
        let devices = machine.expanded_devices.values();
        let ends = devices.filter_map(|keys| Some((keys.get("listen")?, keys.get("connect")?)));
        let is_channel = |(listen, connect): &(&String, &String)| {
            [listen, connect]
                .iter()
                .any(|end| end.contains(HOST_FOLDER))
        };
        let ends: Vec<_> = ends.filter(is_channel).collect();
        let first = match ends.as_slice() {
            [_, ..] if machine.is_running() => session.first_process(machine).await,
            _ => None,
        };
        let needed = ends.into_iter().map(move |(listen, connect)| NeededProxy {
            listen,
            connect,
            first,
        });
        needed.collect::<Vec<_>>()
    });
    found.await.into_iter().flatten().collect()
}

/// Returns the proxies beyond one for each device, the oldest first, those of a device that does not exist, and those of
/// machines that have stopped since. Those that started since this process began may belong to a device that another run
/// has just created.
fn strays(proxies: &[Proxy], needed: &[NeededProxy<'_>], began: u64) -> Vec<Proxy> {
    let mut left: Vec<&NeededProxy<'_>> = needed.iter().collect();
    let mut newest_first: Vec<&Proxy> = proxies.iter().collect();
    newest_first.sort_by_key(|proxy| std::cmp::Reverse(proxy.started));
    let mut strays = Vec::new();
    for proxy in newest_first {
        let exact = |one: &&NeededProxy<'_>| one.first.is_some() && one.is(proxy);
        let place = left.iter().position(exact);
        let place = place.or_else(|| left.iter().position(|one| one.is(proxy)));
        match place.filter(|_| proxy.has_machine) {
            Some(place) => drop(left.swap_remove(place)),
            None if proxy.started < began => strays.push(proxy.clone()),
            None => {}
        }
    }
    strays.reverse();
    strays
}

/// Returns whether the server of these channels hangs: it is silent on an uncrowded channel, or on all of them.
fn hangs(own: &[ProbeResult]) -> bool {
    own.contains(&ProbeResult::Silence) || own.contains(&ProbeResult::Crowd) && !lives(own)
}

/// Returns whether a server answers over one of these channels.
fn lives(own: &[ProbeResult]) -> bool {
    own.contains(&ProbeResult::Answer) || own.contains(&ProbeResult::Full)
}

struct Prober<'a> {
    session: &'a Session,
    infra: &'a Infra,
    /// `None` if they could not be listed.
    proxies: Option<&'a [Proxy]>,
}

impl Prober<'_> {
    /// Probes a provider's server, and finds the fault of the provider's device.
    async fn provider_end(
        &self,
        edge: &Edge,
        provider: &Instance,
    ) -> (ProbeResult, Option<RecreateReason>) {
        let answer = ask(edge).await;
        let is_bad = matches!(
            answer,
            Ok(ProbeResult::Silence) | Err(RecreateReason::NoSocket | RecreateReason::BadSocket)
        );
        if is_bad && !self.has_proxy(edge, Role::Provider, provider).await {
            return (ProbeResult::Nothing, Some(RecreateReason::NoProcess));
        }
        match answer {
            Ok(ProbeResult::Silence) => match connections(edge) {
                Ok(count) if count >= self.connections_max(edge) => (ProbeResult::Crowd, None),
                Ok(_) => (ProbeResult::Silence, None),
                // A silent server is restarted, so its silence must be certain.
                Err(_) => (ProbeResult::Nothing, None),
            },
            Ok(result) => (result, None),
            Err(fault) => (ProbeResult::Nothing, Some(fault)),
        }
    }

    /// Maximum number of connections that a consumer may have at once.
    fn connections_max(&self, edge: &Edge) -> usize {
        let provider = self.infra.machine(edge.provider.machine.as_str());
        let services = provider.into_iter().flat_map(|(_, one)| &one.services);
        let max = services
            .filter(|service| service.consumers.contains(&edge.consumer.machine))
            .filter_map(|service| service.limits.connections)
            .max();
        usize::try_from(max.unwrap_or(CONNECTIONS)).unwrap_or(usize::MAX)
    }

    /// Finds the fault of a consumer's device.
    async fn consumer_end(&self, edge: &Edge, consumer: &Instance) -> Option<RecreateReason> {
        if !self.has_proxy(edge, Role::Consumer, consumer).await {
            return Some(RecreateReason::NoProcess);
        }
        let made = FileOwner {
            uid: edge.owner_uid,
            gid: edge.owner_gid,
            mode: SOCKET_MODE,
        };
        let mut files = self.session.files(consumer).await;
        // Another check reports a file that cannot be read.
        let Some(entry) = files.look(&edge.consumer_socket()).await.ok()? else {
            return Some(RecreateReason::NoSocket);
        };
        let is_other = entry.owner.is_some_and(|owner| owner != made);
        (is_other || entry.is_socket == Some(false)).then_some(RecreateReason::BadSocket)
    }

    /// Returns whether a process relays an edge's end in this machine; true if that is unknown.
    async fn has_proxy(&self, edge: &Edge, role: Role, machine: &Instance) -> bool {
        let first = self.session.first_process(machine).await;
        let (Some(first), Some(proxies)) = (first, &self.proxies) else {
            return true;
        };
        let (inside, uid) = match role {
            Role::Consumer => (edge.consumer_socket(), Some(edge.uid)),
            // Runs as the machine's root, which may have any user ID on the host.
            Role::Provider => (edge.provider_socket(), None),
        };
        let [on_host, inside] = [edge.host_socket(), inside].map(|path| format!("unix:{path}"));
        proxies.iter().filter(|proxy| proxy.runs).any(|proxy| {
            let (ours, theirs) = match role {
                Role::Consumer => (&proxy.connect, &proxy.listen),
                Role::Provider => (&proxy.listen, &proxy.connect),
            };
            uid.is_none_or(|uid| uid == proxy.uid)
                && ours.address == on_host
                && theirs.address == inside
                && theirs.within == first
        })
    }
}

/// Asks an edge's provider for the consumer's services, over the edge's socket on the host, or finds the fault of
/// the provider's device.
async fn ask(edge: &Edge) -> Result<ProbeResult, RecreateReason> {
    let socket = edge.host_socket();
    let is_odd = fs::symlink_metadata(&socket).is_ok_and(|is| {
        let owner = (is.uid(), is.gid(), is.mode() & RIGHTS);
        !is.file_type().is_socket() || owner != (edge.uid, edge.uid, SOCKET_MODE)
    });
    if is_odd {
        return Err(RecreateReason::BadSocket);
    }
    match UnixStream::connect(&socket).await {
        Ok(stream) => Ok(probe(stream).await),
        Err(why) => match why.kind() {
            ErrorKind::NotFound => Err(RecreateReason::NoSocket),
            ErrorKind::PermissionDenied => Ok(ProbeResult::Nothing),
            _ => Err(RecreateReason::NoProcess),
        },
    }
}

/// Probes a server over a connection.
async fn probe(stream: UnixStream) -> ProbeResult {
    let timeouts = Timeouts {
        first: TIMEOUT,
        call: TIMEOUT,
    };
    // Not `into_split`: its write half ends the stream when it is dropped.
    let (reader, writer) = tokio::io::split(stream);
    let listed = async {
        let mut client = Client::start(reader, writer, timeouts, ANSWER_MAX).await?;
        client.answers().await
    };
    match timeout(TIMEOUT, listed).await {
        // A list of many services may exceed the length that is read here.
        Ok(Ok(()) | Err(ClientError::TooLong(_))) => ProbeResult::Answer,
        Ok(Err(ClientError::Refused { refusal, .. })) if refusal.raw().code.0 == OVERLOADED => {
            ProbeResult::Full
        }
        Ok(Err(_)) | Err(_) => ProbeResult::Silence,
    }
}

/// Counts the connections to an edge's socket on the host, including those that are waiting.
fn connections(edge: &Edge) -> io::Result<usize> {
    let table = fs::read("/proc/net/unix")?;
    Ok(connections_in(&table, &edge.host_socket()))
}

/// Counts the connections in the kernel's table (proc_net(5)), in which the listening socket itself is flagged.
fn connections_in(table: &[u8], socket: &str) -> usize {
    const LISTENS: &str = "00010000";
    let table = String::from_utf8_lossy(table);
    let lines = table.lines().filter(|line| {
        let mut fields = line.split_ascii_whitespace();
        let flags = fields.nth(3);
        flags.is_some_and(|flags| flags != LISTENS) && fields.last() == Some(socket)
    });
    lines.count()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

    use super::*;
    use crate::mcp::concurrency::too_many_connections;

    #[test]
    fn a_crowd_of_one_consumer_s_is_no_silence_of_a_server_that_answers_others() {
        use ProbeResult::{Answer, Crowd, Full, Nothing, Silence};
        let cases: [(&[ProbeResult], bool); 8] = [
            (&[], false),
            (&[Nothing, Answer], false),
            (&[Full], false),
            (&[Silence], true),
            (&[Answer, Silence], true),
            // A crowd hides the server's state, and a restart ends the crowd too.
            (&[Crowd], true),
            (&[Crowd, Answer], false),
            (&[Crowd, Full], false),
        ];
        for (own, expected) in cases {
            assert_eq!(hangs(own), expected, "{own:?}");
        }
    }

    /// Returns the result for a server that sends this answer to the first request and then exits.
    async fn answered(answer: &str) -> ProbeResult {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let answer = answer.to_owned();
        let server = tokio::spawn(async move {
            let (reader, mut writer) = theirs.into_split();
            let mut line = String::new();
            BufReader::new(reader).read_line(&mut line).await.unwrap();
            writer.write_all(answer.as_bytes()).await.unwrap();
        });
        let result = probe(ours).await;
        server.await.unwrap();
        result
    }

    #[tokio::test]
    async fn a_server_that_turns_a_caller_away_is_not_silent() {
        let error =
            serde_json::to_string(&rmcp::model::ErrorData::from(too_many_connections(2))).unwrap();
        let refused = |error: &str| format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{error}}}\n");
        assert_eq!(answered(&refused(&error)).await, ProbeResult::Full);
        let other = refused(r#"{"code":-32603,"message":"no"}"#);
        assert_eq!(answered(&other).await, ProbeResult::Silence);
        assert_eq!(answered("").await, ProbeResult::Silence);
    }

    #[test]
    fn a_proxy_is_a_stray_if_no_device_needs_it_or_a_newer_one_serves() {
        use crate::plan::ProxyEnd;
        let proxy = |process: i32, started, connect: &str, within| Proxy {
            process,
            started,
            uid: 0,
            runs: true,
            has_machine: true,
            listen: ProxyEnd {
                within: 1,
                address: "unix:/a".to_owned(),
            },
            connect: ProxyEnd {
                within,
                address: connect.to_owned(),
            },
        };
        let proxies = [
            proxy(1, 30, "unix:/b", 7),
            proxy(2, 10, "unix:/b", 7),
            proxy(3, 20, "unix:/c", 7),
            proxy(4, 90, "unix:/c", 7),
        ];
        let needs = |first| NeededProxy {
            listen: "unix:/a",
            connect: "unix:/b",
            first,
        };
        let found = |proxies: &[Proxy], needed: &[NeededProxy<'_>]| {
            let found = strays(proxies, needed, 50);
            found.iter().map(|one| one.process).collect::<Vec<_>>()
        };
        assert_eq!(found(&proxies, &[needs(Some(7))]), [2, 3]);
        // The machine may be starting, with its first process not known yet.
        assert_eq!(found(&proxies, &[needs(None)]), [2, 3]);
        // A copy has the same addresses.
        assert_eq!(found(&proxies, &[needs(Some(7)), needs(None)]), [3]);
        let two = [proxy(1, 30, "unix:/b", 7), proxy(2, 20, "unix:/b", 8)];
        assert_eq!(found(&two, &[needs(None), needs(Some(7))]), [0; 0]);
        assert_eq!(found(&proxies, &[]), [2, 3, 1]);
        // Neither a newer process of another machine nor one that has outlived its machine serves the device.
        let mut others = [proxy(1, 20, "unix:/b", 7), proxy(2, 30, "unix:/b", 8)];
        assert_eq!(found(&others, &[needs(Some(7))]), [2]);
        others[0].has_machine = false;
        others[1].connect.within = 7;
        assert_eq!(found(&others, &[needs(Some(7))]), [1]);
        assert_eq!(found(&others[..1], &[needs(None)]), [1]);
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
