//! Derives the edges of an [`Infra`], with their names, paths, uids and devices.
//!
//! Pure, so the same file always yields the same devices: `sync` writes the ones that `apply` creates.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sha2::{Digest as _, Sha256};

use crate::diagnostic::{Diagnostic, Faults, Place, Severity};
use crate::digest::hex;
use crate::infra::{Device, Domain, Infra, Machine, MachineType};
use crate::name::{DomainName, MACHINE_NAME_MAX, MachineName};

/// Folder on the host that holds the socket of each edge; owned by root, mode 0711.
pub const HOST_FOLDER: &str = "/var/lib/anklume/mcp";
/// Folder in a consumer that holds one socket for each of its providers; on the root file system, never in /run.
pub const CONSUMER_FOLDER: &str = "/srv/anklume/mcp";
/// Folder in a provider in which its server creates one socket for each of its consumers.
pub const PROVIDER_FOLDER: &str = "/run/anklume/mcp";
/// Prefix of an edge's device name, followed by [`HASH_DIGITS`] digits. It has no `-`, which Incus 7 writes twice in file names: after
/// an upgrade from Incus 6, it would not find the process of such a device.
pub const DEVICE_PREFIX: &str = "mcp_";
/// Number of hexadecimal digits in an edge's name.
pub const HASH_DIGITS: usize = 16;
/// Lowest host uid of a consumer: above the subuid ranges and the users in passwd.
pub const FIRST_UID: u32 = 2_000_000_000;
/// Number of uids available to consumers.
pub const UIDS: u32 = 100_000_000;

/// Code for two edges with the same name.
const CHANNEL_CLASH: &str = "channel-clash";
/// Code for a virtual machine at an end of an edge.
const VIRTUAL_MACHINE_END: &str = "virtual-machine-end";
/// The codes of faults that only edges reveal; each is a heading in `docs/diagnostics.md`.
pub const CODES: [&str; 2] = [CHANNEL_CLASH, VIRTUAL_MACHINE_END];

/// Maximum length of a Unix socket path, in bytes: `sockaddr_un` minus the terminating zero.
const SOCKET_PATH_MAX: usize = 107;
/// Suffix of socket names.
const SUFFIX: &str = ".sock";

// The parser limits the length of names, so no edge's socket path can be too long; checked at compile time.
const _: () =
    assert!(CONSUMER_FOLDER.len() + 1 + MACHINE_NAME_MAX + SUFFIX.len() <= SOCKET_PATH_MAX);
const _: () =
    assert!(PROVIDER_FOLDER.len() + 1 + MACHINE_NAME_MAX + SUFFIX.len() <= SOCKET_PATH_MAX);
const _: () = assert!(HOST_FOLDER.len() + 1 + HASH_DIGITS + SUFFIX.len() <= SOCKET_PATH_MAX);

/// One end of an edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The machine's domain, which is its Incus project.
    pub domain: DomainName,
    /// The machine.
    pub machine: MachineName,
}

/// A consumer and a provider with at least one service between them: one channel for any number of services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// The caller.
    pub consumer: End,
    /// The callee.
    pub provider: End,
    /// [`HASH_DIGITS`] hexadecimal digits: the edge's name on the host, which must contain no user text.
    pub hash: String,
    /// Host uid and gid of the consumer's channels; no other user may connect to the edge's socket on the host.
    pub uid: u32,
    /// Owner of the socket inside the consumer.
    pub owner_uid: u32,
    /// Group of the socket inside the consumer.
    pub owner_gid: u32,
}

impl Edge {
    /// Name of both devices.
    #[must_use]
    pub fn device_name(&self) -> String {
        format!("{DEVICE_PREFIX}{}", self.hash)
    }

    /// The socket on the host: the provider's device creates it, and the consumer's device connects to it.
    #[must_use]
    pub fn host_socket(&self) -> String {
        format!("{HOST_FOLDER}/{}{SUFFIX}", self.hash)
    }

    /// The socket inside the consumer.
    #[must_use]
    pub fn consumer_socket(&self) -> String {
        format!("{CONSUMER_FOLDER}/{}{SUFFIX}", self.provider.machine)
    }

    /// The socket inside the provider, created by its server; it identifies the caller.
    #[must_use]
    pub fn provider_socket(&self) -> String {
        format!("{PROVIDER_FOLDER}/{}{SUFFIX}", self.consumer.machine)
    }

    /// The provider's device: from the socket on the host into the machine.
    #[must_use]
    pub fn provider_device(&self) -> Device {
        self.device([
            ("bind", "host".to_owned()),
            ("listen", unix(&self.host_socket())),
            ("connect", unix(&self.provider_socket())),
            ("uid", self.uid.to_string()),
            ("gid", self.uid.to_string()),
            ("mode", "0600".to_owned()),
        ])
    }

    /// The consumer's device: from its socket to the host socket, run as the edge's uid without capabilities.
    #[must_use]
    pub fn consumer_device(&self) -> Device {
        self.device([
            ("bind", "instance".to_owned()),
            ("listen", unix(&self.consumer_socket())),
            ("connect", unix(&self.host_socket())),
            ("uid", self.owner_uid.to_string()),
            ("gid", self.owner_gid.to_string()),
            ("mode", "0600".to_owned()),
            ("security.uid", self.uid.to_string()),
            ("security.gid", self.uid.to_string()),
        ])
    }

    fn device<const N: usize>(&self, keys: [(&str, String); N]) -> Device {
        let kind = ("type", "proxy".to_owned());
        let keys = std::iter::once(kind).chain(keys);
        Device {
            name: self.device_name(),
            keys: keys.map(|(key, value)| (key.to_owned(), value)).collect(),
        }
    }
}

fn unix(path: &str) -> String {
    format!("unix:{path}")
}

/// Returns the edges between enabled machines, in file order of the providers and then of their consumers.
///
/// A machine that lists itself as a consumer needs no channel and gets none.
///
/// # Errors
///
/// Fails if two edges have the same name, or if an end is a virtual machine.
pub fn edges(infra: &Infra) -> Result<Vec<Edge>, Faults> {
    let pairs = pairs(infra);
    let uids = uids(pairs.iter().map(|((domain, machine), _)| {
        let wanted = wanted_uid(&infra.project, domain, machine);
        (&machine.name, wanted)
    }));
    let edges: Vec<Edge> = pairs
        .iter()
        .map(|&(consumer, provider)| {
            let uid = uids.get(&consumer.1.name).copied().unwrap_or(FIRST_UID);
            edge(&infra.project, consumer, provider, uid)
        })
        .collect();
    let mut faults = clashes(infra, &edges);
    faults.extend(virtual_ends(infra, &edges));
    if faults.is_empty() {
        Ok(edges)
    } else {
        Err(Faults(faults))
    }
}

/// A machine with its domain.
type Placed<'a> = (&'a Domain, &'a Machine);

/// Returns each pair of consumer and provider once.
fn pairs(infra: &Infra) -> Vec<(Placed<'_>, Placed<'_>)> {
    let mut pairs = Vec::new();
    for provider in infra.machines() {
        let services = provider.1.services.iter();
        let mut seen = BTreeSet::new();
        for name in services.flat_map(|service| &service.consumers) {
            if *name != provider.1.name
                && seen.insert(name)
                && let Some(consumer) = infra.machine(name.as_str())
            {
                pairs.push((consumer, provider));
            }
        }
    }
    pairs
}

fn edge(project: &str, consumer: Placed<'_>, provider: Placed<'_>, uid: u32) -> Edge {
    let end = |(domain, machine): Placed<'_>| End {
        domain: domain.name.clone(),
        machine: machine.name.clone(),
    };
    let (consumer_end, provider_end) = (end(consumer), end(provider));
    Edge {
        hash: hash(project, &consumer_end, &provider_end),
        consumer: consumer_end,
        provider: provider_end,
        uid,
        owner_uid: consumer.1.mcp.uid,
        owner_gid: consumer.1.mcp.gid,
    }
}

/// Returns the SHA-256 of strings, each preceded by its length so that different lists never hash the same bytes.
fn digest(texts: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update((text.len() as u64).to_be_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finalize().into()
}

fn hash(project: &str, consumer: &End, provider: &End) -> String {
    let digest = digest(&[
        project,
        consumer.domain.as_str(),
        consumer.machine.as_str(),
        provider.domain.as_str(),
        provider.machine.as_str(),
    ]);
    let mut name = hex(&digest);
    name.truncate(HASH_DIGITS);
    name
}

/// Returns a consumer's preferred position among the [`UIDS`]: its digest as one large number, modulo [`UIDS`].
fn wanted_uid(project: &str, domain: &Domain, machine: &Machine) -> u32 {
    let digest = digest(&[project, domain.name.as_str(), machine.name.as_str()]);
    let rest = digest.iter().fold(0_u64, |rest, byte| {
        (rest * 256 + u64::from(*byte)) % u64::from(UIDS)
    });
    u32::try_from(rest).unwrap_or_default()
}

/// Returns a uid for each consumer: the preferred one, or the next free one if an earlier name has taken it.
fn uids<'a>(
    wanted: impl Iterator<Item = (&'a MachineName, u32)>,
) -> BTreeMap<&'a MachineName, u32> {
    let wanted: BTreeMap<&MachineName, u32> = wanted.collect();
    let mut taken = BTreeSet::new();
    let mut later = Vec::new();
    let mut uids = BTreeMap::new();
    for (name, place) in wanted {
        if taken.insert(place) {
            uids.insert(name, FIRST_UID + place);
        } else {
            later.push((name, place));
        }
    }
    for (name, place) in later {
        let mut next = place;
        while !taken.insert(next) {
            next = (next + 1) % UIDS;
        }
        uids.insert(name, FIRST_UID + next);
    }
    uids
}

/// Refuses two edges with the same name, which would share a socket on the host.
fn clashes(infra: &Infra, edges: &[Edge]) -> Vec<Diagnostic> {
    let mut seen: HashMap<&str, &Edge> = HashMap::new();
    let mut faults = Vec::new();
    for edge in edges {
        let Some(first) = seen.insert(&edge.hash, edge) else {
            continue;
        };
        let message = format!(
            "the channels `{}` → `{}` and `{}` → `{}` get the same name on the host, `{}`",
            first.consumer.machine,
            first.provider.machine,
            edge.consumer.machine,
            edge.provider.machine,
            edge.hash
        );
        let consumer = infra.machine(edge.consumer.machine.as_str());
        let place = consumer.map(|(_, machine)| machine.place.clone());
        let help = "rename one of these machines";
        faults.push(fault(CHANNEL_CLASH, message, place, help));
    }
    faults
}

/// Refuses virtual machines as ends, because Incus offers them no proxy between Unix sockets.
fn virtual_ends(infra: &Infra, edges: &[Edge]) -> Vec<Diagnostic> {
    const HELP: &str = "Incus does not support Unix-socket proxies on virtual machines: make it a container (`type: lxc`), or remove it from the services";
    let ends: HashSet<&MachineName> = edges
        .iter()
        .flat_map(|edge| [&edge.consumer.machine, &edge.provider.machine])
        .collect();
    infra
        .machines()
        .map(|(_, machine)| machine)
        .filter(|machine| {
            machine.kind == MachineType::VirtualMachine && ends.contains(&machine.name)
        })
        .map(|machine| {
            let message = format!(
                "`{}` is a virtual machine, so it cannot offer or call services",
                machine.name
            );
            fault(
                VIRTUAL_MACHINE_END,
                message,
                Some(machine.place.clone()),
                HELP,
            )
        })
        .collect()
}

fn fault(code: &'static str, message: String, place: Option<Place>, help: &str) -> Diagnostic {
    let mut fault = Diagnostic::new(Severity::Error, code, message);
    fault.place = place;
    fault.help(help);
    fault
}

#[cfg(test)]
mod tests;
