//! Shows the pieces of a transfer as one line, in the order in which the calls and the transfers ended.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

use crate::audit::chain::LogLine;
use crate::audit::{Call, Event};

/// Maximum pause between two pieces of one transfer.
const PIECE_PAUSE: SignedDuration = SignedDuration::from_mins(5);
/// Maximum number of lines that wait for the end of an earlier transfer.
const WAITING_MAX: usize = 1000;

/// The lines that have been read but not shown, each transfer at the place of its last piece.
#[derive(Default)]
pub(super) struct TransferLines(VecDeque<ShownLine>);

/// A line to show: that of one event, or of several pieces of one transfer.
pub(super) struct ShownLine {
    /// The event, or the last piece with the sums of all.
    pub(super) line: LogLine,
    /// Number of pieces; 0 if it is not a piece.
    pub(super) pieces: u64,
}

impl TransferLines {
    /// Takes a line, and returns those that can be shown now.
    pub(super) fn take(&mut self, line: LogLine) -> Vec<ShownLine> {
        let now = line.time.parse::<Timestamp>().ok();
        self.push(line);
        let mut shown = Vec::new();
        while self.0.len() > WAITING_MAX || self.0.front().is_some_and(|one| !one.is_open(now)) {
            shown.extend(self.0.pop_front());
        }
        shown
    }

    /// Takes a line.
    pub(super) fn push(&mut self, line: LogLine) {
        let mut taken = ShownLine::new(line);
        let earlier = self.0.iter().position(|one| one.continues_with(&taken));
        if let Some(earlier) = earlier.and_then(|at| self.0.remove(at)) {
            taken.add(&earlier);
        }
        self.0.push_back(taken);
    }

    /// Returns the lines that need not wait at this time, whatever waits before them.
    pub(super) fn ended(&mut self, now: Timestamp) -> Vec<ShownLine> {
        let beyond = self.0.len().saturating_sub(WAITING_MAX);
        let mut shown: Vec<ShownLine> = self.0.drain(..beyond).collect();
        let (open, ended): (VecDeque<_>, VecDeque<_>) =
            self.0.drain(..).partition(|one| one.is_open(Some(now)));
        self.0 = open;
        shown.extend(ended);
        shown
    }

    /// Returns the lines that are left at the end.
    pub(super) fn rest(&mut self) -> impl Iterator<Item = ShownLine> {
        self.0.drain(..)
    }
}

impl ShownLine {
    fn new(line: LogLine) -> Self {
        let mut new = Self { line, pieces: 0 };
        let is_piece = |call: &Call| call.transfer.is_some() && call.completes.is_some();
        if new.call().is_some_and(is_piece) {
            new.pieces = 1;
        }
        new
    }

    fn call(&self) -> Option<&Call> {
        match &self.line.event {
            Event::Call(call) => Some(call),
            _ => None,
        }
    }

    /// Returns whether its transfer ended before its last piece, as far as the log goes.
    pub(super) fn is_incomplete(&self) -> bool {
        self.pieces > 0
            && self
                .call()
                .is_some_and(|call| call.completes == Some(false))
    }

    /// Returns whether another piece may follow.
    fn is_open(&self, now: Option<Timestamp>) -> bool {
        let last = self.line.time.parse::<Timestamp>().ok();
        let pause = now.zip(last).map(|(now, last)| now.duration_since(last));
        // A machine may claim any time.
        let is_recent = |pause: SignedDuration| !pause.is_negative() && pause <= PIECE_PAUSE;
        self.is_incomplete() && pause.is_some_and(is_recent)
    }

    /// Returns whether `next` is another piece of the same transfer.
    fn continues_with(&self, next: &Self) -> bool {
        match (self.call(), next.call()) {
            (Some(call), Some(next_call)) if self.pieces > 0 && next.pieces > 0 => {
                call.completes == Some(false)
                    && call.transfer == next_call.transfer
                    && call.service == next_call.service
                    && call.caller == next_call.caller
            }
            _ => false,
        }
    }

    /// Adds the earlier pieces.
    fn add(&mut self, earlier: &Self) {
        self.pieces += earlier.pieces;
        if let (Event::Call(call), Some(before)) = (&mut self.line.event, earlier.call()) {
            call.bytes_in = call.bytes_in.saturating_add(before.bytes_in);
            call.bytes_out = call.bytes_out.saturating_add(before.bytes_out);
            call.duration_us = call.duration_us.saturating_add(before.duration_us);
        }
    }
}
