//! `anklume clipboard`: prints and sets the clipboard of another machine.

use std::io::{self, Read as _};

use serde_json::Map;

use super::output::Output;
use super::service::{NamedService, print, structured, text, with_service};
use crate::cli::{ClipboardArgs, ClipboardCommand};
use crate::error::{Exit, Failure};
use crate::name::ToolName;

/// Maximum number of bytes of a text to set; the provider may accept less.
const TEXT_MAX: u64 = 8 * 1024 * 1024;

/// Runs `anklume clipboard …`.
pub(super) fn run(command: &ClipboardCommand, output: &Output) -> anyhow::Result<Exit> {
    match command {
        ClipboardCommand::Get(args) => get(args, output),
        ClipboardCommand::Set(args) => set(args, output),
    }
}

fn get(args: &ClipboardArgs, output: &Output) -> anyhow::Result<Exit> {
    let (tool, name) = (ToolName::ClipboardGet, NamedService::of(&args.service, ""));
    with_service(tool, &name, "", output, async |server, service| {
        let called = server.call(service, Map::new(), false).await?;
        let content = text(&structured(&called)?, "text")?;
        print(&content, output)?;
        Ok(Exit::Done)
    })
}

fn set(args: &ClipboardArgs, output: &Output) -> anyhow::Result<Exit> {
    let mut content = String::new();
    let read = io::stdin().take(TEXT_MAX + 1).read_to_string(&mut content);
    let size = read.map_err(|why| {
        let fault = match why.kind() {
            io::ErrorKind::InvalidData => "stdin is not text in UTF-8".to_owned(),
            _ => format!("cannot read stdin: {why}"),
        };
        Failure::new(Exit::Failed, fault)
    })?;
    if u64::try_from(size).unwrap_or(u64::MAX) > TEXT_MAX {
        let fault = format!("the text on stdin is longer than {TEXT_MAX} bytes");
        return Err(Failure::new(Exit::Failed, fault)
            .help("send a file instead")
            .into());
    }
    let (tool, name) = (ToolName::ClipboardSet, NamedService::of(&args.service, ""));
    with_service(tool, &name, "", output, async |server, service| {
        let arguments = [("content".to_owned(), content.into())];
        let called = server
            .call(service, arguments.into_iter().collect(), false)
            .await?;
        structured(&called)?;
        Ok(Exit::Done)
    })
}
