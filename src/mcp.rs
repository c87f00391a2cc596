//! tmp
pub(crate) mod live;
