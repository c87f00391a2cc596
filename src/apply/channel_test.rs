//! Tests each channel that this run or an earlier one created or changed, with a call from the consumer's end.

use std::collections::BTreeMap;
use std::time::Duration;

use super::RunObserver;
use super::outcome::{RunReport, StepOutcome, StepStatus};
use crate::edge::{Edge, End};
use crate::incus::{Edit, Object};
use crate::plan::{Action, Verification, mark_unverified};
use crate::session::interrupt::LEFT;
use crate::session::{Session, each};
use crate::survey::consumer::ask;
use crate::transport::shell_line;

/// Number of tries for a new or changed channel.
const TRIES: u32 = 3;
/// Pause between tries.
const PAUSE: Duration = Duration::from_millis(300);

/// Tests the channels of a plan after its other steps, whose outcomes are in `report`.
pub(crate) async fn carry_out(
    session: &Session,
    verifications: &[Action],
    report: &RunReport,
    observer: &impl RunObserver,
) -> Vec<Vec<StepOutcome>> {
    let due = verifications.iter().filter_map(|action| match action {
        Action::VerifyChannel(call) => Some((action, call)),
        _ => None,
    });
    // The channels of a failed machine need no test.
    let failed = |end: &End| report.has_failed(&end.into());
    let due =
        due.filter(|(_, proof)| !failed(&proof.edge.consumer) && !failed(&proof.edge.provider));
    let due: Vec<(&Action, &Verification)> = due.collect();
    let ended = each(&due, |(action, proof)| async {
        if session.interrupt.is_asked() {
            return StepStatus::Skipped(LEFT.to_owned());
        }
        let step = observer.started(action);
        // A new channel may need a moment before it answers.
        let tries = if proof.changes { TRIES } else { 1 };
        let status = test(session, &proof.edge, tries).await;
        observer.finished(step);
        status
    });
    let ended = ended.await;
    remember(session, &due, &ended).await;
    let outcomes = due.iter().zip(ended).map(|((action, _), status)| {
        let mut outcome = StepOutcome::new(action, status);
        outcome.summary.lines = vec![format!("= channel {} answers", outcome.summary.name)];
        outcome.more = Some(shell_line(["anklume", "doctor"]));
        observer.record(outcome)
    });
    vec![outcomes.collect()]
}

/// Marks exactly those channels that did not answer, so that the next run tests them again.
async fn remember(session: &Session, due: &[(&Action, &Verification)], ended: &[StepStatus]) {
    let mut edits: BTreeMap<Object, Vec<Edit>> = BTreeMap::new();
    for ((_, proof), status) in due.iter().zip(ended) {
        let unverified = *status != StepStatus::Done;
        if unverified != proof.marked {
            let edit = mark_unverified(&proof.edge.device_name(), unverified);
            let consumer = Object::from(&proof.edge.consumer);
            edits.entry(consumer).or_default().push(edit);
        }
    }
    let edits: Vec<(Object, Vec<Edit>)> = edits.into_iter().collect();
    each(&edits, |(consumer, edits)| async {
        // A stale mark costs one more call; a failed test is reported even if its mark cannot be set.
        if let Ok(mut incus) = session.incus().await {
            let _ = incus.edit(consumer, edits).await;
        }
    })
    .await;
}

/// Makes the consumer query the provider, at most `tries` times.
async fn test(session: &Session, edge: &Edge, mut tries: u32) -> StepStatus {
    loop {
        tries -= 1;
        match ask(session, edge).await {
            Ok(_) => return StepStatus::Done,
            Err(failure) if tries == 0 => return StepStatus::Failed(failure.why),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
