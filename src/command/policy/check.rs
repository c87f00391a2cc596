//! `anklume policy check`: may this caller use this service? One line that says which and why.

use serde::Serialize;

use super::question::{Question, joined};
use crate::catalogue::check_some;
use crate::cli::{Format, PolicyCheckArgs};
use crate::command::{open_infra, output::Output};
use crate::error::{Exit, Failure};
use crate::infra::Machine;
use crate::name::MachineName;
use crate::policy::{self, Caller, Decision, Denial, Request, decide};
use crate::services::Services;

/// Runs `anklume policy check`: 0 allowed, 1 denied or error.
pub(crate) fn run(args: &PolicyCheckArgs, output: &Output) -> anyhow::Result<Exit> {
    let infra = open_infra(&args.infra, output)?.infra;
    let question = Question::new(args, &infra)?;
    let verdicts: Vec<CheckVerdict> = verdicts(&question);
    // Several machines offer it: allowed is what none of them refuses.
    let allowed = verdicts.iter().all(|verdict| verdict.allowed);
    if allowed {
        are_arguments(&question)?;
    }
    match output.format() {
        Format::Json => output.json(&CheckAnswer {
            allowed,
            caller: &args.caller,
            service: question.service,
            decisions: &verdicts,
        })?,
        Format::Text => {
            let lines: Vec<String> = verdicts.iter().map(CheckVerdict::line).collect();
            output.answer((lines.join("\n") + "\n").as_bytes())?;
            if verdicts.len() > 1 {
                output.say("note: several machines offer this service; name one with --provider");
            }
        }
    }
    Ok(if allowed { Exit::Done } else { Exit::Failed })
}

/// What is allowed must also be a call: the arguments that are given fit the tool of each machine.
fn are_arguments(question: &Question<'_>) -> Result<(), Failure> {
    for provider in &question.providers {
        let services = Services::of(provider);
        let Some(service) = services.service(question.service) else {
            continue;
        };
        check_some(service.tool, &policy::sent(&question.arguments)).map_err(|wrong| {
            let (machine, tool) = (&provider.name, service.tool);
            let message = format!("`--args` is no call of `{}` on `{machine}`: {wrong}", service.name);
            Failure::new(Exit::Failed, message).help(format!(
                "`{}` runs `{tool}`; `anklume mcp serve --list-tools --format json` shows what that takes",
                service.name
            ))
        })?;
    }
    Ok(())
}

/// The decision of each machine.
pub(super) fn verdicts(question: &Question<'_>) -> Vec<CheckVerdict> {
    question
        .providers
        .iter()
        .map(|provider| verdict(provider, question))
        .collect()
}

/// The answer as JSON.
#[derive(Debug, Serialize)]
struct CheckAnswer<'a> {
    allowed: bool,
    caller: &'a str,
    service: &'a str,
    decisions: &'a [CheckVerdict],
}

/// The decision for one provider.
#[derive(Debug, Serialize)]
pub(super) struct CheckVerdict {
    pub(super) provider: MachineName,
    pub(super) allowed: bool,
    pub(super) reason: String,
}

impl CheckVerdict {
    /// The one line: which, and why.
    pub(super) fn line(&self) -> String {
        let word = if self.allowed { "allowed" } else { "denied" };
        format!("{word}: {}", self.reason)
    }
}

fn verdict(provider: &Machine, question: &Question<'_>) -> CheckVerdict {
    let (caller, name) = (&question.caller, question.service);
    let services = Services::of(provider);
    let declared_at = services
        .service(name)
        .and_then(|service| service.declared_at.clone());
    let at = place(declared_at.as_deref());
    let request = Request {
        caller,
        name,
        arguments: &question.arguments,
    };
    let machine = &provider.name;
    let (allowed, reason) = match decide(&services, request) {
        Decision::Allowed(_) => (
            true,
            format!("`{caller}` is a consumer of `{name}` on `{machine}`{at}"),
        ),
        Decision::Denied(denial) => (false, reason(&denial, caller, name, machine, &at)),
    };
    CheckVerdict {
        provider: machine.clone(),
        allowed,
        reason,
    }
}

fn reason(denial: &Denial, caller: &Caller, name: &str, machine: &MachineName, at: &str) -> String {
    match denial {
        Denial::Unknown => format!("`{machine}` offers no service `{}`", name.escape_debug()),
        Denial::NotConsumer { consumers, .. } => {
            let consumers = if consumers.is_empty() {
                "it has none".to_owned()
            } else {
                format!("its consumers: {}", joined(consumers))
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
