//! The consumer's folder of sockets, as Incus shows it.

use super::super::apply::Context;
use crate::edge::{CONSUMER_FOLDER, Edge};
use crate::incus::{IncusError, Kind, Object};

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
