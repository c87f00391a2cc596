//! The handshake of a client, kept so that it can be made again with a provider that came back.

use rmcp::model::RequestId;
use serde_json::{Map, Value, json};

use crate::mcp::framing::Line;
use crate::mcp::framing::json;

/// Maximum length of a message that is kept, in bytes; a client says little of itself.
const KEPT_MAX: usize = 64 * 1024;

/// The beginning of a client's conversation.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    /// The request that no provider has taken yet.
    asked: Option<HandshakeRequest>,
    /// The last that one took.
    made: Option<HandshakeRequest>,
    /// The notification after it, with its newline.
    notification: Vec<u8>,
}

#[derive(Debug)]
struct HandshakeRequest {
    id: RequestId,
    /// As the client wrote it, with its newline.
    line: Vec<u8>,
}

impl Handshake {
    /// Returns whether a provider has taken it.
    pub(super) const fn is_made(&self) -> bool {
        self.made.is_some()
    }

    /// The request, as the client wrote it.
    pub(super) fn request(&self) -> &[u8] {
        self.made.as_ref().map_or(&[], |made| &made.line)
    }

    /// The notification, as the client wrote it; empty before it came.
    pub(super) fn notification(&self) -> &[u8] {
        &self.notification
    }

    /// Notes a message of the client's.
    pub(super) fn sent(&mut self, line: &Line) {
        let Some((bytes, message)) = short(line) else {
            return;
        };
        let line = [bytes, &b"\n"[..]].concat();
        match message.get("method").and_then(Value::as_str) {
            Some("initialize") => {
                let id = message.get("id").and_then(json::as_id);
                self.asked = id.map(|id| HandshakeRequest { id, line });
            }
            Some("notifications/initialized") => self.notification = line,
            _ => {}
        }
    }

    /// Notes a message of the provider's. The answer that takes the handshake is changed: the list of tools may change, as it
    /// does when the provider comes back.
    pub(super) fn answered(&mut self, line: &Line) -> Option<Vec<u8>> {
        let asked = self.asked.as_ref()?;
        let (_, mut message) = short(line)?;
        if !takes(&message, &asked.id)? {
            self.asked = None;
            return None;
        }
        self.made = self.asked.take();
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

    /// Returns whether a provider that came back takes the handshake; `None`: this message is no answer to it.
    pub(super) fn is_taken(&self, line: &Line) -> Option<bool> {
        let (_, message) = short(line)?;
        takes(&message, &self.made.as_ref()?.id)
    }
}

/// Returns whether a message is the good answer to a request; `None`: it is none.
fn takes(message: &Map<String, Value>, id: &RequestId) -> Option<bool> {
    let answers = !message.contains_key("method")
        && message.get("id").and_then(json::as_id).as_ref() == Some(id);
    answers.then(|| message.contains_key("result"))
}

/// A message that is short enough to be looked at whole.
fn short(line: &Line) -> Option<(&[u8], Map<String, Value>)> {
    let Line::Whole(bytes) = line else {
        return None;
    };
    match json::read(json::trim(
        bytes.get(..).filter(|bytes| bytes.len() <= KEPT_MAX)?,
    )) {
        Ok(Value::Object(message)) => Some((bytes, message)),
        _ => None,
    }
}
