//! What a provider offers, asked inside the consumer and as the user who may; what the machine says of it is only its word.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::edge::Edge;
use crate::machine_state::{ASK, Offered, PROGRAM};
use crate::name::ServiceName;
use crate::session::Session;
use crate::transport::RemoteExec;

/// Time-out for a consumer's list of services; its program waits less long for the provider.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest of a machine's words that are shown, in characters.
const WORDS_MAX: usize = 300;

/// A consumer's answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HeardServices {
    /// The services that it sees.
    pub(crate) services: BTreeSet<String>,
    /// From its question to the provider's answer, over a connection that stands.
    pub(crate) took: Duration,
}

/// The reason why a consumer did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unheard {
    /// In words.
    pub(crate) why: String,
    /// The provider has too much to do for this consumer, as the consumer says.
    pub(crate) overloaded: bool,
}

impl From<String> for Unheard {
    fn from(why: String) -> Self {
        let overloaded = false;
        Self { why, overloaded }
    }
}

/// Lists, inside the consumer, what the provider offers it; or why that fails.
pub(crate) async fn ask(session: &Session, edge: &Edge) -> Result<HeardServices, Unheard> {
    let consumer = &edge.consumer;
    let errand = RemoteExec {
        project: consumer.domain.as_str(),
        machine: consumer.machine.as_str(),
        user: Some((edge.owner_uid, edge.owner_gid)),
        words: &[PROGRAM, ASK, edge.provider.machine.as_str()],
        order: b"",
        patience: PATIENCE,
    };
    let said = errand
        .run()
        .await
        .map_err(|why| format!("asked in the consumer, {why}"))?;
    let offered = session.reader().offered(&said.answer).await;
    let Some(offered) = offered.map_err(|why| why.to_string())? else {
        // Words of Incus's, where it could not even start it.
        let words = match said.stderr.shown(WORDS_MAX) {
            words if words.is_empty() => "it says nothing".to_owned(),
            words => words,
        };
        return Err(format!("the consumer's program does not answer: {words}").into());
    };
    if let Some(why) = offered.failed {
        let why = format!("the consumer says: {}", why.shown(WORDS_MAX));
        let overloaded = offered.overloaded;
        return Err(Unheard { why, overloaded });
    }
    let odd = || "the consumer says what is no list of services".to_owned();
    heard(&offered).ok_or_else(|| odd().into())
}

/// A machine's word, read strictly; `None`: it is no list of services.
fn heard(offered: &Offered) -> Option<HeardServices> {
    let names = offered.services.iter().map(|name| {
        let name: ServiceName = name.raw().parse().ok()?;
        Some(name.to_string())
    });
    let services: BTreeSet<String> = names.collect::<Option<_>>()?;
    let took = Duration::try_from_secs_f64(offered.milliseconds? / 1000.0).ok()?;
    (services.len() == offered.services.len() && took < PATIENCE)
        .then_some(HeardServices { services, took })
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
        let good = heard(&offered(&["sign", "push"], 1.5)).unwrap();
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
            assert_eq!(heard(&bad), None, "{bad:?}");
        }
    }
}
