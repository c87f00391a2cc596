//! Reads everything in Incus that a plan compares with `infra.yml`, in few requests.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::connection::{encoded, unless_missing};
use super::machine::RUNNING;
use super::object::{ConfigMap, DEFAULT_PROJECT, Devices, Object, default_project};
use super::{Incus, IncusError, IncusResult};
use crate::machine_state::SETUP;

/// Maximum time to wait for an operation that an earlier, interrupted run left.
const SETTLE_MAX: Duration = Duration::from_secs(120);

/// Everything in Incus that matters to anklume: the objects of all projects, unless a field names a single project.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) projects: Vec<Project>,
    /// Networks of the default project, and unmanaged interfaces of the host.
    pub(crate) networks: Vec<IncusNetwork>,
    /// Network access lists of the default project.
    pub(crate) acls: Vec<Acl>,
    pub(crate) profiles: Vec<IncusProfile>,
    pub(crate) instances: Vec<Instance>,
    /// Custom volumes.
    pub(crate) volumes: Vec<Volume>,
    /// Storage pool names.
    pub(crate) pools: Vec<String>,
    /// Image aliases in the default project.
    pub(crate) aliases: Vec<Alias>,
    /// Fingerprints of the images in the default project.
    pub(crate) images: Vec<String>,
}

/// The daemon's own properties.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct IncusServer {
    /// API extensions that this version supports.
    #[serde(deserialize_with = "or_default")]
    pub(crate) api_extensions: Vec<String>,
    /// `trusted` for a user who may use the daemon.
    pub(crate) auth: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) environment: Environment,
}

/// The version and role of the daemon.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Environment {
    /// Such as `6.0.4`.
    pub(crate) server_version: String,
    /// True if this daemon is a member of a cluster.
    pub(crate) server_clustered: bool,
    /// Number of its process, as the daemon itself sees it.
    #[serde(rename = "server_pid")]
    pub(crate) pid: u32,
}

/// A project.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Project {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) description: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) config: ConfigMap,
    /// URLs of the objects in the project.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) used_by: Vec<String>,
}

/// A network, or an interface of the host.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct IncusNetwork {
    pub(crate) name: String,
    /// `bridge` or another type.
    #[serde(default, rename = "type")]
    pub(crate) kind: String,
    /// True if Incus manages it.
    #[serde(default)]
    pub(crate) managed: bool,
    /// `Created`, or `Pending` or `Errored` if its creation did not finish.
    #[serde(default)]
    pub(crate) status: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) config: ConfigMap,
    /// URLs of the objects that use it.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) used_by: Vec<String>,
}

impl IncusNetwork {
    /// Returns the machines that use the network, as (project, name).
    pub(crate) fn machines(&self) -> impl Iterator<Item = (&str, &str)> {
        let urls = self.used_by.iter().map(String::as_str);
        let machines = urls.filter(|url| path_of(url).starts_with("/1.0/instances/"));
        machines.map(|url| (project_of(url), last_part(url)))
    }
}

impl Project {
    /// Returns the objects in it that [`State`] lacks, by their Incus path, such as `storage-pools/POOL/buckets/NAME`.
    pub(crate) fn others(&self) -> impl Iterator<Item = &str> {
        let paths = self.used_by.iter().map(|url| path_of(url));
        let paths = paths.filter_map(|path| path.strip_prefix("/1.0/"));
        paths.filter(|path| {
            let known = ["instances/", "profiles/"];
            !known.iter().any(|kind| path.starts_with(kind)) && !path.contains("/volumes/custom/")
        })
    }
}

/// A network access list.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Acl {
    pub(crate) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) config: ConfigMap,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) ingress: Vec<ConfigMap>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) egress: Vec<ConfigMap>,
}

/// A profile.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct IncusProfile {
    pub(crate) name: String,
    #[serde(default = "default_project")]
    pub(crate) project: String,
    #[serde(default)]
    pub(crate) description: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) config: ConfigMap,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) devices: Devices,
}

/// A machine as it exists in Incus.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Instance {
    pub(crate) name: String,
    #[serde(default = "default_project")]
    pub(crate) project: String,
    /// `container` or `virtual-machine`.
    #[serde(default, rename = "type")]
    pub(crate) kind: String,
    /// `Running`, `Stopped`, `Frozen`, …
    #[serde(default)]
    pub(crate) status: String,
    #[serde(default)]
    pub(crate) description: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) config: ConfigMap,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) devices: Devices,
    /// Its own configuration and that of its profiles.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) expanded_config: ConfigMap,
    /// Its own devices and those of its profiles.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) expanded_devices: Devices,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) profiles: Vec<String>,
}

/// Identifies a machine in Incus.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct InstanceId {
    pub(crate) project: String,
    pub(crate) name: String,
}

impl InstanceId {
    pub(crate) fn new(project: &str, name: &str) -> Self {
        let (project, name) = (project.to_owned(), name.to_owned());
        Self { project, name }
    }
}

impl Instance {
    pub(crate) fn id(&self) -> InstanceId {
        InstanceId::new(&self.project, &self.name)
    }

    /// Returns whether the machine is running.
    pub(crate) fn is_running(&self) -> bool {
        RUNNING.contains(&self.status.as_str())
    }
}

/// A custom storage volume.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Volume {
    pub(crate) name: String,
    #[serde(default = "default_project")]
    pub(crate) project: String,
    #[serde(default)]
    pub(crate) pool: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) config: ConfigMap,
}

/// A name for an image.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Alias {
    pub(crate) name: String,
    /// `container` or `virtual-machine`.
    #[serde(default, rename = "type")]
    pub(crate) kind: String,
}

#[derive(Debug, Deserialize)]
struct StoragePool {
    name: String,
}

/// Operations, by state.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Operations {
    #[serde(deserialize_with = "or_default")]
    running: Vec<Begun>,
    /// Operations that failed within the last few seconds.
    #[serde(deserialize_with = "or_default")]
    failure: Vec<Begun>,
}

/// An operation.
#[derive(Debug, Deserialize)]
struct Begun {
    id: String,
    #[serde(default)]
    class: String,
    #[serde(default, deserialize_with = "or_default")]
    resources: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    metadata: Value,
}

/// Reads `null` as the default, because Go serializes an unset list or map as `null`.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Returns the path of an API URL, without the query.
fn path_of(url: &str) -> &str {
    url.split_once('?').map_or(url, |(path, _)| path)
}

/// Returns the last segment of an API URL's path.
fn last_part(url: &str) -> &str {
    path_of(url).rsplit('/').next().unwrap_or_default()
}

/// Returns the project in a machine's URL.
fn project_of(url: &str) -> &str {
    url.split_once("project=")
        .map_or(DEFAULT_PROJECT, |(_, project)| {
            project.split('&').next().unwrap_or_default()
        })
}

impl Incus {
    /// Reads the daemon's own properties.
    pub(crate) async fn server(&mut self) -> IncusResult<IncusServer> {
        self.get("/1.0").await
    }

    /// Reads the complete state.
    pub(crate) async fn state(&mut self) -> IncusResult<State> {
        let pools: Vec<StoragePool> = self.get("/1.0/storage-pools?recursion=1").await?;
        let mut state = State {
            projects: self.get("/1.0/projects?recursion=1").await?,
            networks: self.get("/1.0/networks?recursion=1").await?,
            acls: self.get("/1.0/network-acls?recursion=1").await?,
            profiles: self
                .get("/1.0/profiles?recursion=1&all-projects=true")
                .await?,
            instances: self
                .get("/1.0/instances?recursion=1&all-projects=true")
                .await?,
            aliases: self.get("/1.0/images/aliases?recursion=1").await?,
            ..State::default()
        };
        let images: Vec<String> = self.get("/1.0/images").await?;
        state.images = images.iter().map(|url| last_part(url).to_owned()).collect();
        for StoragePool { name } in pools {
            let path = format!(
                "/1.0/storage-pools/{}/volumes/custom?recursion=1&all-projects=true",
                encoded(&name)
            );
            // A pool that has meanwhile been deleted has no volumes.
            let volumes: Option<Vec<Volume>> = unless_missing(self.get(&path).await)?;
            let volumes = volumes.into_iter().flatten();
            state.volumes.extend(volumes.map(|volume| Volume {
                pool: name.clone(),
                ..volume
            }));
            state.pools.push(name);
        }
        Ok(state)
    }

    /// Waits for operations that an interrupted run left in the machines of these projects, and for the cleanup
    /// after operations that have just failed there; returns whether there were any.
    pub(crate) async fn settle(&mut self, ours: impl Fn(&str) -> bool) -> IncusResult<bool> {
        let operations: Operations = self
            .get("/1.0/operations?recursion=1&all-projects=true")
            .await?;
        let mut touched = Vec::new();
        for running in operations.running {
            let machines = running.machines(&ours);
            if !machines.is_empty() {
                let path = format!("/1.0/operations/{}", encoded(&running.id));
                match self.wait_for(&path, SETTLE_MAX).await {
                    // The state that is read afterwards shows how it ended.
                    Ok(())
                    | Err(
                        IncusError::Failed(_) | IncusError::Slow(_) | IncusError::Refused { .. },
                    ) => {}
                    Err(why) => return Err(why),
                }
            }
            touched.extend(machines);
        }
        let failed = operations.failure.iter();
        touched.extend(failed.flat_map(|one| one.machines(&ours)));
        for machine in &touched {
            self.runs(machine).await?;
        }
        Ok(!touched.is_empty())
    }
}

impl Begun {
    /// Returns the machines in these projects that the operation concerns.
    fn machines(&self, ours: impl Fn(&str) -> bool) -> Vec<Object> {
        // Among the programs running in a machine (`websocket`), only this program's own setup, left by a run that was
        // killed, is unfinished work.
        let argument = self.metadata.pointer("/command/1");
        let is_setup = argument.is_some_and(|argument| argument == SETUP);
        let counts = self.class == "task" || is_setup;
        let urls = self.resources.get("instances");
        let urls = urls.filter(|_| counts).into_iter().flatten();
        urls.filter(|url| ours(project_of(url)))
            .map(|url| Object::machine(project_of(url), last_part(url)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_missing_fields_are_empty() {
        let text = r#"{"name":"a","config":null,"devices":null,"later":1}"#;
        let instance: Instance = serde_json::from_str(text).unwrap();
        assert_eq!(
            (instance.project.as_str(), instance.devices.len()),
            ("default", 0)
        );
    }

    #[test]
    fn an_operation_is_about_the_machines_of_our_projects() {
        let text = r#"{
            "failure": [
                {"id": "1", "class": "task", "resources": {"instances": ["/1.0/instances/dev?project=work", "/1.0/instances/b"]}},
                {"id": "2", "class": "websocket", "resources": {"instances": ["/1.0/instances/dev?project=work"]}, "metadata": {"command": ["/bin/sh"]}},
                {"id": "3", "class": "task", "resources": null}
            ],
            "success": [{"id": "4"}]
        }"#;
        let operations: Operations = serde_json::from_str(text).unwrap();
        let ours = |project: &str| project == "work";
        let touched: Vec<_> = operations
            .failure
            .iter()
            .map(|one| one.machines(ours))
            .collect();
        let dev = Object::machine("work", "dev");
        assert_eq!(touched, [vec![dev], vec![], vec![]]);
        assert!(operations.running.is_empty());
    }

    #[test]
    fn addresses_are_taken_apart() {
        assert_eq!(last_part("/1.0/images/abc?project=x"), "abc");
        assert_eq!(project_of("/1.0/instances/a?project=vault"), "vault");
        assert_eq!(project_of("/1.0/instances/a"), "default");
        let network = IncusNetwork {
            used_by: [
                "/1.0/instances/a?project=vault&x=y",
                "/1.0/instances/b",
                "/1.0/profiles/instances?project=vault",
            ]
            .map(str::to_owned)
            .to_vec(),
            ..IncusNetwork::default()
        };
        let machines: Vec<_> = network.machines().collect();
        assert_eq!(machines, [("vault", "a"), ("default", "b")]);
    }

    #[test]
    fn what_a_project_holds_besides_what_is_read_is_known_by_its_address() {
        let project = Project {
            used_by: [
                "/1.0/instances/a?project=vault",
                "/1.0/profiles/default?project=vault",
                "/1.0/storage-pools/default/volumes/custom/v?project=vault",
                "/1.0/storage-pools/default/buckets/b?project=vault",
            ]
            .map(str::to_owned)
            .to_vec(),
            ..Project::default()
        };
        let others: Vec<_> = project.others().collect();
        assert_eq!(others, ["storage-pools/default/buckets/b"]);
    }
}
