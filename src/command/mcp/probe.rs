//! What a confined process can still do, tried out in it: of debug builds alone, for the tests.
//!
//! `ANKLUME_PROBE` lists attempts, each as a verb and what it is tried on, and one a line; what became of each is a line on stderr.

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fchmod, open};
use rustix::process::{Pid, test_kill_process};

use crate::command::output::Output;

/// The variable that lists the attempts.
const VARIABLE: &str = "ANKLUME_PROBE";

/// Tries out what is asked for, if anything is.
pub(super) fn run(who: &str, output: &Output) {
    let attempts = std::env::var(VARIABLE).unwrap_or_default();
    for attempt in attempts.lines() {
        let (verb, what) = attempt.split_once(' ').unwrap_or((attempt, ""));
        let how = match attempted(verb, what) {
            Ok(()) => "done".to_owned(),
            Err(why) => why.to_string(),
        };
        output.stderr(&format!("probe {who}: {attempt}: {how}"));
    }
}

fn attempted(verb: &str, what: &str) -> std::io::Result<()> {
    let path = Path::new(what);
    match verb {
        "read" => File::open(path).map(drop),
        "append" => File::options().append(true).open(path).map(drop),
        "make" => File::create(path).map(drop),
        "connect" => UnixStream::connect(path).map(drop),
        "datagram" => {
            let (one, _) = UnixDatagram::pair()?;
            one.send_to(b"x", path).map(drop)
        }
        "mode" => std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o4755)),
        "neither" => {
            let flags = OFlags::from_bits_retain(3);
            Ok(fchmod(open(path, flags, Mode::empty())?, Mode::RWXU)?)
        }
        "tcp" => TcpStream::connect(what).map(drop),
        "run" => run_program(path),
        "signal" => {
            let process = what.parse().ok().and_then(Pid::from_raw);
            let process = process.ok_or(std::io::ErrorKind::InvalidInput)?;
            Ok(test_kill_process(process)?)
        }
        _ => Err(std::io::ErrorKind::InvalidInput.into()),
    }
}

fn run_program(path: &Path) -> std::io::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "it must not run")]
    let mut command = std::process::Command::new(path);
    command.status().map(drop)
}
