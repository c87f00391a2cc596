//! Asks the providers of signatures whether the key that signs may do more than that.

use std::time::Duration;

use serde_json::Value;

use super::instance;
use crate::edge::Edge;
use crate::incus::State;
use crate::incus::state::Instance;
use crate::infra::{DeclaredService, Infra};
use crate::machine_state::{PROGRAM, SIGNING_KEY};
use crate::name::ToolName;
use crate::session::{Session, each};
use crate::transport::RemoteExec;

/// Timeout for one key; gpg's agent may have to start.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum length of a fingerprint, in hexadecimal digits.
const FINGERPRINT_MAX: usize = 64;

/// Returns a note on each service of these edges that signs with a key which can also certify keys. What cannot be
/// learnt is left out: calls of such a service report the reason.
pub(crate) async fn notes(
    session: &Session,
    infra: &Infra,
    edges: &[&Edge],
    state: &State,
) -> Vec<String> {
    let machines = infra.machines().filter(|(domain, machine)| {
        let runs = instance(state, &domain.name, &machine.name).is_some_and(Instance::is_running);
        runs && edges
            .iter()
            .any(|edge| edge.provider.machine == machine.name)
    });
    let services = machines.flat_map(|(domain, machine)| {
        let signs = machine
            .services
            .iter()
            .filter(|service| service.tool == ToolName::GpgSign);
        signs.map(move |service| (domain.name.as_str(), machine.name.as_str(), service))
    });
    let services: Vec<(&str, &str, &DeclaredService)> = services.collect();
    let asked = each(&services, async |(project, machine, service)| {
        let key = certifies(session, project, machine, service).await?;
        Some(format!(
            "`{machine}/{}` signs with the key {key}, which can also certify keys; create a subkey that only signs, as \
             its user: `gpg --quick-add-key {key} ed25519 sign`",
            service.name
        ))
    });
    asked.await.into_iter().flatten().collect()
}

/// Returns the fingerprint of a service's key, if the part of it that signs can also certify.
async fn certifies(
    session: &Session,
    project: &str,
    machine: &str,
    service: &DeclaredService,
) -> Option<String> {
    let key = service.with.get("key_id").and_then(Value::as_str);
    let argv = [Some(PROGRAM), Some(SIGNING_KEY), key];
    let argv: Vec<&str> = argv.into_iter().flatten().collect();
    let remote = RemoteExec {
        project,
        machine,
        user: None,
        argv: &argv,
        input: b"",
        timeout: TIMEOUT,
    };
    let output = remote.run().await.ok()?;
    let key = session.reader.signing_key(&output.answer).await.ok()??;
    let is_fingerprint = |text: &&String| {
        text.len() <= FINGERPRINT_MAX && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let fingerprint = Some(key.fingerprint.raw()).filter(is_fingerprint)?;
    key.certifies.then(|| fingerprint.clone())
}
