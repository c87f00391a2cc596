//! The server's side of a consumer's process: its questions, answered until it ends.

use std::collections::HashMap;
use std::io::BufReader;
use std::os::unix::net::UnixStream;

use super::protocol::{Answer, Awake, QUESTION_MAX, Question, receive, send};
use super::{Admitted as _, Local, Monitor as _, NotNow, Place, Unlogged};
use crate::audit::{Call, bounded, bounded_reason};
use crate::mcp::live::Live;
use crate::name::MachineName;

/// Answers until the process closes its end, or says what no process of this program says. Calls that it had running then have
/// ended with it.
pub(crate) fn attend(process: &UnixStream, caller: &MachineName, live: &Live, local: &Local) {
    let mut questions = BufReader::new(Awake(process));
    let mut running = Running::default();
    while let Ok(question) = receive(&mut questions, QUESTION_MAX) {
        let answer = match question {
            Question::Policy => policy(caller, live),
            Question::Admit(call) => running.admit(*call, local),
            Question::Ended {
                place,
                outcome,
                bytes_out,
            } => match running.take(place) {
                Some(place) => done(&Box::new(place).ended(outcome, bytes_out)),
                None => return,
            },
            Question::Left { place } => match running.take(place) {
                Some(place) => {
                    drop(place);
                    Answer::Done
                }
                None => return,
            },
            Question::Log(call) => done(&local.log(within_bounds(*call))),
        };
        if send(process, &answer).is_err() {
            return;
        }
    }
}

/// The calls of a process that run.
#[derive(Default)]
struct Running {
    last: u64,
    places: HashMap<u64, Place>,
}

impl Running {
    fn admit(&mut self, line: Call, local: &Local) -> Answer {
        match local.let_in(within_bounds(line)) {
            Ok(place) => {
                self.last += 1;
                self.places.insert(self.last, place);
                Answer::Admitted(self.last)
            }
            Err(NotNow::Overloaded(full)) => Answer::Overloaded(full),
            Err(NotNow::Unlogged) => Answer::Unlogged,
            Err(NotNow::Changed) => Answer::Changed,
        }
    }

    fn take(&mut self, place: u64) -> Option<Place> {
        self.places.remove(&place)
    }
}

const fn done(logged: &Result<(), Unlogged>) -> Answer {
    match logged {
        Ok(()) => Answer::Done,
        Err(Unlogged) => Answer::Unlogged,
    }
}

/// What the process may know of the policy: its consumer's part.
fn policy(caller: &MachineName, live: &Live) -> Answer {
    let (policy, settled) = live.look();
    Answer::Policy {
        services: policy.services.of_consumer(caller),
        digest: policy.digest.clone(),
        settled,
    }
}

/// A line as it may be written, whoever made it.
fn within_bounds(line: Call) -> Call {
    Call {
        id: bounded(&line.id),
        service: bounded(&line.service),
        tool: line.tool.as_deref().map(bounded),
        reason: bounded_reason(&line.reason),
        policy: bounded(&line.policy),
        ..line
    }
}
