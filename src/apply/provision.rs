//! What goes into the machines between their start and their edges: the program, and by it the rest; the folder in which
//! a consumer's devices listen.
//!
//! Everything in a machine may be hostile: nothing goes through a symbolic link of the machine's.

use std::time::Duration;

use crate::edge::CONSUMER_FOLDER;
use crate::host;
use crate::incus::{EntryKind, FileOwner, Incus, IncusError, Object};
use crate::machine_state::{
    FRESH_PREFIX, IDENTITY, LINK, MachineSpec, PROGRAM, PROGRAM_FOLDER, SERVICES, SETUP, Sent,
};
use crate::session::{Session, incus_failure};
use crate::setup::SERVER_MAX;
use crate::text::Foreign;
use crate::transport::RemoteExec;

/// Root's, as everything that anklume puts into a machine.
const FOLDER: FileOwner = FileOwner {
    uid: 0,
    gid: 0,
    mode: 0o755,
};

/// Maximum time that putting a machine in order may take: as long as the running calls of a server that is replaced, and a while
/// for all else.
const SETUP_PATIENCE: Duration = SERVER_MAX.saturating_add(Duration::from_secs(30));
/// Maximum length of a machine's message in the output, in characters.
const WORDS_MAX: usize = 300;

/// Puts a machine in order: the program where it is not there, then by it everything else.
pub(crate) async fn install(
    session: &Session,
    incus: &mut Incus,
    machine: &Object,
    order: &MachineSpec,
    push: bool,
) -> Result<(), String> {
    let done = prepare(session, incus, machine, push).await;
    let program = done.map_err(|why| incus_failure(&why).message)?;
    let errand = RemoteExec {
        project: machine.project(),
        machine: machine.name(),
        user: None,
        argv: &[&program, SETUP],
        input: &sent(order),
        timeout: SETUP_PATIENCE,
    };
    let said = errand.run().await.map_err(|why| why.to_string())?;
    let report = session.reader.report(&said.answer).await;
    let Some(report) = report.map_err(|why| why.to_string())? else {
        let words = said.stderr.shown(WORDS_MAX);
        return Err(format!("the program does not run in the machine: {words}"));
    };
    if let Some(path) = report.altered {
        let path = path.shown(WORDS_MAX);
        return Err(format!(
            "the machine says: machine altered: `{path}` in it is not what was left there"
        ));
    }
    if let Some(why) = report.failed {
        return Err(format!("the machine says: {}", why.shown(WORDS_MAX)));
    }
    let digest = order.services().ok().flatten();
    let digest = digest.map(|services| services.digest());
    if report.digest.as_ref().map(Foreign::raw) == digest.as_ref() {
        return Ok(());
    }
    Err("its server does not report the policy that was sent".to_owned())
}

/// An order as it is sent: with the time, so that nobody carries it out long after.
fn sent(order: &MachineSpec) -> Vec<u8> {
    let sent = Sent {
        at: jiff::Timestamp::now().as_second(),
        order: order.clone(),
    };
    // An order is plain data, which is always JSON.
    serde_json::to_vec(&sent).unwrap_or_default()
}

/// Makes sure that the way to the program is the machine's own, and pushes it where it must be; where it is to be started.
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
    // Who planned a push has read it.
    let Some(program) = session.program().ok().filter(|_| push) else {
        return Ok(PROGRAM.to_owned());
    };
    folders(incus, machine, PROGRAM_FOLDER).await?;
    let number = std::process::id();
    let fresh = format!("{PROGRAM_FOLDER}/{FRESH_PREFIX}{number}");
    let owner = FileOwner { ..FOLDER };
    incus
        .write_file(machine, &fresh, owner, program.bytes.clone())
        .await?;
    Ok(fresh)
}

/// Returns whether a path is on the way to something that goes into a machine.
fn is_ours(path: &str) -> bool {
    let all = [PROGRAM, IDENTITY, SERVICES, LINK, CONSUMER_FOLDER];
    path != "/"
        && all
            .iter()
            .any(|ours| parts(ours).iter().any(|part| part == path))
}

/// Makes the folder in which a consumer's devices listen; every part of its path is a folder, or it is refused.
pub(crate) async fn listen_folder(incus: &mut Incus, machine: &Object) -> Result<(), IncusError> {
    folders(incus, machine, CONSUMER_FOLDER).await
}

/// Makes a folder with what is missing above it, through nothing but folders.
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

/// Deletes a consumer's socket; where the way to it is not of folders alone, there is nothing of ours.
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

/// Every folder on the way to a folder, from the top, itself included.
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
