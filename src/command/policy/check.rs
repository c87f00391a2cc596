//! `anklume policy check`: may this caller use this service? One line that says which and why.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::cli::{Format, PolicyCheckArgs};
use crate::command::{open_infra, output::Output};
use crate::error::{Exit, Failure};
use crate::infra::{Infra, Machine};
use crate::name::{MachineName, closest};
use crate::policy::{Caller, Decision, Denial, Request, decide};
use crate::services::Services;

/// Runs `anklume policy check`: 0 allowed, 1 denied or error.
pub(crate) fn run(args: &PolicyCheckArgs, output: &Output) -> anyhow::Result<Exit> {
    let arguments = arguments(args.args.as_deref())?;
    let (provider, service) = split(args)?;
    let infra = open_infra(&args.infra, output)?.infra;
    let caller = known_machine(&infra, &args.caller, "caller")?.name.clone();
    let providers = providers(&infra, provider, service)?;
    let caller = Caller::Consumer(caller);
    let verdicts: Vec<Verdict> = providers
        .into_iter()
        .map(|provider| verdict(provider, &caller, service, &arguments))
        .collect();
    // Several machines offer it: allowed is what none of them refuses.
    let allowed = verdicts.iter().all(|verdict| verdict.allowed);
    match output.format() {
        Format::Json => output.json(&Answer {
            allowed,
            caller: &args.caller,
            service,
            decisions: &verdicts,
        })?,
        Format::Text => {
            let lines: Vec<String> = verdicts.iter().map(Verdict::line).collect();
            output.answer((lines.join("\n") + "\n").as_bytes())?;
            if verdicts.len() > 1 {
                output.say("note: several machines offer this service; name one with --provider");
            }
        }
    }
    Ok(if allowed { Exit::Done } else { Exit::Failed })
}

/// The answer as JSON.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    allowed: bool,
    caller: &'a str,
    service: &'a str,
    decisions: &'a [Verdict],
}

/// The decision for one provider.
#[derive(Debug, Serialize)]
struct Verdict {
    provider: MachineName,
    allowed: bool,
    reason: String,
}

impl Verdict {
    fn line(&self) -> String {
        let word = if self.allowed { "allowed" } else { "denied" };
        format!("{word}: {}", self.reason)
    }
}

fn verdict(
    provider: &Machine,
    caller: &Caller,
    name: &str,
    arguments: &Map<String, Value>,
) -> Verdict {
    let services = Services::of(provider);
    let declared_at = services
        .service(name)
        .and_then(|service| service.declared_at.clone());
    let at = place(declared_at.as_deref());
    let request = Request {
        caller,
        name,
        arguments,
    };
    let machine = &provider.name;
    let (allowed, reason) = match decide(&services, request) {
        Decision::Allowed(_) => (
            true,
            format!("`{caller}` is a consumer of `{name}` on `{machine}`{at}"),
        ),
        Decision::Denied(denial) => (false, reason(&denial, caller, name, machine, &at)),
    };
    Verdict {
        provider: machine.clone(),
        allowed,
        reason,
    }
}

fn reason(denial: &Denial, caller: &Caller, name: &str, machine: &MachineName, at: &str) -> String {
    match denial {
        Denial::Unknown => format!("`{machine}` offers no service `{}`", name.escape_debug()),
        Denial::NotConsumer { consumers, .. } => {
            let consumers: Vec<&str> = consumers.iter().map(MachineName::as_str).collect();
            let consumers = if consumers.is_empty() {
                "it has none".to_owned()
            } else {
                format!("its consumers: {}", consumers.join(", "))
            };
            format!("`{caller}` is not a consumer of `{name}` on `{machine}`{at}; {consumers}")
        }
        Denial::FixedArgument { argument } => format!(
            "`{}` is not the caller's to choose in `{name}` on `{machine}`{at}",
            argument.escape_debug()
        ),
    }
}

fn place(declared_at: Option<&str>) -> String {
    declared_at.map_or_else(String::new, |place| format!(" ({place})"))
}

/// `--args`: a JSON object, or nothing.
fn arguments(text: Option<&str>) -> Result<Map<String, Value>, Failure> {
    let Some(text) = text else {
        return Ok(Map::new());
    };
    serde_json::from_str(text).map_err(|wrong| {
        Failure::new(
            Exit::Usage,
            format!("`--args` is not a JSON object: {wrong}"),
        )
        .help("write it as --args '{\"key\": \"value\"}'")
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

fn known_machine<'a>(infra: &'a Infra, name: &str, role: &str) -> Result<&'a Machine, Failure> {
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
