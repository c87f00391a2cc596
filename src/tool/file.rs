//! `file_accept` and `file_provide`: files below the portal, and nothing else of the machine.
//!
//! The operator sees the whole portal. A consumer hands files in to `incoming/CALLER/`, and may fetch those in
//! `outgoing/CALLER/` and `outgoing/all/`.

mod accept;
mod portal;
mod provide;
mod unpublished;
mod usage;

pub(super) use accept::{Upload, accept};
pub(super) use portal::make as make_portal;
pub(super) use provide::{Reads, largest_answer, provide};
pub(super) use usage::Usage;

/// Maximum number of files that one connection may be handing in at once, in pieces.
pub(super) const TRANSFERS_MAX: usize = 8;

#[cfg(test)]
mod tests;
