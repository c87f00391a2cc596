//! `anklume policy explain`: why a call is allowed or denied, and the smallest change that would turn that.

use serde::Serialize;
use serde_json::Value;

use super::check::{CheckVerdict, verdicts};
use super::question::{Question, joined};
use crate::cli::{Format, PolicyCheckArgs};
use crate::command::{open_infra, output::Output};
use crate::error::Exit;
use crate::infra::{Infra, Machine};
use crate::policy::{Caller, offers};
use crate::services::{Service, Services};

/// Runs `anklume policy explain`. The exit tells whether it could explain, not what was decided.
pub(crate) fn run(args: &PolicyCheckArgs, output: &Output) -> anyhow::Result<Exit> {
    let infra = open_infra(&args.infra, output)?.infra;
    let question = Question::new(args, &infra)?;
    let explanations: Vec<Explanation> = verdicts(&question)
        .into_iter()
        .zip(&question.providers)
        .filter_map(|(verdict, provider)| explain(verdict, provider, &question))
        .collect();
    let reachable = reachable(&infra, &question.caller);
    match output.format() {
        Format::Json => output.json(&ExplainAnswer {
            explanations: &explanations,
            reachable: &reachable,
        })?,
        Format::Text => output.answer(as_text(&explanations, &reachable, args).as_bytes())?,
    }
    Ok(Exit::Done)
}

/// The answer as JSON.
#[derive(Debug, Serialize)]
struct ExplainAnswer<'a> {
    explanations: &'a [Explanation],
    /// Everything that the caller may call, as PROVIDER/SERVICE.
    reachable: &'a [String],
}

/// One decision, explained.
#[derive(Debug, Serialize)]
struct Explanation {
    #[serde(flatten)]
    verdict: CheckVerdict,
    tool: String,
    fixed: Vec<String>,
    /// What would turn the decision.
    change: String,
}

fn explain(
    verdict: CheckVerdict,
    provider: &Machine,
    question: &Question<'_>,
) -> Option<Explanation> {
    let services = Services::of(provider);
    let service = services.service(question.service)?;
    Some(Explanation {
        change: change(verdict.allowed, service, question),
        tool: service.tool.to_string(),
        fixed: service.with.iter().map(fixed).collect(),
        verdict,
    })
}

fn fixed((name, value): (&String, &Value)) -> String {
    format!("{name}={value}")
}

fn change(allowed: bool, service: &Service, question: &Question<'_>) -> String {
    let caller = &question.caller;
    let at = service.declared_at.as_deref().unwrap_or("infra.yml");
    let listed = service
        .consumers
        .iter()
        .any(|consumer| Caller::Consumer(consumer.clone()) == *caller);
    match (allowed, listed) {
        (true, _) => format!(
            "take `{caller}` off `consumers` of `{}` ({at}) to deny it",
            service.name
        ),
        (false, true) => "leave out the argument that the service fixes".to_owned(),
        (false, false) => format!(
            "add `{caller}` to `consumers` of `{}` ({at}) to allow it; listed now: {}",
            service.name,
            if service.consumers.is_empty() {
                "nobody".to_owned()
            } else {
                joined(&service.consumers)
            }
        ),
    }
}

/// Everything that the caller may call.
fn reachable(infra: &Infra, caller: &Caller) -> Vec<String> {
    infra
        .machines()
        .flat_map(|(_, machine)| {
            offers(&Services::of(machine), caller)
                .into_iter()
                .map(|offer| format!("{}/{}", machine.name, offer.name))
        })
        .collect()
}

fn as_text(explanations: &[Explanation], reachable: &[String], args: &PolicyCheckArgs) -> String {
    let mut lines = Vec::new();
    for explanation in explanations {
        lines.push(explanation.verdict.line());
        lines.push(format!("  runs: {}", explanation.tool));
        if !explanation.fixed.is_empty() {
            lines.push(format!(
                "  fixed by the service: {}",
                explanation.fixed.join(", ")
            ));
        }
        lines.push(format!("  change: {}", explanation.change));
    }
    let caller = args.caller.escape_debug();
    lines.push(if reachable.is_empty() {
        format!("`{caller}` may call nothing")
    } else {
        format!("`{caller}` may call: {}", reachable.join(", "))
    });
    lines.join("\n") + "\n"
}
