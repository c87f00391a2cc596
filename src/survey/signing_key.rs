//! Asks the providers of signatures whether the key that signs can be used, and whether it may do more than that.

use std::time::Duration;

use serde_json::Value;

use super::running_providers;
use crate::edge::Edge;
use crate::incus::State;
use crate::infra::{DeclaredService, Infra};
use crate::machine_state::{PROGRAM, SIGNING_KEY, SSH_KEY};
use crate::name::ToolName;
use crate::session::{Session, each};
use crate::transport::RemoteExec;

/// Timeout for one key; gpg's agent may have to start.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum length of a fingerprint, in hexadecimal digits.
const FINGERPRINT_MAX: usize = 64;

/// Maximum length of a provider's reason in a note, in characters.
const REASON_SHOWN: usize = 300;

/// Returns a note on each service of these edges that signs with a key which can also certify keys, or with an SSH key
/// that is not there. What cannot be learnt is left out: calls of such a service report the reason.
pub(crate) async fn notes(
    session: &Session,
    infra: &Infra,
    edges: &[&Edge],
    state: &State,
) -> Vec<String> {
    let providers = running_providers(infra, edges, state).into_iter();
    let services = providers.flat_map(|(project, machine)| {
        let signs = machine.services.iter().filter(|service| {
            service.tool.is(ToolName::GpgSign) || service.tool.is(ToolName::SshSign)
        });
        signs.map(move |service| (project, machine.name.as_str(), service))
    });
    let services: Vec<(&str, &str, &DeclaredService)> = services.collect();
    let asked = each(&services, async |(project, machine, service)| {
        if service.tool.is(ToolName::SshSign) {
            let fault = ssh_fault(session, project, machine, service).await?;
            let name = &service.name;
            return Some(format!("`{machine}/{name}` cannot sign: {fault}"));
        }
        let key = certifies(session, project, machine, service).await?;
        Some(format!(
            "`{machine}/{}` signs with the key {key}, which can also certify keys; create a subkey that only signs, as \
             its user: `gpg --quick-add-key {key} ed25519 sign`",
            service.name
        ))
    });
    asked.await.into_iter().flatten().collect()
}

/// Returns the reason why a service cannot use its SSH key, escaped.
async fn ssh_fault(
    session: &Session,
    project: &str,
    machine: &str,
    service: &DeclaredService,
) -> Option<String> {
    let key = service.with.get("key").and_then(Value::as_str)?;
    let answer = ask(project, machine, &[PROGRAM, SSH_KEY, key]).await?;
    let state = session.reader.ssh_key(&answer).await.ok()??;
    Some(state.fault?.shown(REASON_SHOWN))
}

/// Runs a hidden subcommand in a machine; returns its answer.
async fn ask(project: &str, machine: &str, argv: &[&str]) -> Option<Vec<u8>> {
    let remote = RemoteExec {
        project,
        machine,
        user: None,
        argv,
        input: b"",
        timeout: TIMEOUT,
    };
    Some(remote.run().await.ok()?.answer)
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
    let answer = ask(project, machine, &argv).await?;
    let key = session.reader.signing_key(&answer).await.ok()??;
    let is_fingerprint = |text: &&String| {
        text.len() <= FINGERPRINT_MAX && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let fingerprint = Some(key.fingerprint.raw()).filter(is_fingerprint)?;
    key.certifies.then(|| fingerprint.clone())
}
