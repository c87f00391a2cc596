//! Judges what works now but will stop working: what starts a server, and the logs. Pure.

use super::diagnose::{Broken, Cause, Examiner};
use crate::edge::Edge;
use crate::host::proxy_logs::{LIMIT, path};
use crate::incus::state::InstanceId;
use crate::machine_state::DriftKind;
use crate::survey::audit_checkpoint::LogState;

impl Examiner<'_> {
    /// Finds what works now but will stop working.
    pub(crate) fn upkeep(&self, edge: &Edge) -> Option<Broken> {
        self.inside(&edge.provider, &[DriftKind::Supervision])
            .or_else(|| self.log(edge))
            .or_else(|| self.calls(edge))
    }

    fn calls(&self, edge: &Edge) -> Option<Broken> {
        let provider = &edge.provider;
        let id = InstanceId::new(provider.domain.as_str(), provider.machine.as_str());
        match self.calls.get(&id)? {
            LogState::Sound | LogState::Lost(_) | LogState::Unknown(_) => None,
            LogState::Altered { detail, accept } => Some(Broken {
                what: Cause::Audit,
                detail: format!(
                    "{detail}; once you know why, the command below accepts it as it is"
                ),
                mend: accept.clone(),
            }),
        }
    }

    fn log(&self, edge: &Edge) -> Option<Broken> {
        let paths = [&edge.provider, &edge.consumer].map(|end| path(edge, end));
        let mut logs = self.facts.logs.iter();
        let log = logs.find(|log| paths.contains(&log.path))?;
        let mib = |bytes: u64| bytes / (1024 * 1024);
        let detail = format!(
            "`{}` takes {} MiB of the host's disk; from {} MiB on it should be rotated",
            log.path.escape_debug(),
            mib(log.bytes),
            mib(LIMIT)
        );
        Some(self.by_apply(Cause::Log, detail))
    }
}
