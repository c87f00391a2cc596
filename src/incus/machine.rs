//! Finds machines by name, starts and stops them, and checks whether a machine reported as running really is.
//!
//! After a failed start, Incus (6.0.4) reports the machine as running for half a second or more, until LXC has cleaned
//! up. Meanwhile, another start fails because the machine is "already running", and its state lists no process.

use std::time::{Duration, Instant};

use hyper::Method;
use serde::Deserialize;
use serde_json::json;

use super::connection::encoded;
use super::object::{Object, default_project};
use super::{Incus, IncusError, IncusResult};
use crate::name::closest;

/// Timeout in a request for a power state, in seconds; Incus ignores it if the stop is forced.
const STOP_SECONDS: u32 = 10;
/// Number of attempts to start a machine that does not stay up.
const START_TRIES: usize = 3;
/// Maximum time during which Incus may report a machine without a process as running.
const CLEANUP_MAX: Duration = Duration::from_secs(30);
/// Interval for checking such a machine.
const CLEANUP_INTERVAL: Duration = Duration::from_millis(100);
/// Part of Incus's message about starting a machine that is already running.
const RUNS_ALREADY: &str = "already running";
/// Part of Incus's message if it does not find the folder of a machine that it has just made (seen with 6.0.4 on a busy
/// computer); a moment later it does.
const NOT_FOUND: &str = "no such file or directory";
/// Pause before such a machine is started again.
const NOT_FOUND_PAUSE: Duration = Duration::from_millis(500);
/// Statuses of a running machine; `Ready` is reported by a program inside it.
pub(super) const RUNNING: [&str; 2] = ["Running", "Ready"];

/// The properties of a machine that matter for a connection.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct MachineRef {
    pub(crate) name: String,
    #[serde(default = "default_project")]
    pub(crate) project: String,
    /// `Running`, `Stopped`, `Frozen`, …
    #[serde(default)]
    pub(crate) status: String,
}

impl MachineRef {
    /// Returns whether programs can be started in the machine.
    pub(crate) fn runs(&self) -> bool {
        RUNNING.contains(&self.status.as_str())
    }
}

/// The reason why a name does not identify a machine.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FindError {
    #[error("no machine `{}`{}", name.escape_debug(), in_project(project.as_deref()))]
    NoMachine {
        name: String,
        /// The project to which the search was limited.
        project: Option<String>,
        /// The machine that was most likely meant.
        closest: Option<MachineRef>,
    },
    #[error("no Incus project `{}`", name.escape_debug())]
    NoProject { name: String, known: Vec<String> },
    #[error("`{}` is a machine in several projects: {}", name.escape_debug(), projects.join(", ").escape_debug())]
    Several {
        name: String,
        /// Sorted.
        projects: Vec<String>,
    },
}

fn in_project(project: Option<&str>) -> String {
    project.map_or_else(String::new, |project| {
        format!(" in project `{}`", project.escape_debug())
    })
}

/// Finds the only machine with this name, in all projects or in the given one.
pub(crate) fn find(
    machines: &[MachineRef],
    name: &str,
    project: Option<&str>,
) -> Result<MachineRef, FindError> {
    let named: Vec<&MachineRef> = machines
        .iter()
        .filter(|machine| machine.name == name)
        .filter(|machine| project.is_none_or(|project| machine.project == project))
        .collect();
    let name = name.to_owned();
    match named.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(FindError::NoMachine {
            project: project.map(str::to_owned),
            closest: nearest(machines, &name),
            name,
        }),
        several => {
            let mut projects: Vec<String> = several.iter().map(|m| m.project.clone()).collect();
            projects.sort_unstable();
            Err(FindError::Several { name, projects })
        }
    }
}

fn nearest(machines: &[MachineRef], name: &str) -> Option<MachineRef> {
    let near = closest(name, machines.iter().map(|machine| machine.name.as_str()))?;
    machines
        .iter()
        .find(|machine| machine.name == near)
        .cloned()
}

/// A change of a machine's power state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Power {
    Start,
    /// Resumes a paused machine.
    Resume,
    /// Stops a machine by force.
    Stop,
}

/// A machine's `/state`.
#[derive(Debug, Deserialize)]
struct MachineStatus<P> {
    /// Host PID of its first process; zero or negative if none exists.
    pid: P,
}

impl Incus {
    /// Reads the machines of all projects or of one.
    pub(crate) async fn machines(&mut self, project: Option<&str>) -> IncusResult<Vec<MachineRef>> {
        let scope = project.map_or_else(
            || "all-projects=true".to_owned(),
            |project| format!("project={}", encoded(project)),
        );
        self.get(&format!("/1.0/instances?recursion=1&{scope}"))
            .await
    }

    /// Reads the names of the projects visible to this user, sorted.
    pub(crate) async fn projects(&mut self) -> IncusResult<Vec<String>> {
        let urls: Vec<String> = self.get("/1.0/projects").await?;
        let names = urls.iter().filter_map(|url| url.rsplit('/').next());
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Returns the host PID of a running machine's first process.
    pub(crate) async fn first_process(&mut self, machine: &Object) -> IncusResult<u32> {
        let status: MachineStatus<u32> = self.get(&machine.path("/state")).await?;
        Ok(status.pid)
    }

    /// Starts, resumes or stops a machine; a start succeeds only if the machine is running afterwards.
    pub(crate) async fn power(&mut self, machine: &Object, power: Power) -> IncusResult<()> {
        if power != Power::Start {
            return self.set_power(machine, power).await;
        }
        for attempt in 1..=START_TRIES {
            let refused = match self.set_power(machine, power).await {
                Ok(()) => None,
                Err(why @ (IncusError::Refused { .. } | IncusError::Failed(_))) => Some(why),
                Err(why) => return Err(why),
            };
            // Checked even after a refusal: later readers must not see the machine as running if it is not.
            if self.runs(machine).await? {
                return Ok(());
            }
            let Some(why) = refused.filter(|why| !why.says(RUNS_ALREADY)) else {
                continue;
            };
            if attempt == START_TRIES || !why.says(NOT_FOUND) {
                return Err(why);
            }
            tokio::time::sleep(NOT_FOUND_PAUSE).await;
        }
        Err(IncusError::NotUp(START_TRIES))
    }

    async fn set_power(&mut self, machine: &Object, power: Power) -> IncusResult<()> {
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

    /// Returns whether a machine is running; waits while Incus reports it as running although it has no process.
    pub(crate) async fn runs(&mut self, machine: &Object) -> IncusResult<bool> {
        let began = Instant::now();
        while began.elapsed() < CLEANUP_MAX {
            let current: IncusResult<MachineRef> = self.get(&machine.path("")).await;
            match current {
                Ok(current) if current.runs() => {}
                Ok(_) | Err(IncusError::Refused { code: 404, .. }) => return Ok(false),
                Err(why) => return Err(why),
            }
            let path = machine.path("/state");
            match self.get::<MachineStatus<Option<i64>>>(&path).await {
                Ok(status) if status.pid.is_some_and(|pid| pid > 0) => return Ok(true),
                // Incus returns an error because the process does not exist.
                Ok(_) | Err(IncusError::Refused { .. } | IncusError::Failed(_)) => {}
                Err(why) => return Err(why),
            }
            tokio::time::sleep(CLEANUP_INTERVAL).await;
        }
        Err(IncusError::Slow(CLEANUP_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(project: &str, name: &str) -> MachineRef {
        MachineRef {
            name: name.to_owned(),
            project: project.to_owned(),
            status: "Running".to_owned(),
        }
    }

    #[test]
    fn a_name_is_one_machine_or_a_reason() {
        let all = [
            machine("work", "dev"),
            machine("play", "dev"),
            machine("vault", "vault-signer"),
        ];
        assert_eq!(find(&all, "vault-signer", None), Ok(all[2].clone()));
        assert_eq!(find(&all, "dev", Some("work")), Ok(all[0].clone()));
        assert_eq!(
            find(&all, "dev", None).unwrap_err().to_string(),
            "`dev` is a machine in several projects: play, work"
        );
        assert_eq!(
            find(&all, "vault-singer", None),
            Err(FindError::NoMachine {
                name: "vault-singer".to_owned(),
                project: None,
                closest: Some(all[2].clone()),
            })
        );
        assert_eq!(
            find(&all, "vault-signer", Some("work"))
                .unwrap_err()
                .to_string(),
            "no machine `vault-signer` in project `work`"
        );
    }

    #[test]
    fn unknown_fields_are_passed_over_and_missing_ones_have_a_meaning() {
        let machine: MachineRef = serde_json::from_str(r#"{"name":"a","later":[1]}"#).unwrap();
        assert_eq!(
            (machine.name.as_str(), machine.project.as_str()),
            ("a", "default")
        );
        assert!(!machine.runs());
    }
}
