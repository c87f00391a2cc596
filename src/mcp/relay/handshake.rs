//! The handshake of a client, kept so that it can be made again with a provider that came back.

use rmcp::model::RequestId;
use serde_json::{Map, Value, json};

use crate::mcp::wire::Line;
use crate::mcp::wire::json;

/// Longest message that is kept, in bytes; a client says little of itself.
const KEPT_MAX: usize = 64 * 1024;

/// What a client said to begin, and whether it was answered.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    /// The request, with its newline.
    request: Vec<u8>,
    id: Option<RequestId>,
    /// The notification after it, with its newline.
    notification: Vec<u8>,
    answered: bool,
}

impl Handshake {
    /// Whether a provider has answered it.
    pub(super) const fn is_made(&self) -> bool {
        self.answered
    }

    /// The request, as the client wrote it.
    pub(super) fn request(&self) -> &[u8] {
        &self.request
    }

    /// The notification, as the client wrote it; empty before it came.
    pub(super) fn notification(&self) -> &[u8] {
        &self.notification
    }

    /// Notes a message of the client's.
    pub(super) fn sent(&mut self, line: &Line) {
        let Line::Whole(bytes) = line else { return };
        if bytes.len() > KEPT_MAX {
            return;
        }
        let Some(message) = object(bytes) else { return };
        match message.get("method").and_then(Value::as_str) {
            Some("initialize") => {
                self.id = message.get("id").and_then(json::as_id);
                self.request = [bytes, &b"\n"[..]].concat();
                self.answered = false;
            }
            Some("notifications/initialized") => {
                self.notification = [bytes, &b"\n"[..]].concat();
            }
            _ => {}
        }
    }

    /// Notes a message of the provider's. The answer to the handshake is changed: the list of tools may change, as it does when the
    /// provider comes back.
    pub(super) fn answered(&mut self, line: &Line) -> Option<Vec<u8>> {
        if self.answered || !self.is_answer(line) {
            return None;
        }
        self.answered = true;
        let Line::Whole(bytes) = line else {
            return None;
        };
        let mut message = object(bytes)?;
        let result = message.get_mut("result")?.as_object_mut()?;
        let tools = result
            .get_mut("capabilities")?
            .as_object_mut()?
            .get_mut("tools")?;
        tools
            .as_object_mut()?
            .insert("listChanged".to_owned(), json!(true));
        let mut changed = serde_json::to_vec(&message).ok()?;
        changed.push(b'\n');
        Some(changed)
    }

    /// Whether a message is a provider's answer to it.
    pub(super) fn is_answer(&self, line: &Line) -> bool {
        let Line::Whole(bytes) = line else {
            return false;
        };
        // Only that one is read whole.
        let (Some(id), true) = (&self.id, bytes.len() <= KEPT_MAX) else {
            return false;
        };
        object(bytes).is_some_and(|message| {
            message.get("id").and_then(json::as_id).as_ref() == Some(id)
                && message.contains_key("result")
        })
    }
}

fn object(bytes: &[u8]) -> Option<Map<String, Value>> {
    match json::read(json::trim(bytes)) {
        Ok(Value::Object(message)) => Some(message),
        _ => None,
    }
}
