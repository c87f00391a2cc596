//! Shows on a terminal how far the transfer of a file is.

use indicatif::{ProgressBar, ProgressStyle};

use crate::command::output::Output;

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
            let bar = match total {
                Some(total) => ProgressBar::new(total).with_style(style(
                    "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left",
                )),
                None => ProgressBar::no_length().with_style(style("{msg} {bytes} {bytes_per_sec}")),
            };
            // What an earlier connection transferred says nothing about the speed of this one.
            bar.set_position(bytes);
            bar.reset_eta();
            bar.with_message(self.name.clone())
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

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
