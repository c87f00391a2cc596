//! What goes into the machines between their start and their edges: so far, the folder in which a consumer's devices listen.
//!
//! Everything in a machine may be hostile: nothing goes through a symbolic link of the machine's.

use super::carry;
use super::context::{Context, incus_failure};
use super::progress::Progress;
use super::report::{Outcome, Status};
use crate::edge::CONSUMER_FOLDER;
use crate::incus::{Incus, IncusError, Kind, Object, Owner};
use crate::plan::{Action, MachinePlan, Role};

/// Root's, as everything that anklume puts into a machine.
const FOLDER: Owner = Owner {
    uid: 0,
    gid: 0,
    mode: 0o755,
};

/// Makes the machines ready for their edges: for each, `None`, or what went wrong.
///
/// Called once, with every machine that is declared and runs, changed or not, before any device of an edge is made.
pub(super) async fn provision(
    context: &Context,
    machines: &[&MachinePlan],
    progress: &Progress,
) -> Vec<Option<Outcome>> {
    carry::each(machines, |machine| one(context, machine, progress)).await
}

async fn one(context: &Context, machine: &MachinePlan, progress: &Progress) -> Option<Outcome> {
    let listener = machine.connect.iter().find(|action| {
        matches!(
            action,
            Action::Connect {
                role: Role::Consumer,
                ..
            }
        )
    })?;
    let Action::Connect { machine, .. } = listener else {
        return None;
    };
    let made = async {
        let mut incus = context.incus().await?;
        listen_folder(&mut incus, machine).await
    };
    let why = made.await.err()?;
    let status = Status::Failed(incus_failure(&why).message);
    Some(progress.ended(Outcome::of_machine(machine, status)))
}

/// Makes the folder in which a consumer's devices listen; every part of its path is a folder, or it is refused.
pub(super) async fn listen_folder(incus: &mut Incus, machine: &Object) -> Result<(), IncusError> {
    for path in parts(CONSUMER_FOLDER) {
        match incus.kind_of_file(machine, &path).await? {
            Some(Kind::Folder) => {}
            None => incus.make_folder(machine, &path, FOLDER).await?,
            Some(Kind::File | Kind::Other) => return Err(altered(&path)),
        }
    }
    Ok(())
}

/// Deletes a consumer's socket; where the way to it is not of folders alone, there is nothing of ours.
pub(super) async fn delete_socket(
    incus: &mut Incus,
    machine: &Object,
    path: &str,
) -> Result<(), IncusError> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    for part in parts(folder) {
        if incus.kind_of_file(machine, &part).await? != Some(Kind::Folder) {
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
