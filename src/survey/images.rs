//! Images of remotes: where they are, and whether they are there, as the `incus` program of this user sees it.

use std::collections::BTreeMap;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::timeout;

use crate::plan::RemoteImage;
use crate::transport;

/// Maximum time that a remote may take to say whether it has an image.
const PATIENCE: Duration = Duration::from_secs(30);

/// A remote as `incus remote list` prints it.
#[derive(Debug, Deserialize)]
struct Listed {
    #[serde(rename = "Addr")]
    address: String,
    #[serde(rename = "Protocol")]
    protocol: String,
}

/// Looks for each image (`images:debian/13`): where it is, or why it cannot be had.
pub(crate) async fn find(images: Vec<String>) -> BTreeMap<String, Result<RemoteImage, String>> {
    let mut found = BTreeMap::new();
    if images.is_empty() {
        return found;
    }
    let remotes = remotes().await;
    for image in images {
        let one = match &remotes {
            Ok(remotes) => look(&image, remotes).await,
            Err(why) => Err(why.clone()),
        };
        found.insert(image, one);
    }
    found
}

async fn remotes() -> Result<BTreeMap<String, Listed>, String> {
    let text = incus(&["remote", "list", "-f", "json"]).await?;
    serde_json::from_str(&text).map_err(|why| format!("`incus remote list` cannot be read: {why}"))
}

async fn look(image: &str, remotes: &BTreeMap<String, Listed>) -> Result<RemoteImage, String> {
    let (remote, alias) = image.split_once(':').unwrap_or(("", image));
    let listed = remotes
        .get(remote)
        .ok_or_else(|| format!("there is no remote `{remote}`"))?;
    incus(&["image", "info", "--", image]).await?;
    Ok(RemoteImage {
        server: listed.address.clone(),
        protocol: listed.protocol.clone(),
        alias: alias.to_owned(),
    })
}

/// Runs `incus` and gives its stdout, or its last words.
async fn incus(args: &[&str]) -> Result<String, String> {
    let cannot = |why: io::Error| format!("the program `incus` cannot be started: {why}");
    let mut command = transport::incus().map_err(cannot)?;
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output())
        .await
        .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?
        .map_err(cannot)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(words.strip_prefix("Error: ").unwrap_or(&words).to_owned())
}
