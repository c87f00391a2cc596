//! Provides a test bench for tools, with its own portal and runtime folder, a caller, and one connection.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Copies, Settings, ToolError, ToolOutcome, ToolSession};
use crate::catalogue::describe;
use crate::name::ToolName;
use crate::policy::{Caller, Decision, Grant, Request, decide};

pub(super) struct Bench {
    root: Arc<tempfile::TempDir>,
    settings: Settings,
    caller: Caller,
    copies: Copies,
    session: ToolSession,
}

/// Returns whether root is running the test; if not, fails in CI, and reports a skip elsewhere.
#[track_caller]
pub(super) fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
        assert!(
            !ci,
            "this test needs root, and with CI=true no test may be skipped"
        );
        // Not `eprintln!`: the test runner hides its output for passing tests.
        let place = std::panic::Location::caller();
        let line = format!("skipped: {place} needs root\n");
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    }
    is_root
}

impl Bench {
    /// Creates the operator's connection to a server with an empty portal.
    pub(super) fn new() -> Self {
        let bench = Self::without_portal();
        fs::create_dir_all(bench.portal()).unwrap();
        bench
    }

    /// Creates the same connection before the portal exists.
    pub(super) fn without_portal() -> Self {
        let root = Arc::new(tempfile::tempdir().unwrap());
        fs::create_dir(root.path().join("outside")).unwrap();
        let portal = root.path().join("srv/portal");
        let settings = Settings::new(portal, root.path().join("run/anklume"));
        Self {
            root,
            session: ToolSession::new(Arc::new(settings.clone())),
            settings,
            caller: Caller::Operator,
            copies: Copies::Two,
        }
    }

    /// Opens another connection to the same server, for this consumer.
    pub(super) fn called_by(mut self, consumer: &str) -> Self {
        self.caller = Caller::Consumer(consumer.parse().unwrap());
        self.reconnect()
    }

    /// Opens another connection to the same server, for the operator.
    pub(super) fn called_by_operator(mut self) -> Self {
        self.caller = Caller::Operator;
        self.reconnect()
    }

    /// Changes each consumer's share of the portal, and opens another connection.
    pub(super) fn with_share(mut self, bytes: u64) -> Self {
        self.settings.incoming_max = bytes;
        self.reconnect()
    }

    /// Makes the client ask for a single copy of a large payload.
    pub(super) const fn with_one_copy(mut self) -> Self {
        self.copies = Copies::One;
        self
    }

    /// Opens another connection of the same caller, beside this one.
    pub(super) fn beside(&self) -> Self {
        Self {
            root: Arc::clone(&self.root),
            settings: self.settings.clone(),
            caller: self.caller.clone(),
            copies: self.copies,
            session: ToolSession::new(Arc::new(self.settings.clone())),
        }
    }

    /// Ends the connection and opens another.
    pub(super) fn reconnect(mut self) -> Self {
        self.session = ToolSession::new(Arc::new(self.settings.clone()));
        self
    }

    pub(super) fn portal(&self) -> &Path {
        &self.settings.portal
    }

    /// Returns a folder outside the portal.
    pub(super) fn outside(&self) -> PathBuf {
        self.root.path().join("outside")
    }

    pub(super) fn entries(&self) -> usize {
        fs::read_dir(self.portal()).map_or(0, Iterator::count)
    }

    fn grant(&self, tool: &str, arguments: Value) -> Grant {
        let Value::Object(arguments) = arguments else {
            panic!("arguments are an object");
        };
        let consumers: Vec<_> = match &self.caller {
            Caller::Operator => Vec::new(),
            Caller::Consumer(name) => vec![name],
        };
        let service = |tool: &ToolName| json!({"name": tool, "tool": tool, "consumers": consumers});
        let services: Vec<Value> = ToolName::ALL.iter().map(service).collect();
        let services = json!({"machine": "vault", "services": services});
        let services = serde_json::from_value(services).unwrap();
        let request = Request {
            caller: &self.caller,
            name: tool,
            arguments: &Arc::new(arguments),
            now: jiff::Timestamp::now(),
        };
        match decide(&services, request) {
            Decision::Allowed(grant) => grant,
            Decision::Denied(denial) => panic!("{denial:?}"),
        }
    }

    /// Calls a tool; returns an error as text.
    pub(super) fn call(&self, tool: &str, arguments: Value) -> Result<ToolOutcome, String> {
        let outcomes = self.call_all(vec![(tool, arguments)]);
        let [outcome] = <[_; 1]>::try_from(outcomes).unwrap();
        outcome
    }

    /// Calls all these tools simultaneously on one connection.
    pub(super) fn call_all(&self, calls: Vec<(&str, Value)>) -> Vec<Result<ToolOutcome, String>> {
        let grants: Vec<Grant> = calls
            .into_iter()
            .map(|(tool, arguments)| self.grant(tool, arguments))
            .collect();
        let calls = grants
            .iter()
            .map(|grant| super::run(grant, &self.session, self.copies));
        let text =
            |outcome: Result<ToolOutcome, ToolError>| outcome.map_err(|error| error.to_string());
        let outcomes = runtime().block_on(futures_util::future::join_all(calls));
        for (grant, outcome) in grants.iter().zip(&outcomes) {
            if let Ok(outcome) = outcome {
                fits(grant.tool().built_in().unwrap(), outcome);
            }
        }
        outcomes.into_iter().map(text).collect()
    }

    /// Begins a call, abandons it immediately, and waits for the threads that it started.
    pub(super) fn give_up(&self, tool: &str, arguments: Value) {
        let grant = self.grant(tool, arguments);
        // Dropping the runtime waits for its blocking threads.
        runtime().block_on(async {
            tokio::select! {
                biased;
                outcome = super::run(&grant, &self.session, self.copies) => panic!("ended at once: {outcome:?}"),
                () = std::future::ready(()) => {}
            }
        });
    }
}

/// Asserts that a structured result matches the tool's output schema.
fn fits(tool: ToolName, outcome: &ToolOutcome) {
    let schema = describe(tool).output;
    let properties = schema["properties"].as_object().unwrap();
    for (name, value) in &outcome.structured {
        let wanted = properties[name]["type"].as_str().unwrap();
        let found = match value {
            Value::String(_) => "string",
            Value::Bool(_) => "boolean",
            Value::Array(_) => "array",
            Value::Number(number) if number.is_u64() => "integer",
            other => panic!("{tool}: {name}: {other}"),
        };
        assert_eq!(found, wanted, "{tool}: {name}");
    }
    for required in schema["required"].as_array().unwrap() {
        assert!(
            outcome.structured.contains_key(required.as_str().unwrap()),
            "{tool}: {required}"
        );
    }
}

/// Creates a runtime like the server's, with one thread.
pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}
