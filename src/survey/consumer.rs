//! Asks a provider for its services from inside a consumer, as the user allowed to call; the answer is only a claim.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::edge::Edge;
use crate::machine_state::{ASK, Offered, PROGRAM};
use crate::name::ServiceName;
use crate::session::Session;
use crate::transport::RemoteExec;

/// Timeout for a consumer's list of services; its program's timeout for the provider is shorter.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum length of a machine's text that is displayed, in characters.
const TEXT_MAX: usize = 300;

/// A consumer's answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ConsumerAnswer {
    pub(crate) services: BTreeSet<String>,
    /// Time from its request to the provider's answer, excluding the connection setup.
    pub(crate) took: Duration,
}

/// The reason why a consumer did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConsumerFailure {
    pub(crate) why: String,
    /// True if the consumer reports that the provider is overloaded.
    pub(crate) overloaded: bool,
}

impl From<String> for ConsumerFailure {
    fn from(why: String) -> Self {
        Self {
            why,
            overloaded: false,
        }
    }
}

/// Lists, from inside the consumer, the services that the provider offers it.
pub(crate) async fn ask(session: &Session, edge: &Edge) -> Result<ConsumerAnswer, ConsumerFailure> {
    let consumer = &edge.consumer;
    let remote = RemoteExec {
        project: consumer.domain.as_str(),
        machine: consumer.machine.as_str(),
        user: Some((edge.owner_uid, edge.owner_gid)),
        argv: &[PROGRAM, ASK, edge.provider.machine.as_str()],
        input: b"",
        timeout: TIMEOUT,
    };
    let output = remote.run().await;
    let output = output.map_err(|why| format!("cannot ask from inside the consumer: {why}"))?;
    let offered = session.reader.offered(&output.answer).await;
    let Some(offered) = offered.map_err(|why| why.to_string())? else {
        // A message from Incus, if it could not even start the program.
        let message = match output.stderr.shown(TEXT_MAX) {
            message if message.is_empty() => "it says nothing".to_owned(),
            message => message,
        };
        return Err(format!("the consumer's program does not answer: {message}").into());
    };
    if let Some(why) = &offered.failed {
        return Err(ConsumerFailure {
            why: format!("the consumer reports: {}", why.shown(TEXT_MAX)),
            overloaded: offered.overloaded,
        });
    }
    let unreadable = "the consumer's answer is not a list of services";
    parsed(&offered).ok_or_else(|| unreadable.to_owned().into())
}

/// Parses a machine's answer strictly; `None` if it is not a list of services.
fn parsed(offered: &Offered) -> Option<ConsumerAnswer> {
    let names = offered.services.iter().map(|name| {
        let name: ServiceName = name.raw().parse().ok()?;
        Some(name.to_string())
    });
    let services: BTreeSet<String> = names.collect::<Option<_>>()?;
    let took = Duration::try_from_secs_f64(offered.milliseconds? / 1000.0).ok()?;
    (services.len() == offered.services.len() && took < TIMEOUT)
        .then_some(ConsumerAnswer { services, took })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(services: &[&str], milliseconds: f64) -> Offered {
        Offered {
            services: services.iter().map(|name| (*name).into()).collect(),
            milliseconds: Some(milliseconds),
            failed: None,
            overloaded: false,
        }
    }

    #[test]
    fn a_machine_s_word_is_read_strictly() {
        let good = parsed(&offered(&["sign", "push"], 1.5)).unwrap();
        assert_eq!(
            good.services.into_iter().collect::<Vec<_>>(),
            ["push", "sign"]
        );
        assert_eq!(good.took, Duration::from_micros(1500));
        for bad in [
            offered(&["\u{1b}[2J"], 1.0),
            offered(&["sign", "sign"], 1.0),
            offered(&["sign"], -1.0),
            offered(&["sign"], f64::NAN),
            offered(&["sign"], 1e300),
            Offered::default(),
        ] {
            assert_eq!(parsed(&bad), None, "{bad:?}");
        }
    }
}
