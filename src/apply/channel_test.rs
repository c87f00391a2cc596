//! A call over each channel that was made or changed, from the consumer's end: what was made is proven to work, by this run
//! or by a later one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::RunObserver;
use super::outcome::{RunReport, StepOutcome, StepStatus};
use crate::edge::{Edge, End};
use crate::incus::{Edit, Object};
use crate::plan::{Action, Proof, mark_unproven};
use crate::session::Session;
use crate::session::each;
use crate::session::interrupt::LEFT;
use crate::survey::consumer::ask;
use crate::transport::shell_line;

/// Number of tries for a channel that was just made.
const TRIES: u32 = 3;
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(300);

/// Tries the calls of a plan whose other steps have ended as the report says.
pub(crate) async fn carry_out(
    session: &Session,
    proofs: &[Action],
    report: &RunReport,
    observer: &impl RunObserver,
) -> Vec<Vec<StepOutcome>> {
    let due = proofs.iter().filter_map(|action| match action {
        Action::Prove(proof) => Some((action, proof)),
        _ => None,
    });
    // What failed needs no proof of that.
    let failed = |end: &End| report.has_failed(&machine(end));
    let due = due.filter(|(_, proof)| {
        let edge = &proof.edge;
        ![&edge.consumer, &edge.provider].into_iter().any(failed)
    });
    let due: Vec<(&Action, &Proof)> = due.collect();
    let ended = each(&due, |(action, proof)| async {
        if session.interrupt().is_asked() {
            return StepStatus::Skipped(LEFT.to_owned());
        }
        let step = observer.began(action);
        // What was made a moment ago may take another one.
        let tries = if proof.changes { TRIES } else { 1 };
        let proven = prove(session, &proof.edge, tries).await;
        observer.left(step);
        proven.map_or_else(StepStatus::Failed, |()| StepStatus::Done)
    });
    let ended = ended.await;
    remember(session, &due, &ended).await;
    let outcomes = due.iter().zip(ended);
    let outcomes = outcomes.map(|((action, _), status)| observer.ended(outcome(action, status)));
    vec![outcomes.collect()]
}

fn machine(end: &End) -> Object {
    Object::machine(end.domain.as_str(), end.machine.as_str())
}

fn outcome(action: &Action, status: StepStatus) -> StepOutcome {
    let mut step = action.shown();
    step.lines = vec![format!("= channel {} answers", step.name)];
    StepOutcome::of(step, status, shell_line(["anklume", "doctor"]))
}

/// Marks the channels that did not answer, so that the next run tries them again, and no others.
async fn remember(session: &Session, due: &[(&Action, &Proof)], ended: &[StepStatus]) {
    let mut edits: BTreeMap<Object, Vec<Edit>> = BTreeMap::new();
    for ((_, proof), status) in due.iter().zip(ended) {
        let unproven = *status != StepStatus::Done;
        if unproven != proof.marked {
            let edit = mark_unproven(&proof.edge.device_name(), unproven);
            let consumer = machine(&proof.edge.consumer);
            edits.entry(consumer).or_default().push(edit);
        }
    }
    let edits: Vec<(Object, Vec<Edit>)> = edits.into_iter().collect();
    each(&edits, |(consumer, edits)| async {
        // A mark that stays is one call more; one that cannot be set was said to have failed all the same.
        if let Ok(mut incus) = session.incus().await {
            let _ = incus.edit(consumer, edits).await;
        }
    })
    .await;
}

/// Has the consumer ask; a channel that is just made may need a moment.
async fn prove(session: &Session, edge: &Edge, mut tries: u32) -> Result<(), String> {
    loop {
        tries -= 1;
        match ask(session, edge).await {
            Ok(_) => return Ok(()),
            Err(unheard) if tries == 0 => return Err(unheard.why),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
