//! The question of `policy check` and `policy explain`: who calls what, of which machines.
//!
//! Names that exist nowhere are found here, with the closest match.

use serde_json::{Map, Value};

use crate::cli::PolicyCheckArgs;
use crate::error::{Exit, Failure};
use crate::infra::{Infra, Machine};
use crate::mcp::framing::json;
use crate::name::{MachineName, closest};
use crate::policy::Caller;

/// A call to decide, for each machine that it may mean.
#[derive(Debug)]
pub(super) struct Question<'a> {
    /// The caller.
    pub(super) caller: Caller,
    /// The service.
    pub(super) service: &'a str,
    /// The caller's content.
    pub(super) arguments: Map<String, Value>,
    /// The machines that offer it, or the one that is named.
    pub(super) providers: Vec<&'a Machine>,
}

impl<'a> Question<'a> {
    /// Reads the flags against an infrastructure.
    pub(super) fn new(args: &'a PolicyCheckArgs, infra: &'a Infra) -> Result<Self, Failure> {
        let arguments = arguments(args.args.as_deref())?;
        let (provider, service) = split(args)?;
        let caller = known_machine(infra, &args.caller, "caller")?.name.clone();
        Ok(Self {
            caller: Caller::Consumer(caller),
            service,
            arguments,
            providers: providers(infra, provider, service)?,
        })
    }
}

/// Names, comma after comma.
pub(super) fn joined(names: &[MachineName]) -> String {
    let names: Vec<&str> = names.iter().map(MachineName::as_str).collect();
    names.join(", ")
}

/// `--args`: a JSON object, or nothing.
fn arguments(text: Option<&str>) -> Result<Map<String, Value>, Failure> {
    let Some(text) = text else {
        return Ok(Map::new());
    };
    json::read_object(text.as_bytes()).map_err(|wrong| {
        let message = format!("`--args` is not a JSON object: {wrong}");
        Failure::new(Exit::Usage, message).help("write it as --args '{\"key\": \"value\"}'")
    })
}

/// The provider, when named, and the service: `--provider P --service S`, or `--service P/S`.
fn split(args: &PolicyCheckArgs) -> Result<(Option<&str>, &str), Failure> {
    match (args.service.split_once('/'), args.provider.as_deref()) {
        (None, provider) => Ok((provider, &args.service)),
        (Some((inner, service)), None) => Ok((Some(inner), service)),
        (Some((inner, service)), Some(outer)) if inner == outer => Ok((Some(outer), service)),
        (Some((inner, _)), Some(outer)) => Err(Failure::new(
            Exit::Usage,
            format!(
                "two providers are named: `{}` in --service and `{}` in --provider",
                inner.escape_debug(),
                outer.escape_debug()
            ),
        )),
    }
}

/// The machines to ask: the one that is named, or all that offer the service.
fn providers<'a>(
    infra: &'a Infra,
    provider: Option<&str>,
    service: &str,
) -> Result<Vec<&'a Machine>, Failure> {
    let offering: Vec<&Machine> = infra
        .machines()
        .map(|(_, machine)| machine)
        .filter(|machine| offers(machine, service))
        .collect();
    match provider {
        Some(name) => {
            let machine = known_machine(infra, name, "provider")?;
            if offers(machine, service) {
                Ok(vec![machine])
            } else {
                Err(not_offered(machine, service, &offering))
            }
        }
        None if offering.is_empty() => Err(unknown_service(infra, service)),
        None => Ok(offering),
    }
}

fn offers(machine: &Machine, service: &str) -> bool {
    machine
        .services
        .iter()
        .any(|offered| offered.name.as_str() == service)
}

/// The machine of that name in an enabled domain; `role` is what the question calls it.
pub(super) fn known_machine<'a>(
    infra: &'a Infra,
    name: &str,
    role: &str,
) -> Result<&'a Machine, Failure> {
    if let Some((_, machine)) = infra.machine(name) {
        return Ok(machine);
    }
    let disabled = infra.domains.iter().find(|domain| {
        let is_named = |machine: &Machine| machine.name.as_str() == name;
        !domain.enabled && domain.machines.iter().any(is_named)
    });
    if let Some(domain) = disabled {
        return Err(Failure::new(
            Exit::Failed,
            format!(
                "the {role} `{name}` is in the domain `{}`, which is disabled",
                domain.name
            ),
        )
        .help("set `enabled: true` there"));
    }
    let names = infra.machines().map(|(_, machine)| machine.name.as_str());
    let failure = Failure::new(
        Exit::Failed,
        format!(
            "the {role} `{}` is not a machine of this file",
            name.escape_debug()
        ),
    );
    Err(match closest(name, names) {
        Some(near) => failure.help(format!("did you mean `{near}`?")),
        None => failure.help("`anklume policy list` shows providers and their consumers"),
    })
}

fn unknown_service(infra: &Infra, service: &str) -> Failure {
    let names = infra
        .machines()
        .flat_map(|(_, machine)| machine.services.iter())
        .map(|offered| offered.name.as_str());
    let failure = Failure::new(
        Exit::Failed,
        format!("no machine offers a service `{}`", service.escape_debug()),
    );
    match closest(service, names) {
        Some(near) => failure.help(format!("did you mean `{near}`?")),
        None => failure.help("`anklume policy list` shows all services"),
    }
}

fn not_offered(machine: &Machine, service: &str, offering: &[&Machine]) -> Failure {
    let failure = Failure::new(
        Exit::Failed,
        format!(
            "`{}` offers no service `{}`",
            machine.name,
            service.escape_debug()
        ),
    );
    let elsewhere: Vec<&str> = offering.iter().map(|other| other.name.as_str()).collect();
    let names = machine.services.iter().map(|offered| offered.name.as_str());
    match (elsewhere.is_empty(), closest(service, names)) {
        (false, _) => failure.help(format!("offered by: {}", elsewhere.join(", "))),
        (true, Some(near)) => failure.help(format!("did you mean `{near}`?")),
        (true, None) => failure.help("`anklume policy list` shows all services"),
    }
}
