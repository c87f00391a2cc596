//! `anklume init`: writes a starter `infra.yml`.

use std::fs::{File, remove_file};
use std::io::Write as _;
use std::path::Path;

use serde_json::json;

use super::output::Output;
use crate::error::{Exit, Failure};
use crate::infra;

/// The file to write.
const FILE: &str = "infra.yml";
/// Everything after the project's name.
pub(super) const TEMPLATE: &str = include_str!("init/infra.yml");

/// The answer.
const CREATED: &str =
    "created infra.yml: three machines, two services; change it, then run `anklume sync`\n";

/// Runs `anklume init` in the current folder; overwrites nothing.
pub(crate) fn run(output: &Output) -> anyhow::Result<Exit> {
    for name in [FILE, "infra"] {
        if Path::new(name).symlink_metadata().is_ok() {
            let failure = Failure::new(Exit::Failed, format!("`{name}` already exists here"));
            return Err(failure.help("`anklume sync --check` checks it").into());
        }
    }
    let project = infra::project_name(Path::new(""));
    let text = format!(
        "project_name: \"{project}\" # keep this name, even if the folder is renamed\n{TEMPLATE}"
    );
    let failed = |why: std::io::Error| {
        Failure::new(Exit::Failed, format!("`{FILE}` cannot be written: {why}"))
    };
    let mut file = File::create_new(FILE).map_err(failed)?;
    if let Err(why) = file.write_all(text.as_bytes()) {
        // Half a file would be in the way of the next attempt.
        let _ = remove_file(FILE);
        return Err(failed(why).into());
    }
    if output.is_json() {
        output.json(&json!({ "created": FILE }))?;
    } else if !output.quiet {
        output.text(CREATED)?;
    }
    Ok(Exit::Done)
}
