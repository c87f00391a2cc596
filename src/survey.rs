//! Looks at everything before anything is judged or changed: Incus, the host, the machines, their channels and logs.
//!
//! Changes nothing but what is kept of the logs.

pub(crate) mod audit_checkpoint;
mod channels;
mod checkpoint_store;
pub(crate) mod consumer;
mod host;
pub(crate) mod images;
mod machines;
mod nested_mounts;
mod proxy_probe;
mod shares;

use crate::edge::Edge;
use crate::incus::State;
use crate::incus::state::Instance;
use crate::infra::Infra;
use crate::plan::Facts;
use crate::session::Session;

/// Reads what there is, on Incus, on the host and in the machines.
pub(crate) async fn survey(
    session: &Session,
    infra: &Infra,
    edges: &[Edge],
) -> anyhow::Result<(State, Facts)> {
    let state = session.state(&infra.project).await?;
    let mut facts = host::facts(infra, edges).await;
    let found = machines::look(session, infra, edges, &state).await;
    (facts.inside, facts.broken, facts.full) = (found.inside, found.broken, found.full);
    Ok((state, facts))
}

/// The machines on Incus that are providers of these edges, each once.
pub(crate) fn providers<'s>(edges: &[Edge], state: &'s State) -> Vec<&'s Instance> {
    let is_provider = |one: &&Instance| {
        let mut ends = edges.iter().map(|edge| &edge.provider);
        ends.any(|end| one.project == end.domain.as_str() && one.name == end.machine.as_str())
    };
    state.instances.iter().filter(is_provider).collect()
}
