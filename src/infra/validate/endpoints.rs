//! Checks that edges are safe: no end is privileged, and none of the user's devices interferes with the channels.
//!
//! Only anklume's own devices reach the channels' host paths, no disk hides anklume's files inside a machine, and no
//! device uses a host path where a machine could have put a link.

use std::collections::HashSet;

use super::devices::{PlacedDevice, PlacedProfile};
use super::{DomainDraft, MachineDraft};
use crate::diagnostic::{Severity, quote};
use crate::infra::findings::{At, Code, Findings};
use crate::infra::{MACHINES_OWN, MachineType};
use crate::name::MachineName;

/// Folders used by the channels, on the host and inside machines.
const CHANNELS: [&str; 3] = ["/var/lib/anklume", "/run/anklume/mcp", "/srv/anklume/mcp"];
/// The host folder that only anklume's own devices may share.
const HOST_STATE: &str = "/var/lib/anklume";
/// anklume's folders inside a machine: a disk mounted at or above one of them would hide it.
const INSIDE: [&str; 4] = [
    "/run/anklume",
    "/srv/anklume",
    "/opt/anklume",
    "/etc/anklume",
];
/// Folders inside a machine below which no disk may be mounted. (Below `/srv/anklume`, the portal may be shared.)
const INSIDE_WHOLE: [&str; 4] = [
    "/run/anklume",
    "/srv/anklume/mcp",
    "/opt/anklume",
    "/etc/anklume",
];

/// Checks every machine of an enabled domain.
pub(super) fn check(drafts: &[DomainDraft], findings: &mut Findings) {
    let ends = ends(drafts);
    // Without a service, no channel can be taken over, so the same devices only cause a warning.
    let severity = if ends.is_empty() {
        Severity::Warning
    } else {
        Severity::Error
    };
    let mut host = Host {
        writable: writable(drafts),
        severity,
        nested: HashSet::new(),
    };
    let mut profiles = HashSet::new();
    for (domain, machine) in machines(drafts) {
        let is_end = ends.contains(machine.machine.name.as_str());
        check_privileged(domain, machine, is_end, findings);
        for placed in &machine.devices {
            host.check(placed, findings);
            if is_end {
                check_inside(placed, machine, findings);
            }
        }
        for placed in profile_devices(domain, machine) {
            // Many machines may use a profile; one finding is enough.
            if profiles.insert((placed.at, false)) {
                host.check(placed, findings);
            }
            if is_end && profiles.insert((placed.at, true)) {
                check_inside(placed, machine, findings);
            }
        }
    }
}

fn machines(drafts: &[DomainDraft]) -> impl Iterator<Item = (&DomainDraft, &MachineDraft)> {
    drafts
        .iter()
        .filter(|domain| domain.domain.enabled)
        .flat_map(|domain| domain.machines.iter().map(move |machine| (domain, machine)))
}

/// Returns every machine that offers a service to a consumer, or may call one.
fn ends(drafts: &[DomainDraft]) -> HashSet<&str> {
    let mut ends = HashSet::new();
    for (_, MachineDraft { machine, .. }) in machines(drafts) {
        for service in &machine.services {
            if !service.consumers.is_empty() {
                ends.insert(machine.name.as_str());
            }
            ends.extend(service.consumers.iter().map(MachineName::as_str));
        }
    }
    ends
}

/// Returns the devices that a machine gets from its profiles.
fn profile_devices<'d>(
    domain: &'d DomainDraft,
    machine: &'d MachineDraft,
) -> impl Iterator<Item = &'d PlacedDevice> {
    used(domain, machine).flat_map(|profile| &profile.devices)
}

fn used<'d>(
    domain: &'d DomainDraft,
    machine: &'d MachineDraft,
) -> impl Iterator<Item = &'d PlacedProfile> {
    let names = machine.machine.profiles.iter().map(String::as_str);
    // A machine that lists no profiles uses `default`.
    let default = machine.machine.profiles.is_empty().then_some("default");
    names.chain(default).filter_map(|name| domain.profile(name))
}

fn check_privileged(
    domain: &DomainDraft,
    machine: &MachineDraft,
    is_end: bool,
    findings: &mut Findings,
) {
    let from_profile = || {
        used(domain, machine)
            .filter_map(|p| p.privileged)
            .find(|(on, _)| *on)
    };
    let Some((true, at)) = machine.privileged.or_else(from_profile) else {
        return;
    };
    let name = quote(machine.machine.name.as_str());
    if is_end {
        let message = format!("{name} is privileged, so it cannot offer or call services");
        findings.error(Code::PrivilegedEnd, at, message).help(
            "remove `security.privileged`, or the services that it offers and calls: \
                 its root is the host's root",
        );
    } else if machine.machine.kind == MachineType::Container {
        let message = format!("{name} is a privileged container");
        findings
            .warning(Code::PrivilegedContainer, at, message)
            .help("remove `security.privileged`, or write `type: vm`: the container's root is the host's root");
    }
}

/// Returns the host folders to which some machine may write.
fn writable(drafts: &[DomainDraft]) -> HashSet<String> {
    let mut folders: HashSet<String> = MACHINES_OWN.iter().map(|path| (*path).to_owned()).collect();
    let mut add = |placed: &PlacedDevice| {
        folders.extend(placed.device.written_source().and_then(absolute));
    };
    for domain in drafts.iter().filter(|domain| domain.domain.enabled) {
        let own = domain.machines.iter().flat_map(|machine| &machine.devices);
        let profiles = domain.profiles.iter().flat_map(|profile| &profile.devices);
        own.chain(profiles).for_each(&mut add);
    }
    folders
}

/// Checks the host side of every machine's devices.
struct Host {
    /// Folders to which some machine may write.
    writable: HashSet<String>,
    severity: Severity,
    /// Locations of sources in such a folder: a shared volume is a device of many machines, but one finding is enough.
    nested: HashSet<At>,
}

impl Host {
    fn check(&mut self, placed: &PlacedDevice, findings: &mut Findings) {
        if is_channel_name(&placed.device.name) {
            let name = quote(&placed.device.name);
            let message = format!("device {name} has the name of a channel");
            findings
                .add(self.severity, Code::ReservedDeviceName, placed.at, message)
                .help(
                    "`mcp_` followed by 16 hexadecimal digits is reserved for anklume: choose another name",
                );
        }
        if placed.is("proxy") {
            self.check_proxy(placed, findings);
        }
        if placed.is("disk") {
            self.check_disk(placed, findings);
        }
        self.check_source(placed, findings);
    }

    /// Refuses a source that a machine could replace; always an error, because that machine could take over the host.
    fn check_source(&mut self, placed: &PlacedDevice, findings: &mut Findings) {
        let host_path = placed.device.host_path().filter(|_| !placed.is("proxy"));
        let Some((key, written)) = host_path else {
            return;
        };
        let Some(path) = absolute(written) else {
            return;
        };
        let above = ancestors(&path).filter(|folder| *folder != path);
        let Some(folder) = above.filter(|folder| self.writable.contains(*folder)).max() else {
            return;
        };
        let at = placed.get(key).map_or(placed.at, |(_, at)| at);
        if self.nested.insert(at) {
            let message = format!(
                "{} is in {}, a host folder that a machine may write to",
                quote(written),
                quote(folder)
            );
            let help = if MACHINES_OWN.contains(&folder) {
                format!(
                    "choose a path outside of {folder}: a machine could put a link to any host folder there"
                )
            } else {
                "share folders that do not contain each other, or let no machine write to the outer one \
                 (`ro`, `readonly: true`): it could put a link to any host folder there"
                    .to_owned()
            };
            findings
                .error(Code::SourceInSharedFolder, at, message)
                .help(help);
        }
    }

    fn check_disk(&self, placed: &PlacedDevice, findings: &mut Findings) {
        let Some((source, at)) = placed.get("source") else {
            return;
        };
        let shares = absolute(source)
            .is_some_and(|path| is_below(&path, HOST_STATE) || is_below(HOST_STATE, &path));
        if shares {
            let source = quote(source);
            let message =
                format!("{source} shares the host's {HOST_STATE}, which contains the channels");
            findings
                .add(self.severity, Code::DeviceSharesChannels, at, message)
                .help(format!(
                    "share a folder that neither contains {HOST_STATE} nor lies in it"
                ));
        }
    }

    fn check_proxy(&self, placed: &PlacedDevice, findings: &mut Findings) {
        let host_key = placed.device.host_path().map(|(key, _)| key);
        for key in ["listen", "connect"] {
            let Some((address, at)) = placed.get(key) else {
                continue;
            };
            let Some(path) = address.strip_prefix("unix:").and_then(absolute) else {
                continue;
            };
            if CHANNELS.iter().any(|channel| is_below(&path, channel)) {
                let message =
                    format!("the proxy's `{key}` is inside one of anklume's channel folders");
                findings
                    .add(self.severity, Code::ProxyIntoChannels, at, message)
                    .help(format!(
                        "choose a path outside of {}: only `services` declares channels",
                        CHANNELS.join(", ")
                    ));
            } else if host_key == Some(key)
                && ancestors(&path).any(|folder| self.writable.contains(folder))
            {
                let message =
                    format!("the proxy's `{key}` is in a host folder that a machine may write to");
                findings
                    .add(self.severity, Code::ProxyIntoSharedFolder, at, message)
                    .help("choose a path that no machine may write to: a machine could put a link to any host socket there");
            }
        }
    }
}

/// Refuses a disk that hides anklume's files inside an end of an edge.
fn check_inside(placed: &PlacedDevice, machine: &MachineDraft, findings: &mut Findings) {
    let Some((written, at)) = placed.get("path").filter(|_| placed.is("disk")) else {
        return;
    };
    let Some(path) = absolute(written) else {
        return;
    };
    // The machine's own root comes from a pool.
    if path == "/" && placed.device.get("source").is_none() {
        return;
    }
    let covers = INSIDE.iter().any(|inside| is_below(inside, &path));
    let within = INSIDE_WHOLE.iter().any(|inside| is_below(&path, inside));
    if covers || within {
        let message = format!(
            "a disk at {} hides anklume's files in {}",
            quote(written),
            quote(machine.machine.name.as_str())
        );
        findings
            .error(Code::DiskOverAnklume, at, message)
            .help(format!(
                "choose a path that is neither above nor below {}",
                INSIDE.join(", ")
            ));
    }
}

fn is_channel_name(name: &str) -> bool {
    let digits = name.strip_prefix("mcp_").unwrap_or_default();
    digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Normalises an absolute path: removes `.`, `..`, double and trailing `/`, and replaces `/var/run` with `/run`.
fn absolute(path: &str) -> Option<String> {
    let inside = path.strip_prefix('/')?;
    let mut parts: Vec<&str> = Vec::new();
    for part in inside.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    if parts.starts_with(&["var", "run"]) {
        parts.remove(0);
    }
    Some(format!("/{}", parts.join("/")))
}

/// Returns whether a path is the folder or below it; both must be normalised by [`absolute`].
fn is_below(path: &str, folder: &str) -> bool {
    folder == "/"
        || path
            .strip_prefix(folder)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Returns the path and every folder above it.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let cuts = path.match_indices('/').map(|(at, _)| at);
    let above = cuts.filter_map(|at| path.get(..at.max(1)));
    std::iter::once(path).chain(above)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_one_form() {
        for (written, form) in [
            ("/", "/"),
            ("/a//b/./c/", "/a/b/c"),
            ("/a/../../b", "/b"),
            ("/var/run/anklume/mcp", "/run/anklume/mcp"),
        ] {
            assert_eq!(absolute(written).as_deref(), Some(form), "{written}");
        }
        assert_eq!(absolute("a/b"), None);
    }

    #[test]
    fn a_folder_holds_itself_and_what_is_in_it_and_not_its_neighbours() {
        assert!(is_below("/a/b", "/a/b"));
        assert!(is_below("/a/b/c", "/a/b"));
        assert!(is_below("/a", "/"));
        assert!(!is_below("/a/bc", "/a/b"));
        assert!(!is_below("/a", "/a/b"));
    }

    #[test]
    fn above_a_path_are_all_its_folders() {
        let above: Vec<_> = ancestors("/a/b/c").collect();
        assert_eq!(above, ["/a/b/c", "/", "/a", "/a/b"]);
    }
}
