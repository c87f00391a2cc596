//! `anklume policy check`: may this caller use this service? `anklume policy explain`: why, and the smallest change
//! that would reverse the decision.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::catalogue::{BadArguments, SshSign, parse};
use crate::cli::PolicyCheckArgs;
use crate::command::output::{Output, Tone, done_or_failed, paint};
use crate::command::{joined, open_infra, or_closest};
use crate::error::{Exit, Failure};
use crate::infra::{Infra, Machine};
use crate::mcp::framing::json::read_object;
use crate::name::{MachineName, ToolName};
use crate::policy::{self, Caller, Decision, Denial, Request, decide, may_use, offers};
use crate::services::{Service, Services};

/// Help for an unknown service if no known one is similar.
const ALL_SERVICES: &str = "`anklume policy list` shows all services";

/// Runs `anklume policy check`; returns 0 if allowed, 1 if denied or on error.
pub(super) fn check(args: &PolicyCheckArgs, output: &Output) -> anyhow::Result<Exit> {
    let infra = open_infra(&args.infra, output)?.infra;
    let question = Question::new(args, &infra)?;
    let providers = question.providers.iter();
    let verdicts: Vec<CheckVerdict> = providers
        .map(|one| CheckVerdict::of(one, &question))
        .collect();
    // If several machines offer the service, all of them must allow it.
    let allowed = verdicts.iter().all(|verdict| verdict.allowed);
    if allowed {
        check_arguments(&question)?;
    }
    let answer = json!({
        "allowed": allowed,
        "caller": question.caller.to_string(),
        "service": question.service,
        "decisions": verdicts,
    });
    output.answer_as(&answer, || {
        verdicts.iter().map(CheckVerdict::line).collect()
    })?;
    if verdicts.len() > 1 && !output.is_json() {
        output.say("note: several machines offer this service; name one with --provider");
    }
    Ok(done_or_failed(allowed))
}

/// Checks that the arguments of an allowed call fit the tool of each provider.
fn check_arguments(question: &Question<'_>) -> Result<(), Failure> {
    for provider in &question.providers {
        let services = Services::of(provider);
        let Some(service) = services.service(question.service) else {
            continue;
        };
        let sent = policy::sent(&question.arguments.clone().unwrap_or_default());
        let Some(definition) = services.definition(&service.tool) else {
            continue;
        };
        definition
            .check_some(&sent)
            .and_then(|()| check_ssh(service, &sent))
            .map_err(|wrong| {
            let (machine, tool) = (&provider.name, &service.tool);
            let message = format!("`--args` is not valid for `{}` on `{machine}`: {wrong}", service.name);
            Failure::new(Exit::Failed, message).help(format!(
                "`{}` runs `{tool}`; `anklume mcp serve --list-tools --format json` shows its arguments",
                service.name
            ))
        })?;
    }
    Ok(())
}

/// Checks what only the whole request of `ssh_sign` shows, if its data is sent.
fn check_ssh(service: &Service, sent: &Map<String, Value>) -> Result<(), BadArguments> {
    if !service.tool.is(ToolName::SshSign) || !sent.contains_key("data") {
        return Ok(());
    }
    let mut arguments = sent.clone();
    arguments.extend(service.with.clone());
    let arguments: SshSign = parse(ToolName::SshSign, &arguments)?;
    arguments.request().map(drop)
}

/// The decision for one provider.
#[derive(Debug, Serialize)]
struct CheckVerdict {
    provider: MachineName,
    allowed: bool,
    reason: String,
    #[serde(skip)]
    denial: Option<Denial>,
}

impl CheckVerdict {
    fn of(provider: &Machine, question: &Question<'_>) -> Self {
        let (caller, name, machine) = (&question.caller, question.service, &provider.name);
        let services = Services::of(provider);
        let service = services.service(name);
        let declared_at = service.and_then(|service| service.declared_at.as_deref());
        let at = declared_at.map_or_else(String::new, |place| format!(" ({place})"));
        let denial = question.denial(&services);
        let reason = match &denial {
            None => {
                let asked = question.arguments.is_some();
                let conditions = service.map(|service| service.conditions.describe());
                let conditions = conditions.filter(|some| !asked && !some.is_empty());
                let only_if =
                    conditions.map(|some| format!("; its conditions: {}", some.join("; ")));
                let only_if = only_if.unwrap_or_default();
                format!("`{caller}` is a consumer of `{name}` on `{machine}`{at}{only_if}")
            }
            Some(denial) => reason(denial, question, machine, &at),
        };
        Self {
            provider: machine.clone(),
            allowed: denial.is_none(),
            reason,
            denial,
        }
    }

    fn line(&self) -> String {
        let word = if self.allowed {
            paint(Tone::Good, "allowed")
        } else {
            paint(Tone::Bad, "denied")
        };
        format!("{word}: {}\n", self.reason)
    }
}

fn reason(denial: &Denial, question: &Question<'_>, machine: &MachineName, at: &str) -> String {
    let (caller, name) = (&question.caller, question.service);
    match denial {
        Denial::Unknown => format!("`{machine}` offers no service `{}`", name.escape_debug()),
        Denial::NotConsumer { consumers, .. } => {
            let consumers = match consumers.as_slice() {
                [] => "it has none".to_owned(),
                some => format!("its consumers: {}", joined(some, "none")),
            };
            format!("`{caller}` is not a consumer of `{name}` on `{machine}`{at}; {consumers}")
        }
        Denial::NoOffers { consumer, others } => policy::no_offers(consumer, others),
        Denial::NotSigned(refusal) => format!("`{name}` on `{machine}`{at}: {refusal}"),
        Denial::Expired { expiry, .. } => {
            format!("`{name}` on `{machine}`{at} expired at {expiry}")
        }
        Denial::Condition(broken) => format!("`{name}` on `{machine}`{at}: {broken}"),
        Denial::FixedArgument { argument } => format!(
            "the caller may not set `{}` in `{name}` on `{machine}`{at}",
            argument.escape_debug()
        ),
    }
}

/// Runs `anklume policy explain`, which succeeds regardless of the decision.
pub(super) fn explain(args: &PolicyCheckArgs, output: &Output) -> anyhow::Result<()> {
    let infra = open_infra(&args.infra, output)?.infra;
    let question = Question::new(args, &infra)?;
    let providers = question.providers.iter();
    let explanations: Vec<Explanation> = providers
        .filter_map(|provider| Explanation::of(provider, &question))
        .collect();
    if explanations.iter().all(|one| one.verdict.allowed) {
        check_arguments(&question)?;
    }
    let reachable = reachable(&infra, &question);
    let answer = json!({ "explanations": explanations, "reachable": reachable });
    output.answer_as(&answer, || {
        let explained: String = explanations.iter().map(Explanation::text).collect();
        let caller = &question.caller;
        match reachable.as_slice() {
            [] => format!("{explained}`{caller}` may call nothing\n"),
            some => format!("{explained}`{caller}` may call: {}\n", some.join(", ")),
        }
    })
}

/// One decision, explained.
#[derive(Debug, Serialize)]
struct Explanation {
    #[serde(flatten)]
    verdict: CheckVerdict,
    tool: String,
    fixed: Vec<String>,
    /// What the caller may send, and until when.
    conditions: Vec<String>,
    /// The change that would reverse the decision.
    change: String,
}

impl Explanation {
    fn of(provider: &Machine, question: &Question<'_>) -> Option<Self> {
        let verdict = CheckVerdict::of(provider, question);
        let services = Services::of(provider);
        let service = services.service(question.service)?;
        let fixed = service.with.iter();
        Some(Self {
            change: change(
                &verdict,
                service,
                &question.caller,
                &provider.name,
                question.now,
            ),
            tool: service.tool.to_string(),
            fixed: fixed
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
            conditions: service.conditions.describe_at(question.now),
            verdict,
        })
    }

    fn text(&self) -> String {
        let fixed = match self.fixed.as_slice() {
            [] => String::new(),
            some => format!("  fixed by the service: {}\n", some.join(", ")),
        };
        let conditions = match self.conditions.as_slice() {
            [] => String::new(),
            some => format!("  conditions: {}\n", some.join("; ")),
        };
        let (verdict, tool, change) = (self.verdict.line(), &self.tool, &self.change);
        format!("{verdict}  runs: {tool}\n{fixed}{conditions}  change: {change}\n")
    }
}

fn change(
    verdict: &CheckVerdict,
    service: &Service,
    caller: &Caller,
    provider: &MachineName,
    now: Timestamp,
) -> String {
    let at = service.declared_at.as_deref().unwrap_or("infra.yml");
    let name = &service.name;
    if verdict.allowed {
        return format!("remove `{caller}` from `consumers` of `{name}` ({at}) to deny it");
    }
    let is_caller = |consumer: &MachineName| Caller::Consumer(consumer.clone()) == *caller;
    if service.consumers.iter().any(is_caller) {
        return match &verdict.denial {
            Some(Denial::NotSigned(_)) => format!(
                "add what it is for to `allow`, and a login's host to `hosts`, of `{name}` ({at})"
            ),
            Some(Denial::Expired { .. }) => {
                format!("set a later time in `expires` of `{name}` ({at}), or remove it")
            }
            Some(Denial::Condition(broken)) if broken.rule == "only" => format!(
                "leave out `{}`, or add it to `only` of `{name}` ({at})",
                broken.argument.escape_debug()
            ),
            Some(Denial::Condition(broken)) => format!(
                "send `{}` as the rule says, or change `where` of `{name}` ({at})",
                broken.argument
            ),
            _ => "leave out that argument: only the service may set it, with `with`".to_owned(),
        };
    }
    let consumers = joined(&service.consumers, "none");
    if matches!(caller, Caller::Consumer(name) if name == provider) {
        return format!(
            "none: a machine is not a consumer of its own services, and runs `{}` itself",
            service.tool
        );
    }
    let later = match service.conditions.expires {
        Some(expiry) if service.conditions.have_expired(now) => {
            format!(", and set a later time in `expires`: it expired at {expiry}")
        }
        _ => String::new(),
    };
    format!(
        "add `{caller}` to `consumers` of `{name}` ({at}) to allow it{later}; listed now: {consumers}"
    )
}

/// Lists everything that the caller may call, as PROVIDER/SERVICE.
fn reachable(infra: &Infra, question: &Question<'_>) -> Vec<String> {
    infra
        .machines()
        .flat_map(|(_, machine)| {
            offers(&Services::of(machine), &question.caller, question.now)
                .into_iter()
                .map(|offer| format!("{}/{}", machine.name, offer.name))
        })
        .collect()
}

/// A call to decide on, for each provider that it may refer to.
#[derive(Debug)]
struct Question<'a> {
    /// The caller.
    caller: Caller,
    /// The service.
    service: &'a str,
    /// The caller's arguments; `None`: the question is about any.
    arguments: Option<Arc<Map<String, Value>>>,
    /// The time of the call.
    now: Timestamp,
    /// The named machine, or all machines that offer the service.
    providers: Vec<&'a Machine>,
}

impl<'a> Question<'a> {
    /// Resolves the flags against an infrastructure.
    fn new(args: &'a PolicyCheckArgs, infra: &'a Infra) -> Result<Self, Failure> {
        let arguments = args
            .args
            .as_deref()
            .map(|text| read_object(text.as_bytes()));
        let arguments = arguments.transpose().map_err(|wrong| {
            let message = format!("`--args` is not a JSON object: {wrong}");
            Failure::new(Exit::Usage, message).help("write it as --args '{\"key\": \"value\"}'")
        })?;
        // The parser requires one of each.
        let named = |word: &'a Option<String>, flag: &'a Option<String>| {
            word.as_deref().or(flag.as_deref()).unwrap_or_default()
        };
        let caller = named(&args.from, &args.caller);
        let (provider, service) = split(named(&args.to, &args.service), args.provider.as_deref())?;
        let caller = known_machine(infra, caller, "caller")?.name.clone();
        Ok(Self {
            caller: Caller::Consumer(caller),
            service,
            arguments: arguments.map(Arc::new),
            now: args.at.unwrap_or_else(Timestamp::now),
            providers: providers(infra, provider, service)?,
        })
    }
}

impl Question<'_> {
    /// Returns why the provider of these services would refuse the call.
    fn denial(&self, services: &Services) -> Option<Denial> {
        let Some(arguments) = &self.arguments else {
            return may_use(services, &self.caller, self.service, self.now).err();
        };
        let request = Request {
            caller: &self.caller,
            name: self.service,
            arguments,
            now: self.now,
        };
        match decide(services, request) {
            Decision::Allowed(_) => None,
            Decision::Denied(denial) => Some(denial),
        }
    }
}

/// Returns the named provider, if any, and the service, which may be named as `PROVIDER/SERVICE`.
fn split<'a>(
    service: &'a str,
    provider: Option<&'a str>,
) -> Result<(Option<&'a str>, &'a str), Failure> {
    match (service.split_once('/'), provider) {
        (None, provider) => Ok((provider, service)),
        (Some((inner, _)), Some(outer)) if inner != outer => {
            let message = format!(
                "two providers are named: `{}` with the service and `{}` in --provider",
                inner.escape_debug(),
                outer.escape_debug()
            );
            Err(Failure::new(Exit::Usage, message))
        }
        (Some((provider, service)), _) => Ok((Some(provider), service)),
    }
}

fn providers<'a>(
    infra: &'a Infra,
    provider: Option<&str>,
    service: &str,
) -> Result<Vec<&'a Machine>, Failure> {
    let names = |machine: &'a Machine| machine.services.iter().map(|one| one.name.as_str());
    let offers = |machine: &&'a Machine| names(machine).any(|name| name == service);
    let machines = || infra.machines().map(|(_, machine)| machine);
    let offering: Vec<&Machine> = machines().filter(offers).collect();
    let asked = service.escape_debug();
    let Some(provider) = provider else {
        if offering.is_empty() {
            let message = format!("no machine offers a service `{asked}`");
            let help = or_closest(service, machines().flat_map(names), ALL_SERVICES);
            return Err(Failure::new(Exit::Failed, message).help(help));
        }
        return Ok(offering);
    };
    let machine = known_machine(infra, provider, "provider")?;
    if offers(&machine) {
        return Ok(vec![machine]);
    }
    let message = format!("`{}` offers no service `{asked}`", machine.name);
    let elsewhere: Vec<&str> = offering.iter().map(|other| other.name.as_str()).collect();
    let help = match elsewhere.as_slice() {
        [] => or_closest(service, names(machine), ALL_SERVICES),
        some => format!("offered by: {}", some.join(", ")),
    };
    Err(Failure::new(Exit::Failed, message).help(help))
}

/// Finds the machine with this name in an enabled domain; `role` is its role in the question.
pub(super) fn known_machine<'a>(
    infra: &'a Infra,
    name: &str,
    role: &str,
) -> Result<&'a Machine, Failure> {
    if let Some((_, machine)) = infra.machine(name) {
        return Ok(machine);
    }
    let is_named = |machine: &Machine| machine.name.as_str() == name;
    let mut disabled = infra.domains.iter().filter(|domain| !domain.enabled);
    if let Some(domain) = disabled.find(|domain| domain.machines.iter().any(is_named)) {
        let domain = &domain.name;
        let message = format!("the {role} `{name}` is in the domain `{domain}`, which is disabled");
        return Err(Failure::new(Exit::Failed, message).help("set `enabled: true` there"));
    }
    let escaped = name.escape_debug();
    let message = format!("the {role} `{escaped}` is not a machine in this file");
    let names = infra.machines().map(|(_, machine)| machine.name.as_str());
    let otherwise = "`anklume policy list` shows providers and their consumers";
    Err(Failure::new(Exit::Failed, message).help(or_closest(name, names, otherwise)))
}
