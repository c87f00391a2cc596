//! `anklume machine-root`, hidden: the child of `apply` and `doctor` that looks at the files of one machine from the host.

use std::io;

use crate::cli::MachineRootArgs;
use crate::error::Exit;
use crate::machine_root::serve;

/// Runs `anklume machine-root FIRST CGROUP`.
pub(crate) fn run(args: &MachineRootArgs) -> anyhow::Result<Exit> {
    serve(
        args.first,
        &args.cgroup,
        io::stdin().lock(),
        io::stdout().lock(),
    )?;
    Ok(Exit::Done)
}
