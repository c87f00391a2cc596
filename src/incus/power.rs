//! Starting and stopping machines, and whether one that Incus calls running runs.
//!
//! When a start has failed, Incus (6.0.4) goes on to call the machine running, for half a second or more: until LXC has
//! cleared away what it had begun. Whoever starts it meanwhile is told that it runs already, and its state has no process.

use std::time::{Duration, Instant};

use hyper::Method;
use serde::Deserialize;
use serde_json::json;

use super::object::Object;
use super::{Incus, IncusError, MachineRef};

/// Maximum time that a machine may take to stop before it is killed, in seconds.
const STOP_SECONDS: u32 = 10;
/// Number of starts for a machine that does not stay up.
const START_TRIES: usize = 3;
/// Maximum time that Incus may call a machine running that does not run.
const CLEARED_MAX: Duration = Duration::from_secs(30);
/// Interval for checking such a machine.
const CLEARED_LOOK: Duration = Duration::from_millis(100);
/// Incus's message on starting a machine that runs already.
const RUNS_ALREADY: &str = "already running";

/// The specification sent to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Power {
    /// Start it.
    Start,
    /// Let a paused one go on.
    Resume,
    /// Stop it, at once where it does not end by itself.
    Stop,
}

/// A machine at this moment.
#[derive(Debug, Deserialize)]
struct Now {
    /// Its first process, as the host counts; 0 where there is none.
    #[serde(default)]
    pid: i64,
}

impl Incus {
    /// Starts, resumes or stops a machine; one that was started runs.
    pub(crate) async fn power(&mut self, machine: &Object, power: Power) -> Result<(), IncusError> {
        if power != Power::Start {
            return self.tell(machine, power).await;
        }
        for _ in 0..START_TRIES {
            let refused = match self.tell(machine, power).await {
                Ok(()) => None,
                Err(why @ (IncusError::Refused { .. } | IncusError::Failed(_))) => Some(why),
                Err(why) => return Err(why),
            };
            // After a refusal too: whoever reads Incus next must not be told that the machine runs.
            if self.runs(machine).await? {
                return Ok(());
            }
            if let Some(why) = refused.filter(|why| !runs_already(why)) {
                return Err(why);
            }
        }
        Err(IncusError::NotUp(START_TRIES))
    }

    async fn tell(&mut self, machine: &Object, power: Power) -> Result<(), IncusError> {
        let action = match power {
            Power::Start => "start",
            Power::Resume => "unfreeze",
            Power::Stop => "stop",
        };
        let body = json!({
            "action": action,
            "force": power == Power::Stop,
            "timeout": STOP_SECONDS,
        });
        self.write(Method::PUT, &machine.path("/state"), Some(&body), None)
            .await
    }

    /// Returns whether a machine runs; where Incus calls it running and it has no process, the end of that is waited for.
    pub(super) async fn runs(&mut self, machine: &Object) -> Result<bool, IncusError> {
        let began = Instant::now();
        while began.elapsed() < CLEARED_MAX {
            let called: Result<MachineRef, IncusError> = self.get(&machine.path("")).await;
            match called {
                Ok(called) if called.runs() => {}
                Ok(_) | Err(IncusError::Refused { code: 404, .. }) => return Ok(false),
                Err(why) => return Err(why),
            }
            let now: Result<Now, IncusError> = self.get(&machine.path("/state")).await;
            match now {
                Ok(now) if now.pid > 0 => return Ok(true),
                // Incus stumbles over the process that is not there.
                Ok(_) | Err(IncusError::Refused { .. } | IncusError::Failed(_)) => {}
                Err(why) => return Err(why),
            }
            tokio::time::sleep(CLEARED_LOOK).await;
        }
        Err(IncusError::Slow(CLEARED_MAX))
    }
}

fn runs_already(why: &IncusError) -> bool {
    match why {
        IncusError::Refused { message, .. } | IncusError::Failed(message) => {
            message.raw().contains(RUNS_ALREADY)
        }
        _ => false,
    }
}
