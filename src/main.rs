//! argv in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    anklume::main(std::env::args_os())
}
