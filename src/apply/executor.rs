//! Carries actions out: one chain after the other's order, several chains at once, and no chain stops another.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use serde_json::Value;

use super::RunObserver;
use super::outcome::{StepOutcome, StepStatus};
use super::provision;
use crate::host::{folders, log_timer, proxy_logs, server_process};
use crate::incus::{ConfigMap, Edit, Incus, IncusError, Object, Power};
use crate::machine_state::MachineSpec;
use crate::plan::{Action, Role, finished, mark_unverified, unfinished};
use crate::session::interrupt::LEFT;
use crate::session::lock::{Busy, Lock};
use crate::session::{AT_ONCE, Session, incus_failure};

/// How often a network is tried again: while Incus makes or deletes one it looks at every interface of the host, and
/// fails where a machine that stops meanwhile takes its own away.
const NETWORK_TRIES: usize = 3;
/// Pause between two tries.
const NETWORK_PAUSE: Duration = Duration::from_millis(500);

/// Runs each chain of actions, several at once; gives the outcomes of each, in the order of the chains.
pub(crate) async fn in_parallel(
    session: &Session,
    chains: Vec<&[Action]>,
    observer: &impl RunObserver,
) -> Vec<Vec<StepOutcome>> {
    stream::iter(chains)
        .map(|chain| carry_out_chain(session, chain, observer))
        .buffered(AT_ONCE)
        .collect()
        .await
}

/// Runs one chain; what follows a failure, or a wish to stop, is skipped.
pub(crate) async fn carry_out(
    session: &Session,
    chain: &[Action],
    observer: &impl RunObserver,
) -> Vec<Vec<StepOutcome>> {
    vec![carry_out_chain(session, chain, observer).await]
}

async fn carry_out_chain(
    session: &Session,
    chain: &[Action],
    observer: &impl RunObserver,
) -> Vec<StepOutcome> {
    let mut outcomes = Vec::new();
    let mut connection = None;
    let mut failed = false;
    for action in chain {
        let left = if failed && !action.stands_alone() {
            Some("an earlier step failed")
        } else {
            session.interrupt.is_asked().then_some(LEFT)
        };
        if let Some(why) = left {
            let status = StepStatus::Skipped(why.to_owned());
            outcomes.push(observer.ended(StepOutcome::new(action, status)));
            continue;
        }
        let step = observer.began(action);
        let done = act(session, &mut connection, action).await;
        observer.left(step);
        let status = match done {
            Ok(()) => StepStatus::Done,
            Err(why) => {
                failed = true;
                StepStatus::Failed(why)
            }
        };
        outcomes.push(observer.ended(StepOutcome::new(action, status)));
    }
    outcomes
}

/// The connection of a chain: made when it is first needed.
async fn connected<'c>(
    session: &Session,
    connection: &'c mut Option<Incus>,
) -> Result<&'c mut Incus, IncusError> {
    if connection.is_none() {
        *connection = Some(session.incus().await?);
    }
    connection
        .as_mut()
        .ok_or_else(|| IncusError::Connection(std::io::ErrorKind::NotConnected.into()))
}

async fn act(
    session: &Session,
    connection: &mut Option<Incus>,
    action: &Action,
) -> Result<(), String> {
    let on_host = |done: std::io::Result<()>| done.map_err(|why| why.to_string());
    let remove = |path: &str| on_host(folders::remove_socket(path));
    match action {
        Action::Folder { path, mode, .. } => on_host(folders::make_folder(path, *mode)),
        Action::Sweep { path } => remove(path),
        Action::Rotate(log) => on_host(proxy_logs::rotate(&log.path)),
        Action::Schedule(schedule) => on_host(log_timer::set_up(schedule).await),
        Action::Unschedule => on_host(log_timer::take_away().await),
        Action::VerifyChannel(_) => Err("a channel is tested when all else is done".to_owned()),
        Action::Create { object, body, .. } => {
            let lock = network_lock(session, object);
            ask(session, connection, lock, async |incus| {
                create(incus, object, body).await
            })
            .await
        }
        Action::Edit { object, edits } => {
            ask(session, connection, None, async |incus| {
                incus.edit(object, edits).await
            })
            .await
        }
        Action::Start {
            machine,
            power,
            listens,
            ..
        } => {
            ask(session, connection, None, async |incus| {
                if *listens {
                    // A device whose folder is not there keeps the machine from starting.
                    provision::listen_folder(incus, machine).await?;
                }
                incus.power(machine, *power).await
            })
            .await
        }
        Action::Connect {
            machine,
            device,
            new,
            role,
            recreate,
            ..
        } => {
            ask(session, connection, None, async |incus| {
                if *role == Role::Consumer {
                    provision::listen_folder(incus, machine).await?;
                }
                if recreate.is_some() {
                    incus.edit(machine, &[set(device, None)]).await?;
                }
                incus
                    .edit(machine, &connected_edits(device, new, *role))
                    .await
            })
            .await
        }
        Action::Revoke {
            machine,
            device,
            inside,
            host,
            ..
        } => {
            if let Some(path) = host {
                remove(path)?;
            }
            let edits = [set(device, None), mark_unverified(device, false)];
            ask(session, connection, None, async |incus| {
                // The files first: while the device is there, the next run knows of them.
                if let Some(path) = inside {
                    provision::delete_socket(incus, machine, path).await?;
                }
                incus.edit(machine, &edits).await
            })
            .await
        }
        Action::Delete {
            object,
            running,
            protected,
            sockets,
            ..
        } => {
            let lock = network_lock(session, object);
            ask(session, connection, lock, async |incus| {
                delete(incus, object, *running, *protected).await
            })
            .await?;
            sockets.iter().try_for_each(|path| remove(path))
        }
        Action::Install {
            machine,
            order,
            push,
            kill_server,
            ..
        } => install(session, connection, machine, order, *push, *kill_server).await,
    }
}

/// Puts a machine in order, after its server was ended where it does not answer.
async fn install(
    session: &Session,
    connection: &mut Option<Incus>,
    machine: &Object,
    spec: &MachineSpec,
    push: bool,
    kill_server: bool,
) -> Result<(), String> {
    let failed = |why| incus_failure(&why).message;
    let incus = connected(session, connection).await.map_err(failed)?;
    let done = async {
        if kill_server {
            let first = incus.first_process(machine).await;
            server_process::end(first.map_err(failed)?).await;
        }
        provision::install(session, incus, machine, spec, push).await
    };
    let done = done.await;
    if done.is_err() {
        *connection = None;
    }
    done
}

/// The edits that make a device of a channel.
fn connected_edits(device: &str, new: &ConfigMap, role: Role) -> Vec<Edit> {
    let mut edits = vec![set(device, Some(new))];
    if role == Role::Consumer {
        // Until a call over it has succeeded, whoever makes it: this run or a later one.
        edits.push(mark_unverified(device, true));
    }
    edits
}

/// The lock that remembers a network while it is made or deleted; `None`: it is no network.
fn network_lock<'s>(session: &'s Session, object: &Object) -> Option<Busy<'s>> {
    matches!(object, Object::Network(_)).then(|| Lock::busy(session.lock.as_ref()))
}

/// Asks Incus for something, over the connection of a chain; of a network, more than once.
async fn ask(
    session: &Session,
    connection: &mut Option<Incus>,
    network: Option<Busy<'_>>,
    request: impl AsyncFn(&mut Incus) -> Result<(), IncusError>,
) -> Result<(), String> {
    let incus = connected(session, connection)
        .await
        .map_err(|why| incus_failure(&why).message)?;
    let mut done = request(incus).await;
    if let Some(busy) = network {
        for _ in 0..NETWORK_TRIES {
            let Err(IncusError::Refused { code: 500, .. }) = &done else {
                break;
            };
            tokio::time::sleep(NETWORK_PAUSE).await;
            done = request(incus).await;
        }
        busy.done();
    }
    if done.is_err() {
        // The next action of the chain must not read an answer of this one.
        *connection = None;
    }
    done.map_err(|why| incus_failure(&why).message)
}

/// Makes an object. The mark of a machine stays until Incus reports that it is complete; a later run recreates an unfinished
/// machine.
async fn create(incus: &mut Incus, object: &Object, body: &Value) -> Result<(), IncusError> {
    if let Object::Machine { .. } = object {
        incus.create(object, &unfinished(body)).await?;
        return incus.edit(object, &[finished()]).await;
    }
    incus.create(object, body).await
}

fn set(device: &str, keys: Option<&ConfigMap>) -> Edit {
    Edit::Device {
        name: device.to_owned(),
        old: None,
        new: keys.cloned(),
    }
}

async fn delete(
    incus: &mut Incus,
    object: &Object,
    running: bool,
    protected: bool,
) -> Result<(), IncusError> {
    if protected {
        let edit = Edit::Config {
            key: "security.protection.delete".to_owned(),
            old: None,
            new: None,
        };
        incus.edit(object, &[edit]).await?;
    }
    if running {
        incus.power(object, Power::Stop).await?;
    }
    incus.delete(object).await
}
