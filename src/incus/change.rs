//! Writing to Incus: objects are made, edited and deleted, and each is waited for.

use std::time::{Duration, Instant};

use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::connection::{ApiAnswer, ApiCall};
use super::object::{Edit, Object};
use super::{Incus, IncusError};

/// Maximum time that one operation may take: an image may have to be fetched first.
const OPERATION_MAX: Duration = Duration::from_secs(900);
/// Time that Incus holds one request for the end of an operation, in seconds; shorter than any time-out.
const WAIT_SECONDS: u64 = 10;
/// Number of tries for an edit that somebody else's edit or a wordless failure of Incus gets in the way of.
const EDIT_TRIES: usize = 8;

/// Time to wait for a machine that is busy.
const BUSY_MAX: Duration = Duration::from_secs(30);
/// Interval for checking a busy machine.
const BUSY_LOOK: Duration = Duration::from_millis(250);
/// Incus's message for a machine that still starts or stops, without an operation to wait for.
const BUSY: &str = "is busy running a";

/// An answer that may have started an operation.
#[derive(Debug, Deserialize)]
struct BegunOperation {
    /// The operation's path; empty if all is done.
    #[serde(default)]
    operation: String,
}

/// An operation of Incus.
#[derive(Debug, Deserialize)]
struct Operation {
    #[serde(default)]
    status_code: u16,
    #[serde(default)]
    err: String,
}

/// Status of an operation that has ended well.
const SUCCEEDED: u16 = 200;

impl Incus {
    /// Makes an object; `body` is what the API takes, name included.
    ///
    /// One that an interrupted run had asked for may come to be meanwhile: with every key of `body`'s configuration it
    /// is the one that was wanted.
    pub(crate) async fn create(&mut self, object: &Object, body: &Value) -> Result<(), IncusError> {
        let made = self
            .write(Method::POST, &object.collection(), Some(body), None)
            .await;
        match made {
            Err(IncusError::Refused { .. } | IncusError::Failed(_))
                if self.is_there(object, body).await =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Returns whether an object is there and has every key of this configuration.
    async fn is_there(&mut self, object: &Object, body: &Value) -> bool {
        let there: Result<Value, IncusError> = self.get(&object.path("")).await;
        let wanted = body.get("config").and_then(Value::as_object);
        let (Ok(there), Some(wanted)) = (there, wanted) else {
            return false;
        };
        let config = there.get("config");
        let has = |(key, value)| config.and_then(|config| config.get(key)) == Some(value);
        !wanted.is_empty() && wanted.iter().all(has)
    }

    /// Edits an object as it is at this moment; tried again where somebody else edits it too, or Incus fails without a word, as it
    /// does now and then when many devices of a machine change at once.
    pub(crate) async fn edit(&mut self, object: &Object, edits: &[Edit]) -> Result<(), IncusError> {
        let mut tries = EDIT_TRIES;
        let mut pause = BUSY_LOOK;
        loop {
            tries -= 1;
            match self.edit_once(object, edits).await {
                Err(IncusError::Refused { code: 412, .. }) if tries > 0 => {}
                Err(why) if is_wordless(&why) && tries > 0 => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                other => return other,
            }
        }
    }

    async fn edit_once(&mut self, object: &Object, edits: &[Edit]) -> Result<(), IncusError> {
        let path = object.path("");
        let call = ApiCall {
            path: &path,
            ..ApiCall::default()
        };
        let answer = self.exchange(call).await?;
        let etag = answer
            .headers
            .get("ETag")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let mut there: Map<String, Value> = answer.metadata(&path)?;
        for edit in edits {
            edit.apply(&mut there);
        }
        let body = Value::Object(there);
        self.write(Method::PUT, &path, Some(&body), etag).await
    }

    /// Deletes an object; one that is not there is deleted.
    pub(crate) async fn delete(&mut self, object: &Object) -> Result<(), IncusError> {
        let path = object.path("");
        match self.write(Method::DELETE, &path, None, None).await {
            Err(IncusError::Refused { code: 404, .. }) => Ok(()),
            other => other,
        }
    }

    /// Writes; tried again while the machine is busy with what an earlier run or Incus itself began.
    pub(super) async fn write(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        etag: Option<String>,
    ) -> Result<(), IncusError> {
        let began = Instant::now();
        loop {
            let done = self.write_once(&method, path, body, etag.clone()).await;
            match done {
                Err(why) if is_busy(&why) && began.elapsed() < BUSY_MAX => {
                    tokio::time::sleep(BUSY_LOOK).await;
                }
                other => return other,
            }
        }
    }

    async fn write_once(
        &mut self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        etag: Option<String>,
    ) -> Result<(), IncusError> {
        let mut call = ApiCall {
            method: method.clone(),
            path,
            ..ApiCall::default()
        };
        if let Some(body) = body {
            call.body = Bytes::from(body.to_string());
            call.headers
                .push(("Content-Type", "application/json".to_owned()));
        }
        if let Some(etag) = etag {
            call.headers.push(("If-Match", etag));
        }
        let answer = self.exchange(call).await?;
        self.ended(path, &answer).await
    }

    /// Waits for the operation that an answer began, if it did.
    pub(super) async fn ended(&mut self, path: &str, answer: &ApiAnswer) -> Result<(), IncusError> {
        let begun: BegunOperation =
            serde_json::from_slice(&answer.body).map_err(|why| IncusError::Answer {
                path: path.to_owned(),
                why: why.to_string().into(),
            })?;
        if begun.operation.is_empty() {
            return Ok(());
        }
        self.operation(&begun.operation, OPERATION_MAX).await
    }

    /// Waits for the end of an operation.
    pub(super) async fn operation(
        &mut self,
        operation: &str,
        longest: Duration,
    ) -> Result<(), IncusError> {
        let (place, query) = operation.split_once('?').unwrap_or((operation, ""));
        let wait = format!("{place}/wait?timeout={WAIT_SECONDS}&{query}");
        let began = Instant::now();
        loop {
            let now: Operation = self.get(wait.trim_end_matches('&')).await?;
            match now.status_code {
                SUCCEEDED => return Ok(()),
                code if code > SUCCEEDED => return Err(IncusError::Failed(now.err.into())),
                _ if began.elapsed() > longest => return Err(IncusError::Slow(longest)),
                _ => {}
            }
        }
    }
}

fn is_busy(why: &IncusError) -> bool {
    match why {
        IncusError::Refused { message, .. } | IncusError::Failed(message) => {
            message.raw().contains(BUSY)
        }
        _ => false,
    }
}

/// Returns whether Incus failed and did not say why: its answer is the name of the status alone.
fn is_wordless(why: &IncusError) -> bool {
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
        assert!(is_wordless(&refused(500, "Internal Server Error")));
        assert!(!is_wordless(&refused(500, "Device does not exist")));
        assert!(!is_wordless(&refused(403, "Internal Server Error")));
    }
}
