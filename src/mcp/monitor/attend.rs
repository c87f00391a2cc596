//! Answers the requests of a consumer's process until it ends.

use std::collections::HashMap;
use std::io::{self, BufReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use super::protocol::{MonitorRequest, REQUEST_MAX, Response, SpinRead, receive, send};
use super::{Admitted as _, Local, LogError, Monitor as _};
use crate::audit::{Call, bounded, bounded_reason};
use crate::mcp::policy_watcher::PolicyWatcher;
use crate::name::MachineName;
use crate::tool::Resource;

/// Gives a worker helpers and memory.
pub(crate) trait House {
    /// Starts a helper and returns the socket to it. Fails if the policy grants the consumer none, or the system refuses.
    fn start(&self, resource: Resource) -> io::Result<OwnedFd>;

    /// Lends memory, if others leave as much.
    fn borrow(&self) -> bool;

    /// Takes it back.
    fn give_back(&self);
}

/// Answers until the process closes its end, or sends a request that no process of this program sends. Its running calls end with
/// it.
pub(crate) fn attend(
    process: &UnixStream,
    caller: &MachineName,
    watcher: &PolicyWatcher,
    local: &Local,
    house: &impl House,
) {
    let mut requests = BufReader::new(SpinRead::new(process));
    let (mut running, mut last) = (HashMap::new(), 0);
    while let Ok(request) = receive(&mut requests, REQUEST_MAX) {
        let mut helper = None;
        let answer = match request {
            MonitorRequest::Policy => policy(caller, watcher),
            MonitorRequest::Admit(call) => {
                let admitted = local.admit_local(truncate_fields(*call));
                Response::Admit(admitted.map(|call| {
                    last += 1;
                    running.insert(last, call);
                    last
                }))
            }
            MonitorRequest::Ended {
                place,
                outcome,
                bytes_out,
            } => match running.remove(&place) {
                Some(call) => done(Box::new(call).ended(outcome, bytes_out)),
                None => return,
            },
            MonitorRequest::Abandoned { place } => match running.remove(&place).map(drop) {
                Some(()) => Response::Done,
                None => return,
            },
            MonitorRequest::Log(call) => done(local.log(truncate_fields(*call))),
            MonitorRequest::Borrow => Response::Lent(house.borrow()),
            MonitorRequest::GiveBack => {
                house.give_back();
                Response::Done
            }
            MonitorRequest::Helper(resource) => match house.start(resource) {
                Ok(socket) => {
                    helper = Some(socket);
                    Response::Helper(Ok(()))
                }
                Err(why) => Response::Helper(Err(why.to_string())),
            },
        };
        if send(process, &answer, helper.as_ref().map(OwnedFd::as_fd)).is_err() {
            return;
        }
    }
}

/// Answers a helper of the process, which asks for the policy and for nothing else.
pub(crate) fn attend_helper(helper: &UnixStream, caller: &MachineName, watcher: &PolicyWatcher) {
    let mut requests = BufReader::new(SpinRead::new(helper));
    while let Ok(MonitorRequest::Policy) = receive(&mut requests, REQUEST_MAX) {
        if send(helper, &policy(caller, watcher), None).is_err() {
            return;
        }
    }
}

fn done(logged: Result<(), LogError>) -> Response {
    logged.map_or(Response::Unlogged, |()| Response::Done)
}

/// The part of the policy that the process may know: that of its consumer.
fn policy(caller: &MachineName, watcher: &PolicyWatcher) -> Response {
    let (policy, settled) = watcher.current_and_settled();
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
