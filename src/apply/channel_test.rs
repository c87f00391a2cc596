//! A call over each channel that was made or changed, from the consumer's end: what was made must work, in this run
//! or in a later one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::RunObserver;
use super::outcome::{RunReport, StepOutcome, StepStatus};
use crate::edge::{Edge, End};
use crate::incus::{Edit, Object};
use crate::plan::{Action, Verification, mark_unverified};
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
    verifications: &[Action],
    report: &RunReport,
    observer: &impl RunObserver,
) -> Vec<Vec<StepOutcome>> {
    let due = verifications.iter().filter_map(|action| match action {
        Action::VerifyChannel(call) => Some((action, call)),
        _ => None,
    });
    // An end that failed is not asked.
    let failed = |end: &End| report.has_failed(&machine(end));
    let due = due.filter(|(_, call)| {
        let edge = &call.edge;
        ![&edge.consumer, &edge.provider].into_iter().any(failed)
    });
    let due: Vec<(&Action, &Verification)> = due.collect();
    let ended = each(&due, |(action, call)| async {
        if session.interrupt.is_asked() {
            return StepStatus::Skipped(LEFT.to_owned());
        }
        let step = observer.began(action);
        // What was made a moment ago may take another one.
        let tries = if call.changes { TRIES } else { 1 };
        let answered = verify(session, &call.edge, tries).await;
        observer.left(step);
        answered.map_or_else(StepStatus::Failed, |()| StepStatus::Done)
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
async fn remember(session: &Session, due: &[(&Action, &Verification)], ended: &[StepStatus]) {
    let mut edits: BTreeMap<Object, Vec<Edit>> = BTreeMap::new();
    for ((_, call), status) in due.iter().zip(ended) {
        let unverified = *status != StepStatus::Done;
        if unverified != call.marked {
            let edit = mark_unverified(&call.edge.device_name(), unverified);
            let consumer = machine(&call.edge.consumer);
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
async fn verify(session: &Session, edge: &Edge, mut tries: u32) -> Result<(), String> {
    loop {
        tries -= 1;
        match ask(session, edge).await {
            Ok(_) => return Ok(()),
            Err(unheard) if tries == 0 => return Err(unheard.why),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
