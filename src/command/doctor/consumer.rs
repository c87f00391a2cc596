//! The consumer's end of a channel: its folder of sockets as Incus shows it, and what the consumer itself says.
//!
//! What a machine says is bounded, read strictly, and only ever shown as its word.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::super::apply::Context;
use crate::channel::Errand;
use crate::edge::{CONSUMER_FOLDER, Edge};
use crate::incus::{IncusError, Kind, Object};
use crate::inside::PROGRAM;
use crate::name::ServiceName;
use crate::shown::shown;

/// How long a consumer may take to list what it is offered.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest of a machine's words that are shown, in characters.
pub(super) const WORDS_MAX: usize = 300;

/// The folder in which a consumer's devices listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ListenFolder {
    /// It is there.
    There,
    /// It is not.
    Gone,
    /// This part of its path is something else than a folder.
    Altered(String),
    /// It could not be looked at, and why.
    Unknown(String),
}

/// Looks at the folder in which a consumer's devices listen.
pub(super) async fn listen_folder(context: &Context, edge: &Edge) -> ListenFolder {
    look(context, edge)
        .await
        .unwrap_or_else(|why| ListenFolder::Unknown(why.to_string()))
}

async fn look(context: &Context, edge: &Edge) -> Result<ListenFolder, IncusError> {
    let end = &edge.consumer;
    let machine = Object::machine(end.domain.as_str(), end.machine.as_str());
    let mut incus = context.incus_for_looking().await?;
    let ends = CONSUMER_FOLDER.match_indices('/').map(|(at, _)| at).skip(1);
    for end in ends.chain([CONSUMER_FOLDER.len()]) {
        let part = CONSUMER_FOLDER.get(..end).unwrap_or(CONSUMER_FOLDER);
        match incus.kind_of_file(&machine, part).await? {
            Some(Kind::Folder) => {}
            None => return Ok(ListenFolder::Gone),
            Some(Kind::File | Kind::Link | Kind::Other) => {
                return Ok(ListenFolder::Altered(part.to_owned()));
            }
        }
    }
    Ok(ListenFolder::There)
}

/// What a consumer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heard {
    /// The services that it sees.
    pub(super) services: BTreeSet<String>,
    /// From the question on the host to the answer there, the start of the program in the consumer included.
    pub(super) took: Duration,
}

/// The answer of `mcp list`, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Listing {
    tools: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    name: ServiceName,
}

/// Lists, inside the consumer and as the user who may, what the provider offers it; or why that fails, in words.
pub(super) async fn ask(edge: &Edge) -> Result<Heard, String> {
    let consumer = &edge.consumer;
    let provider = edge.provider.machine.as_str();
    let errand = Errand {
        project: consumer.domain.as_str(),
        machine: consumer.machine.as_str(),
        user: Some((edge.owner_uid, edge.owner_gid)),
        words: &[PROGRAM, "mcp", "list", "-i", provider, "--format", "json"],
        stdin: b"",
        patience: PATIENCE,
    };
    let began = Instant::now();
    let said = errand
        .run()
        .await
        .map_err(|why| format!("asked in the consumer, {why}"))?;
    let took = began.elapsed();
    if said.code != Some(0) {
        let words = shown(&said.stderr, WORDS_MAX);
        return Err(match words.as_str() {
            "" => "the consumer's program fails and says nothing".to_owned(),
            words => format!("the consumer says: {words}"),
        });
    }
    match services(&said.stdout) {
        Some(services) => Ok(Heard { services, took }),
        None => Err("the consumer says what is no list of services".to_owned()),
    }
}

/// The services of a listing; `None`: it is none.
fn services(text: &[u8]) -> Option<BTreeSet<String>> {
    let listing: Listing = serde_json::from_slice(text).ok()?;
    let count = listing.tools.len();
    let names = listing.tools.into_iter().map(|tool| tool.name.to_string());
    let names: BTreeSet<String> = names.collect();
    (names.len() == count).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read_strictly() {
        let good = br#"{"tools":[{"name":"sign","inputSchema":{}},{"name":"push"}]}"#;
        let names = services(good).unwrap();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["push", "sign"]);
        for bad in [
            &b""[..],
            b"[]",
            b"{}",
            br#"{"tools":{}}"#,
            br#"{"tools":[{"name":"\u001b[2J"}]}"#,
            br#"{"tools":[{"name":"sign"},{"name":"sign"}]}"#,
            br#"{"tools":[]} more"#,
        ] {
            assert_eq!(services(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }
}
