//! Finds the machine of a name, in all projects or in one.

use super::connection::encoded;
use super::{Incus, IncusError, MachineRef};
use crate::name::closest;

/// The reason why a name means no machine, or more than one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FindError {
    /// No machine of that name.
    #[error("no machine `{}`{}", name.escape_debug(), in_project(project.as_deref()))]
    NoMachine {
        /// The name asked for.
        name: String,
        /// The only project that was looked at.
        project: Option<String>,
        /// The machine that was most likely meant.
        closest: Option<MachineRef>,
    },
    /// No project of that name.
    #[error("no Incus project `{}`", name.escape_debug())]
    NoProject {
        /// The name asked for.
        name: String,
        /// The projects that there are.
        known: Vec<String>,
    },
    /// The same name in several projects.
    #[error("`{}` is a machine of several projects: {}", name.escape_debug(), projects.join(", ").escape_debug())]
    Several {
        /// The name asked for.
        name: String,
        /// The projects, sorted.
        projects: Vec<String>,
    },
}

fn in_project(project: Option<&str>) -> String {
    project.map_or_else(String::new, |project| {
        format!(" in project `{}`", project.escape_debug())
    })
}

/// The one machine of that name, in all projects or in the given one.
pub(crate) fn find(
    machines: &[MachineRef],
    name: &str,
    project: Option<&str>,
) -> Result<MachineRef, FindError> {
    let named: Vec<&MachineRef> = machines
        .iter()
        .filter(|machine| machine.name == name)
        .filter(|machine| project.is_none_or(|project| machine.project == project))
        .collect();
    match named.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(FindError::NoMachine {
            name: name.to_owned(),
            project: project.map(str::to_owned),
            closest: nearest(machines, name),
        }),
        several => {
            let mut projects: Vec<String> = several.iter().map(|m| m.project.clone()).collect();
            projects.sort_unstable();
            Err(FindError::Several {
                name: name.to_owned(),
                projects,
            })
        }
    }
}

fn nearest(machines: &[MachineRef], name: &str) -> Option<MachineRef> {
    let near = closest(name, machines.iter().map(|machine| machine.name.as_str()))?;
    machines
        .iter()
        .find(|machine| machine.name == near)
        .cloned()
}

impl Incus {
    /// The machines of all projects, or of one.
    pub(crate) async fn machines(
        &mut self,
        project: Option<&str>,
    ) -> Result<Vec<MachineRef>, IncusError> {
        let scope = project.map_or_else(
            || "all-projects=true".to_owned(),
            |project| format!("project={}", encoded(project)),
        );
        self.get(&format!("/1.0/instances?recursion=1&{scope}"))
            .await
    }

    /// The names of the projects that this user sees, sorted.
    pub(crate) async fn projects(&mut self) -> Result<Vec<String>, IncusError> {
        let urls: Vec<String> = self.get("/1.0/projects").await?;
        let mut names: Vec<String> = urls
            .iter()
            .filter_map(|url| url.rsplit('/').next())
            .map(str::to_owned)
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Returns whether a path is there in a machine.
    pub(crate) async fn has_file(
        &mut self,
        machine: &MachineRef,
        path: &str,
    ) -> Result<bool, IncusError> {
        self.has(&format!(
            "/1.0/instances/{}/files?project={}&path={}",
            encoded(&machine.name),
            encoded(&machine.project),
            encoded(path)
        ))
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(project: &str, name: &str) -> MachineRef {
        MachineRef {
            name: name.to_owned(),
            project: project.to_owned(),
            status: "Running".to_owned(),
        }
    }

    #[test]
    fn a_name_is_one_machine_or_a_reason() {
        let all = [
            machine("work", "dev"),
            machine("play", "dev"),
            machine("vault", "vault-signer"),
        ];
        assert_eq!(find(&all, "vault-signer", None), Ok(all[2].clone()));
        assert_eq!(find(&all, "dev", Some("work")), Ok(all[0].clone()));
        assert_eq!(
            find(&all, "dev", None).unwrap_err().to_string(),
            "`dev` is a machine of several projects: play, work"
        );
        assert_eq!(
            find(&all, "vault-singer", None),
            Err(FindError::NoMachine {
                name: "vault-singer".to_owned(),
                project: None,
                closest: Some(all[2].clone()),
            })
        );
        assert_eq!(
            find(&all, "vault-signer", Some("work"))
                .unwrap_err()
                .to_string(),
            "no machine `vault-signer` in project `work`"
        );
    }
}
