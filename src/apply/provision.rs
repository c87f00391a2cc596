//! Prepares machines after they start and before their channels exist: pushes the program, which does the rest, and
//! creates the folder in which a consumer's devices listen.
//!
//! Everything in a machine may be hostile: no path may pass through a symbolic link.

use std::time::Duration;

use super::outcome::StepError;
use crate::edge::CONSUMER_FOLDER;
use crate::host;
use crate::incus::{EntryKind, FileOwner, Incus, IncusError, Object};
use crate::machine_state::{
    FRESH_PREFIX, IDENTITY, LINKS, MachineSpec, PROGRAM, PROGRAM_FOLDER, SERVICES, SETUP, Sent,
};
use crate::session::Session;
use crate::setup::SERVER_MAX;
use crate::text::Foreign;
use crate::transport::RemoteExec;

/// Owner and mode of the program and the folders that `apply` creates in a machine.
const FOLDER: FileOwner = FileOwner {
    uid: 0,
    gid: 0,
    mode: 0o755,
};

/// Timeout for setting up a machine: the time to replace its server, plus a margin for the rest.
const SETUP_TIMEOUT: Duration = SERVER_MAX.saturating_add(Duration::from_secs(30));

/// Sets up a machine: kills a hung server and pushes the program if asked; the program does everything else.
pub(crate) async fn install(
    session: &Session,
    incus: &mut Incus,
    machine: &Object,
    spec: &MachineSpec,
    push: bool,
    kill_server: bool,
) -> Result<(), StepError> {
    if kill_server {
        host::end_servers(incus.first_process(machine).await?).await;
    }
    let program = prepare(session, incus, machine, push).await?;
    // Includes the time, so that a stale setup request is not carried out.
    let sent = Sent {
        at: jiff::Timestamp::now().as_second(),
        order: spec.clone(),
    };
    let exec = RemoteExec {
        project: machine.project(),
        machine: machine.name(),
        user: None,
        argv: &[&program, SETUP],
        // Plain data, which always serializes.
        input: &serde_json::to_vec(&sent).unwrap_or_default(),
        timeout: SETUP_TIMEOUT,
    };
    let output = exec.run().await?;
    let Some(report) = session.reader.report(&output.answer).await? else {
        return Err(StepError::NoReport(output.stderr));
    };
    if let Some(path) = report.altered {
        return Err(StepError::Altered(path));
    }
    if let Some(why) = report.failed {
        return Err(StepError::Reported(why));
    }
    let digest = spec.services().ok().flatten();
    let digest = digest.map(|services| services.digest());
    if report.digest.as_ref().map(Foreign::raw) != digest.as_ref() {
        return Err(StepError::OtherPolicy);
    }
    Ok(())
}

/// Pushes this program into a machine, under a name of its own, and returns its path.
pub(crate) async fn push_program(
    session: &Session,
    incus: &mut Incus,
    machine: &Object,
) -> Result<String, IncusError> {
    prepare(session, incus, machine, true).await
}

/// Removes a program that [`push_program`] has pushed.
pub(crate) async fn remove_program(
    incus: &mut Incus,
    machine: &Object,
    path: &str,
) -> Result<(), IncusError> {
    incus.delete_file(machine, path).await
}

/// Checks that no mount lies on the path to our files, and pushes the program if asked; returns the path to run.
async fn prepare(
    session: &Session,
    incus: &mut Incus,
    machine: &Object,
    push: bool,
) -> Result<String, IncusError> {
    let first = incus.first_process(machine).await?;
    match host::mounted(first, is_ours) {
        Ok(None) => {}
        Ok(Some(place)) => return Err(altered(&place)),
        Err(host::TooManyMounts) => return Err(altered("/proc/mounts")),
    }
    // If the plan includes a push, the program has already been read.
    let Some(program) = session.program().ok().filter(|_| push) else {
        return Ok(PROGRAM.to_owned());
    };
    folders(incus, machine, PROGRAM_FOLDER).await?;
    let fresh = format!("{PROGRAM_FOLDER}/{FRESH_PREFIX}{}", std::process::id());
    incus
        .write_file(machine, &fresh, FOLDER, program.bytes.clone())
        .await?;
    Ok(fresh)
}

/// Returns whether a path is something that anklume puts into a machine, or one of its parent folders.
fn is_ours(path: &str) -> bool {
    let ours = [PROGRAM, IDENTITY, SERVICES, CONSUMER_FOLDER];
    let mut parts = ours.into_iter().chain(LINKS).flat_map(parts);
    path != "/" && parts.any(|part| part == path)
}

/// Makes the folder in which a consumer's devices listen; fails if a part of its path is not a folder.
pub(crate) async fn listen_folder(incus: &mut Incus, machine: &Object) -> Result<(), IncusError> {
    folders(incus, machine, CONSUMER_FOLDER).await
}

/// Makes a folder and its missing parents; fails if a part of its path is not a folder.
async fn folders(incus: &mut Incus, machine: &Object, folder: &str) -> Result<(), IncusError> {
    for path in parts(folder) {
        match incus.kind_of_file(machine, &path).await? {
            Some(EntryKind::Folder) => {}
            None => incus.make_folder(machine, &path, FOLDER).await?,
            Some(EntryKind::File | EntryKind::Link | EntryKind::Other) => {
                return Err(altered(&path));
            }
        }
    }
    Ok(())
}

/// Deletes a consumer's socket, unless some part of its path is not a folder: such a socket is not ours.
pub(crate) async fn delete_socket(
    incus: &mut Incus,
    machine: &Object,
    path: &str,
) -> Result<(), IncusError> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    for part in parts(folder) {
        if incus.kind_of_file(machine, &part).await? != Some(EntryKind::Folder) {
            return Ok(());
        }
    }
    incus.delete_file(machine, path).await
}

fn altered(path: &str) -> IncusError {
    IncusError::Altered(path.to_owned())
}

/// Lists the parents of a folder, outermost first, and then the folder itself.
fn parts(folder: &str) -> Vec<String> {
    let ends = folder.match_indices('/').map(|(at, _)| at).skip(1);
    let ends = ends.chain([folder.len()]);
    ends.filter_map(|end| folder.get(..end).map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_gone_through_part_by_part() {
        assert_eq!(
            parts("/srv/anklume/mcp"),
            ["/srv", "/srv/anklume", "/srv/anklume/mcp"]
        );
    }
}
