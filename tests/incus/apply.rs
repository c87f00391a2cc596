//! Tests `anklume apply`, `apply --dry-run`, `apply --adopt` and `destroy` on a real Incus.

mod altered;
mod crashed;
mod declared;
mod edges;
mod faults;
mod helps;
mod hostile;
pub(crate) mod inside;
mod interrupted;
mod isolation;
mod looks;
mod plan;
mod policies;
mod terminal;
mod together;
