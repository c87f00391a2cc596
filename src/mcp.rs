//! tmp
pub(crate) mod gate;
pub(crate) mod live;
pub(crate) mod relay;
