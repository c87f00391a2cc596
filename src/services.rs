//! Holds the services of one machine as its server sees them: derived from an `Infra`, or read from `services.json`.
//!
//! Both have the same type, so the machine enforces exactly the policy that the host checked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::catalogue::{Definition, OwnTool, UpstreamServer};
use crate::condition::Conditions;
use crate::digest::sha256;
use crate::infra::{Confinement, Machine};
use crate::limits::{
    CALL_TIME, CHILDREN, CONNECTIONS, IDLE, IN_FLIGHT, Limits, MEMORY, MEMORY_ALL, OVERTIME,
};
use crate::name::{MachineName, OwnToolName, ServerName, ServiceName, ServiceTool, ToolName};

/// The services of one machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Services {
    /// The provider.
    pub machine: MachineName,
    /// In the order of the file; names are unique.
    pub services: Vec<Service>,
    /// True if calls run even while they cannot be logged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_unlogged: bool,
    /// Server memory that all callers together may use, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Minimum confinement of its server.
    #[serde(default, skip_serializing_if = "Confinement::is_default")]
    pub confinement: Confinement,
    /// The machine's own tools, as far as services use them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tools: BTreeMap<OwnToolName, OwnTool>,
    /// The MCP servers that the machine runs, as far as services use them, with the pinned definitions of these tools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub servers: BTreeMap<ServerName, UpstreamServer>,
    /// Maximum number of the machine's own programs that run at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub children: Option<u32>,
}

/// One service of a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The name by which consumers call it.
    pub name: ServiceName,
    /// Its tool.
    pub tool: ServiceTool,
    /// Its consumers.
    pub consumers: Vec<MachineName>,
    /// Fixed arguments, which a caller cannot change.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub with: Map<String, Value>,
    /// What a caller may send, and until when.
    #[serde(default, skip_serializing_if = "Conditions::is_none")]
    pub conditions: Conditions,
    /// Limits for its callers.
    #[serde(default, skip_serializing_if = "Limits::is_default")]
    pub limits: Limits,
    /// Location of its declaration (`infra.yml:12`); unknown to a server.
    #[serde(skip)]
    pub declared_at: Option<String>,
}

/// The consumers of a service, and a digest of everything else that it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceOutline {
    /// The name by which consumers call it.
    pub name: ServiceName,
    /// Its consumers.
    pub consumers: Vec<MachineName>,
    /// SHA-256 of its tool, fixed arguments, conditions and limits, in hexadecimal.
    pub terms: String,
}

impl Service {
    /// Returns whether this machine is one of its consumers, and it has not expired.
    #[must_use]
    pub fn serves_at(&self, machine: &MachineName, now: Timestamp) -> bool {
        self.serves(machine) && !self.conditions.have_expired(now)
    }

    /// Returns whether this machine is one of its consumers.
    #[must_use]
    pub fn serves(&self, machine: &MachineName) -> bool {
        self.consumers.contains(machine)
    }
}

impl Services {
    /// Returns the services that a machine in an `infra.yml` declares.
    #[must_use]
    pub fn of(machine: &Machine) -> Self {
        let services = machine
            .services
            .iter()
            .map(|declared| Service {
                name: declared.name.clone(),
                tool: declared.tool.clone(),
                consumers: declared.consumers.clone(),
                with: declared.with.clone(),
                conditions: declared.conditions.clone(),
                limits: declared.limits,
                declared_at: Some(declared.place.short()),
            })
            .collect();
        Self {
            machine: machine.name.clone(),
            services,
            allow_unlogged: machine.mcp.allow_unlogged,
            memory: machine.mcp.memory,
            confinement: machine.mcp.confinement,
            tools: machine.mcp.tools.clone(),
            servers: machine.mcp.servers.clone(),
            children: machine.mcp.children,
        }
        .with_used_tools()
    }

    /// Drops the machine's own tools and servers that no service uses, and the other tools of the servers.
    fn with_used_tools(mut self) -> Self {
        let used: BTreeSet<&ServiceTool> = self.services.iter().map(|one| &one.tool).collect();
        self.tools
            .retain(|name, _| used.contains(&ServiceTool::Own(name.clone())));
        self.servers.retain(|name, server| {
            server.tools.retain(|tool, _| {
                used.contains(&ServiceTool::Upstream(name.clone(), tool.clone()))
            });
            used.iter()
                .any(|tool| matches!(tool, ServiceTool::Upstream(server, _) if server == name))
        });
        self
    }

    /// Returns the definition of a service's tool; `None` if it is none of the machine's tools.
    #[must_use]
    pub fn definition(&self, tool: &ServiceTool) -> Option<Definition<'_>> {
        match tool {
            ServiceTool::BuiltIn(tool) => Some(Definition::BuiltIn(*tool)),
            ServiceTool::Own(name) => self.tools.get(name).map(Definition::Own),
            ServiceTool::Upstream(server, tool) => {
                let tools = self.servers.get(server).map(|server| &server.tools);
                tools
                    .and_then(|tools| tools.get(tool))
                    .map(Definition::Upstream)
            }
        }
    }

    /// Returns whether a service uses one of the machine's own programs.
    #[must_use]
    pub fn have_programs(&self) -> bool {
        !self.tools.is_empty() || !self.servers.is_empty()
    }

    /// Returns the maximum number of the machine's own programs that run at the same time.
    #[must_use]
    pub fn children_max(&self) -> u32 {
        self.children.unwrap_or(CHILDREN)
    }

    /// Returns the maximum duration of a call to a service; the default for an unknown one.
    #[must_use]
    pub fn call_time(&self, name: &str) -> Duration {
        let Some(service) = self.service(name) else {
            return CALL_TIME;
        };
        let own = match self.definition(&service.tool) {
            Some(Definition::Own(tool)) => {
                Some(Duration::from_secs(tool.timeout.into()) + OVERTIME)
            }
            Some(Definition::BuiltIn(_) | Definition::Upstream(_)) | None => None,
        };
        let set = service.limits.call_seconds;
        let set = set.map(|seconds| Duration::from_secs(seconds.into()));
        set.or(own).unwrap_or(CALL_TIME)
    }

    /// Outlines each service.
    #[must_use]
    pub fn outline(&self) -> Vec<ServiceOutline> {
        let outline = |service: &Service| {
            let terms = Service {
                consumers: Vec::new(),
                ..service.clone()
            };
            ServiceOutline {
                name: service.name.clone(),
                consumers: service.consumers.clone(),
                // Serialization of these types cannot fail.
                terms: sha256(serde_json::to_vec(&terms).unwrap_or_default()),
            }
        };
        self.services.iter().map(outline).collect()
    }

    /// Returns the service with that name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services
            .iter()
            .find(|service| service.name.as_str() == name)
    }

    /// Returns the server memory that a consumer may use, in bytes: the maximum over its services. It is set when a
    /// consumer's process starts, so that expired services count until they are removed.
    #[must_use]
    pub fn memory_of(&self, consumer: &MachineName) -> u64 {
        let max = self.max_of(consumer, |limits| limits.memory.unwrap_or(MEMORY));
        max.unwrap_or(MEMORY).min(self.memory_of_all())
    }

    /// Returns the number of connections that a consumer may have: the maximum over the services that set it
    /// and have not expired.
    #[must_use]
    pub fn connections_of(&self, consumer: &MachineName, now: Timestamp) -> u32 {
        let services = self.services.iter();
        let theirs = services.filter(|service| service.serves_at(consumer, now));
        let set = theirs
            .filter_map(|service| service.limits.connections)
            .max();
        set.unwrap_or(CONNECTIONS)
    }

    /// Returns the maximum size of a consumer's messages, in bytes: the maximum over its services that have not expired,
    /// `default` if unset.
    #[must_use]
    pub fn message_bytes_of(&self, consumer: &MachineName, default: u64, now: Timestamp) -> u64 {
        let services = self.services.iter();
        let theirs = services.filter(|service| service.serves_at(consumer, now));
        let max = theirs
            .map(|service| service.limits.message_bytes.unwrap_or(default))
            .max();
        max.unwrap_or(default)
    }

    /// Returns the idle timeout for a consumer's transfers: the maximum over its services.
    #[must_use]
    pub fn idle_of(&self, consumer: &MachineName) -> Duration {
        let seconds = |limits: &Limits| Some(Duration::from_secs(limits.idle_seconds?.into()));
        self.max_of(consumer, |limits| seconds(limits).unwrap_or(IDLE))
            .unwrap_or(IDLE)
    }

    /// Returns the maximum number of in-flight calls to a tool from a consumer: the maximum over its services.
    #[must_use]
    pub fn in_flight_of(&self, consumer: &MachineName, tool: ToolName) -> u32 {
        let services = self.services.iter();
        let theirs = services.filter(|service| service.serves(consumer) && service.tool.is(tool));
        let max = theirs
            .map(|service| service.limits.in_flight.unwrap_or(IN_FLIGHT))
            .max();
        max.unwrap_or(IN_FLIGHT)
    }

    /// Returns the maximum of a value over a consumer's services.
    fn max_of<T: Ord>(&self, consumer: &MachineName, value: impl Fn(&Limits) -> T) -> Option<T> {
        let services = self.services.iter();
        let theirs = services.filter(|service| service.serves(consumer));
        theirs.map(|service| value(&service.limits)).max()
    }

    /// Returns the server memory that all callers together may use, in bytes.
    #[must_use]
    pub fn memory_of_all(&self) -> u64 {
        self.memory.unwrap_or(MEMORY_ALL)
    }

    /// Returns the services of one consumer, without its other consumers.
    #[must_use]
    pub fn of_consumer(&self, consumer: &MachineName) -> Self {
        let services = self.services.iter();
        let theirs = services.filter(|service| service.serves(consumer));
        Self {
            machine: self.machine.clone(),
            services: theirs
                .map(|service| Service {
                    consumers: vec![consumer.clone()],
                    ..service.clone()
                })
                .collect(),
            allow_unlogged: self.allow_unlogged,
            memory: self.memory,
            confinement: self.confinement,
            tools: self.tools.clone(),
            servers: self.servers.clone(),
            children: self.children,
        }
        .with_used_tools()
    }

    /// Returns the consumers of all services.
    #[must_use]
    pub fn consumers(&self) -> BTreeSet<&MachineName> {
        self.services
            .iter()
            .flat_map(|service| &service.consumers)
            .collect()
    }

    /// Returns a policy without services, for a machine without a services file.
    #[must_use]
    pub const fn none(machine: MachineName) -> Self {
        Self {
            machine,
            services: Vec::new(),
            allow_unlogged: false,
            memory: None,
            confinement: Confinement::Available,
            tools: BTreeMap::new(),
            servers: BTreeMap::new(),
            children: None,
        }
    }

    /// Returns the SHA-256 of the machine and its services, in hexadecimal; servers report it and `apply` compares it.
    #[must_use]
    pub fn digest(&self) -> String {
        // Serialization of these types cannot fail.
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        sha256(bytes)
    }

    /// Returns the content of the services file.
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        let file = ServicesFile {
            digest: self.digest(),
            policy: self.clone(),
        };
        let mut bytes = serde_json::to_vec_pretty(&file).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Reads a services file and checks its digest.
    ///
    /// # Errors
    ///
    /// Fails if the file is invalid, its digest does not match, or two services have the same name.
    pub fn from_file(bytes: &[u8]) -> Result<Self, ServicesFault> {
        let file: ServicesFile = serde_json::from_slice(bytes)?;
        let digest = file.policy.digest();
        if digest != file.digest {
            return Err(ServicesFault::Digest {
                written: file.digest,
                computed: digest,
            });
        }
        let mut names = BTreeSet::new();
        for service in &file.policy.services {
            if !names.insert(&service.name) {
                return Err(ServicesFault::Twice(service.name.clone()));
            }
            if file.policy.definition(&service.tool).is_none() {
                return Err(ServicesFault::UnknownTool(service.tool.clone()));
            }
        }
        Ok(file.policy)
    }
}

/// `services.json`: a machine's services and their digest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServicesFile {
    digest: String,
    policy: Services,
}

/// The reason why a services file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ServicesFault {
    /// It is invalid JSON, truncated, or has another structure.
    #[error("it is not a services file: {0}")]
    Shape(#[from] serde_json::Error),
    /// It was changed.
    #[error(
        "its digest is {computed}, but it declares {written}: it was edited by hand or is damaged"
    )]
    Digest {
        /// The digest in the file.
        written: String,
        /// The digest of its services.
        computed: String,
    },
    /// Two services have the same name, so either might apply.
    #[error("it has two services named `{0}`")]
    Twice(ServiceName),
    /// A service uses a tool that the machine does not have.
    #[error("it does not define the tool `{0}`")]
    UnknownTool(ServiceTool),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services() -> Services {
        let service = serde_json::json!({
            "machine": "vault",
            "services": [{"name": "sign", "tool": "gpg_sign", "consumers": ["dev"], "with": {"key_id": "AB"}}]
        });
        serde_json::from_value(service).unwrap()
    }

    #[test]
    fn a_services_file_reads_back() {
        let read = Services::from_file(&services().to_file()).unwrap();
        assert_eq!(read.digest(), services().digest());
    }

    #[test]
    fn a_digest_is_of_all_that_a_policy_says() {
        let own = services().digest();
        assert!(
            own.len() == 64 && own.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{own}"
        );
        let mut other = services();
        other.services[0].consumers.clear();
        assert_ne!(other.digest(), own);
        assert_ne!(Services::none("vault".parse().unwrap()).digest(), own);
        assert_ne!(
            Services::none("other".parse().unwrap()).digest(),
            Services::none("vault".parse().unwrap()).digest()
        );
    }

    #[test]
    fn consumers_are_those_of_any_service_each_once() {
        let services = serde_json::json!({
            "machine": "vault",
            "services": [
                {"name": "a", "tool": "gpg_sign", "consumers": ["web", "dev"]},
                {"name": "b", "tool": "clipboard_get", "consumers": ["dev"]},
                {"name": "c", "tool": "clipboard_set", "consumers": []},
            ]
        });
        let services: Services = serde_json::from_value(services).unwrap();
        let names: Vec<&str> = services
            .consumers()
            .into_iter()
            .map(MachineName::as_str)
            .collect();
        assert_eq!(names, ["dev", "web"]);
    }

    #[test]
    fn a_truncated_or_changed_file_is_refused_at_every_byte() {
        let bytes = services().to_file();
        for end in 0..bytes.len() - 2 {
            assert!(Services::from_file(&bytes[..end]).is_err(), "cut at {end}");
        }
        for place in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            let Ok(read) = Services::from_file(&changed) else {
                continue;
            };
            // Whitespace may change; the policy may not.
            assert_eq!(read.digest(), services().digest(), "changed at {place}");
        }
    }
}
