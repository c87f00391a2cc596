//! Facts about the host and the machines that a plan takes into account, apart from Incus's own state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::incus::state::InstanceId;
use crate::machine_state::ObservedMachine;

/// Facts about the host and the machines.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// User and group IDs that the host uses.
    pub(crate) ids: Vec<TakenIds>,
    /// File names in the edges' socket folder.
    pub(crate) sockets: Vec<String>,
    /// Missing paths that devices need.
    pub(crate) missing: BTreeSet<String>,
    /// The users who can reach the folders that machines write to as host users.
    pub(crate) shares: BTreeMap<String, Reach>,
    /// Device paths inside a folder that a machine may write to, each with that folder.
    pub(crate) nested: BTreeMap<String, String>,
    /// anklume's own folders on the host that need repair.
    pub(crate) folders: Vec<HostFolder>,
    /// The host's network interfaces, each with the bridge that it is connected to; `None` if they could not be listed.
    pub(crate) interfaces: Option<BTreeMap<String, Option<String>>>,
    /// The host's user and group IDs that machines may use, apart from their own ranges; `None` if any.
    pub(crate) mappable: [Option<Vec<TakenIds>>; 2],
    /// Time since Incus started, if that was a short time ago, so that it may still be starting its machines.
    pub(crate) incus_age: Option<Duration>,
    /// Routes to directly connected networks.
    pub(crate) routes: Vec<HostRoute>,
    /// Remote images, by name as written in the file: the source, or the reason why the image is unavailable.
    pub(crate) images: BTreeMap<String, Result<RemoteImage, ImageError>>,
    /// True if this process may write to anklume's folders.
    pub(crate) root: bool,
    /// The content found inside machines.
    pub(crate) inside: BTreeMap<InstanceId, ObservedMachine>,
    /// Machines whose content is unknown, with the reason; nothing in them may be changed because of that.
    pub(crate) unread: BTreeMap<InstanceId, String>,
    /// Ends of edges whose device exists but does not work, by the edge's hash.
    pub(crate) broken: BTreeMap<(String, Role), RecreateReason>,
    /// Processes that carry the bytes of no device, or of one that another process already serves.
    pub(crate) strays: Vec<Proxy>,
    /// By hash, edges whose consumer is using all its permitted connections, so that no further call is possible.
    pub(crate) full: BTreeSet<String>,
    /// Edge logs that have grown beyond the limit.
    pub(crate) logs: Vec<BigLog>,
    pub(crate) rotation: Rotation,
}

/// A range of user or group IDs that the host uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TakenIds {
    pub(crate) first: u32,
    pub(crate) count: u32,
    /// The entry that claims them, such as "`/etc/passwd` for `alice`".
    pub(crate) by: String,
}

/// One of anklume's own folders on the host that needs repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostFolder {
    pub(crate) path: String,
    pub(crate) state: FolderState,
}

/// The fault of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FolderState {
    Missing,
    /// Owner or permissions differ.
    Loose,
    /// It is not a folder.
    NoFolder,
}

/// A network that the host reaches directly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostRoute {
    pub(crate) interface: String,
    /// Its first address.
    pub(crate) network: Ipv4Addr,
    /// Its prefix length, in bits.
    pub(crate) prefix: u8,
}

/// The users of the host, apart from root, who can reach what a machine leaves in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Nobody, or its mount ignores set-user-ID bits.
    Nobody,
    /// Nobody, once the missing folders above it exist.
    WhenMade,
    /// The owner of a folder above it.
    User(u32),
    /// Everybody: no folder above it is closed.
    Everybody,
    /// Everybody can replace it, because others may write to this folder above it.
    Replaceable(String),
}

/// The source of a remote image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RemoteImage {
    /// URL of the remote.
    pub(crate) server: String,
    /// `simplestreams` or `incus`.
    pub(crate) protocol: String,
    /// The image's name there.
    pub(crate) alias: String,
}

/// The reason why a remote image cannot be used, as stated by the `incus` program or its caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ImageError(pub(crate) String);

/// The end of an edge that a device belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Consumer,
    Provider,
}

/// The reason for recreating a device whose keys are correct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecreateReason {
    /// Another machine's device took over its socket.
    TakenOver,
    /// Its process was killed.
    NoProcess,
    /// Its socket was removed.
    NoSocket,
    /// The file at its path is not a socket, or has the wrong owner or permissions.
    BadSocket,
}

/// A process on the host that relays one end of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    /// Its number.
    pub(crate) process: i32,
    /// Time of its start, in clock ticks since the computer started (proc(5)).
    pub(crate) started: u64,
    pub(crate) uid: u32,
    /// False if it is stopped or a zombie.
    pub(crate) runs: bool,
    /// False if the machine's end is in a process that has exited, with the machine as it was then.
    pub(crate) has_machine: bool,
    pub(crate) listen: ProxyEnd,
    pub(crate) connect: ProxyEnd,
}

impl Proxy {
    /// Where it listens, and where it connects to.
    pub(crate) fn addresses(&self) -> [&str; 2] {
        [&self.listen, &self.connect].map(|end| end.address.as_str())
    }

    /// Returns whether one of its ends is in the mount namespace of this process.
    pub(crate) fn is_in(&self, process: u32) -> bool {
        [&self.listen, &self.connect]
            .iter()
            .any(|end| end.within == process)
    }

    /// Describes a stray process.
    pub(crate) fn about(&self) -> String {
        let [from, to] = [&self.listen, &self.connect].map(|end| {
            let path = end.address.strip_prefix("unix:").unwrap_or(&end.address);
            path.escape_debug().to_string()
        });
        format!("an Incus proxy from `{from}` to `{to}` that belongs to no device")
    }
}

/// One end of a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProxyEnd {
    /// Number of a process in whose mount namespace the address is.
    pub(crate) within: u32,
    /// Such as `unix:/run/x.sock`.
    pub(crate) address: String,
}

/// A log that has grown beyond the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BigLog {
    pub(crate) path: String,
    /// Its size on disk.
    pub(crate) bytes: u64,
}

/// A file on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostFile {
    pub(crate) path: String,
    pub(crate) content: String,
}

/// The schedule that rotates the logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// The scheduler.
    pub(crate) by: &'static str,
    /// Its configuration.
    pub(crate) files: Vec<HostFile>,
    /// True if part of the configuration already exists.
    pub(crate) exists: bool,
}

/// The rotation of the logs by the host itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Rotation {
    /// Set up, or not examined.
    #[default]
    Scheduled,
    /// Possible with this schedule.
    Wanting(Schedule),
    /// Impossible for this reason.
    Nobody(String),
}
