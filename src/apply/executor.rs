//! Carries out actions: in order within a chain, several chains in parallel; no chain stops another.

use std::io;
use std::slice::from_ref;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use serde_json::Value;

use super::RunObserver;
use super::outcome::{StepError, StepOutcome, StepStatus};
use super::provision;
use crate::host::{bridges, folders, log_timer, proxies, proxy_logs};
use crate::incus::{ConfigMap, Edit, Incus, IncusError, Object, Power};
use crate::infra::PROTECTION;
use crate::plan::{Action, EXPIRY, Revocation, Role, finished, mark_unverified, unfinished};
use crate::session::interrupt::LEFT;
use crate::session::lock::Lock;
use crate::session::{AT_ONCE, Session};

/// Number of retries for a network: while Incus creates or deletes one, it inspects every interface on the host, and
/// fails if a stopping machine removes its own interface in the meantime.
const NETWORK_TRIES: usize = 3;
/// Number of times that a machine to be deleted is stopped.
const STOP_TRIES: usize = 3;
/// Two DHCP lease times; the first is Incus's default.
const EXPIRIES: [&str; 2] = ["1h", "2h"];
/// Pause between tries.
const NETWORK_PAUSE: Duration = Duration::from_millis(500);

/// Runs chains of actions in parallel; returns the outcomes of each chain, in the order of the chains.
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

/// Runs one chain: after a failure, skips the rest except revocations; after a request to stop, skips everything.
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
    let mut executor = Executor {
        session,
        connection: None,
    };
    let mut failed = false;
    for action in chain {
        let skipped = if failed && !action.stands_alone() {
            Some("an earlier step failed")
        } else {
            session.interrupt.is_asked().then_some(LEFT)
        };
        let status = if let Some(why) = skipped {
            StepStatus::Skipped(why.to_owned())
        } else {
            let step = observer.started(action);
            let done = executor.act(action).await;
            observer.finished(step);
            failed |= done.is_err();
            done.map_or_else(
                |why| StepStatus::Failed(why.to_string()),
                |()| StepStatus::Done,
            )
        };
        outcomes.push(observer.record(StepOutcome::new(action, status)));
    }
    outcomes
}

/// Runs the actions of a chain.
struct Executor<'s> {
    session: &'s Session,
    /// Opened on first use.
    connection: Option<Incus>,
}

impl Executor<'_> {
    async fn act(&mut self, action: &Action) -> Result<(), StepError> {
        match action {
            Action::RestoreBridge {
                network,
                is_gone,
                expiry,
                ports,
            } => {
                if *is_gone {
                    self.restore_bridge(network, expiry.as_ref()).await?;
                }
                for (_, port) in ports {
                    bridges::attach(port, network.name()).await?;
                }
            }
            Action::RemoveBridge(name) => bridges::remove(name).await?,
            Action::EndProxy(proxy) => proxies::end(from_ref(proxy)).await?,
            Action::Folder { path, mode, .. } => folders::make_folder(path, *mode)?,
            Action::Sweep { path } => folders::remove_socket(path)?,
            Action::Rotate(log) => proxy_logs::rotate(&log.path)?,
            Action::Schedule(schedule) => log_timer::set_up(schedule).await?,
            Action::Unschedule => log_timer::take_away().await?,
            Action::VerifyChannel(_) => return Err(StepError::TooEarly),
            Action::Unread { why, .. } => return Err(StepError::Unread(why.clone())),
            Action::Create { object, body, .. } => {
                self.change(object, async |incus| create(incus, object, body).await)
                    .await?;
            }
            Action::Edit { object, edits, .. } => {
                self.ask(async |incus| incus.edit(object, edits).await)
                    .await?;
            }
            Action::Start {
                machine,
                power,
                listens,
                ..
            } => {
                self.ask(async |incus| {
                    if *listens {
                        // A machine cannot start if the folder of one of its devices is missing.
                        provision::listen_folder(incus, machine).await?;
                    }
                    incus.power(machine, *power).await
                })
                .await?;
            }
            Action::Connect {
                machine,
                device,
                new,
                role,
                recreate,
                ..
            } => {
                let edits = connect_edits(device, new, *role);
                self.ask(async |incus| {
                    if *role == Role::Consumer {
                        provision::listen_folder(incus, machine).await?;
                    }
                    if recreate.is_some() {
                        incus.edit(machine, &[set(device, None)]).await?;
                    }
                    incus.edit(machine, &edits).await
                })
                .await?;
            }
            Action::Revoke(revocation) => self.revoke(revocation).await?,
            Action::Delete {
                object,
                running,
                protected,
                sockets,
                ..
            } => {
                self.delete(object, *running, *protected).await?;
                for path in sockets {
                    folders::remove_socket(path)?;
                }
            }
            Action::Install {
                machine,
                spec,
                push,
                kill_server,
                ..
            } => {
                let session = self.session;
                self.ask(async |incus| {
                    provision::install(session, incus, machine, spec, *push, *kill_server).await
                })
                .await?;
            }
        }
        Ok(())
    }

    /// Makes Incus set up a network's bridge.
    async fn restore_bridge(
        &mut self,
        network: &Object,
        expiry: Option<&String>,
    ) -> Result<(), StepError> {
        // Incus does nothing unless a key changes, so this one is changed and set back.
        let [first, second] = EXPIRIES;
        let other = if expiry.is_some_and(|it| it == first) {
            second
        } else {
            first
        };
        for value in [Some(other.to_owned()), expiry.cloned()] {
            let edit = Edit::Config {
                key: EXPIRY.to_owned(),
                old: None,
                new: value,
            };
            self.change(network, async |incus| {
                incus.edit(network, from_ref(&edit)).await
            })
            .await?;
        }
        Ok(())
    }

    /// Removes a channel's device and its sockets, and ends its process if Incus has lost track of it.
    async fn revoke(&mut self, revocation: &Revocation) -> Result<(), StepError> {
        let Revocation {
            machine, device, ..
        } = revocation;
        if let Some(path) = &revocation.host {
            folders::remove_socket(path)?;
        }
        let edits = [set(device, None), mark_unverified(device, false)];
        self.ask(async |incus| {
            // Deletes the files first: as long as the device exists, the next run can still find them.
            if let Some(path) = &revocation.inside {
                provision::delete_socket(incus, machine, path).await?;
            }
            let first = incus.first_process(machine).await;
            incus.edit(machine, &edits).await?;
            if let (Ok(first), Some(pair)) = (first, &revocation.pair) {
                let [listen, connect] = &pair.addresses;
                let unlisted = || io::Error::other("the processes on the host cannot be listed");
                let mut left = proxies::list().ok_or_else(unlisted)?;
                left.retain(|one| one.addresses() == [listen, connect] && one.is_in(first));
                proxies::end(&left).await?;
            }
            Ok::<(), StepError>(())
        })
        .await
    }

    async fn delete(
        &mut self,
        object: &Object,
        running: bool,
        protected: bool,
    ) -> Result<(), StepError> {
        let unprotect = Edit::Config {
            key: PROTECTION.to_owned(),
            old: None,
            new: None,
        };
        if protected {
            self.ask(async |incus| incus.edit(object, from_ref(&unprotect)).await)
                .await?;
        }
        if running {
            self.ask(async |incus| stop(incus, object).await).await?;
        }
        self.change(object, async |incus| incus.delete(object).await)
            .await
    }

    /// Creates or deletes an object; for a network, marks the lock busy and retries.
    async fn change(
        &mut self,
        object: &Object,
        request: impl AsyncFn(&mut Incus) -> Result<(), IncusError>,
    ) -> Result<(), StepError> {
        if !matches!(object, Object::Network(_)) {
            return self.ask(request).await;
        }
        let busy = Lock::busy(self.session.lock.as_ref());
        self.connected().await?;
        let done = self.ask(async |incus| {
            for _ in 0..NETWORK_TRIES {
                match request(incus).await {
                    Err(IncusError::Refused { code: 500, .. }) => {}
                    done => return done,
                }
                tokio::time::sleep(NETWORK_PAUSE).await;
            }
            request(incus).await
        });
        let done = done.await;
        busy.done();
        done
    }

    /// Sends requests over the chain's connection.
    async fn ask<E>(
        &mut self,
        request: impl AsyncFn(&mut Incus) -> Result<(), E>,
    ) -> Result<(), StepError>
    where
        StepError: From<E>,
    {
        let done = request(self.connected().await?).await;
        if done.is_err() {
            // The next action of the chain must not read an answer to this one.
            self.connection = None;
        }
        Ok(done?)
    }

    async fn connected(&mut self) -> Result<&mut Incus, IncusError> {
        if self.connection.is_none() {
            self.connection = Some(self.session.incus().await?);
        }
        let connection = self.connection.as_mut();
        connection.ok_or_else(|| IncusError::Connection(io::ErrorKind::NotConnected.into()))
    }
}

/// Creates an object. A new machine stays marked until Incus reports that it is complete; a later run recreates an
/// unfinished machine.
async fn create(incus: &mut Incus, object: &Object, body: &Value) -> Result<(), IncusError> {
    if let Object::Machine { .. } = object {
        incus.create(object, &unfinished(body)).await?;
        return incus.edit(object, &[finished()]).await;
    }
    incus.create(object, body).await
}

/// Returns the edits that create a channel's device.
fn connect_edits(device: &str, keys: &ConfigMap, role: Role) -> Vec<Edit> {
    let mut edits = vec![set(device, Some(keys))];
    if role == Role::Consumer {
        // The mark stays until a call over the channel succeeds, in this run or a later one.
        edits.push(mark_unverified(device, true));
    }
    edits
}

fn set(device: &str, keys: Option<&ConfigMap>) -> Edit {
    Edit::Device {
        name: device.to_owned(),
        old: None,
        new: keys.cloned(),
    }
}

/// Stops a running machine, and ends the processes of its devices that Incus has lost track of: they keep its disk in use.
async fn stop(incus: &mut Incus, machine: &Object) -> Result<(), StepError> {
    let first = incus.first_process(machine).await;
    let mut stopped = incus.power(machine, Power::Stop).await;
    // Incus gives up early when it stops many machines at once.
    for _ in 1..STOP_TRIES {
        if stopped.is_ok() || !incus.runs(machine).await? {
            break;
        }
        stopped = incus.power(machine, Power::Stop).await;
    }
    if stopped.is_err() && incus.runs(machine).await? {
        stopped?;
    }
    if let Ok(first) = first {
        let mut left = proxies::list().unwrap_or_default();
        left.retain(|one| one.is_in(first));
        proxies::end(&left).await?;
    }
    Ok(())
}
