//! Reads everything on Incus that a plan compares with `infra.yml`, in few requests.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::connection::encoded;
use super::object::{ConfigMap, Devices, Object};
use super::{Incus, IncusError};
use crate::machine_state::SETUP;

/// Maximum time that operations of an earlier, interrupted run are waited for.
const SETTLE_MAX: Duration = Duration::from_secs(120);

/// Everything on Incus that matters to anklume.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    /// All projects.
    pub(crate) projects: Vec<Project>,
    /// All networks of the default project, unmanaged interfaces of the host included.
    pub(crate) networks: Vec<IncusNetwork>,
    /// All access lists of the default project.
    pub(crate) acls: Vec<Acl>,
    /// All profiles of all projects.
    pub(crate) profiles: Vec<IncusProfile>,
    /// All machines of all projects.
    pub(crate) instances: Vec<Instance>,
    /// The custom volumes of all projects.
    pub(crate) volumes: Vec<Volume>,
    /// The storage pools.
    pub(crate) pools: Vec<String>,
    /// The image aliases of the default project.
    pub(crate) aliases: Vec<Alias>,
    /// The fingerprints of the images of the default project.
    pub(crate) images: Vec<String>,
}

/// The daemon.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct IncusServer {
    /// Names of what this version of the API can do.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) api_extensions: Vec<String>,
    /// `trusted` for whoever may use it.
    #[serde(default)]
    pub(crate) auth: String,
    /// More about it.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) environment: Environment,
}

/// More about the daemon.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Environment {
    /// Such as `6.0.4`.
    #[serde(default)]
    pub(crate) server_version: String,
    /// True if this daemon is one of several.
    #[serde(default)]
    pub(crate) server_clustered: bool,
}

/// A project.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Project {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) description: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) config: ConfigMap,
    /// Addresses of all that is in it.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) used_by: Vec<String>,
}

/// A network, or an interface of the host.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct IncusNetwork {
    pub(crate) name: String,
    /// `bridge` and others.
    #[serde(default, rename = "type")]
    pub(crate) kind: String,
    /// True if Incus made it.
    #[serde(default)]
    pub(crate) managed: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) config: ConfigMap,
    /// Addresses of all that uses it.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) used_by: Vec<String>,
}

impl IncusNetwork {
    /// The machines that use it: project and name.
    pub(crate) fn machines(&self) -> impl Iterator<Item = (&str, &str)> {
        let urls = self.used_by.iter().map(String::as_str);
        let machines = urls.filter(|url| place(url).starts_with("/1.0/instances/"));
        machines.map(|url| (project_of(url), last_part(url)))
    }
}

impl Project {
    /// Other objects in it, as Incus names them: `storage-pools/POOL/buckets/NAME`.
    pub(crate) fn others(&self) -> impl Iterator<Item = &str> {
        let places = self.used_by.iter().map(|url| place(url));
        let places = places.filter_map(|place| place.strip_prefix("/1.0/"));
        places.filter(|place| {
            let known = ["instances/", "profiles/"];
            !known.iter().any(|kind| place.starts_with(kind)) && !place.contains("/volumes/custom/")
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

/// A machine as it is on Incus.
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
    /// Its own devices and those of its profiles.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) expanded_devices: Devices,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) profiles: Vec<String>,
}

/// Identifies a machine on Incus.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct InstanceId {
    pub(crate) project: String,
    pub(crate) name: String,
}

impl InstanceId {
    /// The machine of that name in that project.
    pub(crate) fn new(project: &str, name: &str) -> Self {
        let (project, name) = (project.to_owned(), name.to_owned());
        Self { project, name }
    }
}

impl Instance {
    /// Returns which machine it is.
    pub(crate) fn id(&self) -> InstanceId {
        InstanceId::new(&self.project, &self.name)
    }

    /// Returns whether it runs.
    pub(crate) fn is_running(&self) -> bool {
        ["Running", "Ready"].contains(&self.status.as_str())
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

/// A name of an image.
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
struct Operations {
    #[serde(default, deserialize_with = "or_default")]
    running: Vec<Begun>,
    /// Those that failed in the last seconds.
    #[serde(default, deserialize_with = "or_default")]
    failure: Vec<Begun>,
}

/// An operation.
#[derive(Debug, Deserialize)]
struct Begun {
    id: String,
    #[serde(default)]
    class: String,
    #[serde(default, deserialize_with = "or_default")]
    resources: std::collections::BTreeMap<String, Vec<String>>,
    #[serde(default)]
    metadata: Option<Value>,
}

fn default_project() -> String {
    super::object::DEFAULT_PROJECT.to_owned()
}

/// Go writes an empty list or map as `null` where nobody filled it.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// An address of the API without its query.
fn place(url: &str) -> &str {
    url.split_once('?').map_or(url, |(place, _)| place)
}

/// The last part of an address of the API, without its query.
fn last_part(url: &str) -> &str {
    place(url).rsplit('/').next().unwrap_or_default()
}

impl Incus {
    /// The daemon itself.
    pub(crate) async fn server(&mut self) -> Result<IncusServer, IncusError> {
        self.get("/1.0").await
    }

    /// Everything.
    pub(crate) async fn state(&mut self) -> Result<State, IncusError> {
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
            images: self.get("/1.0/images").await?,
            volumes: Vec::new(),
            pools: pools.into_iter().map(|pool| pool.name).collect(),
        };
        state.images = state
            .images
            .iter()
            .map(|url| last_part(url).to_owned())
            .collect();
        for pool in state.pools.clone() {
            let path = format!(
                "/1.0/storage-pools/{}/volumes/custom?recursion=1&all-projects=true",
                encoded(&pool)
            );
            let volumes: Vec<Volume> = match self.get(&path).await {
                Ok(volumes) => volumes,
                // Somebody deleted it meanwhile.
                Err(IncusError::Refused { code: 404, .. }) => continue,
                Err(why) => return Err(why),
            };
            state
                .volumes
                .extend(volumes.into_iter().map(|volume| Volume {
                    pool: pool.clone(),
                    ..volume
                }));
        }
        Ok(state)
    }

    /// Waits for what an interrupted run left going on in the machines of these projects, and for the end of what has
    /// just failed there; whether there was anything.
    pub(crate) async fn settle(&mut self, ours: impl Fn(&str) -> bool) -> Result<bool, IncusError> {
        let operations: Operations = self
            .get("/1.0/operations?recursion=1&all-projects=true")
            .await?;
        let mut touched = Vec::new();
        for running in operations.running {
            let machines = running.machines(&ours);
            if !machines.is_empty() {
                let place = format!("/1.0/operations/{}", encoded(&running.id));
                match self.operation(&place, SETTLE_MAX).await {
                    // How it ended shows in what is there now.
                    Ok(())
                    | Err(
                        IncusError::Failed(_) | IncusError::Slow(_) | IncusError::Refused { .. },
                    ) => {}
                    Err(why) => return Err(why),
                }
            }
            touched.extend(machines);
        }
        touched.extend(
            operations
                .failure
                .iter()
                .flat_map(|one| one.machines(&ours)),
        );
        for machine in &touched {
            self.runs(machine).await?;
        }
        Ok(!touched.is_empty())
    }
}

impl Begun {
    /// Returns whether it is a program of a run that was killed, which still puts a machine in order.
    fn is_setup(&self) -> bool {
        let command = self.metadata.as_ref().and_then(|all| all.get("command"));
        let words = command.and_then(Value::as_array);
        words.is_some_and(|words| words.get(1).is_some_and(|word| word == SETUP))
    }

    /// The machines of these projects that it is about.
    fn machines(&self, ours: impl Fn(&str) -> bool) -> Vec<Object> {
        // Another program that runs in a machine (`websocket`) is nobody's unfinished work.
        let counts = self.class == "task" || self.is_setup();
        let urls = self.resources.get("instances");
        let urls = urls.filter(|_| counts).into_iter().flatten();
        urls.filter(|url| ours(project_of(url)))
            .map(|url| Object::machine(project_of(url), last_part(url)))
            .collect()
    }
}

/// The project in the address of a machine.
fn project_of(url: &str) -> &str {
    url.split_once("project=")
        .map_or(super::object::DEFAULT_PROJECT, |(_, project)| {
            project.split('&').next().unwrap_or_default()
        })
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
