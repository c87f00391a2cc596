//! `anklume foreign-reader`, hidden: the child of `apply` and `doctor` that reads what machines say, without rights.

use std::io;

use crate::error::Exit;
use crate::foreign::serve;

/// Runs `anklume foreign-reader`.
pub(crate) fn run() -> anyhow::Result<Exit> {
    serve(io::stdin().lock(), io::stdout().lock())?;
    Ok(Exit::Done)
}
