//! Files and folders inside a machine, running or not, over the API.
//!
//! Looks at one path at a time; whether a path may be gone through is for whoever asks to decide.

use hyper::Method;
use hyper::body::Bytes;

use super::connection::{Call, encoded};
use super::object::Object;
use super::{Incus, IncusError};

/// What is at a path in a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A folder.
    Folder,
    /// A regular file.
    File,
    /// A symbolic link, a socket, a device or what else there may be.
    Other,
}

/// Owner and rights of something new in a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    /// User.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Rights, such as `0o755`.
    pub(crate) mode: u32,
}

impl Owner {
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

fn place(machine: &Object, path: &str) -> String {
    format!("{}&path={}", machine.path("/files"), encoded(path))
}

impl Incus {
    /// What is at a path; `None`: nothing.
    pub(crate) async fn kind_of_file(
        &mut self,
        machine: &Object,
        path: &str,
    ) -> Result<Option<Kind>, IncusError> {
        let place = place(machine, path);
        let call = Call {
            method: Method::HEAD,
            path: &place,
            ..Call::default()
        };
        match self.exchange(call).await {
            Ok(answer) => {
                let kind = answer.headers.get("X-Incus-type");
                Ok(Some(match kind.map(hyper::header::HeaderValue::as_bytes) {
                    Some(b"directory") => Kind::Folder,
                    Some(b"file") => Kind::File,
                    _ => Kind::Other,
                }))
            }
            Err(IncusError::Refused { code: 404, .. }) => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// Makes a folder; one that is there stays as it is.
    pub(crate) async fn make_folder(
        &mut self,
        machine: &Object,
        path: &str,
        owner: Owner,
    ) -> Result<(), IncusError> {
        self.put_file(machine, path, owner.headers("directory"), Bytes::new())
            .await
    }

    /// Writes a file, over one that is there. Not atomic: write beside, then rename inside the machine.
    #[expect(dead_code, reason = "the program and its files go into machines by it")]
    pub(crate) async fn write_file(
        &mut self,
        machine: &Object,
        path: &str,
        owner: Owner,
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
        let call = Call {
            method: Method::DELETE,
            path: &place,
            ..Call::default()
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
        let call = Call {
            method: Method::POST,
            path: &place,
            headers,
            body,
        };
        self.exchange(call).await.map(drop)
    }
}
