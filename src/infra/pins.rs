//! Reads and writes `anklume.lock`: the definitions of upstreams' tools that a person has accepted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Infra;
use super::findings::Code;
use crate::catalogue::{Definition, UpstreamTool};
use crate::condition::misfits;
use crate::diagnostic::{Diagnostic, Place, Severity};
use crate::name::{MachineName, ServerName, ServiceTool, UpstreamToolName};

/// Name of the file, in the folder that contains `infra.yml` or `infra/`.
pub const LOCK: &str = "anklume.lock";
/// The version of the file's structure.
const VERSION: u32 = 1;

/// The pinned tools of a server, by their names.
type PinnedTools = BTreeMap<UpstreamToolName, Pin>;

/// The pinned tools of all machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pins {
    version: u32,
    machines: BTreeMap<MachineName, BTreeMap<ServerName, PinnedTools>>,
}

/// A pinned tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pin {
    /// SHA-256 of the definition's canonical JSON, in hexadecimal.
    sha256: String,
    definition: UpstreamTool,
}

impl Default for Pins {
    fn default() -> Self {
        Self {
            version: VERSION,
            machines: BTreeMap::new(),
        }
    }
}

impl Pins {
    /// Reads the content of the file.
    ///
    /// # Errors
    ///
    /// Returns the fault, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let pins: Self = serde_json::from_str(text).map_err(|why| why.to_string())?;
        if pins.version != VERSION {
            return Err(format!(
                "its version is {}, and this program knows {VERSION}",
                pins.version
            ));
        }
        for (machine, servers) in &pins.machines {
            for (server, tools) in servers {
                for (tool, pin) in tools {
                    if pin.definition.name() != tool.as_str()
                        || pin.definition.digest() != pin.sha256
                    {
                        return Err(format!(
                            "the definition of `{server}/{tool}` on `{machine}` does not have its digest"
                        ));
                    }
                }
            }
        }
        Ok(pins)
    }

    /// Returns the content of the file.
    #[must_use]
    pub fn to_text(&self) -> String {
        // Serialization of these types cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Returns the pinned definition of a tool.
    #[must_use]
    pub fn get(
        &self,
        machine: &MachineName,
        server: &ServerName,
        tool: &UpstreamToolName,
    ) -> Option<&UpstreamTool> {
        let pin = self.machines.get(machine)?.get(server)?.get(tool)?;
        Some(&pin.definition)
    }

    /// Pins a definition.
    pub fn set(
        &mut self,
        machine: &MachineName,
        server: &ServerName,
        tool: &UpstreamToolName,
        definition: UpstreamTool,
    ) {
        let servers = self.machines.entry(machine.clone()).or_default();
        let tools = servers.entry(server.clone()).or_default();
        let sha256 = definition.digest().to_owned();
        tools.insert(tool.clone(), Pin { sha256, definition });
    }

    /// Forgets what no service of these machines uses.
    pub fn retain_used(&mut self, infra: &Infra) {
        self.machines.retain(|machine, servers| {
            servers.retain(|server, tools| {
                tools.retain(|tool, _| is_used(infra, machine, server, tool));
                !tools.is_empty()
            });
            !servers.is_empty()
        });
    }
}

fn is_used(
    infra: &Infra,
    machine: &MachineName,
    server: &ServerName,
    tool: &UpstreamToolName,
) -> bool {
    let tool = ServiceTool::Upstream(server.clone(), tool.clone());
    // A disabled domain keeps what is pinned, as it keeps its addresses.
    let machines = infra.domains.iter().flat_map(|domain| &domain.machines);
    let mut machines = machines.filter(|one| one.name == *machine);
    machines.any(|machine| machine.services.iter().any(|service| service.tool == tool))
}

/// Gives the machines' servers their pinned tools.
pub(super) fn fill(infra: &mut Infra, pins: &Pins) {
    let machines = infra
        .domains
        .iter_mut()
        .flat_map(|domain| &mut domain.machines);
    for machine in machines {
        let Some(pinned) = pins.machines.get(&machine.name) else {
            continue;
        };
        for (name, server) in &mut machine.mcp.servers {
            let tools = pinned.get(name).into_iter().flatten();
            server.tools = tools
                .map(|(tool, pin)| (tool.clone(), pin.definition.clone()))
                .collect();
        }
    }
}

/// Returns the faults of services whose tool is not pinned, or does not fit its definition.
pub(super) fn faults(infra: &Infra) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    for (_, machine) in infra.machines() {
        for service in &machine.services {
            let ServiceTool::Upstream(server, tool) = &service.tool else {
                continue;
            };
            let places = service.arguments.as_deref();
            let mut fault = |code: Code, place: Option<&Place>, message: String, help: &str| {
                let mut fault = Diagnostic::new(Severity::Error, code.as_str(), message);
                fault.place = Some(place.unwrap_or(&service.place).clone());
                fault.help(help);
                faults.push(fault);
            };
            let tools = machine.mcp.servers.get(server).map(|server| &server.tools);
            let Some(pinned) = tools.and_then(|tools| tools.get(tool)) else {
                let message = format!(
                    "nobody has accepted the definition of `{}` yet",
                    service.tool
                );
                fault(
                    Code::UnpinnedTool,
                    None,
                    message,
                    "run `anklume mcp pin`, which shows it and pins it",
                );
                continue;
            };
            let definition = Definition::Upstream(pinned);
            for wrong in definition.check_fixed(&service.with) {
                let place = places.and_then(|places| places.with.get(&wrong.argument));
                fault(
                    Code::InvalidArgument,
                    place,
                    wrong.message,
                    "correct the argument, or remove it from `with`",
                );
            }
            // What the conditions say by themselves was checked before.
            if misfits(&service.conditions, None, &service.with).is_empty() {
                for wrong in misfits(&service.conditions, Some(definition), &service.with) {
                    let place =
                        places.and_then(|places| places.condition(&wrong.argument, wrong.key));
                    fault(Code::InvalidCondition, place, wrong.message, wrong.help);
                }
            }
        }
    }
    faults
}

/// Returns the fault of a file that is no lock file.
pub(super) fn invalid(path: &str, why: &str) -> Diagnostic {
    let message = format!("`{}` is not valid: {why}", path.escape_debug());
    let mut fault = Diagnostic::new(Severity::Error, Code::InvalidLock.as_str(), message);
    fault.help("restore it from version control, or remove it and run `anklume mcp pin`");
    fault
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tool(description: &str) -> UpstreamTool {
        let tool = json!({
            "name": "list", "description": description,
            "inputSchema": {"type": "object", "properties": {"owner": {"type": "string"},
                "state": {"enum": ["open", "closed"]}, "page": {"type": "integer", "maximum": 9}}},
        });
        UpstreamTool::of(&tool).unwrap()
    }

    fn pins() -> Pins {
        let mut pins = Pins::default();
        let (machine, server) = ("vault".parse().unwrap(), "github".parse().unwrap());
        pins.set(&machine, &server, &"list".parse().unwrap(), tool("Lists"));
        pins
    }

    const INFRA: &str = "domains: {d: {subnet_id: 0, machines: {dev: {}, vault: {mcp: {servers: {github: {command: [/bin/gh]}}}, \
        services: [{name: issues, tool: github/list, consumers: [dev], with: {owner: acme}}, \
        {name: other, tool: github/get, consumers: [dev]}, {name: bad, tool: github/list, with: {ownr: x}}, \
        {name: rules, tool: github/list, where: {owner: {max: 5}}, only: [owner, owners]}, \
        {name: none, tool: github/list, where: {state: {prefix: x}, page: {min: 10}}}]}}}}\n";

    #[test]
    fn a_lock_file_reads_back_and_a_changed_one_is_refused() {
        let text = pins().to_text();
        assert_eq!(Pins::parse(&text).unwrap(), pins());
        let why = Pins::parse(&text.replace("Lists", "Lists all")).unwrap_err();
        assert_eq!(
            why,
            "the definition of `github/list` on `vault` does not have its digest"
        );
        assert_eq!(invalid("l", &why).code, "invalid-lock");
        let why = Pins::parse(&text.replace("\"version\": 1", "\"version\": 2")).unwrap_err();
        assert_eq!(why, "its version is 2, and this program knows 1");
        for end in 0..text.len() - 1 {
            assert!(Pins::parse(text.get(..end).unwrap()).is_err());
        }
    }

    #[test]
    fn a_service_needs_a_pinned_definition_that_its_arguments_fit() {
        let mut infra = super::super::parse("infra.yml", INFRA).unwrap().infra;
        fill(&mut infra, &pins());
        assert_eq!(faults(&infra).first().unwrap().code, "unpinned-tool");
        let messages: Vec<String> = faults(&infra)
            .into_iter()
            .map(|fault| {
                let place = fault.place.unwrap();
                let marked = place.source.text.get(place.bytes).unwrap();
                format!("{}: {}: {marked}", fault.code, fault.message)
            })
            .collect();
        assert_eq!(
            messages,
            [
                "unpinned-tool: nobody has accepted the definition of `github/get` yet: other",
                "invalid-argument: unknown argument `ownr`; closest: `owner`: ownr",
                "invalid-condition: unknown argument `owners`; closest: `owner`: owners",
                "invalid-condition: `max` is for numbers, but `owner` is of type string: max",
                "invalid-condition: `page` of the tool takes at most 9: min",
                "invalid-condition: `state` of the tool takes only \"open\", \"closed\": prefix",
            ]
        );
    }

    #[test]
    fn what_no_service_uses_is_forgotten() {
        let infra = super::super::parse("infra.yml", INFRA).unwrap().infra;
        let mut more = pins();
        let (machine, server) = ("vault".parse().unwrap(), "github".parse().unwrap());
        more.set(&machine, &server, &"unused".parse().unwrap(), tool("x"));
        more.retain_used(&infra);
        assert_eq!(more, pins());
    }
}
