//! `anklume file list`: the files that a provider has for this machine.

use serde_json::{Map, Value};

use crate::catalogue::{PortalPath, WHOLE_PORTAL};
use crate::cli::FileListArgs;
use crate::command::mcp::ServerClient;
use crate::command::output::Output;
use crate::command::service::{NamedService, WordKind, call, print, structured, with_service};
use crate::error::{Exit, Failure};
use crate::name::ToolName;
use crate::text::escaped;

pub(super) fn run(args: &FileListArgs, output: &Output) -> anyhow::Result<Exit> {
    let (name, names) = NamedService::of_words(&args.service, &args.names, WordKind::Names, "")?;
    if names.len() > 1 {
        let failure = Failure::new(Exit::Usage, "several folders are named");
        return Err(failure.help("list them one by one").into());
    }
    let folder = names.first().map_or(WHOLE_PORTAL, String::as_str);
    let folder = match folder.trim_end_matches('/') {
        "" => WHOLE_PORTAL,
        folder => folder,
    };
    with_service(
        ToolName::FileProvide,
        &name,
        "",
        output,
        async |server, service| {
            let FolderEntries { entries, left_out } = entries(server, service, folder).await??;
            if output.is_json() {
                output.json(&entries)?;
            } else {
                let lines = entries
                    .iter()
                    .fold(String::new(), |lines, entry| lines + entry + "\n");
                print(&lines, output)?;
            }
            if entries.is_empty() && left_out == 0 {
                output.say("there is nothing to fetch");
            }
            if left_out > 0 {
                let shown = match folder {
                    WHOLE_PORTAL => "the portal".to_owned(),
                    folder => format!("`{}`", escaped(folder)),
                };
                output.say(&not_fetched(left_out, &shown));
            }
            Ok(Exit::Done)
        },
    )
}

/// The entries of a provider's folder; the name of a folder ends with `/`.
pub(super) struct FolderEntries {
    pub(super) entries: Vec<String>,
    pub(super) left_out: u64,
}

/// Lists a provider's folder; the inner error is in the provider's words. No name leads out of the folder.
pub(super) async fn entries(
    server: &mut ServerClient,
    service: &str,
    folder: &str,
) -> anyhow::Result<Result<FolderEntries, Failure>> {
    let mut entries: Vec<String> = Vec::new();
    let mut size = None;
    loop {
        let mut arguments = Map::new();
        arguments.insert("path".to_owned(), folder.into());
        arguments.insert("entries".to_owned(), true.into());
        arguments.insert("offset".to_owned(), entries.len().into());
        let result = match structured(&call(server, service, &arguments).await?) {
            Ok(result) => result,
            Err(failure) => return Ok(Err(failure)),
        };
        let now = result.get("size").and_then(Value::as_u64);
        if now != *size.get_or_insert(now) {
            return Err(changed(folder).into());
        }
        let listed = result.get("entries").and_then(Value::as_array);
        let more = listed.into_iter().flatten().filter_map(Value::as_str);
        let before = entries.len();
        for entry in more {
            let name = name_of(entry);
            if name.contains('/') || PortalPath::new(name).is_err() {
                return Err(unusable().into());
            }
            // Sorted, so that none comes twice.
            if entries.last().is_some_and(|last| name_of(last) >= name) {
                return Err(changed(folder).into());
            }
            entries.push(entry.to_owned());
        }
        super::check_count(entries.len())?;
        let left_out = result.get("left_out").and_then(Value::as_u64);
        match result.get("complete").and_then(Value::as_bool) {
            Some(true) => {
                let left_out = left_out.unwrap_or_default();
                return Ok(Ok(FolderEntries { entries, left_out }));
            }
            // Without progress, it would never end.
            Some(false) if entries.len() > before => {}
            _ => return Err(unusable().into()),
        }
    }
}

/// Returns the name of an entry, which ends with `/` if it is that of a folder.
fn name_of(entry: &str) -> &str {
    entry.strip_suffix('/').unwrap_or(entry)
}

/// Returns a note on entries that a provider does not hand out.
pub(super) fn not_fetched(left_out: u64, folder: &str) -> String {
    let entries = if left_out == 1 { "entry" } else { "entries" };
    format!(
        "note: {left_out} {entries} of {folder} cannot be fetched: links, devices, or names that are not safe to show"
    )
}

fn changed(folder: &str) -> Failure {
    let message = format!("`{}` changed while it was listed", escaped(folder));
    Failure::new(Exit::Failed, message).help("run the command again")
}

fn unusable() -> Failure {
    Failure::new(Exit::Failed, "the provider's list of files is unusable")
        .help("run the command again; if it fails again, ask the operator")
}
