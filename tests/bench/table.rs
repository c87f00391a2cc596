//! Formats the measurements as a table: times, and their ratios to the floor and the peer.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

/// One measurement.
pub(crate) struct Row {
    /// The measured operation.
    pub(crate) what: String,
    /// Our time.
    pub(crate) ours: Duration,
    /// The floor and its time.
    pub(crate) floor: (&'static str, Duration),
    /// The expected result; empty if nothing is promised.
    pub(crate) expected: &'static str,
    /// The peer, and its time if it could be measured.
    pub(crate) peer: (&'static str, Option<Duration>),
}

/// All rows.
#[derive(Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    /// Adds a row.
    pub(crate) fn push(&mut self, row: Row) {
        // Some measurements take a long time, so show progress.
        eprintln!("measured: {}", row.what);
        self.0.push(row);
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<36} {:>10}  {:<12} {:>10} {:>8}  {:<30} {:>10} {:>9}  peer",
            "", "anklume", "expected", "floor", "ours is", "floor is", "peer", "peer is"
        )?;
        for row in &self.0 {
            let times_floor = ratio(row.ours, row.floor.1);
            let (peer, times_peer) = match row.peer.1 {
                Some(peer) => (text(peer), format!("{} ×", ratio(peer, row.ours))),
                None => ("-".to_owned(), "-".to_owned()),
            };
            writeln!(
                f,
                "{:<36} {:>10}  {:<12} {:>10} {:>8}  {:<30} {peer:>10} {times_peer:>9}  {}",
                row.what,
                text(row.ours),
                row.expected,
                text(row.floor.1),
                format!("{times_floor} ×"),
                row.floor.0,
                row.peer.0
            )?;
        }
        writeln!(
            f,
            "\n`ours is` N × the floor; `peer is` N × ours. Medians, but where a p99 is named."
        )
    }
}

fn ratio(a: Duration, b: Duration) -> String {
    let ratio = a.as_secs_f64() / b.as_secs_f64();
    if ratio < 10.0 {
        format!("{ratio:.1}")
    } else {
        format!("{ratio:.0}")
    }
}

fn text(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 0.001 {
        format!("{:.1} µs", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{:.1} ms", seconds * 1e3)
    } else {
        format!("{seconds:.2} s")
    }
}
