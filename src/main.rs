//! Runs anklume and returns its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    anklume::main(std::env::args_os())
}
