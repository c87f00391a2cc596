//! A call over each new edge, from the consumer's end: what was made is proven to work.

use std::collections::BTreeSet;
use std::time::Duration;

use super::carry::each;
use super::progress::Progress;
use super::report::{Outcome, PROVE, Report, Status};
use crate::channel::{Errand, ErrandError, shell_line};
use crate::edge::{Edge, End};
use crate::incus::Object;
use crate::inside::PROGRAM;
use crate::plan::{Action, Plan, Shown};
use crate::shown::shown;

/// How long a consumer may take to list what it is offered.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a channel that is just made is tried.
const TRIES: u32 = 3;
/// How long between two tries.
const PAUSE: Duration = Duration::from_millis(300);
/// Longest of a machine's words that are shown, in characters.
const WORDS_MAX: usize = 300;

/// Proves the edges that a run made or changed something of.
pub(super) async fn of_new(
    edges: &[Edge],
    plan: &Plan,
    report: &Report,
    progress: &Progress,
) -> Vec<Vec<Outcome>> {
    let touched: BTreeSet<(&str, &str)> = plan.actions().filter_map(touched).collect();
    let new: Vec<&Edge> = edges
        .iter()
        .filter(|edge| {
            let ends = [&edge.consumer, &edge.provider];
            let object = |end: &End| Object::machine(end.domain.as_str(), end.machine.as_str());
            ends.iter().any(|end| touched.contains(&(end.domain.as_str(), end.machine.as_str())))
                // What failed needs no proof of that.
                && !ends.iter().any(|end| report.has_failed(&object(end)))
        })
        .collect();
    let proven = each(&new, |edge| prove(edge)).await;
    let outcomes = new
        .iter()
        .zip(proven)
        .map(|(edge, proven)| outcome(edge, proven));
    vec![outcomes.map(|outcome| progress.ended(outcome)).collect()]
}

/// The machine whose channels an action changes.
fn touched(action: &Action) -> Option<(&str, &str)> {
    match action {
        Action::Install { machine, .. } | Action::Connect { machine, .. } => {
            Some((machine.project(), machine.name()))
        }
        _ => None,
    }
}

fn outcome(edge: &Edge, proven: Result<(), String>) -> Outcome {
    let (consumer, provider) = (&edge.consumer.machine, &edge.provider.machine);
    let name = format!("{consumer} → {provider}");
    let lines = vec![format!("= channel {name} answers")];
    let status = match proven {
        Ok(()) => Status::Done,
        Err(why) => Status::Failed(why),
    };
    let step = Shown {
        verb: PROVE,
        kind: "channel",
        name,
        lines,
    };
    Outcome::of(step, status, shell_line(["anklume", "doctor"]))
}

/// Lists, inside the consumer, what the provider offers.
async fn prove(edge: &Edge) -> Result<(), String> {
    let (consumer, provider) = (&edge.consumer, edge.provider.machine.as_str());
    let errand = Errand {
        project: consumer.domain.as_str(),
        machine: consumer.machine.as_str(),
        user: Some((edge.owner_uid, edge.owner_gid)),
        words: &[PROGRAM, "mcp", "list", "-i", provider],
        stdin: b"",
        patience: PATIENCE,
    };
    let mut tries = TRIES;
    loop {
        tries -= 1;
        let said = match errand.run().await {
            Ok(said) => said,
            // A long list is a list.
            Err(ErrandError::TooMuch) => return Ok(()),
            Err(why) => return Err(why.to_string()),
        };
        if said.code == Some(0) {
            return Ok(());
        }
        if tries == 0 {
            let words = shown(&said.stderr, WORDS_MAX);
            return Err(format!("the consumer says: {words}"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
