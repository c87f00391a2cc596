//! Removes bridges that Incus left behind, and connects the interfaces of machines to one that was made again.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::time::timeout;

use crate::transport;

/// Timeout for one change.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Connects an interface of the host to a bridge.
///
/// # Errors
///
/// Fails if there is no program `ip`, or with what it says.
pub(crate) async fn attach(port: &str, bridge: &str) -> io::Result<()> {
    ip(&["link", "set", "dev", port, "master", bridge]).await
}

/// Removes a bridge, if it is still there, and no interface of another type.
///
/// # Errors
///
/// Fails if the interface is no bridge, if there is no program `ip`, or with what it says.
pub(crate) async fn remove(bridge: &str) -> io::Result<()> {
    let interface = Path::new("/sys/class/net").join(bridge);
    if !interface.try_exists()? {
        return Ok(());
    }
    if !interface.join("bridge").try_exists()? {
        let fault = format!("the interface `{}` is not a bridge", bridge.escape_debug());
        return Err(io::Error::other(fault));
    }
    ip(&["link", "delete", "dev", bridge]).await
}

async fn ip(args: &[&str]) -> io::Result<()> {
    let mut ip = transport::program("ip")?;
    ip.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(TIMEOUT, ip.output()).await;
    let output = output.map_err(|_| io::Error::other("`ip` does not answer"))??;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let (args, said) = (args.join(" "), said.trim().escape_debug());
    Err(io::Error::other(format!("`ip {args}`: {said}")))
}
