//! What `doctor` prints: a line for each channel, and below it what mends it; or one object for programs.

use serde::Serialize;

use crate::command::output::Output;
use crate::doctor::{Broken, Health};
use crate::error::Exit;

/// The answer as JSON.
#[derive(Debug, Serialize)]
struct DoctorAnswer<'a> {
    ok: bool,
    edges: Vec<ChannelEntry<'a>>,
    notes: &'a [String],
}

#[derive(Debug, Serialize)]
struct ChannelEntry<'a> {
    consumer: &'a str,
    provider: &'a str,
    ok: bool,
    /// How long the consumer's question took; where something is broken, nothing.
    milliseconds: Option<f64>,
    broken: Option<&'a Broken>,
    notes: &'a [String],
}

/// There is nothing to examine.
pub(super) fn nothing(machines: &[String], output: &Output) -> anyhow::Result<Exit> {
    if output.is_json() {
        return print(&[], &[], output);
    }
    let line = if machines.is_empty() {
        "no channels: no machine of this file offers another one a service\n".to_owned()
    } else {
        format!("no channels: {} is an end of none\n", machines.join(", "))
    };
    output.answer(line.as_bytes())?;
    Ok(Exit::Done)
}

/// Prints the state of the channels. The exit code says whether anything is broken.
pub(super) fn print(
    healths: &[Health<'_>],
    notes: &[String],
    output: &Output,
) -> anyhow::Result<Exit> {
    let ok = healths.iter().all(|health| health.broken.is_none());
    if output.is_json() {
        output.json(&DoctorAnswer {
            ok,
            edges: healths.iter().map(entry).collect(),
            notes,
        })?;
    } else {
        for note in notes {
            output.say(&format!("note: {note}"));
        }
        output.answer(text(healths).as_bytes())?;
    }
    Ok(if ok { Exit::Done } else { Exit::Failed })
}

fn milliseconds(health: &Health<'_>) -> Option<f64> {
    // Tenths are what a clock of another process is worth.
    let took = health.took.filter(|_| health.broken.is_none())?;
    Some((took.as_secs_f64() * 10_000.0).round() / 10.0)
}

fn entry<'a>(health: &'a Health<'_>) -> ChannelEntry<'a> {
    ChannelEntry {
        consumer: health.edge.consumer.machine.as_str(),
        provider: health.edge.provider.machine.as_str(),
        ok: health.broken.is_none(),
        milliseconds: milliseconds(health),
        broken: health.broken.as_ref(),
        notes: &health.notes,
    }
}

fn text(healths: &[Health<'_>]) -> String {
    let names: Vec<String> = healths
        .iter()
        .map(|health| {
            let edge = health.edge;
            format!("{} → {}", edge.consumer.machine, edge.provider.machine)
        })
        .collect();
    let width = names.iter().map(|name| name.chars().count()).max();
    let width = width.unwrap_or_default();
    let lines = healths.iter().zip(&names).flat_map(|(health, name)| {
        let first = if let Some(broken) = &health.broken {
            format!("broken  {name:width$}  {}\n", broken.detail)
        } else {
            let took = milliseconds(health).unwrap_or_default();
            format!("ok      {name:width$}  {took:.1} ms\n")
        };
        let mend = health.broken.as_ref().map(|broken| &broken.mend);
        let mend = mend.map(|mend| format!("        mend it: {mend}\n"));
        let notes = health.notes.iter();
        let notes = notes.map(|note| format!("        note: {note}\n"));
        std::iter::once(first).chain(mend).chain(notes)
    });
    lines.collect()
}
