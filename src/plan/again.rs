//! Devices of edges that look right and do not work.

/// The reason for recreating a device that looks right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// Another machine's device took its socket over.
    TakenOver,
    /// Nobody carries bytes: its process was killed.
    NoProcess,
    /// Its socket was removed.
    NoSocket,
    /// Its socket is no socket, or not its user's alone.
    OddSocket,
}

impl Again {
    /// As a plan says it, behind the device.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::TakenOver => ", made again",
            Self::NoProcess => ", made again: its process is gone",
            Self::NoSocket => ", made again: its socket is gone",
            Self::OddSocket => ", made again: its socket is another one",
        }
    }
}
