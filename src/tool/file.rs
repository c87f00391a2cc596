//! `file_accept` and `file_provide`: files below the portal, and nothing else on the machine.
//!
//! The operator sees the whole portal. A consumer puts files into `incoming/CALLER/`, and may fetch files from
//! `outgoing/CALLER/` and `outgoing/all/`.

mod accept;
mod existing;
mod listing;
mod partial;
mod portal;
mod provide;
mod unpublished;
mod usage;

pub(super) use accept::{Upload, accept};
pub(super) use portal::make as make_portal;
pub(super) use provide::{Reads, largest_answer, provide};
pub(super) use usage::Usage;

/// Maximum number of files that one connection may be sending in pieces at the same time.
pub(super) const TRANSFERS_MAX: usize = 8;

#[cfg(test)]
mod tests;
