//! Derives who may call what from now on, and who may no longer: the first lines of a plan, before the devices.
//!
//! The services files found in the machines show who may call what now. A machine writes its own file, so only names of
//! machines that the file or a channel knows count, and long lists are cut.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::edges::{self, DevicePair};
use super::{Action, PlanInputs};
use crate::edge::Edge;
use crate::incus::state::{Instance, InstanceId};
use crate::incus::{Object, State};
use crate::name::{MachineName, ServiceName};
use crate::services::{ServiceOutline, Services};

/// Maximum number of changes shown for one provider.
const SHOWN_MAX: usize = 200;

/// A change of who may call what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PermissionChange {
    /// `grant`, `change` or `revoke`.
    pub(crate) verb: PermissionVerb,
    pub(crate) consumer: String,
    pub(crate) provider: String,
    /// `None` for all services.
    pub(crate) service: Option<String>,
    /// The change as shown to users.
    pub(crate) line: String,
    /// The machines at both ends.
    #[serde(skip)]
    pub(crate) ends: [Object; 2],
}

/// The kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PermissionVerb {
    Grant,
    Change,
    Revoke,
}

impl PermissionChange {
    fn new(
        verb: PermissionVerb,
        consumer: &InstanceId,
        provider: &InstanceId,
        service: Option<&str>,
    ) -> Self {
        let caller = consumer.name.escape_debug();
        let target = match service {
            None => provider.name.escape_debug().to_string(),
            Some(service) => format!("{}/{service}", provider.name.escape_debug()),
        };
        let line = match verb {
            PermissionVerb::Grant => format!("+ {caller} may call {target}"),
            PermissionVerb::Change => {
                format!("~ {caller} calling {target}: tool, arguments or limits changed")
            }
            PermissionVerb::Revoke => format!("- {caller} may no longer call {target}"),
        };
        let object = |one: &InstanceId| Object::machine(&one.project, &one.name);
        Self {
            verb,
            consumer: consumer.name.clone(),
            provider: provider.name.clone(),
            service: service.map(str::to_owned),
            line,
            ends: [object(consumer), object(provider)],
        }
    }
}

/// Compares who may call what now with the declaration; `revoked` holds the plan's removals of devices.
pub(super) fn changes(inputs: &PlanInputs<'_>, revoked: &[Action]) -> Vec<PermissionChange> {
    let infra = inputs.wanted.infra;
    let mut changes = Vec::new();
    // Providers whose services now are known; a removed device of any other one ends all that its consumer may call.
    let mut known = BTreeSet::new();
    for (domain, machine) in infra.machines() {
        let provider = InstanceId::new(domain.name.as_str(), machine.name.as_str());
        if inputs.facts.unread.contains_key(&provider) {
            continue;
        }
        let found = inputs.facts.inside.get(&provider);
        let found = found.and_then(|found| found.services.as_ref());
        let now = match found.map(|file| file.services.as_deref()) {
            Some(None) => None,
            Some(Some(services)) => Some(services),
            None => Some(&[][..]),
        };
        let then = Services::of(machine).outline();
        changes.extend(of_provider(
            inputs,
            &provider,
            now.unwrap_or_default(),
            &then,
        ));
        if now.is_some() {
            known.insert(provider);
        }
    }
    let pairs = revoked.iter().filter_map(|action| match action {
        Action::Revoke(revocation) => revocation.pair.as_ref(),
        _ => None,
    });
    changes.extend(of_devices(inputs.state, pairs, &known));
    changes
}

/// Derives what may no longer be called if these machines are deleted.
pub(super) fn of_deletion(state: &State, deleted: &[&Instance]) -> Vec<PermissionChange> {
    let is_deleted = |one: &InstanceId| deleted.iter().any(|instance| instance.id() == *one);
    let pairs = state.instances.iter().flat_map(edges::pairs);
    let pairs: Vec<DevicePair> = pairs
        .filter(|pair| {
            let provider = provider_of(state, pair);
            is_deleted(&pair.consumer) || provider.is_some_and(|one| is_deleted(&one))
        })
        .collect();
    of_devices(state, pairs.iter(), &BTreeSet::new())
}

/// Derives the revocations that removed devices of consumers bring about, except those of `known` providers.
fn of_devices<'a>(
    state: &State,
    pairs: impl Iterator<Item = &'a DevicePair>,
    known: &BTreeSet<InstanceId>,
) -> Vec<PermissionChange> {
    let mut changes = Vec::new();
    for pair in pairs.filter(|pair| pair.is_consumers) {
        let provider = provider_of(state, pair);
        // A copy may call as its original, whose own permission stays.
        if pair.is_foreign || provider.as_ref().is_none_or(|one| !known.contains(one)) {
            let provider = provider.unwrap_or_else(|| InstanceId::new("", &pair.provider));
            let verb = PermissionVerb::Revoke;
            changes.push(PermissionChange::new(verb, &pair.consumer, &provider, None));
        }
    }
    changes
}

/// Finds the provider whose device shares a socket with a consumer's device.
fn provider_of(state: &State, pair: &DevicePair) -> Option<InstanceId> {
    let mut instances = state.instances.iter();
    let provider = instances.find(|one| {
        one.name == pair.provider
            && edges::pairs(one).any(|other| !other.is_consumers && other.socket == pair.socket)
    });
    provider.map(Instance::id)
}

fn of_provider(
    inputs: &PlanInputs<'_>,
    provider: &InstanceId,
    now: &[ServiceOutline],
    then: &[ServiceOutline],
) -> Vec<PermissionChange> {
    let edges = inputs.wanted.edges.iter();
    let edges = edges.filter(|edge| InstanceId::from(&edge.provider) == *provider);
    let edges: BTreeMap<&MachineName, &Edge> =
        edges.map(|edge| (&edge.consumer.machine, edge)).collect();
    let then = grants(then, |consumer| edges.contains_key(consumer));
    let pairs = inputs.state.instances.iter().flat_map(edges::pairs);
    let pairs = pairs.filter(|pair| pair.is_consumers && pair.provider == provider.name);
    let connected: BTreeSet<String> = pairs.map(|pair| pair.consumer.name).collect();
    let is_known = |consumer: &MachineName| {
        inputs.wanted.infra.machine(consumer.as_str()).is_some()
            || connected.contains(consumer.as_str())
    };
    let now = grants(now, is_known);
    let mut changes = Vec::new();
    for (grant, terms) in &then {
        let edge = edges.get(grant.0).filter(|edge| is_open(inputs, edge));
        let verb = match now.get(grant).filter(|_| edge.is_some()) {
            None => PermissionVerb::Grant,
            Some(now) if now != terms => PermissionVerb::Change,
            Some(_) => continue,
        };
        changes.push((verb, *grant));
    }
    let gone = now.keys().filter(|grant| !then.contains_key(*grant));
    changes.extend(gone.map(|grant| (PermissionVerb::Revoke, *grant)));
    let more = changes.len().saturating_sub(SHOWN_MAX);
    let shown = changes.into_iter().take(SHOWN_MAX);
    let mut shown: Vec<PermissionChange> = shown
        .map(|(verb, (consumer, service))| {
            let home = inputs.wanted.infra.machine(consumer.as_str());
            let domain = home.map_or("", |(domain, _)| domain.name.as_str());
            let consumer = InstanceId::new(domain, consumer.as_str());
            PermissionChange::new(verb, &consumer, provider, Some(service.as_str()))
        })
        .collect();
    if more > 0
        && let Some(last) = shown.last_mut()
    {
        last.line = format!("{} (and {more} more changes for its services)", last.line);
    }
    shown
}

/// A consumer and a service that it may call.
type GrantKey<'a> = (&'a MachineName, &'a ServiceName);

/// Returns each permission, with a digest of its terms.
fn grants(
    services: &[ServiceOutline],
    is_counted: impl Fn(&MachineName) -> bool,
) -> BTreeMap<GrantKey<'_>, &str> {
    let all = services.iter().flat_map(|service| {
        let consumers = service.consumers.iter();
        consumers.map(move |consumer| ((consumer, &service.name), service.terms.as_str()))
    });
    all.filter(|((consumer, _), _)| is_counted(consumer))
        .collect()
}

/// Returns whether both ends of a channel have its device now, under whatever name.
fn is_open(inputs: &PlanInputs<'_>, edge: &Edge) -> bool {
    let socket = format!("{}.sock", edge.hash);
    let ends = [(&edge.consumer, true), (&edge.provider, false)];
    ends.into_iter().all(|(end, is_consumers)| {
        let key = (end.domain.as_str(), end.machine.as_str());
        let machine = inputs.machines.get(&key);
        machine.is_some_and(|machine| {
            edges::pairs(machine)
                .any(|pair| pair.is_consumers == is_consumers && pair.socket == socket)
        })
    })
}
