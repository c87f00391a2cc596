//! Connects to the daemon's socket, sends requests and reads their answers, with a time limit for each step.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HeaderMap;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use rustix::fs::Access;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::{IncusError, IncusResult};

/// Maximum length of an answer, in bytes: enough for about 10,000 machines with all their properties.
pub(super) const ANSWER_MAX: usize = 64 * 1024 * 1024;
/// The daemon's folder in most packages, including Debian's.
const STATE: &str = "/var/lib/incus";
/// The socket's folder in newer packages.
const RUN: &str = "/run/incus";

/// Locates the daemon's socket by the `incus` program's rules: `INCUS_SOCKET`, then `INCUS_DIR`, then the usual
/// folders; within a folder, the `incus-user` socket if this user may not use the daemon's own.
pub(crate) fn socket_path(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    if let Some(socket) = set("INCUS_SOCKET") {
        return socket.into();
    }
    let folder = set("INCUS_DIR").map_or_else(usual_folder, PathBuf::from);
    let own = folder.join("unix.socket");
    let shared = folder.join("unix.socket.user");
    let writable = |path: &Path| rustix::fs::access(path, Access::WRITE_OK).is_ok();
    if !writable(&own) && writable(&shared) {
        return shared;
    }
    own
}

fn usual_folder() -> PathBuf {
    let run = Path::new(RUN);
    let exists = run.join("unix.socket").symlink_metadata().is_ok();
    if exists { run } else { Path::new(STATE) }.to_owned()
}

/// A connection to the daemon, reused for many requests.
#[derive(Debug)]
pub(crate) struct Incus {
    socket: PathBuf,
    /// Timeout for each step of a request.
    timeout: Duration,
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<hyper::Result<()>>,
    writes: Writes,
}

/// Number of write requests sent over all connections that share this counter.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writes(Arc<AtomicU64>);

impl Writes {
    /// Returns the number so far.
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A request.
#[derive(Debug)]
pub(super) struct ApiCall<'a> {
    method: Method,
    path: &'a str,
    /// Headers in addition to `Host`.
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
}

impl<'a> ApiCall<'a> {
    pub(super) fn new(method: Method, path: &'a str) -> Self {
        Self {
            method,
            path,
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }
}

/// An answer other than a refusal.
#[derive(Debug)]
pub(super) struct ApiAnswer {
    pub(super) headers: HeaderMap,
    body: Bytes,
}

/// The envelope around every API answer.
#[derive(Debug, Deserialize)]
struct ApiEnvelope<T> {
    /// The answer itself; `None` if an operation failed, regardless of the status.
    metadata: Option<T>,
    /// The failure, in Incus's words.
    #[serde(default)]
    error: String,
}

impl ApiAnswer {
    /// Parses the whole answer to a request for `path`.
    pub(super) fn parse<T: DeserializeOwned>(&self, path: &str) -> IncusResult<T> {
        serde_json::from_slice(&self.body).map_err(|why| IncusError::Answer {
            path: path.to_owned(),
            why: why.to_string().into(),
        })
    }

    /// Parses the content of `metadata`.
    pub(super) fn metadata<T: DeserializeOwned>(&self, path: &str) -> IncusResult<T> {
        let envelope: ApiEnvelope<T> = self.parse(path)?;
        match envelope.metadata {
            Some(metadata) => Ok(metadata),
            None if envelope.error.is_empty() => Err(IncusError::Answer {
                path: path.to_owned(),
                why: "missing field `metadata`".into(),
            }),
            None => Err(IncusError::Failed(envelope.error.into())),
        }
    }
}

impl Drop for Incus {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Incus {
    /// Connects to `socket`; `timeout` limits each step of the connection and of every request.
    pub(crate) async fn connect(socket: PathBuf, timeout: Duration) -> IncusResult<Self> {
        let stream = within(&socket, timeout, UnixStream::connect(&socket))
            .await?
            .map_err(|why| not_connected(&socket, why))?;
        let handshake = http1::handshake(TokioIo::new(stream));
        let (sender, connection) = within(&socket, timeout, handshake).await??;
        Ok(Self {
            socket,
            timeout,
            sender,
            driver: tokio::spawn(connection),
            writes: Writes::default(),
        })
    }

    /// Counts the connection's write requests in `writes`.
    pub(crate) fn counting(mut self, writes: Writes) -> Self {
        self.writes = writes;
        self
    }

    /// Reads the object at an API path.
    pub(crate) async fn get<T: DeserializeOwned>(&mut self, path: &str) -> IncusResult<T> {
        let call = ApiCall::new(Method::GET, path);
        self.exchange(call).await?.metadata(path)
    }

    /// Sends a request and reads its answer; a refusal is an error.
    pub(super) async fn exchange(&mut self, call: ApiCall<'_>) -> IncusResult<ApiAnswer> {
        let answer = self.send(call).await?;
        let headers = answer.headers().clone();
        let body = within(&self.socket, self.timeout, read(answer)).await??;
        Ok(ApiAnswer { headers, body })
    }

    /// Sends a request and passes the answer's body (at most `max` bytes) to `each` as it arrives; returns the headers.
    pub(super) async fn stream(
        &mut self,
        call: ApiCall<'_>,
        max: u64,
        mut each: impl FnMut(&[u8]),
    ) -> IncusResult<HeaderMap> {
        let (parts, mut body) = self.send(call).await?.into_parts();
        let mut left = max;
        while let Some(frame) = within(&self.socket, self.timeout, body.frame()).await? {
            let frame = frame?;
            let bytes = frame.data_ref().map_or([].as_slice(), |bytes| bytes);
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            left = left.checked_sub(length).ok_or(IncusError::TooLarge)?;
            each(bytes);
        }
        Ok(parts.headers)
    }

    /// Sends a request; returns its answer once the headers have arrived. A refusal is an error.
    async fn send(&mut self, call: ApiCall<'_>) -> IncusResult<Response<Incoming>> {
        if call.method != Method::GET && call.method != Method::HEAD {
            self.writes.0.fetch_add(1, Ordering::Relaxed);
        }
        let mut request = Request::builder()
            .method(call.method)
            .uri(call.path)
            .header("Host", "incus");
        for (name, value) in call.headers {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(call.body))
            .map_err(|why| IncusError::Connection(io::Error::other(why)))?;
        within(&self.socket, self.timeout, self.sender.ready()).await??;
        let sent = self.sender.send_request(request);
        let answer = within(&self.socket, self.timeout, sent).await??;
        let status = answer.status();
        if !status.is_success() {
            let body = within(&self.socket, self.timeout, read(answer)).await??;
            return Err(refusal(status, &body));
        }
        Ok(answer)
    }
}

/// Converts a "not found" refusal to `None`.
pub(super) fn unless_missing<T>(answer: IncusResult<T>) -> IncusResult<Option<T>> {
    match answer {
        Err(IncusError::Refused { code: 404, .. }) => Ok(None),
        answer => answer.map(Some),
    }
}

/// Percent-encodes a value for an API path or query.
pub(super) fn encoded(value: &str) -> PercentEncode<'_> {
    /// All characters except the unreserved ones of RFC 3986.
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    utf8_percent_encode(value, RESERVED)
}

async fn within<F: Future>(socket: &Path, timeout: Duration, step: F) -> IncusResult<F::Output> {
    tokio::time::timeout(timeout, step)
        .await
        .map_err(|_| IncusError::Silent(socket.to_owned(), timeout))
}

async fn read(answer: Response<Incoming>) -> IncusResult<Bytes> {
    let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
    body.map(http_body_util::Collected::to_bytes)
        .map_err(|why| match why.downcast::<hyper::Error>() {
            Ok(why) => (*why).into(),
            Err(why) if why.is::<LengthLimitError>() => IncusError::TooLarge,
            Err(why) => IncusError::Connection(io::Error::other(why)),
        })
}

fn not_connected(socket: &Path, why: io::Error) -> IncusError {
    match why.kind() {
        io::ErrorKind::NotFound => IncusError::NoSocket(socket.to_owned()),
        io::ErrorKind::PermissionDenied => IncusError::NoPermission(socket.to_owned()),
        io::ErrorKind::ConnectionRefused => IncusError::NotListening(socket.to_owned()),
        _ => IncusError::Connection(why),
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> IncusError {
    let message = serde_json::from_slice::<ApiEnvelope<IgnoredAny>>(body)
        .map(|refusal| refusal.error)
        .ok()
        .filter(|message| !message.is_empty())
        .or_else(|| status.canonical_reason().map(str::to_owned))
        .unwrap_or_default();
    IncusError::Refused {
        code: status.as_u16(),
        message: message.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_name_becomes_a_part_of_the_query() {
        assert_eq!(encoded("a-b_c.9~").to_string(), "a-b_c.9~");
        assert_eq!(
            encoded("a&b=c/../é?#").to_string(),
            "a%26b%3Dc%2F..%2F%C3%A9%3F%23"
        );
    }

    fn with(variables: &[(&str, &str)]) -> PathBuf {
        socket_path(|asked| {
            variables
                .iter()
                .find(|(name, _)| *name == asked)
                .map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_environment_decides_as_it_does_for_the_incus_program() {
        assert_eq!(
            with(&[("INCUS_SOCKET", "/a/b"), ("INCUS_DIR", "/c")]),
            Path::new("/a/b")
        );
        assert_eq!(
            with(&[("INCUS_SOCKET", ""), ("INCUS_DIR", "/c")]),
            Path::new("/c/unix.socket")
        );
    }

    #[test]
    fn the_socket_for_plain_users_is_taken_where_the_daemons_own_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let shared = folder.path().join("unix.socket.user");
        std::fs::write(&shared, "").unwrap();
        let set = folder.path().to_str().unwrap();
        assert_eq!(with(&[("INCUS_DIR", set)]), shared);
        std::fs::write(folder.path().join("unix.socket"), "").unwrap();
        assert_eq!(
            with(&[("INCUS_DIR", set)]),
            folder.path().join("unix.socket")
        );
    }
}
