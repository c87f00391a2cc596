//! The server's side of a consumer's process: its questions, answered until it ends.

use std::collections::HashMap;
use std::io::{self, BufReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use super::protocol::{MonitorRequest, REQUEST_MAX, Response, SpinRead, receive, send, send_with};
use super::{AdmitError, Admitted as _, Local, LocalCall, LogError, Monitor as _};
use crate::audit::{Call, bounded, bounded_reason};
use crate::mcp::policy_watcher::PolicyWatcher;
use crate::name::MachineName;
use crate::tool::Resource;

/// Services of a server for a worker, besides answers.
pub(crate) trait House {
    /// Starts a helper; the socket to it.
    ///
    /// # Errors
    ///
    /// It is not the consumer's to have, or the system refuses.
    fn start(&self, resource: Resource) -> io::Result<OwnedFd>;

    /// Lends memory, if others leave as much.
    fn borrow(&self) -> bool;

    /// Takes it back.
    fn give_back(&self);
}

/// Answers until the process closes its end, or says what no process of this program says. Calls that it had running then have
/// ended with it.
pub(crate) fn attend(
    process: &UnixStream,
    caller: &MachineName,
    live: &PolicyWatcher,
    local: &Local,
    house: &impl House,
) {
    let mut questions = BufReader::new(SpinRead::new(process));
    let mut running = AdmittedCalls::default();
    while let Ok(question) = receive(&mut questions, REQUEST_MAX) {
        let answer = match question {
            MonitorRequest::Policy => policy(caller, live),
            MonitorRequest::Admit(call) => Response::Admit(running.admit(*call, local)),
            MonitorRequest::Ended {
                place,
                outcome,
                bytes_out,
            } => match running.take(place) {
                Some(place) => done(&Box::new(place).ended(outcome, bytes_out)),
                None => return,
            },
            MonitorRequest::Abandoned { place } => match running.take(place) {
                Some(place) => {
                    drop(place);
                    Response::Done
                }
                None => return,
            },
            MonitorRequest::Log(call) => done(&local.log(truncate_fields(*call))),
            MonitorRequest::Borrow => Response::Lent(house.borrow()),
            MonitorRequest::GiveBack => {
                house.give_back();
                Response::Done
            }
            MonitorRequest::Helper(resource) => match house.start(resource) {
                Ok(socket) => {
                    let started = Response::Helper(Ok(()));
                    if send_with(process, &started, socket.as_fd()).is_err() {
                        return;
                    }
                    continue;
                }
                Err(why) => Response::Helper(Err(why.to_string())),
            },
        };
        if send(process, &answer).is_err() {
            return;
        }
    }
}

/// Answers a helper of the process, which asks for the policy and for nothing else.
pub(crate) fn attend_helper(helper: &UnixStream, caller: &MachineName, live: &PolicyWatcher) {
    let mut questions = BufReader::new(SpinRead::new(helper));
    while let Ok(MonitorRequest::Policy) = receive(&mut questions, REQUEST_MAX) {
        if send(helper, &policy(caller, live)).is_err() {
            return;
        }
    }
}

/// The calls of a process that run.
#[derive(Default)]
struct AdmittedCalls {
    last: u64,
    places: HashMap<u64, LocalCall>,
}

impl AdmittedCalls {
    fn admit(&mut self, line: Call, local: &Local) -> Result<u64, AdmitError> {
        let place = local.admit_local(truncate_fields(line))?;
        self.last += 1;
        self.places.insert(self.last, place);
        Ok(self.last)
    }

    fn take(&mut self, place: u64) -> Option<LocalCall> {
        self.places.remove(&place)
    }
}

const fn done(logged: &Result<(), LogError>) -> Response {
    match logged {
        Ok(()) => Response::Done,
        Err(LogError) => Response::Unlogged,
    }
}

/// The part of the policy that the process may know: that of its consumer.
fn policy(caller: &MachineName, live: &PolicyWatcher) -> Response {
    let (policy, settled) = live.current_and_settled();
    Response::Policy {
        services: policy.services.of_consumer(caller),
        digest: policy.digest.clone(),
        settled,
    }
}

/// Truncates the text fields, which the process chose.
fn truncate_fields(line: Call) -> Call {
    Call {
        id: bounded(line.id.raw()),
        service: bounded(line.service.raw()),
        tool: line.tool.as_ref().map(|tool| bounded(tool.raw())),
        reason: bounded_reason(line.reason.raw()),
        policy: bounded(line.policy.raw()),
        ..line
    }
}
