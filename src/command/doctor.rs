//! `anklume doctor`: checks every channel and reports its first fault, with the fix.
//!
//! Changes only the host's record of the providers' logs. Inspects devices, processes, sockets and logs from the
//! host; asks a machine only for the rest, within limits, and marks its answers as the machine's.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::json;

use super::apply::open_session;
use super::output::{Output, Tone, done_or_failed, paint, paint_line};
use super::{open_infra, or_closest};
use crate::cli::DoctorArgs;
use crate::doctor::{Broken, Examination, Health, examine};
use crate::edge::{Edge, edges};
use crate::error::{Exit, Failure};
use crate::incus::socket_path;
use crate::infra::Infra;
use crate::session::block_on;

/// Runs `anklume doctor`.
pub(crate) fn run(args: &DoctorArgs, output: &Output) -> anyhow::Result<Exit> {
    let infra = open_infra(&args.infra, output)?.infra;
    let edges = edges(&infra)?;
    let chosen = chosen(&infra, &edges, &args.machines)?;
    if chosen.is_empty() && !args.machines.is_empty() {
        let machines = args.machines.join(", ");
        let none = format!("no channels for {machines}\n");
        return print(&Examination::default(), output, none);
    }
    let apply = format!("anklume apply{}", infra.flag);
    let examined = block_on(async {
        let session = match open_session(output).await {
            // A computer without Incus has no channels of an earlier file either.
            Err(why) if chosen.is_empty() && !has_incus() => {
                return Ok(Examination {
                    notes: vec![format!("nothing was examined: {why:#}")],
                    ..Examination::default()
                });
            }
            session => session?,
        };
        examine(&session, &infra, &edges, &chosen, &apply).await
    })?;
    if !output.is_json() {
        output.notes(&examined.notes);
    }
    let text = text(&examined, &apply, output);
    print(&examined, output, text)
}

/// Returns whether this computer has, or may have, Incus.
fn has_incus() -> bool {
    let socket = socket_path(|name| std::env::var_os(name));
    socket.try_exists().unwrap_or(true)
}

/// Returns the edges of the named machines; without names, all edges.
fn chosen<'e>(
    infra: &Infra,
    edges: &'e [Edge],
    names: &[String],
) -> Result<Vec<&'e Edge>, Failure> {
    if let Some(name) = names.iter().find(|name| infra.machine(name).is_none()) {
        let message = format!("`{}` is not a machine in this file", name.escape_debug());
        let machines = infra.machines().map(|(_, machine)| machine.name.as_str());
        let otherwise = "`anklume policy list` shows providers and their consumers";
        let failure = Failure::new(Exit::Failed, message);
        return Err(failure.help(or_closest(name, machines, otherwise)));
    }
    let is_chosen = |edge: &&Edge| {
        let ends = [&edge.consumer, &edge.provider];
        let is_end = |name: &String| ends.iter().any(|end| end.machine.as_str() == name);
        names.is_empty() || names.iter().any(is_end)
    };
    Ok(edges.iter().filter(is_chosen).collect())
}

#[derive(Debug, Serialize)]
struct ChannelEntry<'a> {
    consumer: &'a str,
    provider: &'a str,
    ok: bool,
    /// True if what is declared for it was not applied yet.
    pending: bool,
    /// Duration of the consumer's query; `None` if something is broken.
    milliseconds: Option<f64>,
    broken: Option<&'a Broken>,
    notes: &'a [String],
}

/// Prints the state of the channels; the exit code shows whether each of them works.
fn print(examined: &Examination<'_>, output: &Output, text: String) -> anyhow::Result<Exit> {
    let healths = &examined.healths;
    let works = |health: &Health<'_>| health.broken.is_none();
    let ok = healths.iter().all(works) && examined.others.is_empty();
    let edges = healths.iter().map(|health| ChannelEntry {
        consumer: health.edge.consumer.machine.as_str(),
        provider: health.edge.provider.machine.as_str(),
        ok: health.broken.is_none(),
        pending: health.is_pending,
        milliseconds: milliseconds(health),
        broken: health.broken.as_ref(),
        notes: &health.notes,
    });
    let edges: Vec<ChannelEntry<'_>> = edges.collect();
    let answer = json!({
        "ok": ok,
        "edges": edges,
        "others": examined.others,
        "not_applied": examined.not_applied,
        "not_applied_lines": examined.not_applied_lines,
        "notes": examined.notes,
    });
    output.answer_as(&answer, || text)?;
    Ok(done_or_failed(ok))
}

fn milliseconds(health: &Health<'_>) -> Option<f64> {
    // A time measured by another process is accurate to about a tenth of a millisecond.
    let took = health.took.filter(|_| health.broken.is_none())?;
    Some((took.as_secs_f64() * 10_000.0).round() / 10.0)
}

fn text(examined: &Examination<'_>, apply: &str, output: &Output) -> String {
    let healths = examined.healths.as_slice();
    let names = healths.iter().map(|health| {
        let edge = health.edge;
        format!("{} → {}", edge.consumer.machine, edge.provider.machine)
    });
    let names: Vec<String> = names.collect();
    let width = names.iter().map(|name| name.chars().count()).max();
    let width = width.unwrap_or_default();
    // The same note on many channels has one cause.
    let mut channels_of = BTreeMap::<&str, usize>::new();
    for note in healths.iter().flat_map(|health| &health.notes) {
        *channels_of.entry(note).or_default() += 1;
    }
    let is_shared = |note: &str| channels_of.get(note).is_some_and(|channels| *channels > 1);
    let changes = examined.not_applied.iter().map(|change| &change.line);
    let changes: Vec<&String> = changes.chain(&examined.not_applied_lines).collect();
    let mut text = String::new();
    for (health, name) in healths.iter().zip(&names) {
        let took = milliseconds(health).unwrap_or_default();
        // Writing to a `String` cannot fail.
        let _ = match &health.broken {
            Some(Broken { detail, fix, .. }) if health.is_pending => {
                let word = paint(Tone::Changed, "pending");
                // The changes, if any, are shown below with the command that makes them.
                let fix = match changes.as_slice() {
                    [] => format!("\n        fix: {fix}"),
                    _ => String::new(),
                };
                writeln!(text, "{word} {name:width$}  not applied yet: {detail}{fix}")
            }
            Some(Broken { detail, fix, .. }) => {
                let word = paint(Tone::Bad, "broken");
                writeln!(text, "{word}  {name:width$}  {detail}\n        fix: {fix}")
            }
            None if output.quiet => continue,
            None => writeln!(
                text,
                "{}      {name:width$}  {took:.1} ms",
                paint(Tone::Good, "ok")
            ),
        };
        let notes = health.notes.iter().filter(|note| !is_shared(note));
        for note in notes.filter(|_| !output.quiet) {
            let _ = writeln!(text, "        note: {note}");
        }
    }
    for Broken { detail, fix, .. } in &examined.others {
        let word = paint(Tone::Bad, "broken");
        let _ = writeln!(text, "{word}  {detail}\n        fix: {fix}");
    }
    if !changes.is_empty() {
        let _ = writeln!(text, "not applied yet; `{apply}` makes these changes:");
        for line in changes {
            let _ = writeln!(text, "  {}", paint_line(line));
        }
    }
    if output.quiet {
        return text;
    }
    for (note, channels) in channels_of.iter().filter(|(_, channels)| **channels > 1) {
        let _ = writeln!(text, "note: {note} ({channels} channels)");
    }
    let faulty = healths.iter().filter(|health| health.broken.is_some());
    let (pending, broken): (Vec<_>, Vec<_>) = faulty.partition(|health| health.is_pending);
    let broken = broken.len() + examined.others.len();
    let ok = healths
        .iter()
        .filter(|health| health.broken.is_none())
        .count();
    if healths.is_empty() && broken == 0 {
        text.push_str("no channels: no machine in this file offers a service to another\n");
        return text;
    }
    let mut counts = format!("{ok} ok");
    for (count, word) in [(pending.len(), "not applied yet"), (broken, "broken")] {
        if count > 0 {
            let _ = write!(counts, ", {count} {word}");
        }
    }
    let _ = writeln!(text, "{counts}");
    text
}
