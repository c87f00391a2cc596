//! Files and folders inside a machine, running or not, over the API.
//!
//! Looks at one path at a time; whether a path may be gone through is for whoever asks to decide.

use hyper::Method;
use hyper::body::Bytes;
use hyper::header::HeaderMap;
use serde::{Deserialize, Serialize};

use super::connection::{ApiCall, encoded};
use super::object::Object;
use super::{Incus, IncusError};
use crate::digest::Digester;

/// An entry at a path in a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum EntryKind {
    /// A folder.
    Folder,
    /// A regular file; of a pipe or socket Incus says the same.
    File,
    /// A symbolic link.
    Link,
    /// Anything else.
    Other,
}

/// Something at a path in a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    /// Its type.
    pub(crate) kind: EntryKind,
    /// Owner and rights, but for the bits above `0o777`; `None`: Incus does not say.
    pub(crate) owner: Option<FileOwner>,
    /// True if it is a socket; `None`: Incus does not say.
    pub(crate) is_socket: Option<bool>,
}

/// Owner and rights of something in a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileOwner {
    /// User.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Rights, such as `0o755`.
    pub(crate) mode: u32,
}

impl FileOwner {
    fn headers(self, kind: &str) -> Vec<(&'static str, String)> {
        vec![
            ("X-Incus-uid", self.uid.to_string()),
            ("X-Incus-gid", self.gid.to_string()),
            ("X-Incus-mode", format!("{:04o}", self.mode)),
            ("X-Incus-type", kind.to_owned()),
            // Any other type gives an empty file and says that all is well.
            ("Content-Type", "application/octet-stream".to_owned()),
        ]
    }
}

fn kind(headers: &HeaderMap) -> EntryKind {
    let kind = headers.get("X-Incus-type");
    match kind.map(hyper::header::HeaderValue::as_bytes) {
        Some(b"directory") => EntryKind::Folder,
        Some(b"file") => EntryKind::File,
        Some(b"symlink") => EntryKind::Link,
        _ => EntryKind::Other,
    }
}

/// Owner and rights, as the machine counts users.
fn owner(headers: &HeaderMap) -> Option<FileOwner> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    Some(FileOwner {
        uid: text("X-Incus-uid")?.parse().ok()?,
        gid: text("X-Incus-gid")?.parse().ok()?,
        mode: u32::from_str_radix(text("X-Incus-mode")?, 8).ok()?,
    })
}

/// Incus's message for a machine that runs.
#[derive(Debug, Deserialize)]
struct Running {
    pid: u32,
}

fn place(machine: &Object, path: &str) -> String {
    format!("{}&path={}", machine.path("/files"), encoded(path))
}

impl Incus {
    /// Returns the type of the entry at a path; `None` if there is none.
    pub(crate) async fn kind_of_file(
        &mut self,
        machine: &Object,
        path: &str,
    ) -> Result<Option<EntryKind>, IncusError> {
        let entry = self.look_at_file(machine, path).await?;
        Ok(entry.map(|entry| entry.kind))
    }

    /// Returns what is at a path; `None` if nothing is.
    pub(crate) async fn look_at_file(
        &mut self,
        machine: &Object,
        path: &str,
    ) -> Result<Option<FileEntry>, IncusError> {
        let place = place(machine, path);
        let call = ApiCall {
            method: Method::HEAD,
            path: &place,
            ..ApiCall::default()
        };
        match self.exchange(call).await {
            Ok(answer) => Ok(Some(FileEntry {
                kind: kind(&answer.headers),
                owner: owner(&answer.headers),
                is_socket: None,
            })),
            Err(IncusError::Refused { code: 404, .. }) => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// The content of a regular file, or where a link leads; `None`: nothing is there, or something else.
    pub(crate) async fn read_file(
        &mut self,
        machine: &Object,
        path: &str,
        kind: EntryKind,
        most: u64,
    ) -> Result<Option<Vec<u8>>, IncusError> {
        let mut content = Vec::new();
        let read = self.pour_file(machine, path, most, |bytes| {
            content.extend_from_slice(bytes);
        });
        Ok((read.await? == Some(kind)).then_some(content))
    }

    /// SHA-256 of a regular file, in hexadecimal; `None`: nothing is there, or something else.
    pub(crate) async fn digest_of_file(
        &mut self,
        machine: &Object,
        path: &str,
        most: u64,
    ) -> Result<Option<String>, IncusError> {
        let mut digest = Digester::default();
        let read = self.pour_file(machine, path, most, |bytes| digest.add(bytes));
        Ok((read.await? == Some(EntryKind::File)).then(|| digest.end()))
    }

    async fn pour_file(
        &mut self,
        machine: &Object,
        path: &str,
        most: u64,
        each: impl FnMut(&[u8]),
    ) -> Result<Option<EntryKind>, IncusError> {
        let place = place(machine, path);
        let call = ApiCall {
            path: &place,
            ..ApiCall::default()
        };
        match self.pour(call, most, each).await {
            Ok(headers) => Ok(Some(kind(&headers))),
            Err(IncusError::Refused { code: 404, .. }) => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// Process number, on the host, of a running machine's first process.
    pub(crate) async fn first_process(&mut self, machine: &Object) -> Result<u32, IncusError> {
        let state: Running = self.get(&machine.path("/state")).await?;
        Ok(state.pid)
    }

    /// Makes a folder; one that is there stays as it is.
    pub(crate) async fn make_folder(
        &mut self,
        machine: &Object,
        path: &str,
        owner: FileOwner,
    ) -> Result<(), IncusError> {
        self.put_file(machine, path, owner.headers("directory"), Bytes::new())
            .await
    }

    /// Writes a file, over one that is there. Not atomic: write beside, then rename inside the machine.
    pub(crate) async fn write_file(
        &mut self,
        machine: &Object,
        path: &str,
        owner: FileOwner,
        content: Bytes,
    ) -> Result<(), IncusError> {
        self.put_file(machine, path, owner.headers("file"), content)
            .await
    }

    /// Deletes a file, a socket or an empty folder; what is not there is deleted.
    pub(crate) async fn delete_file(
        &mut self,
        machine: &Object,
        path: &str,
    ) -> Result<(), IncusError> {
        let place = place(machine, path);
        let call = ApiCall {
            method: Method::DELETE,
            path: &place,
            ..ApiCall::default()
        };
        match self.exchange(call).await {
            Ok(_) | Err(IncusError::Refused { code: 404, .. }) => Ok(()),
            Err(why) => Err(why),
        }
    }

    async fn put_file(
        &mut self,
        machine: &Object,
        path: &str,
        headers: Vec<(&'static str, String)>,
        body: Bytes,
    ) -> Result<(), IncusError> {
        let place = place(machine, path);
        let call = ApiCall {
            method: Method::POST,
            path: &place,
            headers,
            body,
        };
        self.exchange(call).await.map(drop)
    }
}
