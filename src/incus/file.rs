//! Accesses files and folders inside a machine, running or not, through the API.
//!
//! Handles one path at a time; the calling module decides which folders a path may lead through.

use hyper::Method;
use hyper::body::Bytes;
use hyper::header::HeaderMap;
use serde::{Deserialize, Serialize};

use super::connection::{ApiCall, encoded, unless_missing};
use super::object::Object;
use super::{Incus, IncusResult};
use crate::digest::Digester;

/// The type of an entry in a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum EntryKind {
    Folder,
    /// A regular file; Incus also reports a pipe or socket as one.
    File,
    /// A symbolic link.
    Link,
    Other,
}

/// An entry in a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    pub(crate) kind: EntryKind,
    /// Owner and permissions, without the bits above `0o777`; `None` if Incus does not report them.
    pub(crate) owner: Option<FileOwner>,
    /// True if it is a socket; `None` if Incus does not report this.
    pub(crate) is_socket: Option<bool>,
}

/// Owner and permissions of an entry in a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileOwner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Permission bits, such as `0o755`.
    pub(crate) mode: u32,
}

impl FileOwner {
    fn headers(self, kind: &str) -> Vec<(&'static str, String)> {
        vec![
            ("X-Incus-uid", self.uid.to_string()),
            ("X-Incus-gid", self.gid.to_string()),
            ("X-Incus-mode", format!("{:04o}", self.mode)),
            ("X-Incus-type", kind.to_owned()),
            // With any other type, Incus writes an empty file and reports success.
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

/// Returns the owner and permissions, with uid and gid as seen inside the machine.
fn owner(headers: &HeaderMap) -> Option<FileOwner> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    Some(FileOwner {
        uid: text("X-Incus-uid")?.parse().ok()?,
        gid: text("X-Incus-gid")?.parse().ok()?,
        mode: u32::from_str_radix(text("X-Incus-mode")?, 8).ok()?,
    })
}

fn url(machine: &Object, path: &str) -> String {
    format!("{}&path={}", machine.path("/files"), encoded(path))
}

impl Incus {
    /// Returns the type of the entry at a path, if it exists.
    pub(crate) async fn kind_of_file(
        &mut self,
        machine: &Object,
        path: &str,
    ) -> IncusResult<Option<EntryKind>> {
        let entry = self.look_at_file(machine, path).await?;
        Ok(entry.map(|entry| entry.kind))
    }

    /// Returns the entry at a path, if it exists.
    pub(crate) async fn look_at_file(
        &mut self,
        machine: &Object,
        path: &str,
    ) -> IncusResult<Option<FileEntry>> {
        let url = url(machine, path);
        let answer = self.exchange(ApiCall::new(Method::HEAD, &url)).await;
        Ok(unless_missing(answer)?.map(|answer| FileEntry {
            kind: kind(&answer.headers),
            owner: owner(&answer.headers),
            is_socket: None,
        }))
    }

    /// Reads a regular file or a link's target, of at most `max` bytes; `None` if it is missing or of another type.
    pub(crate) async fn read_file(
        &mut self,
        machine: &Object,
        path: &str,
        kind: EntryKind,
        max: u64,
    ) -> IncusResult<Option<Vec<u8>>> {
        let mut content = Vec::new();
        let read = self.stream_file(machine, path, max, |bytes| {
            content.extend_from_slice(bytes);
        });
        Ok((read.await? == Some(kind)).then_some(content))
    }

    /// Returns the SHA-256 of a regular file of at most `max` bytes, in hexadecimal; `None` if there is no such file.
    pub(crate) async fn digest_of_file(
        &mut self,
        machine: &Object,
        path: &str,
        max: u64,
    ) -> IncusResult<Option<String>> {
        let mut digest = Digester::default();
        let read = self.stream_file(machine, path, max, |bytes| digest.add(bytes));
        Ok((read.await? == Some(EntryKind::File)).then(|| digest.end()))
    }

    async fn stream_file(
        &mut self,
        machine: &Object,
        path: &str,
        max: u64,
        each: impl FnMut(&[u8]),
    ) -> IncusResult<Option<EntryKind>> {
        let url = url(machine, path);
        let call = ApiCall::new(Method::GET, &url);
        let headers = unless_missing(self.stream(call, max, each).await)?;
        Ok(headers.as_ref().map(kind))
    }

    /// Creates a folder; leaves an existing one unchanged.
    pub(crate) async fn make_folder(
        &mut self,
        machine: &Object,
        path: &str,
        owner: FileOwner,
    ) -> IncusResult<()> {
        let headers = owner.headers("directory");
        self.put_file(machine, path, headers, Bytes::new()).await
    }

    /// Writes or overwrites a file. Not atomic: callers write a new file beside it and rename that inside the machine.
    pub(crate) async fn write_file(
        &mut self,
        machine: &Object,
        path: &str,
        owner: FileOwner,
        content: Bytes,
    ) -> IncusResult<()> {
        let headers = owner.headers("file");
        self.put_file(machine, path, headers, content).await
    }

    /// Deletes a file, a socket or an empty folder, if it exists.
    pub(crate) async fn delete_file(&mut self, machine: &Object, path: &str) -> IncusResult<()> {
        let url = url(machine, path);
        let deleted = self.exchange(ApiCall::new(Method::DELETE, &url)).await;
        unless_missing(deleted).map(drop)
    }

    async fn put_file(
        &mut self,
        machine: &Object,
        path: &str,
        headers: Vec<(&'static str, String)>,
        body: Bytes,
    ) -> IncusResult<()> {
        let url = url(machine, path);
        let mut call = ApiCall::new(Method::POST, &url);
        call.headers = headers;
        call.body = body;
        self.exchange(call).await.map(drop)
    }
}
