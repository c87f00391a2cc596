//! Deletes what was made, machines first.

use super::RunObserver;
use super::executor::{carry_out, in_parallel};
use super::outcome::{RunReport, StepOutcome};
use crate::incus::Object;
use crate::plan::{Action, Deletions};
use crate::session::Session;
use crate::survey::audit_checkpoint::forget_deleted;

/// Machines at once, then what they used; what fails keeps what it needs.
pub(crate) async fn destroy(
    session: &Session,
    deletions: &Deletions,
    observer: &impl RunObserver,
) -> RunReport {
    let mut report = RunReport::default();
    let machines: Vec<_> = deletions
        .machines
        .iter()
        .map(std::slice::from_ref)
        .collect();
    let deleted = in_parallel(session, machines, observer).await;
    forget_deleted(&gone(deletions, &deleted));
    let all_gone = deleted.iter().flatten().all(StepOutcome::is_done);
    report.add(deleted);
    if all_gone {
        let volumes: Vec<_> = deletions.volumes.iter().map(std::slice::from_ref).collect();
        report.add(in_parallel(session, volumes, observer).await);
        report.add(carry_out(session, &deletions.rest, observer).await);
    } else {
        let rest = deletions.volumes.iter().chain(&deletions.rest);
        let why = session.interrupt.or("a machine could not be deleted");
        report.skip(rest, why, observer);
    }
    report
}

/// The machines that were deleted.
fn gone<'d>(deletions: &'d Deletions, deleted: &[Vec<StepOutcome>]) -> Vec<&'d Object> {
    let ended = deletions.machines.iter().zip(deleted);
    let done = ended.filter(|(_, outcomes)| outcomes.iter().all(StepOutcome::is_done));
    done.filter_map(|(action, _)| match action {
        Action::Delete { object, .. } => Some(object),
        _ => None,
    })
    .collect()
}
