//! Lists and ends the processes on the host that relay channels. Incus starts one for each device, and may lose track of
//! it: an upgrade of Incus in place names the file that holds its number in another way.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::task::spawn_blocking;

use super::{GRACEFUL, command_line, end_all, namespace, processes, stat};
use crate::edge::{FIRST_UID, HOST_FOLDER};
use crate::plan::{Proxy, ProxyEnd};

/// Maximum number of bytes read from a process's arguments; a proxy's take up a fraction of that.
const ARGUMENTS_MAX: u64 = 64 * 1024;
/// The subcommand of Incus that these processes run.
const FORKPROXY: &str = "forkproxy";

/// Lists these processes; `None` if this user may not see them (`hidepid` in proc(5)), or if that is not possible.
pub(crate) fn list() -> Option<Vec<Proxy>> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let own = namespace(std::process::id());
    // Checked first, because a machine can give its processes any arguments and can make reading them hang.
    let is_ours = |process: &Pid| namespace(process) == own;
    Some(
        processes()
            .ok()?
            .filter(is_ours)
            .filter_map(proxy)
            .collect(),
    )
}

fn proxy(process: Pid) -> Option<Proxy> {
    let args = command_line(process, ARGUMENTS_MAX).ok()?;
    let (listen, connect) = ends(&args)?;
    let (state, started) = stat(process)?;
    let owner = |process: u32| fs::metadata(format!("/proc/{process}")).map(|is| is.uid());
    let process = process.as_raw_nonzero().get();
    let uid = owner(process.unsigned_abs()).ok()?;
    let machine = if is_on_host(&listen) {
        &connect
    } else {
        &listen
    };
    let root = owner(machine.within).ok();
    // Another user of the host may run a process with the same arguments.
    let is_of_incus = uid == 0 || uid >= FIRST_UID || root.is_none_or(|root| root == uid);
    is_of_incus.then_some(Proxy {
        process,
        started,
        uid,
        runs: !"TtZXx".contains(state),
        has_machine: root.is_some(),
        listen,
        connect,
    })
}

/// Returns the time at which this process started, in the unit of [`Proxy::started`].
pub(crate) fn own_start() -> u64 {
    stat("self").map_or(0, |(_, started)| started)
}

/// Parses `incusd forkproxy -- PID FD ADDRESS PID FD ADDRESS …`; `None` if neither address is in anklume's folder.
fn ends(args: &[u8]) -> Option<(ProxyEnd, ProxyEnd)> {
    let args = String::from_utf8_lossy(args);
    let mut args = args.split('\0').skip(1);
    if args.next() != Some(FORKPROXY) || args.next() != Some("--") {
        return None;
    }
    let mut end = || {
        let within = args.next()?.parse().ok()?;
        let address = args.nth(1)?.to_owned();
        Some(ProxyEnd { within, address })
    };
    let (listen, connect) = (end()?, end()?);
    (is_on_host(&listen) || is_on_host(&connect)).then_some((listen, connect))
}

/// Returns whether an end is in anklume's folder on the host.
fn is_on_host(end: &ProxyEnd) -> bool {
    let path = end.address.strip_prefix("unix:");
    let below = path.and_then(|path| path.strip_prefix(HOST_FOLDER));
    below.is_some_and(|rest| rest.starts_with('/'))
}

/// Ends these processes, if they are still the same ones.
///
/// # Errors
///
/// Fails if one cannot be signalled, or does not exit in time.
pub(crate) async fn end(proxies: &[Proxy]) -> io::Result<()> {
    let mut handles = Vec::new();
    for one in proxies {
        let Some(process) = Pid::from_raw(one.process) else {
            continue;
        };
        // Opened before the comparison, so that the handle refers to the compared process.
        let handle = match pidfd_open(process, PidfdFlags::empty()) {
            // The number may have been given to a thread since.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => continue,
            handle => handle?,
        };
        if proxy(process).is_some_and(|now| now.started == one.started) {
            handles.push(handle);
        }
    }
    if handles.is_empty() || spawn_blocking(move || end_all(handles, GRACEFUL)).await? {
        return Ok(());
    }
    let fault = "a proxy of Incus on the host does not exit";
    Err(io::Error::new(io::ErrorKind::TimedOut, fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_of_incus_name_both_ends() {
        let line = |text: &str| text.replace(' ', "\0").into_bytes();
        let args = "/usr/libexec/incus/incusd forkproxy -- 942 3 unix:/srv/anklume/mcp/a.sock 630 4 unix:/var/lib/anklume/mcp/e8.sock 0 0 0600 5 5 ";
        let (listen, connect) = ends(&line(args)).unwrap();
        assert_eq!(
            (listen.within, listen.address.as_str()),
            (942, "unix:/srv/anklume/mcp/a.sock")
        );
        assert_eq!(
            (connect.within, connect.address.as_str()),
            (630, "unix:/var/lib/anklume/mcp/e8.sock")
        );
        for other in [
            "",
            "incusd forkproxy",
            "incusd forkproxy -- x 3 unix:/var/lib/anklume/mcp/e8.sock 1 4 unix:/a",
            "incusd forkproxy -- 1 3 unix:/var/lib/other/e8.sock 1 4 unix:/a",
            "vi forkproxy unix:/var/lib/anklume/mcp/e8.sock",
        ] {
            assert_eq!(ends(&line(other)), None, "{other}");
        }
    }
}
