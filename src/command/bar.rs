//! Shows on a terminal how far the transfer of a file is.

use std::fmt;
use std::time::Duration;

use indicatif::{BinaryBytes, HumanDuration, ProgressBar, ProgressState, ProgressStyle};

use super::output::Output;

/// Number of columns below which a percentage replaces the counts of bytes, so that the name keeps some room.
const NARROW: u16 = 60;
/// Number of columns from which there is room for a bar.
const WIDE: u16 = 100;
/// How long a speed is measured before it is shown: the first pieces only fill buffers.
const MEASURED: Duration = Duration::from_secs(1);

/// The bar of the current file; it is there only on a terminal, once the file's first piece has been transferred.
pub(super) struct TransferBar {
    output: Output,
    bar: Option<ProgressBar>,
    name: String,
    /// Bytes of the files that are done.
    done: u64,
    /// The most bytes of the current file that any connection has transferred.
    current: u64,
}

impl TransferBar {
    pub(super) fn new(output: &Output) -> Self {
        Self {
            output: output.clone(),
            bar: None,
            name: String::new(),
            done: 0,
            current: 0,
        }
    }

    /// Begins another file, or the same one over another connection.
    pub(super) fn begin(&mut self, name: &str) {
        self.end();
        name.clone_into(&mut self.name);
    }

    /// Shows that `bytes` of the current file have been transferred, of `total` if that is known.
    pub(super) fn moved(&mut self, bytes: u64, total: Option<u64>) {
        self.current = self.current.max(bytes);
        if !self.output.animates() {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let template = template(total.is_some(), self.output.columns());
            let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
            let bar = bar
                .with_style(style(template))
                .with_message(self.name.clone());
            // What an earlier connection transferred says nothing about the speed of this one.
            bar.set_position(bytes);
            bar.reset_eta();
            bar
        });
        bar.set_position(bytes);
    }

    /// Returns how many bytes of all files have been transferred, each counted once.
    pub(super) const fn all_moved(&self) -> u64 {
        self.done.saturating_add(self.current)
    }

    /// Removes the current file's bar.
    pub(super) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Notes that the current file is done.
    pub(super) fn next(&mut self) {
        self.done = self.all_moved();
        self.current = 0;
    }
}

/// Returns what is shown in a terminal of that width. The name takes the room that is left, and is cut if it must be.
fn template(total_is_known: bool, columns: Option<u16>) -> &'static str {
    let columns = columns.unwrap_or(NARROW);
    match total_is_known {
        false => "{wide_msg} {bytes}{pace}",
        true if columns < NARROW => "{wide_msg} {percent:>3}%{pace}",
        true if columns < WIDE => "{wide_msg} {bytes}/{total_bytes}{pace}",
        true => "{wide_msg} {bar:30} {bytes}/{total_bytes}{pace}",
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    style.with_key("pace", |state: &ProgressState, to: &mut dyn fmt::Write| {
        let left = state.len().map(|_| state.eta());
        // The line is drawn again in a moment.
        let _ = to.write_str(&pace(state.elapsed(), state.per_sec(), left));
    })
}

/// Returns speed and time left, after what precedes them; nothing before the speed is known.
fn pace(elapsed: Duration, per_second: f64, left: Option<Duration>) -> String {
    if elapsed < MEASURED {
        return String::new();
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a speed in bytes is positive, and shown in three digits"
    )]
    let speed = BinaryBytes(per_second as u64);
    let left = left.map_or_else(String::new, |left| {
        format!(", {:#} left", HumanDuration(left))
    });
    format!(" {speed}/s{left}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_shown_once_it_is_measured() {
        let left = Some(Duration::from_secs(20));
        assert_eq!(pace(Duration::from_millis(999), 1e12, left), "");
        let shown = pace(MEASURED, 3.0 * 1024.0 * 1024.0, left);
        assert_eq!(shown, " 3.00 MiB/s, 20s left");
        assert_eq!(pace(MEASURED, 10.0, None), " 10 B/s");
    }
}
