//! `anklume machine-key`: which key of this machine signs, and whether it may do more. `anklume machine-ssh-key`: whether an
//! SSH key of this machine can be used.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::serve::{become_the_server_user, shared};
use crate::foreign::{SigningKey, SshKeyState};
use crate::name::ToolName;
use crate::policy::{Caller, Decision, Request, decide};
use crate::services::Services;
use crate::session::block_on;
use crate::text::Foreign;
use crate::tool::{self, Copies, ToolSession};

/// Returns the key that signs for the server's user; `None` if none can.
pub(in crate::command) fn signing_key(key: Option<&str>) -> anyhow::Result<Option<SigningKey>> {
    become_the_server_user()?;
    let session = ToolSession::new(Arc::new(shared::settings()?));
    let mut arguments = Map::new();
    arguments.insert("data".to_owned(), "".into());
    arguments.insert("public_key".to_owned(), true.into());
    arguments.extend(key.map(|key| ("key_id".to_owned(), Value::from(key))));
    let request = Request {
        caller: &Caller::Operator,
        name: ToolName::GpgSign.as_str(),
        arguments: &Arc::new(arguments),
        now: Timestamp::now(),
    };
    let Decision::Allowed(grant) = decide(&Services::none("localhost".parse()?), request) else {
        return Ok(None);
    };
    block_on(async {
        let found = tool::run(&grant, &session, Copies::One).await.ok();
        let found = found.map(|outcome| Value::Object(outcome.structured));
        Ok(found.and_then(|found| serde_json::from_value(found).ok()))
    })
}

/// How long an agent may take to list its keys; `doctor` waits a little longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns whether the server's user can sign with an SSH key; nothing is signed.
pub(in crate::command) fn ssh_key(key: &str) -> anyhow::Result<SshKeyState> {
    become_the_server_user()?;
    let settings = shared::settings()?;
    block_on(async {
        let fault = tool::ssh_key_fault(&settings, key, PATIENCE).await;
        Ok(SshKeyState {
            fault: fault.map(Foreign::from),
        })
    })
}
