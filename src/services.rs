//! One machine's services as its server holds them: taken out of an `Infra`, or read from `services.json`.
//!
//! The same type for both, so that what is checked on the host is what is enforced in the machine.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::infra::Machine;
use crate::name::{MachineName, ServiceName, ToolName};

/// What one machine offers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Services {
    /// The provider.
    pub machine: MachineName,
    /// In the order of the file; names are unique.
    pub services: Vec<Service>,
}

/// One service of a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// What a consumer calls.
    pub name: ServiceName,
    /// What runs.
    pub tool: ToolName,
    /// Who may call it; empty: nobody.
    pub consumers: Vec<MachineName>,
    /// Fixed arguments: the service's word, never the caller's.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub with: Map<String, Value>,
    /// Where it is declared (`infra.yml:12`); unknown to a server.
    #[serde(skip)]
    pub declared_at: Option<String>,
}

impl Services {
    /// The services that a machine of an `infra.yml` declares.
    #[must_use]
    pub fn of(machine: &Machine) -> Self {
        let services = machine
            .services
            .iter()
            .map(|declared| Service {
                name: declared.name.clone(),
                tool: declared.tool,
                consumers: declared.consumers.clone(),
                with: declared.with.clone(),
                declared_at: Some(declared.place.short()),
            })
            .collect();
        Self {
            machine: machine.name.clone(),
            services,
        }
    }

    /// The service of that name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services
            .iter()
            .find(|service| service.name.as_str() == name)
    }
}
