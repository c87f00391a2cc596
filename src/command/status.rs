//! `anklume status`: the machines, the channels between them, and who may call what, at a glance.
//!
//! Asks Incus once, and no machine: `anklume doctor` examines the channels.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rmcp::model::Tool;
use serde::Serialize;

use super::apply::open_session;
use super::mcp::{interruptible, offered};
use super::open_infra;
use super::output::{Output, Tone, paint, table};
use crate::account::Account;
use crate::cli::StatusArgs;
use crate::edge::{Edge, End, edges};
use crate::error::Exit;
use crate::incus::state::Instance;
use crate::infra::{DEFAULT_FILE, DEFAULT_FOLDER, Infra};
use crate::machine_state::SERVICES;
use crate::plan::{Ownership, machine_owner};
use crate::services::Services;
use crate::session::{block_on, each};
use crate::text::{Foreign, escaped};
use crate::transport::{self, RouteContext};

/// Maximum wait for a provider's list.
const LIST_MAX: Duration = Duration::from_secs(3);

/// Runs `anklume status`: on the host for the file, in a machine for its own providers.
pub(super) fn run(args: &StatusArgs, output: &Output) -> anyhow::Result<Exit> {
    let is_here = |path: &&str| Path::new(path).exists();
    let names_file =
        args.infra.infra.is_some() || [DEFAULT_FILE, DEFAULT_FOLDER].iter().any(is_here);
    if RouteContext::look().has_sockets() && !names_file {
        return in_machine(output);
    }
    let infra = open_infra(&args.infra, output)?.infra;
    let edges = edges(&infra)?;
    let instances = block_on(async {
        let session = open_session(output).await?;
        Ok(session.state(&infra.project).await?.instances)
    });
    let instances = match instances {
        Ok(instances) => Some(instances),
        // What is declared is worth showing on any computer.
        Err(why) => {
            output.say(&format!("note: only what is declared is shown: {why:#}"));
            None
        }
    };
    let status = Status::of(&infra, &edges, instances.as_deref(), Timestamp::now());
    output.answer_as(&status, || status.text())?;
    Ok(Exit::Done)
}

/// The state of a machine in Incus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum MachineState {
    /// As Incus calls it, in lower case: `running`, `stopped`, `frozen` …
    Present(String),
    /// A machine of this name exists that this file does not manage.
    Foreign,
    NotCreated,
    /// Incus was not asked.
    Unknown,
}

impl MachineState {
    fn of(infra: &Infra, instances: Option<&[Instance]>, end: &End) -> Self {
        let Some(instances) = instances else {
            return Self::Unknown;
        };
        let Some(instance) = find(instances, end) else {
            return Self::NotCreated;
        };
        match machine_owner(instance, &infra.project) {
            Ownership::Ours => Self::Present(escaped(&instance.status.to_lowercase())),
            _ => Self::Foreign,
        }
    }

    fn is_running(&self) -> bool {
        matches!(self, Self::Present(status) if status == "running")
    }

    fn text(&self) -> &str {
        match self {
            Self::Present(status) => status,
            Self::Foreign => "not managed",
            Self::NotCreated => "not created",
            Self::Unknown => "unknown",
        }
    }
}

fn find<'i>(instances: &'i [Instance], end: &End) -> Option<&'i Instance> {
    let mut instances = instances.iter();
    instances.find(|one| one.project == end.domain.as_str() && one.name == end.machine.as_str())
}

/// What `anklume status` shows on the host.
#[derive(Debug, Serialize)]
struct Status {
    machines: Vec<DeclaredMachine>,
    channels: Vec<DeclaredChannel>,
}

#[derive(Debug, Serialize)]
struct DeclaredMachine {
    machine: String,
    domain: String,
    state: MachineState,
}

#[derive(Debug, Serialize)]
struct DeclaredChannel {
    consumer: String,
    provider: String,
    state: ChannelState,
    services: Vec<ServiceStatus>,
}

/// A service that the consumer of a channel may call.
#[derive(Debug, Serialize)]
struct ServiceStatus {
    service: String,
    tool: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<String>,
}

/// Whether a channel exists, as far as Incus knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum ChannelState {
    /// Both devices are as declared, and both machines run.
    Open,
    /// The devices are as declared, but this machine does not run.
    Closed(String),
    /// A device is missing or differs.
    NotApplied,
    /// Incus was not asked.
    Unknown,
}

impl ChannelState {
    fn of(infra: &Infra, instances: Option<&[Instance]>, edge: &Edge) -> Self {
        let Some(all) = instances else {
            return Self::Unknown;
        };
        let ends = [
            (&edge.consumer, edge.consumer_device()),
            (&edge.provider, edge.provider_device()),
        ];
        let is_applied = ends.iter().all(|(end, device)| {
            let instance = find(all, end);
            let devices = instance.and_then(|one| one.devices.get(&device.name));
            devices.is_some_and(|keys| {
                let mut wanted = device.keys.iter();
                keys.len() == device.keys.len()
                    && wanted.all(|(key, value)| keys.get(key) == Some(value))
            })
        });
        if !is_applied {
            return Self::NotApplied;
        }
        let mut ends = ends.iter().map(|(end, _)| *end);
        let stopped = ends.find(|end| !MachineState::of(infra, instances, end).is_running());
        stopped.map_or(Self::Open, |end| Self::Closed(end.machine.to_string()))
    }

    fn text(&self) -> String {
        match self {
            Self::Open => "open".to_owned(),
            Self::Closed(machine) => format!("closed: {machine} does not run"),
            Self::NotApplied => "not applied".to_owned(),
            Self::Unknown => "unknown".to_owned(),
        }
    }
}

impl Status {
    fn of(infra: &Infra, edges: &[Edge], instances: Option<&[Instance]>, now: Timestamp) -> Self {
        let machines = infra.machines().map(|(domain, machine)| {
            let end = End {
                domain: domain.name.clone(),
                machine: machine.name.clone(),
            };
            DeclaredMachine {
                machine: machine.name.to_string(),
                domain: domain.name.to_string(),
                state: MachineState::of(infra, instances, &end),
            }
        });
        let channels = edges.iter().map(|edge| {
            let provider = infra.machine(edge.provider.machine.as_str());
            let services = provider.map(|(_, machine)| Services::of(machine).services);
            let services = services.into_iter().flatten();
            let theirs = services.filter(|service| service.serves(&edge.consumer.machine));
            DeclaredChannel {
                consumer: edge.consumer.machine.to_string(),
                provider: edge.provider.machine.to_string(),
                state: ChannelState::of(infra, instances, edge),
                services: theirs
                    .map(|service| ServiceStatus {
                        service: service.name.to_string(),
                        tool: service.tool.to_string(),
                        conditions: service.conditions.describe_at(now),
                    })
                    .collect(),
            }
        });
        Self {
            machines: machines.collect(),
            channels: channels.collect(),
        }
    }

    fn text(&self) -> String {
        if self.machines.is_empty() {
            return "no machines are declared\n".to_owned();
        }
        let machines = self.machines.iter().map(|one| {
            let state = one.state.text();
            [one.machine.as_str(), &one.domain, state].map(str::to_owned)
        });
        let machines = table(["MACHINE", "DOMAIN", "STATE"], machines);
        let channels = self.channels.iter().map(|one| {
            let services: Vec<String> = one.services.iter().map(ServiceStatus::text).collect();
            let (consumer, provider) = (one.consumer.clone(), one.provider.clone());
            [consumer, provider, one.state.text(), services.join(", ")]
        });
        if self.channels.is_empty() {
            return format!("{machines}\nno services are declared, so no calls are allowed\n");
        }
        let headings = ["CONSUMER", "PROVIDER", "CHANNEL", "MAY CALL"];
        format!("{machines}\n{}", table(headings, channels))
    }
}

impl ServiceStatus {
    /// Its conditions are in `policy list`, except that it has expired, which makes it useless.
    fn text(&self) -> String {
        match self.conditions.last().map(String::as_str) {
            Some("expired") => format!("{} (expired)", self.service),
            _ => self.service.clone(),
        }
    }
}

/// A provider of this machine.
#[derive(Debug, Serialize)]
struct ProviderStatus {
    provider: String,
    /// The names of its services for this machine; `None` if it did not answer.
    services: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
}

/// What this machine may call.
#[derive(Debug, Serialize)]
struct OwnStatus {
    machine: Option<String>,
    providers: Vec<ProviderStatus>,
    /// True if this machine is a provider too.
    offers: bool,
}

fn in_machine(output: &Output) -> anyhow::Result<Exit> {
    let names = transport::providers().map_err(|why| super::mcp::unreachable(&why))?;
    let mut providers = Vec::new();
    let exit = interruptible(async {
        providers = each(&names, |name| own_provider(name, output)).await;
        Ok(Exit::Done)
    })?;
    if exit != Exit::Done {
        return Ok(exit);
    }
    let status = OwnStatus {
        machine: Account::machine().map(|name| name.to_string()),
        providers,
        offers: Path::new(SERVICES).exists(),
    };
    output.answer_as(&status, || status.text())?;
    Ok(Exit::Done)
}

async fn own_provider(name: &str, output: &Output) -> ProviderStatus {
    let offered = offered(name, LIST_MAX, output).await;
    let names = |tools: &Vec<Foreign<Tool>>| {
        let tools = tools.iter().map(|tool| escaped(&tool.raw().name));
        tools.collect()
    };
    ProviderStatus {
        provider: escaped(name),
        services: offered.as_ref().ok().map(names),
        fault: offered.err().map(|why| format!("{why:#}")),
    }
}

impl OwnStatus {
    fn text(&self) -> String {
        let this = match &self.machine {
            Some(name) => format!("this is the machine `{name}`\n"),
            None => "this is a machine that anklume did not set up\n".to_owned(),
        };
        let rows = self.providers.iter().map(|one| {
            let services = match &one.services {
                Some(services) if services.is_empty() => "(nothing)".to_owned(),
                Some(services) => services.join(", "),
                None => {
                    let why = one.fault.as_deref().unwrap_or_default();
                    format!("{}: {why}", paint(Tone::Bad, "unknown"))
                }
            };
            [one.provider.clone(), services]
        });
        let providers = if self.providers.is_empty() {
            "it may call nothing\n".to_owned()
        } else {
            table(["PROVIDER", "MAY CALL"], rows)
        };
        let offers = if self.offers {
            "\nit offers services: `anklume mcp status` shows which, and to whom\n"
        } else {
            ""
        };
        format!("{this}\n{providers}{offers}")
    }
}
