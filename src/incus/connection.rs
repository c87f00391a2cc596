//! One connection to the daemon: a request, its answer, a time limit for each.

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
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::IncusError;
use super::model::{ApiEnvelope, ApiRefusal};

/// Maximum length of an answer that is read, in bytes: some 10,000 machines with everything that Incus says of them.
pub(super) const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// A connection to the daemon, kept for as many requests as are needed.
#[derive(Debug)]
pub(crate) struct Incus {
    socket: PathBuf,
    patience: Duration,
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<hyper::Result<()>>,
    writes: Writes,
}

/// Number of writing requests sent over all connections that share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writes(Arc<AtomicU64>);

impl Writes {
    /// The number so far.
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A request.
#[derive(Debug, Default)]
pub(super) struct ApiCall<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    /// Headers besides `Host`.
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
}

/// An answer that is no refusal.
#[derive(Debug)]
pub(super) struct ApiAnswer {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl ApiAnswer {
    /// The content of `metadata`.
    pub(super) fn metadata<T: DeserializeOwned>(&self, path: &str) -> Result<T, IncusError> {
        let envelope: ApiEnvelope<T> =
            serde_json::from_slice(&self.body).map_err(|why| IncusError::Answer {
                path: path.to_owned(),
                why: why.to_string().into(),
            })?;
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
    /// Connects to `socket`; each step may take `patience`.
    pub(crate) async fn connect(socket: PathBuf, patience: Duration) -> Result<Self, IncusError> {
        let stream = within(&socket, patience, UnixStream::connect(&socket))
            .await?
            .map_err(|why| not_connected(&socket, why))?;
        let handshake = http1::handshake(TokioIo::new(stream));
        let (sender, connection) = within(&socket, patience, handshake).await??;
        Ok(Self {
            socket,
            patience,
            sender,
            driver: tokio::spawn(connection),
            writes: Writes::default(),
        })
    }

    /// The same connection, counting its writing requests in `writes`.
    pub(crate) fn counting(mut self, writes: Writes) -> Self {
        self.writes = writes;
        self
    }

    /// Reads the object at `path` of the API.
    pub(crate) async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, IncusError> {
        let call = ApiCall {
            path,
            ..ApiCall::default()
        };
        self.exchange(call).await?.metadata(path)
    }

    /// Sends a request and reads its answer; a refusal is an error.
    pub(super) async fn exchange(&mut self, call: ApiCall<'_>) -> Result<ApiAnswer, IncusError> {
        let answer = self.send(call).await?;
        let status = answer.status();
        let headers = answer.headers().clone();
        let body = within(&self.socket, self.patience, read(answer)).await??;
        if !status.is_success() {
            return Err(refusal(status, &body));
        }
        Ok(ApiAnswer { headers, body })
    }

    /// Sends a request and hands its answer on as it comes, at most so many bytes; gives the answer's headers.
    pub(super) async fn pour(
        &mut self,
        call: ApiCall<'_>,
        most: u64,
        mut each: impl FnMut(&[u8]),
    ) -> Result<HeaderMap, IncusError> {
        let answer = self.send(call).await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        if !status.is_success() {
            let body = within(&self.socket, self.patience, read(answer)).await??;
            return Err(refusal(status, &body));
        }
        let mut body = answer.into_body();
        let mut left = most;
        while let Some(frame) = within(&self.socket, self.patience, body.frame()).await? {
            let frame = frame?;
            let bytes = frame.data_ref().map_or([].as_slice(), |bytes| bytes);
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            left = left.checked_sub(length).ok_or(IncusError::TooLarge)?;
            each(bytes);
        }
        Ok(headers)
    }

    /// Returns whether something is at `path` of the API.
    pub(crate) async fn has(&mut self, path: &str) -> Result<bool, IncusError> {
        let call = ApiCall {
            method: Method::HEAD,
            path,
            ..ApiCall::default()
        };
        let status = self.send(call).await?.status();
        if status.is_success() || status == StatusCode::NOT_FOUND {
            return Ok(status.is_success());
        }
        Err(refusal(status, &[]))
    }

    async fn send(&mut self, call: ApiCall<'_>) -> Result<Response<Incoming>, IncusError> {
        if call.method != Method::GET && call.method != Method::HEAD {
            self.writes.add();
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
        within(&self.socket, self.patience, self.sender.ready()).await??;
        let answer = within(
            &self.socket,
            self.patience,
            self.sender.send_request(request),
        )
        .await??;
        Ok(answer)
    }
}

/// A byte as two hexadecimal digits.
fn hex_digits(byte: u8) -> impl Iterator<Item = char> {
    [byte >> 4, byte & 0xf]
        .into_iter()
        .filter_map(|half| char::from_digit(half.into(), 16))
        .map(|digit| digit.to_ascii_uppercase())
}

/// A value as it may stand in a query or a path of the API.
pub(super) fn encoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push('%');
            text.extend(hex_digits(byte));
        }
    }
    text
}

async fn within<F: Future>(
    socket: &Path,
    patience: Duration,
    step: F,
) -> Result<F::Output, IncusError> {
    timeout(patience, step)
        .await
        .map_err(|_| IncusError::Silent(socket.to_owned(), patience))
}

async fn read(answer: Response<Incoming>) -> Result<Bytes, IncusError> {
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
    let message = serde_json::from_slice::<ApiRefusal>(body)
        .map(|refusal| refusal.error)
        .ok()
        .filter(|words| !words.is_empty())
        .or_else(|| status.canonical_reason().map(str::to_owned))
        .unwrap_or_default();
    IncusError::Refused {
        code: status.as_u16(),
        message: message.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::encoded;

    #[test]
    fn nothing_of_a_name_becomes_a_part_of_the_query() {
        assert_eq!(encoded("a-b_c.9~"), "a-b_c.9~");
        assert_eq!(encoded("a&b=c/../é?#"), "a%26b%3Dc%2F..%2F%C3%A9%3F%23");
    }
}
