//! The consumer's folder of sockets, as the host sees it.

use crate::edge::CONSUMER_FOLDER;
use crate::incus::EntryKind;
use crate::incus::state::Instance;
use crate::session::Session;
use crate::session::machine_files::FilesError;

/// The folder in which a consumer's devices listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListenFolder {
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
pub(crate) async fn listen_folder(session: &Session, consumer: &Instance) -> ListenFolder {
    look(session, consumer)
        .await
        .unwrap_or_else(|why| ListenFolder::Unknown(why.to_string()))
}

async fn look(session: &Session, consumer: &Instance) -> Result<ListenFolder, FilesError> {
    let mut files = session.files(consumer).await;
    let ends = CONSUMER_FOLDER.match_indices('/').map(|(at, _)| at).skip(1);
    for end in ends.chain([CONSUMER_FOLDER.len()]) {
        let part = CONSUMER_FOLDER.get(..end).unwrap_or(CONSUMER_FOLDER);
        match files.look(part).await?.map(|entry| entry.kind) {
            Some(EntryKind::Folder) => {}
            None => return Ok(ListenFolder::Gone),
            Some(EntryKind::File | EntryKind::Link | EntryKind::Other) => {
                return Ok(ListenFolder::Altered(part.to_owned()));
            }
        }
    }
    Ok(ListenFolder::There)
}
