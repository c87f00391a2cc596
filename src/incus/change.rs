//! Writes to Incus: creates, edits and deletes objects, and waits for each operation.

use std::time::{Duration, Instant};

use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::connection::{ApiCall, unless_missing};
use super::object::{Edit, Object};
use super::{Incus, IncusError, IncusResult};

/// Maximum time for one operation, which may have to fetch an image first.
const OPERATION_MAX: Duration = Duration::from_secs(900);
/// Time that one request waits for an operation to finish, in seconds; shorter than any timeout.
const WAIT_SECONDS: u64 = 10;
/// Maximum number of retries of an edit after concurrent edits; each retry means that one of those succeeded.
const RACES_MAX: usize = 100;
/// Maximum number of retries of an edit that Incus refused without a message.
const FAILURES_MAX: usize = 6;
/// Maximum time to wait for a busy machine.
const BUSY_MAX: Duration = Duration::from_secs(30);
/// Interval for checking a busy machine.
const BUSY_INTERVAL: Duration = Duration::from_millis(250);
/// Part of Incus's message about a machine that is still starting or stopping, without an operation to wait for.
const BUSY: &str = "is busy running a";
/// Status of an operation that has succeeded.
const SUCCEEDED: u16 = 200;

/// An answer that may have started an operation.
#[derive(Debug, Deserialize)]
struct BegunOperation {
    /// The operation's path; empty if none was started.
    #[serde(default)]
    operation: String,
}

/// An Incus operation.
#[derive(Debug, Deserialize)]
struct Operation {
    #[serde(default)]
    status_code: u16,
    #[serde(default)]
    err: String,
}

impl Incus {
    /// Creates an object; `body` is the request body, including the name.
    ///
    /// An interrupted run may already have requested the object, so an existing one is accepted if it has every key
    /// of `body`'s configuration.
    pub(crate) async fn create(&mut self, object: &Object, body: &Value) -> IncusResult<()> {
        let url = object.collection();
        let created = self.write(Method::POST, &url, Some(body), None).await;
        match created {
            Err(IncusError::Refused { .. } | IncusError::Failed(_))
                if self.exists(object, body).await =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Returns whether an object exists and has every key of this configuration.
    async fn exists(&mut self, object: &Object, body: &Value) -> bool {
        let current: IncusResult<Value> = self.get(&object.path("")).await;
        let wanted = body.get("config").and_then(Value::as_object);
        let (Ok(current), Some(wanted)) = (current, wanted) else {
            return false;
        };
        let config = current.get("config");
        let has = |(key, value)| config.and_then(|config| config.get(key)) == Some(value);
        !wanted.is_empty() && wanted.iter().all(has)
    }

    /// Edits an object in its current state; retries after a concurrent edit or if Incus fails without a message,
    /// which happens occasionally when many devices of a machine change at the same time.
    pub(crate) async fn edit(&mut self, object: &Object, edits: &[Edit]) -> IncusResult<()> {
        // Counted separately: concurrent edits of one machine lose many races, and then Incus may still fail.
        let (mut races, mut failures) = (0, 0);
        let mut pause = BUSY_INTERVAL;
        loop {
            match self.edit_once(object, edits).await {
                Err(IncusError::Refused { code: 412, .. }) if races < RACES_MAX => races += 1,
                Err(why) if is_without_message(&why) && failures < FAILURES_MAX => {
                    failures += 1;
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                other => return other,
            }
        }
    }

    async fn edit_once(&mut self, object: &Object, edits: &[Edit]) -> IncusResult<()> {
        let path = object.path("");
        let answer = self.exchange(ApiCall::new(Method::GET, &path)).await?;
        let etag = answer.headers.get("ETag");
        let etag = etag.and_then(|value| value.to_str().ok());
        let mut current: Map<String, Value> = answer.metadata(&path)?;
        for edit in edits {
            edit.apply(&mut current);
        }
        let body = Value::Object(current);
        self.write(Method::PUT, &path, Some(&body), etag).await
    }

    /// Deletes an object, if it exists.
    pub(crate) async fn delete(&mut self, object: &Object) -> IncusResult<()> {
        let path = object.path("");
        let deleted = self.write(Method::DELETE, &path, None, None).await;
        unless_missing(deleted).map(Option::unwrap_or_default)
    }

    /// Sends a write request; retries while the machine is busy with an operation that an earlier run or Incus started.
    pub(super) async fn write(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        etag: Option<&str>,
    ) -> IncusResult<()> {
        let began = Instant::now();
        loop {
            match self.write_once(method.clone(), path, body, etag).await {
                Err(why) if why.says(BUSY) && began.elapsed() < BUSY_MAX => {
                    tokio::time::sleep(BUSY_INTERVAL).await;
                }
                other => return other,
            }
        }
    }

    async fn write_once(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        etag: Option<&str>,
    ) -> IncusResult<()> {
        let mut call = ApiCall::new(method, path);
        if let Some(body) = body {
            call.body = Bytes::from(body.to_string());
            call.headers
                .push(("Content-Type", "application/json".to_owned()));
        }
        let etag = etag.map(|etag| ("If-Match", etag.to_owned()));
        call.headers.extend(etag);
        let answer = self.exchange(call).await?;
        let begun: BegunOperation = answer.parse(path)?;
        if begun.operation.is_empty() {
            return Ok(());
        }
        self.wait_for(&begun.operation, OPERATION_MAX).await
    }

    /// Waits for an operation to finish.
    pub(super) async fn wait_for(&mut self, operation: &str, timeout: Duration) -> IncusResult<()> {
        let (path, query) = operation.split_once('?').unwrap_or((operation, ""));
        let wait = format!("{path}/wait?timeout={WAIT_SECONDS}&{query}");
        let began = Instant::now();
        loop {
            let now: Operation = self.get(wait.trim_end_matches('&')).await?;
            match now.status_code {
                SUCCEEDED => return Ok(()),
                code if code > SUCCEEDED => return Err(IncusError::Failed(now.err.into())),
                _ if began.elapsed() > timeout => return Err(IncusError::Slow(timeout)),
                _ => {}
            }
        }
    }
}

/// Returns whether Incus failed without giving a reason: its answer is just the name of the HTTP status.
fn is_without_message(why: &IncusError) -> bool {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    matches!(why, IncusError::Refused { code, message }
        if *code == status.as_u16() && Some(message.raw().as_str()) == status.canonical_reason())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failure_without_a_word_is_tried_again() {
        let refused = |code, message: &str| IncusError::Refused {
            code,
            message: message.to_owned().into(),
        };
        assert!(is_without_message(&refused(500, "Internal Server Error")));
        assert!(!is_without_message(&refused(500, "Device does not exist")));
        assert!(!is_without_message(&refused(403, "Internal Server Error")));
    }
}
