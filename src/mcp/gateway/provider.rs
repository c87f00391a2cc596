//! A connection to a provider, for one request of a client.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rmcp::model::{ErrorData, Tool};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};

use super::files::{FileCall, FileFolder, NewFile};
use super::{Gateway, LIST_MAX, Providers};
use crate::dir::write_in_parts;
use crate::mcp::client::pieces::{
    ArgumentPayload, Fetched, Fetching, PayloadSource, Pieces, PiecesError,
};
use crate::mcp::client::{Called, Client, ClientError, ProgressSink, UpstreamAnswer};
use crate::mcp::server::call::{AnswerResult, failed, of_provider};
use crate::mcp::{LINE_MAX, OVERLOADED, RESULT_MAX, shown};
use crate::transport::TransportEnd;

/// Maximum time for which a call waits for a provider that has too many of them.
const OVERLOADED_MAX: Duration = Duration::from_secs(30);
/// Minimum pause before a call is repeated.
const RETRY_MIN: Duration = Duration::from_millis(50);

/// An open connection.
pub(super) struct Provider {
    name: String,
    client: Client<Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>>,
    end: TransportEnd,
    files: Option<Arc<FileFolder>>,
    progress: Option<ProgressSink>,
}

/// The reason why a call has no result.
enum CallFault {
    /// The provider's protocol error.
    Refused(ErrorData),
    /// What the client can mend, or at least read.
    Told(String),
}

impl From<ClientError> for CallFault {
    fn from(fault: ClientError) -> Self {
        match fault {
            ClientError::Refused { refusal, .. } => Self::Refused(refusal.raw().clone()),
            other => Self::Told(format!("{other}; the call may have been carried out")),
        }
    }
}

impl From<PiecesError> for CallFault {
    fn from(fault: PiecesError) -> Self {
        match fault {
            PiecesError::Client(fault) => fault.into(),
            other => Self::Told(other.to_string()),
        }
    }
}

impl From<String> for CallFault {
    fn from(text: String) -> Self {
        Self::Told(text)
    }
}

impl Provider {
    pub(super) async fn connect(gateway: &Gateway, name: &str) -> Result<Self, String> {
        // A name is a path's component: whoever opens the connection checks it.
        if let Providers::All(names) = &gateway.providers
            && !names()?.iter().any(|one| one == name)
        {
            return Err("this machine has no provider of that name".to_owned());
        }
        let opened = (gateway.open)(name.to_owned()).await?;
        let (timeouts, end) = (gateway.timeouts, opened.end);
        match Client::start(opened.reader, opened.writer, timeouts, LINE_MAX).await {
            Ok(client) => Ok(Self {
                name: name.to_owned(),
                client,
                end,
                files: gateway.files.clone(),
                progress: None,
            }),
            Err(why) => {
                end.calm().await;
                Err(why.to_string())
            }
        }
    }

    /// Ends the connection, and whatever was started for it.
    pub(super) async fn end(self) {
        drop(self.client);
        self.end.calm().await;
    }

    /// Passes on the progress of calls.
    pub(super) fn report_progress(&mut self, progress: Option<ProgressSink>) {
        self.progress = progress;
    }

    /// Lists the provider's tools, with every member of their definitions.
    pub(super) async fn list(&mut self) -> Result<Vec<Value>, ClientError> {
        let mut listing = self.client.listing().await?.raw().clone();
        match listing.get_mut("tools").map(Value::take) {
            Some(Value::Array(tools)) => Ok(tools),
            _ => Ok(Vec::new()),
        }
    }

    /// Calls a service; the client's own mistakes and a lost connection are results that its model can read.
    pub(super) async fn call(
        &mut self,
        service: &str,
        arguments: Map<String, Value>,
    ) -> Result<AnswerResult, ErrorData> {
        match self.try_call(service, arguments).await {
            Ok(result) => Ok(result),
            Err(CallFault::Refused(error)) => Err(error),
            Err(CallFault::Told(text)) => {
                let text = format!("`{}`: {text}", shown(&self.name));
                Ok(failed(text).into())
            }
        }
    }

    async fn try_call(
        &mut self,
        service: &str,
        mut arguments: Map<String, Value>,
    ) -> Result<AnswerResult, CallFault> {
        let Some(files) = self.files.clone() else {
            return self.plain_call(service, arguments).await;
        };
        let tools = timeout(LIST_MAX, self.client.tools()).await;
        let tools = tools.map_err(|_| "it does not list its tools in time".to_owned())??;
        let tools: Vec<&Tool> = tools.iter().map(crate::text::Foreign::raw).collect();
        let Some(tool) = tools.into_iter().find(|tool| tool.name == service) else {
            return self.plain_call(service, arguments).await;
        };
        match files.take(&self.name, tool, &mut arguments)? {
            FileCall::Plain => self.plain_call(service, arguments).await,
            FileCall::SendWhole { argument, bytes } => {
                arguments.insert(argument, STANDARD.encode(bytes).into());
                self.plain_call(service, arguments).await
            }
            FileCall::SendPieces { pieces, file } => {
                self.send(service, &arguments, pieces, PayloadSource::of_file(file))
                    .await
            }
            FileCall::Receive(file) => self.receive(service, &arguments, file).await,
        }
    }

    async fn plain_call(
        &mut self,
        service: &str,
        arguments: Map<String, Value>,
    ) -> Result<AnswerResult, CallFault> {
        self.client.pass_on_progress(self.progress.clone());
        let since = Instant::now();
        loop {
            let called = self.client.call_unread(service, arguments.clone()).await;
            match called {
                Ok(result) => return passed_on(result),
                Err(fault) => match retry_after(&fault) {
                    // It did not run. Over one connection, calls of the same service would wait for each other.
                    Some(pause) if since.elapsed() + pause < OVERLOADED_MAX => sleep(pause).await,
                    _ => return Err(fault.into()),
                },
            }
        }
    }

    async fn send(
        &mut self,
        service: &str,
        arguments: &Map<String, Value>,
        pieces: Pieces,
        source: PayloadSource,
    ) -> Result<AnswerResult, CallFault> {
        let Pieces::Up {
            argument,
            size,
            digest,
        } = pieces
        else {
            return Err(CallFault::Told("this tool takes no pieces".to_owned()));
        };
        let payload = ArgumentPayload {
            name: argument,
            size,
            digest,
            resume: false,
            source,
        };
        let mut moved = moved(self.progress.clone());
        let called = self
            .client
            .send_pieces(service, arguments, payload, &mut moved)
            .await?;
        value(&called)
    }

    async fn receive(
        &mut self,
        service: &str,
        arguments: &Map<String, Value>,
        mut file: NewFile,
    ) -> Result<AnswerResult, CallFault> {
        let mut moved = moved(self.progress.clone());
        let mut fetching = Fetching::default();
        let new = |_| file.file().try_clone();
        let fetched = self
            .client
            .fetch(service, arguments, &mut fetching, new, &mut moved)
            .await?;
        let result = match fetched {
            Fetched::Pieces(result, _) => result,
            Fetched::Whole(called) if called.has_failed() => return value(&called),
            Fetched::Whole(called) => {
                let mut bytes = Vec::new();
                let result = called.result;
                for block in result
                    .raw()
                    .content
                    .iter()
                    .filter_map(|block| block.as_text())
                {
                    let decoded = STANDARD.decode_vec(&block.text, &mut bytes);
                    decoded.map_err(|why| format!("the content is not base64: {why}"))?;
                }
                write_in_parts(file.file(), &bytes).map_err(|why| file.not_written(&why))?;
                result
            }
        };
        let (path, size) = file.keep()?;
        let mut structured = match &result.raw().structured_content {
            Some(Value::Object(structured)) => structured.clone(),
            _ => Map::new(),
        };
        structured.shift_remove("data");
        structured.insert("saved_as".to_owned(), path.clone().into());
        let result = json!({
            "content": [{"type": "text", "text": format!("saved {size} bytes as `{path}`")}],
            "structuredContent": structured,
        });
        Ok(AnswerResult::Upstream(result, 0))
    }
}

/// Returns the time after which a call may be repeated that the provider was too busy to run.
fn retry_after(fault: &ClientError) -> Option<Duration> {
    let ClientError::Refused { refusal, .. } = fault else {
        return None;
    };
    let refusal = refusal.raw();
    let seconds = refusal.data.as_ref()?.get("retryAfterSeconds")?.as_f64()?;
    let pause = Duration::try_from_secs_f64(seconds).ok()?;
    (refusal.code.0 == OVERLOADED).then(|| pause.max(RETRY_MIN))
}

/// Returns a result that is passed on, without what would ask the client's user something.
fn passed_on(result: Box<RawValue>) -> Result<AnswerResult, CallFault> {
    let bytes = result.get().len();
    if bytes > RESULT_MAX {
        let (size, max) = (bytes.div_ceil(1024 * 1024), RESULT_MAX / 1024 / 1024);
        let text = format!("the result has {size} MiB; at most {max} MiB are passed on");
        return Err(CallFault::Told(text));
    }
    of_provider(&UpstreamAnswer::Result(result)).map_err(CallFault::Refused)
}

fn value(called: &Called) -> Result<AnswerResult, CallFault> {
    let value = called.value().map_err(|why| why.to_string())?;
    Ok(AnswerResult::Upstream(value.raw().clone(), 0))
}

/// Reports the progress of a transfer, in bytes.
fn moved(progress: Option<ProgressSink>) -> impl FnMut(u64, Option<u64>) {
    move |done, total| {
        let Some(progress) = &progress else { return };
        // The token of the client's own request replaces this one.
        let params = match total {
            Some(total) => json!({"progressToken": 0, "progress": done, "total": total}),
            None => json!({"progressToken": 0, "progress": done}),
        };
        if let Ok(params) = serde_json::value::to_raw_value(&params) {
            // A client that is slow misses some.
            let _ = progress.try_send(params);
        }
    }
}
