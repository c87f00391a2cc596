//! Reads the host apart from Incus: users, folders, sockets, routes. Changes nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::{nested_mounts, shares};
use crate::edge::{Edge, HASH_DIGITS, HOST_FOLDER};
use crate::host::folders::FOLDERS;
use crate::host::{log_timer, proxy_logs};
use crate::infra::{Device, Infra};
use crate::plan::{Facts, FolderState, HostFolder, HostRoute, TakenIds};
use crate::transport;

/// Required mode of the folders.
const FOLDER_MODE: u32 = 0o711;
/// Bits of a mode that are rights.
const RIGHTS: u32 = 0o7777;

/// Looks around on the host.
pub(crate) async fn facts(infra: &Infra, edges: &[Edge]) -> Facts {
    let mut ids = ids_of_files();
    ids.extend(ids_of_directories(edges).await);
    Facts {
        ids,
        sockets: sockets(),
        missing: missing(infra),
        shares: shares::look(infra),
        nested: nested_mounts::look(infra),
        folders: FOLDERS.into_iter().filter_map(folder).collect(),
        routes: routes(),
        logs: proxy_logs::big(edges),
        rotation: log_timer::look(),
        root: rustix::process::geteuid().is_root(),
        ..Facts::default()
    }
}

/// A small file of the system's; what is not there says nothing.
fn text(path: &str) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

fn ids_of_files() -> Vec<TakenIds> {
    let mut taken = Vec::new();
    for path in ["/etc/passwd", "/etc/group"] {
        taken.extend(text(path).lines().filter_map(|line| account(line, path)));
    }
    for path in ["/etc/subuid", "/etc/subgid"] {
        let content = text(path);
        taken.extend(content.lines().filter_map(|line| {
            let mut parts = line.split(':');
            Some(TakenIds {
                by: format!("`{path}` for `{}`", parts.next()?.escape_debug()),
                first: parts.next()?.trim().parse().ok()?,
                count: parts.next()?.trim().parse().ok()?,
            })
        }));
    }
    taken
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

/// Users and groups that a directory service gives out, which no file shows.
async fn ids_of_directories(edges: &[Edge]) -> Vec<TakenIds> {
    let uids: BTreeSet<String> = edges.iter().map(|edge| edge.uid.to_string()).collect();
    let mut taken = Vec::new();
    if uids.is_empty() {
        return taken;
    }
    for database in ["passwd", "group"] {
        // Where the program is missing, the files are all that there is.
        let Ok(mut getent) = transport::program("getent") else {
            break;
        };
        getent.arg(database).args(&uids).kill_on_drop(true);
        if let Ok(output) = getent.output().await {
            let found = String::from_utf8_lossy(&output.stdout).into_owned();
            let source = format!("getent {database}");
            taken.extend(found.lines().filter_map(|line| account(line, &source)));
        }
    }
    taken
}

fn sockets() -> Vec<String> {
    let Ok(entries) = fs::read_dir(HOST_FOLDER) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_socket_name(name))
        .collect();
    names.sort_unstable();
    names
}

fn is_socket_name(name: &str) -> bool {
    name.strip_suffix(".sock").is_some_and(|hash| {
        hash.len() == HASH_DIGITS && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Paths on the host that disks need and that are not there.
fn missing(infra: &Infra) -> BTreeSet<String> {
    let devices = infra.machines().flat_map(|(_, machine)| &machine.devices);
    devices
        .filter_map(needed_source)
        .filter(|path| !there(path))
        .map(str::to_owned)
        .collect()
}

fn needed_source(device: &Device) -> Option<&str> {
    let optional = device
        .get("required")
        .is_some_and(|value| ["false", "0", "no", "off"].contains(&value));
    device.shared_source().filter(|_| !optional)
}

fn there(path: &str) -> bool {
    match fs::metadata(path) {
        Ok(_) => true,
        // What may not be looked at may be there.
        Err(why) => why.kind() != io::ErrorKind::NotFound,
    }
}

/// The fault of one of anklume's folders.
fn folder(path: &str) -> Option<HostFolder> {
    let state = match fs::symlink_metadata(path) {
        Err(_) => FolderState::Missing,
        Ok(is) if !is.is_dir() => FolderState::NoFolder,
        Ok(is) => {
            let rights = is.permissions().mode() & RIGHTS;
            if is.uid() == 0 && is.gid() == 0 && rights == FOLDER_MODE {
                return None;
            }
            FolderState::Loose
        }
    };
    Some(HostFolder {
        path: path.to_owned(),
        state,
    })
}

fn routes() -> Vec<HostRoute> {
    text("/proc/net/route").lines().filter_map(route).collect()
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
