//! Looks at the channels from the host, and changes nothing: the devices at both ends, and whether the provider's server
//! answers over each.

use std::collections::{BTreeMap, BTreeSet};

use super::proxy_probe::{self, Proxies, ProxyAnswer};
use crate::edge::{Edge, End};
use crate::incus::FileOwner;
use crate::incus::state::Instance;
use crate::infra::Infra;
use crate::limits::CONNECTIONS;
use crate::plan::{RecreateReason, Role};
use crate::session::Session;
use crate::session::each;

/// The channels, and what was found of each.
#[derive(Debug)]
pub(crate) struct Channels<'e>(Vec<(&'e Edge, ObservedChannel)>);

/// The findings on a channel.
#[derive(Debug, Default)]
struct ObservedChannel {
    /// The fault of the provider's device.
    provider: Option<RecreateReason>,
    /// The fault of the consumer's device.
    consumer: Option<RecreateReason>,
    heard: ProbeResult,
}

/// The result of probing a provider over a channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum ProbeResult {
    /// It was not asked.
    #[default]
    Nothing,
    /// An answer.
    Answer,
    /// That the consumer has all the connections that it may have.
    Full,
    /// No answer, where the consumer has as many connections as that: they may be before this one.
    Crowd,
    /// No answer.
    Silence,
}

/// Looks at each channel; `there` gives the machine of a project.
pub(crate) async fn look<'e, 's>(
    session: &Session,
    infra: &Infra,
    edges: &'e [Edge],
    there: impl Fn(&str, &str) -> Option<&'s Instance>,
) -> Channels<'e> {
    let end = |edge: &Edge, end: &End| {
        there(end.domain.as_str(), end.machine.as_str()).filter(|one| {
            // A device that is not there is made anyway.
            one.is_running() && one.devices.contains_key(&edge.device_name())
        })
    };
    let proxies = &Proxies::look();
    let found = each(edges, |edge| async {
        let mut channel = ObservedChannel::default();
        if let Some(provider) = end(edge, &edge.provider) {
            (channel.heard, channel.provider) =
                provider_end(session, infra, edge, provider, proxies).await;
        }
        if let Some(consumer) = end(edge, &edge.consumer) {
            channel.consumer = consumer_end(session, edge, consumer, proxies).await;
        }
        channel
    });
    Channels(edges.iter().zip(found.await).collect())
}

impl Channels<'_> {
    /// Returns whether a machine's server hangs.
    pub(crate) fn hangs(&self, provider: &str) -> bool {
        hangs(&self.heard_of(provider))
    }

    /// The channels over which a server answers, and not whoever asks now: the consumer's connections are all in use. By
    /// hash.
    pub(crate) fn full(&self) -> BTreeSet<String> {
        let full = self.0.iter().filter(|(edge, channel)| match channel.heard {
            ProbeResult::Full => true,
            ProbeResult::Crowd => lives(&self.heard_of(edge.provider.machine.as_str())),
            ProbeResult::Nothing | ProbeResult::Answer | ProbeResult::Silence => false,
        });
        full.map(|(edge, _)| edge.hash.clone()).collect()
    }

    /// The ends whose device does not work, by the channel's hash.
    pub(crate) fn broken(&self) -> BTreeMap<(String, Role), RecreateReason> {
        let ends = self.0.iter().flat_map(|(edge, channel)| {
            [
                (edge, Role::Provider, channel.provider),
                (edge, Role::Consumer, channel.consumer),
            ]
        });
        ends.filter_map(|(edge, role, again)| Some(((edge.hash.clone(), role), again?)))
            .collect()
    }

    /// The results of probing a provider over each of its channels.
    fn heard_of(&self, provider: &str) -> Vec<ProbeResult> {
        let own = self.0.iter();
        let own = own.filter(|(edge, _)| edge.provider.machine.as_str() == provider);
        own.map(|(_, channel)| channel.heard).collect()
    }
}

/// Returns whether the server of these channels hangs: it is silent where no crowd of the consumer's stands before the question, or
/// everywhere.
fn hangs(own: &[ProbeResult]) -> bool {
    own.contains(&ProbeResult::Silence) || own.contains(&ProbeResult::Crowd) && !lives(own)
}

/// Returns whether somebody answers over one of these channels.
fn lives(own: &[ProbeResult]) -> bool {
    own.contains(&ProbeResult::Answer) || own.contains(&ProbeResult::Full)
}

/// Probes a provider's server, and finds what is wrong with the provider's device.
async fn provider_end(
    session: &Session,
    infra: &Infra,
    edge: &Edge,
    provider: &Instance,
    proxies: &Proxies,
) -> (ProbeResult, Option<RecreateReason>) {
    let broken = |again| (ProbeResult::Nothing, Some(again));
    match proxy_probe::ask(edge).await {
        ProxyAnswer::NotAllowed => (ProbeResult::Nothing, None),
        ProxyAnswer::Tools => (ProbeResult::Answer, None),
        ProxyAnswer::Full => (ProbeResult::Full, None),
        ProxyAnswer::NoProcess => broken(RecreateReason::NoProcess),
        _ if !carried(session, edge, provider, proxies).await => broken(RecreateReason::NoProcess),
        ProxyAnswer::NoSocket => broken(RecreateReason::NoSocket),
        ProxyAnswer::OddSocket => broken(RecreateReason::BadSocket),
        ProxyAnswer::Silent if proxy_probe::connections(edge) >= most_connections(infra, edge) => {
            (ProbeResult::Crowd, None)
        }
        ProxyAnswer::Silent => (ProbeResult::Silence, None),
    }
}

/// Connections that a consumer may have at once.
fn most_connections(infra: &Infra, edge: &Edge) -> usize {
    let provider = infra.machine(edge.provider.machine.as_str());
    let services = provider.into_iter().flat_map(|(_, one)| &one.services);
    let most = services
        .filter(|service| service.consumers.contains(&edge.consumer.machine))
        .filter_map(|service| service.limits.connections)
        .max();
    usize::try_from(most.unwrap_or(CONNECTIONS)).unwrap_or(usize::MAX)
}

/// The fault of a consumer's device.
async fn consumer_end(
    session: &Session,
    edge: &Edge,
    consumer: &Instance,
    proxies: &Proxies,
) -> Option<RecreateReason> {
    let first = session.first_process(consumer).await;
    if first.is_some_and(|first| !proxies.carry(edge, Role::Consumer, first)) {
        return Some(RecreateReason::NoProcess);
    }
    let made = FileOwner {
        uid: edge.owner_uid,
        gid: edge.owner_gid,
        mode: proxy_probe::SOCKET_MODE,
    };
    let mut files = session.files(consumer).await;
    // Another check reports a file that cannot be read.
    match files.look(&edge.consumer_socket()).await.ok()? {
        None => Some(RecreateReason::NoSocket),
        Some(there) => {
            let odd = there.owner.is_some_and(|owner| owner != made);
            (odd || there.is_socket == Some(false)).then_some(RecreateReason::BadSocket)
        }
    }
}

/// Returns whether the process of a provider's device is there; where nobody can say, it is.
async fn carried(session: &Session, edge: &Edge, provider: &Instance, proxies: &Proxies) -> bool {
    let first = session.first_process(provider).await;
    first.is_none_or(|first| proxies.carry(edge, Role::Provider, first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_of_one_consumer_s_is_no_silence_of_a_server_that_answers_others() {
        use ProbeResult::{Answer, Crowd, Full, Nothing, Silence};
        let cases: [(&[ProbeResult], bool); 8] = [
            (&[], false),
            (&[Nothing, Answer], false),
            (&[Full], false),
            (&[Silence], true),
            (&[Answer, Silence], true),
            // Nobody can tell: the server is started anew, which ends the crowd too.
            (&[Crowd], true),
            (&[Crowd, Answer], false),
            (&[Crowd, Full], false),
        ];
        for (own, expected) in cases {
            assert_eq!(hangs(own), expected, "{own:?}");
        }
    }
}
