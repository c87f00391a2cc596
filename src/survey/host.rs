//! Reads the host apart from Incus: users, folders, sockets, routes. Changes nothing.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;

use super::shares;
use crate::dir::RIGHTS;
use crate::edge::{Edge, HOST_FOLDER};
use crate::host::folders::FOLDERS;
use crate::host::{is_hash, log_timer, proxy_logs};
use crate::infra::{Device, Infra};
use crate::plan::{Facts, FolderState, HostFolder, HostRoute, TakenIds};
use crate::transport;

/// Required mode of the folders.
const FOLDER_MODE: u32 = 0o711;

/// Reads the facts of the host.
pub(super) async fn facts(infra: &Infra, edges: &[Edge]) -> Facts {
    let mut ids = ids_of_files();
    ids.extend(ids_of_directories(edges).await);
    Facts {
        ids,
        sockets: sockets(),
        missing: missing(infra),
        shares: shares::reaches(infra),
        nested: shares::nested_paths(infra),
        folders: FOLDERS.into_iter().filter_map(folder).collect(),
        routes: text("/proc/net/route").lines().filter_map(route).collect(),
        logs: proxy_logs::big(edges),
        rotation: log_timer::look(),
        root: rustix::process::geteuid().is_root(),
        ..Facts::default()
    }
}

/// The text of a small system file; empty if it cannot be read.
fn text(path: &str) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

fn ids_of_files() -> Vec<TakenIds> {
    let read = |paths: [&'static str; 2], parse: fn(&str, &str) -> Option<TakenIds>| {
        paths.into_iter().flat_map(move |path| {
            let text = text(path);
            let ids = text.lines().filter_map(|line| parse(line, path));
            ids.collect::<Vec<_>>()
        })
    };
    let accounts = read(["/etc/passwd", "/etc/group"], account);
    accounts
        .chain(read(["/etc/subuid", "/etc/subgid"], subordinate))
        .collect()
}

/// A line of passwd or group: the number is the third field of both.
fn account(line: &str, source: &str) -> Option<TakenIds> {
    let mut parts = line.split(':');
    Some(TakenIds {
        by: format!("`{source}` for `{}`", parts.next()?.escape_debug()),
        first: parts.nth(1)?.trim().parse().ok()?,
        count: 1,
    })
}

/// A line of subuid or subgid.
fn subordinate(line: &str, source: &str) -> Option<TakenIds> {
    let mut parts = line.split(':');
    Some(TakenIds {
        by: format!("`{source}` for `{}`", parts.next()?.escape_debug()),
        first: parts.next()?.trim().parse().ok()?,
        count: parts.next()?.trim().parse().ok()?,
    })
}

/// Users and groups of a directory service, which no file shows.
async fn ids_of_directories(edges: &[Edge]) -> Vec<TakenIds> {
    let uids: BTreeSet<String> = edges.iter().map(|edge| edge.uid.to_string()).collect();
    let mut taken = Vec::new();
    if uids.is_empty() {
        return taken;
    }
    for database in ["passwd", "group"] {
        // Without the program, the files are the only source.
        let Ok(mut getent) = transport::program("getent") else {
            break;
        };
        getent.arg(database).args(&uids).kill_on_drop(true);
        if let Ok(output) = getent.output().await {
            let lines = String::from_utf8_lossy(&output.stdout);
            let source = format!("getent {database}");
            taken.extend(lines.lines().filter_map(|line| account(line, &source)));
        }
    }
    taken
}

fn sockets() -> Vec<String> {
    let entries = fs::read_dir(HOST_FOLDER).into_iter().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_socket_name(name))
        .collect();
    names.sort_unstable();
    names
}

fn is_socket_name(name: &str) -> bool {
    name.strip_suffix(".sock").is_some_and(is_hash)
}

/// Paths on the host that disks need and that are missing.
fn missing(infra: &Infra) -> BTreeSet<String> {
    let devices = infra.machines().flat_map(|(_, machine)| &machine.devices);
    devices
        .filter_map(needed_source)
        // A path that may not be looked at may exist.
        .filter(|path| !fs::exists(path).unwrap_or(true))
        .map(str::to_owned)
        .collect()
}

fn needed_source(device: &Device) -> Option<&str> {
    let optional = device
        .get("required")
        .is_some_and(|value| ["false", "0", "no", "off"].contains(&value));
    device.shared_source().filter(|_| !optional)
}

/// The fault of one of anklume's folders.
fn folder(path: &str) -> Option<HostFolder> {
    let state = match fs::symlink_metadata(path) {
        Err(_) => FolderState::Missing,
        Ok(is) if !is.is_dir() => FolderState::NoFolder,
        Ok(is) if (is.uid(), is.gid(), is.mode() & RIGHTS) == (0, 0, FOLDER_MODE) => {
            return None;
        }
        Ok(_) => FolderState::Loose,
    };
    let path = path.to_owned();
    Some(HostFolder { path, state })
}

/// A line of the kernel's table; addresses are in the order of this computer's memory.
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
        let taken = account("alice:x:1000:1000::/home/alice:/bin/sh", "/etc/passwd").unwrap();
        assert_eq!(
            (taken.first, taken.by.as_str()),
            (1000, "`/etc/passwd` for `alice`")
        );
        assert_eq!(account("broken", "/etc/passwd"), None);
    }

    #[test]
    fn only_what_anklume_names_so_is_its_socket() {
        assert!(is_socket_name("0123456789abcdef.sock"));
        assert!(!is_socket_name("precious.sock"));
        assert!(!is_socket_name("0123456789abcdef"));
    }
}
