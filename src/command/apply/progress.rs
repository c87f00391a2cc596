//! Shows progress: a bar and the running actions on a terminal, one line per action elsewhere.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::time::Duration;

use crate::apply::RunObserver;
use crate::apply::outcome::{StepOutcome, StepStatus};
use crate::command::output::Output;
use crate::plan::Action;

/// Interval between two redraws of a running action.
const TICK: Duration = Duration::from_millis(120);

/// The progress of a run.
pub(crate) struct Progress {
    output: Output,
    bars: Option<(MultiProgress, ProgressBar)>,
}

impl Progress {
    /// Of a run with so many steps.
    pub(crate) fn new(output: &Output, steps: usize) -> Self {
        let bars = output.animates().then(|| {
            let all = MultiProgress::new();
            let style = ProgressStyle::with_template("{bar:32} {pos}/{len} {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let total = u64::try_from(steps).unwrap_or(u64::MAX);
            let bar = all.add(ProgressBar::new(total).with_style(style));
            (all, bar)
        });
        Self {
            output: output.clone(),
            bars,
        }
    }

    /// A line for whoever watches.
    pub(super) fn line(&self, line: &str) {
        match &self.bars {
            Some((all, _)) => all.suspend(|| self.output.say(line)),
            None => self.output.say(line),
        }
    }

    /// The run is over.
    pub(crate) fn end(&self) {
        if let Some((_, bar)) = &self.bars {
            bar.finish_and_clear();
        }
    }
}

impl RunObserver for Progress {
    type Step = Option<ProgressBar>;

    fn began(&self, action: &Action) -> Self::Step {
        let (all, _) = self.bars.as_ref()?;
        let shown = action.shown();
        let line = shown.lines.first().cloned();
        let line = line.unwrap_or_else(|| shown.title());
        let spinner = all.add(ProgressBar::new_spinner().with_message(line));
        spinner.enable_steady_tick(TICK);
        Some(spinner)
    }

    fn left(&self, step: Self::Step) {
        if let (Some((all, bar)), Some(step)) = (&self.bars, step) {
            step.finish_and_clear();
            all.remove(&step);
            bar.inc(1);
        }
    }

    fn ended(&self, outcome: StepOutcome) -> StepOutcome {
        for line in lines(&outcome) {
            self.line(&line);
        }
        outcome
    }
}

/// The lines that say how a step ended.
fn lines(outcome: &StepOutcome) -> Vec<String> {
    let title = outcome.title();
    match &outcome.status {
        StepStatus::Done => outcome.shown.lines.clone(),
        StepStatus::Failed(why) => vec![format!("! {title}: {why}")],
        StepStatus::Skipped(why) => vec![format!("! {title}: skipped, {why}")],
    }
}
