//! The process that gives up its rights and becomes the program.

use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;

use rustix::fs::Mode;
use rustix::process::{
    Gid, Resource, Rlimit, Signal, Uid, getuid, set_parent_process_death_signal, setrlimit, setsid,
};
use rustix::stdio::{dup2_stdin, stdin};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::tree::tasks_of;
use super::{ORDER_MAX, ProgramSpec, UserIds};
use crate::confinement;
use crate::ipc::{SpinRead, receive_with_descriptor};

/// Tasks that a program may have, beside those that its user has already: a program that only multiplies stops there.
const TASKS: u64 = 512;
/// Files that a program may have open: the usual limit (`getrlimit(2)`).
const FILES: u64 = 1024;

/// Becomes the program that the message on stdin describes; its stdin is attached to that message. Returns only if that
/// fails, after reporting it on the socket.
pub(crate) fn run() -> io::Result<()> {
    let socket = UnixStream::from(stdin().try_clone_to_owned()?);
    let failed = become_program(&socket);
    crate::ipc::send(&socket, &failed.to_string(), None)
}

fn become_program(socket: &UnixStream) -> io::Error {
    match prepare(socket) {
        Ok(spec) => execute(&spec),
        Err(why) => why,
    }
}

fn prepare(socket: &UnixStream) -> io::Result<ProgramSpec> {
    let (spec, input): (ProgramSpec, _) =
        receive_with_descriptor(SpinRead::new(socket), ORDER_MAX)?;
    dup2_stdin(&input.ok_or(io::ErrorKind::InvalidData)?)?;
    let uid = spec
        .user
        .as_ref()
        .map_or(getuid().as_raw(), |user| user.uid);
    let tasks = tasks_of(uid)?.saturating_add(TASKS);
    // If memory runs out, the kernel ends programs first, rather than the launcher. Not every `/proc` allows it.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    if let Some(user) = &spec.user {
        become_user(user)?;
    }
    limit(Resource::Nproc, tasks)?;
    limit(Resource::Data, spec.memory)?;
    limit(Resource::Nofile, FILES)?;
    limit(Resource::Core, 0)?;
    confinement::give_up_rights()?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // Leaves the launcher's session, so that no terminal is within reach.
    setsid()?;
    // The reaper ends everything; this is for the case that it is killed itself. Changing the user would clear it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(spec)
}

fn become_user(user: &UserIds) -> io::Result<()> {
    let groups: Vec<Gid> = user
        .groups
        .iter()
        .map(|group| Gid::from_raw(*group))
        .collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}

/// Sets both limits, but raises none.
fn limit(resource: Resource, max: u64) -> io::Result<()> {
    let maximum = rustix::process::getrlimit(resource).maximum;
    let max = Some(maximum.map_or(max, |maximum| maximum.min(max)));
    let limits = Rlimit {
        current: max,
        maximum: max,
    };
    Ok(setrlimit(resource, limits)?)
}

fn execute(spec: &ProgramSpec) -> io::Error {
    let Some((program, arguments)) = spec.argv.split_first() else {
        return io::ErrorKind::InvalidInput.into();
    };
    if let Err(why) = std::env::set_current_dir(&spec.folder)
        && let Err(_no_root) = std::env::set_current_dir("/")
    {
        return why;
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "this process becomes the program, and waits for nothing"
    )]
    let mut command = std::process::Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .exec()
}
