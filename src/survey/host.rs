//! Reads the host, except Incus: users, folders, sockets, routes, and the images that its `incus` program finds. Changes
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use super::{LOOK_PAUSES, shares};
use crate::dir::RIGHTS;
use crate::edge::{Edge, HOST_FOLDER};
use crate::host::folders::FOLDERS;
use crate::host::{is_hash, log_timer, proxy_logs};
use crate::infra::{Device, Infra};
use crate::plan::{Facts, FolderState, HostFolder, HostRoute, ImageError, RemoteImage, TakenIds};
use crate::transport;

/// Timeout for one run of the `incus` program, which may ask a remote.
const TIMEOUT: Duration = Duration::from_secs(30);
const FOLDER_MODE: u32 = 0o711;
/// Exit codes of `getent` that answer: everything, or not everything, is there (`man getent`).
const GETENT_ANSWERS: [Option<i32>; 2] = [Some(0), Some(2)];

pub(super) async fn facts(infra: &Infra, edges: &[Edge]) -> anyhow::Result<Facts> {
    let mut ids = ids_of_files()?;
    ids.extend(ids_of_directories(edges).await?);
    Ok(Facts {
        ids,
        sockets: sockets().with_context(|| format!("cannot list `{HOST_FOLDER}`"))?,
        missing: missing(infra),
        shares: shares::reaches(infra),
        nested: shares::nested_paths(infra),
        folders: FOLDERS.into_iter().filter_map(folder).collect(),
        interfaces: interfaces().ok(),
        mappable: [mappable("/etc/subuid")?, mappable("/etc/subgid")?],
        routes: text("/proc/net/route")?.lines().filter_map(route).collect(),
        logs: proxy_logs::big(edges),
        rotation: log_timer::look(),
        root: rustix::process::geteuid().is_root(),
        ..Facts::default()
    })
}

/// The text of a small system file; empty if there is none.
fn text(path: &str) -> anyhow::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(why) => Err(why).with_context(|| format!("cannot read `{path}`")),
    }
}

fn ids_of_files() -> anyhow::Result<Vec<TakenIds>> {
    let files = [
        ("/etc/passwd", false),
        ("/etc/group", false),
        ("/etc/subuid", true),
        ("/etc/subgid", true),
    ];
    let mut all = Vec::new();
    for (path, is_range) in files {
        let text = text(path)?;
        all.extend(text.lines().filter_map(|line| ids(line, path, is_range)));
    }
    Ok(all)
}

/// Lists the network interfaces, each with the bridge that it is connected to.
fn interfaces() -> io::Result<BTreeMap<String, Option<String>>> {
    let mut interfaces = BTreeMap::new();
    for entry in fs::read_dir("/sys/class/net")? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let bridge = match fs::read_link(entry.path().join("master")) {
            Ok(path) => path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned()),
            Err(why) if why.kind() == io::ErrorKind::NotFound => None,
            Err(why) => return Err(why),
        };
        interfaces.insert(name, bridge);
    }
    Ok(interfaces)
}

/// The ranges in this file that belong to root, who runs Incus; `None` if there is no such file.
fn mappable(path: &str) -> anyhow::Result<Option<Vec<TakenIds>>> {
    let text = text(path)?;
    let of_root = text.lines().filter(|line| line.starts_with("root:"));
    let ranges: Vec<TakenIds> = of_root.filter_map(|line| ids(line, path, true)).collect();
    Ok((!text.is_empty()).then_some(ranges))
}

/// Parses a line of passwd or group, with an ID as its third field; or of subuid or subgid, with a range as its second
/// and third fields.
fn ids(line: &str, source: &str, is_range: bool) -> Option<TakenIds> {
    let mut parts = line.split(':');
    let by = format!("`{source}` for `{}`", parts.next()?.escape_debug());
    let mut number = |skipped| parts.nth(skipped)?.trim().parse().ok();
    Some(TakenIds {
        by,
        first: number(usize::from(!is_range))?,
        count: if is_range { number(0)? } else { 1 },
    })
}

/// Returns the users and groups from a directory service, which are not in any file.
async fn ids_of_directories(edges: &[Edge]) -> anyhow::Result<Vec<TakenIds>> {
    let uids: BTreeSet<String> = edges.iter().map(|edge| edge.uid.to_string()).collect();
    let mut taken = Vec::new();
    if uids.is_empty() {
        return Ok(taken);
    }
    for database in ["passwd", "group"] {
        // Without the program, the files are the only source.
        let Ok(mut getent) = transport::program("getent") else {
            break;
        };
        let source = format!("getent {database}");
        getent.arg(database).args(&uids).kill_on_drop(true);
        let mut tries = 0;
        let output = loop {
            let run = timeout(TIMEOUT, getent.output()).await;
            let why = match run {
                Ok(Ok(output)) if GETENT_ANSWERS.contains(&output.status.code()) => break output,
                Ok(Ok(output)) => format!("it ended: {}", output.status),
                Ok(Err(why)) => why.to_string(),
                Err(_) => format!("no answer within {} s", TIMEOUT.as_secs()),
            };
            let Some(pause) = LOOK_PAUSES.get(tries) else {
                bail!("cannot look up users and groups: `{source}`: {why}");
            };
            tries += 1;
            sleep(*pause).await;
        };
        let lines = String::from_utf8_lossy(&output.stdout);
        taken.extend(lines.lines().filter_map(|line| ids(line, &source, false)));
    }
    Ok(taken)
}

/// Lists the edges' sockets; none if there is no folder, or if this user may not list it.
fn sockets() -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(HOST_FOLDER) {
        Ok(entries) => entries,
        Err(why) => {
            use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
            return match why.kind() {
                NotFound | NotADirectory | PermissionDenied => Ok(Vec::new()),
                _ => Err(why),
            };
        }
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().into_string().ok();
        names.extend(name.filter(|name| is_socket_name(name)));
    }
    names.sort_unstable();
    Ok(names)
}

fn is_socket_name(name: &str) -> bool {
    name.strip_suffix(".sock").is_some_and(is_hash)
}

/// Returns the missing paths on the host that disks need.
fn missing(infra: &Infra) -> BTreeSet<String> {
    let devices = infra.machines().flat_map(|(_, machine)| &machine.devices);
    let is_needed = |device: &&Device| {
        let required = device.get("required");
        !required.is_some_and(|value| ["false", "0", "no", "off"].contains(&value))
    };
    devices
        .filter(is_needed)
        .filter_map(Device::shared_source)
        // A path that this user may not look up might exist.
        .filter(|path| !fs::exists(path).unwrap_or(true))
        .map(str::to_owned)
        .collect()
}

/// Returns the fault of one of anklume's folders.
fn folder(path: &str) -> Option<HostFolder> {
    let state = match fs::symlink_metadata(path) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => FolderState::Missing,
        Ok(is) if !is.is_dir() => FolderState::NoFolder,
        Ok(is) if (is.uid(), is.gid(), is.mode() & RIGHTS) == (0, 0, FOLDER_MODE) => {
            return None;
        }
        // Whether it exists is unknown: setting its owner and mode reports the reason.
        Ok(_) | Err(_) => FolderState::Loose,
    };
    let path = path.to_owned();
    Some(HostFolder { path, state })
}

/// Parses a line of the kernel's table; addresses are in native byte order.
fn route(line: &str) -> Option<HostRoute> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let number = |index: usize| u32::from_str_radix(fields.get(index)?, 16).ok();
    let address = |index: usize| Some(Ipv4Addr::from(number(index)?.to_ne_bytes()));
    let connected = address(2)?.is_unspecified();
    let prefix = u8::try_from(u32::from(address(7)?).leading_ones()).ok()?;
    (connected && prefix > 0).then_some(HostRoute {
        interface: (*fields.first()?).to_owned(),
        network: address(1)?,
        prefix,
    })
}

/// A remote, as printed by `incus remote list`.
#[derive(Debug, Deserialize)]
struct Remote {
    #[serde(rename = "Addr")]
    address: String,
    #[serde(rename = "Protocol")]
    protocol: String,
}

/// Looks up each image (`images:debian/13`): returns its source, or the reason why it is unavailable.
pub(crate) async fn images(
    names: Vec<String>,
) -> BTreeMap<String, Result<RemoteImage, ImageError>> {
    let mut found = BTreeMap::new();
    if names.is_empty() {
        return found;
    }
    let remotes = remotes().await.map_err(|why| why.to_string());
    for image in names {
        let one = match &remotes {
            Ok(remotes) => find(&image, remotes).await.map_err(|why| why.to_string()),
            Err(why) => Err(why.clone()),
        };
        found.insert(image, one.map_err(ImageError));
    }
    found
}

async fn remotes() -> io::Result<BTreeMap<String, Remote>> {
    let text = incus(&["remote", "list", "-f", "json"]).await?;
    serde_json::from_str(&text)
        .map_err(|why| io::Error::other(format!("`incus remote list` cannot be read: {why}")))
}

async fn find(image: &str, remotes: &BTreeMap<String, Remote>) -> io::Result<RemoteImage> {
    let (name, alias) = image.split_once(':').unwrap_or(("", image));
    let remote = remotes
        .get(name)
        .ok_or_else(|| io::Error::other(format!("the remote `{name}` does not exist")))?;
    incus(&["image", "info", "--", image]).await?;
    Ok(RemoteImage {
        server: remote.address.clone(),
        protocol: remote.protocol.clone(),
        alias: alias.to_owned(),
    })
}

/// Runs `incus` and returns its stdout; its stderr is the error.
async fn incus(args: &[&str]) -> io::Result<String> {
    let cannot = |why| io::Error::other(format!("the program `incus` cannot be started: {why}"));
    let mut command = transport::incus().map_err(cannot)?;
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let silent = |_| io::Error::other(format!("no answer within {} s", TIMEOUT.as_secs()));
    let output = timeout(TIMEOUT, command.output()).await.map_err(silent)?;
    let output = output.map_err(cannot)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let message = message.trim();
    let message = message.strip_prefix("Error: ").unwrap_or(message);
    Err(io::Error::other(message.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_as_the_kernel_writes_them() {
        let line = "hsv0\t00004D0A\t00000000\t0001\t0\t0\t0\tFCFFFFFF\t0\t0\t0";
        let expected = HostRoute {
            interface: "hsv0".to_owned(),
            network: Ipv4Addr::new(10, 77, 0, 0),
            prefix: 30,
        };
        assert_eq!(route(line), Some(expected));
        let gateway = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0";
        assert_eq!(route(gateway), None);
        assert_eq!(route("Iface\tDestination\tGateway"), None);
    }

    #[test]
    fn accounts_are_read_from_their_third_field() {
        let taken = ids(
            "alice:x:1000:1000::/home/alice:/bin/sh",
            "/etc/passwd",
            false,
        )
        .unwrap();
        assert_eq!(
            (taken.first, taken.by.as_str()),
            (1000, "`/etc/passwd` for `alice`")
        );
        assert_eq!(ids("broken", "/etc/passwd", false), None);
    }

    #[test]
    fn only_what_anklume_names_so_is_its_socket() {
        assert!(is_socket_name("0123456789abcdef.sock"));
        assert!(!is_socket_name("precious.sock"));
        assert!(!is_socket_name("0123456789abcdef"));
    }
}
