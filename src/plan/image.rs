//! Selects the image for a new machine: a local one, or one from a remote.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::facts::Facts;
use crate::incus::State;
use crate::infra::{Domain, Infra, Machine, MachineType};
use crate::text::escaped;

/// The name of this Incus among the remotes.
const LOCAL: &str = "local";
/// Minimum number of hexadecimal digits in a fingerprint.
const FINGERPRINT_MIN: usize = 12;

/// The reason why a machine cannot be created from an image.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoImage {
    pub(super) what: String,
    pub(super) help: String,
}

/// Returns the remote images needed by the machines to be created, as written in the file.
pub(crate) fn remote_images(infra: &Infra, state: &State) -> Vec<String> {
    let exists = |domain: &Domain, machine: &Machine| {
        let mut all = state.instances.iter();
        all.any(|it| it.project == domain.name.as_str() && it.name == machine.name.as_str())
    };
    let missing = infra
        .machines()
        .filter(|(domain, one)| !exists(domain, one));
    let images: BTreeSet<&str> = missing
        .map(|(_, machine)| machine.os_image.as_str())
        .filter(|image| split(image).0.is_some())
        .collect();
    images.into_iter().map(str::to_owned).collect()
}

/// Splits an image name into the remote, if it is another Incus or an image server, and the name there.
fn split(image: &str) -> (Option<&str>, &str) {
    match image.split_once(':') {
        Some((LOCAL, name)) => (None, name),
        Some((remote, name)) => (Some(remote), name),
        None => (None, image),
    }
}

/// Returns the source of a new machine, for the API.
pub(super) fn source(
    image: &str,
    kind: MachineType,
    state: &State,
    facts: &Facts,
) -> Result<Value, NoImage> {
    let (remote, name) = split(image);
    if remote.is_none() {
        return local(name, kind, state);
    }
    match facts.images.get(image) {
        Some(Ok(remote)) => Ok(json!({
            "type": "image",
            "mode": "pull",
            "server": remote.server,
            "protocol": remote.protocol,
            "alias": remote.alias,
        })),
        Some(Err(why)) => Err(NoImage {
            what: format!("cannot be found: {}", escaped(&why.0)),
            help:
                "search for it: `incus image list images:`; `incus remote list` shows the remotes"
                    .to_owned(),
        }),
        None => Err(NoImage {
            what: "was not searched for".to_owned(),
            help: "run the command again".to_owned(),
        }),
    }
}

fn local(name: &str, kind: MachineType, state: &State) -> Result<Value, NoImage> {
    if let Some(alias) = state.aliases.iter().find(|alias| alias.name == name) {
        if !alias.kind.is_empty() && alias.kind != api_kind(kind) {
            return Err(NoImage {
                what: format!("is for another type of machine ({})", alias.kind),
                help: "change `type`, or choose an image of that type".to_owned(),
            });
        }
        return Ok(json!({"type": "image", "alias": name}));
    }
    let digits = name.len() >= FINGERPRINT_MIN && name.bytes().all(|b| b.is_ascii_hexdigit());
    let mut images = state.images.iter();
    if let Some(found) = images.find(|image| digits && image.starts_with(name)) {
        return Ok(json!({"type": "image", "fingerprint": found}));
    }
    let mut names: Vec<&str> = state.aliases.iter().map(|one| one.name.as_str()).collect();
    names.sort_unstable();
    let known = if names.is_empty() {
        "no local image has a name".to_owned()
    } else {
        format!("available: {}", names.join(", ").escape_debug())
    };
    Err(NoImage {
        what: "does not exist".to_owned(),
        help: format!("{known}; write an image from a server as `images:debian/13`"),
    })
}

/// The API's name of a machine type.
pub(super) const fn api_kind(kind: MachineType) -> &'static str {
    match kind {
        MachineType::Container => "container",
        MachineType::VirtualMachine => "virtual-machine",
    }
}
