//! Looks for images of remotes, as the `incus` program of this user sees them.

use std::collections::BTreeMap;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::timeout;

use crate::plan::{ImageError, RemoteImage};
use crate::transport;

/// Time-out for a remote to say whether it has an image.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A remote as `incus remote list` prints it.
#[derive(Debug, Deserialize)]
struct Remote {
    #[serde(rename = "Addr")]
    address: String,
    #[serde(rename = "Protocol")]
    protocol: String,
}

/// Looks for each image (`images:debian/13`): where it is, or why it cannot be had.
pub(crate) async fn find(images: Vec<String>) -> BTreeMap<String, Result<RemoteImage, ImageError>> {
    let mut found = BTreeMap::new();
    if images.is_empty() {
        return found;
    }
    let remotes = remotes().await.map_err(|why| why.to_string());
    for image in images {
        let one = match &remotes {
            Ok(remotes) => look(&image, remotes).await.map_err(|why| why.to_string()),
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

async fn look(image: &str, remotes: &BTreeMap<String, Remote>) -> io::Result<RemoteImage> {
    let (name, alias) = image.split_once(':').unwrap_or(("", image));
    let remote = remotes
        .get(name)
        .ok_or_else(|| io::Error::other(format!("there is no remote `{name}`")))?;
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
