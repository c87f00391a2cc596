//! `anklume clipboard`: prints and sets the clipboard of another machine, and offers that of this one.

use std::io::{self, Read as _};

use serde_json::Map;

use super::mcp::with_client;
use super::output::Output;
use super::service::{NamedService, print, structured, text, with_service};
use crate::catalogue::OFFER_TO;
use crate::cli::{ChannelArgs, ClipboardArgs, ClipboardCommand, ClipboardOfferArgs};
use crate::error::{Exit, Failure};
use crate::name::ToolName;
use crate::text::Foreign;
use crate::transport::Transport;

/// Maximum number of bytes of a text to set; the provider may accept less.
const TEXT_MAX: u64 = 8 * 1024 * 1024;

/// Runs `anklume clipboard …`.
pub(super) fn run(command: &ClipboardCommand, output: &Output) -> anyhow::Result<Exit> {
    match command {
        ClipboardCommand::Get(args) => get(args, output),
        ClipboardCommand::Set(args) => set(args, output),
        ClipboardCommand::Offer(args) => offer(args, output),
    }
}

/// Offers the provider's clipboard, or the text on stdin, as the operator.
fn offer(args: &ClipboardOfferArgs, output: &Output) -> anyhow::Result<Exit> {
    let stdin = args.stdin.as_ref().map(|_| text_on_stdin()).transpose()?;
    let channel = ChannelArgs {
        instance: args.instance.clone(),
        project: args.project.clone(),
        ..ChannelArgs::default()
    };
    with_client(&channel, output, async |server, transport| {
        if let Transport::Socket(_) = transport {
            let message = "only the provider's own user offers its clipboard";
            let help = "run this in the provider, without `-i`";
            return Err(Failure::new(Exit::Refused, message).help(help).into());
        }
        let content = if let Some(text) = &stdin {
            text.clone()
        } else {
            // The user chose to offer it, even if it is a password.
            let arguments = [("passwords".to_owned(), true.into())];
            let tool = ToolName::ClipboardGet.as_str();
            let called = server.call(tool, arguments.into_iter().collect(), false);
            text(&structured(&called.await?)?, "text")?
        };
        if content.is_empty() {
            let message = "the clipboard is empty, so there is nothing to offer";
            return Err(Failure::new(Exit::Failed, message).into());
        }
        let arguments = [
            ("content".to_owned(), content.into()),
            (OFFER_TO.to_owned(), args.to.clone().into()),
        ];
        let arguments = arguments.into_iter().collect();
        let tool = ToolName::ClipboardSet.as_str();
        let called = server.call(tool, arguments, false).await?;
        let failed = called.is_refused();
        structured(&called).map_err(|failure| {
            if failed {
                Failure {
                    exit: Exit::Refused,
                    ..failure
                }
            } else {
                failure
            }
        })?;
        for block in called
            .result
            .raw()
            .content
            .iter()
            .filter_map(|block| block.as_text())
        {
            output.say(&Foreign::new(block.text.clone()).lines());
        }
        Ok(Exit::Done)
    })
}

fn get(args: &ClipboardArgs, output: &Output) -> anyhow::Result<Exit> {
    let (tool, name) = (ToolName::ClipboardGet, NamedService::of(&args.service, "")?);
    with_service(tool, &name, "", output, async |server, service| {
        let called = server.call(service, Map::new(), false).await?;
        let content = text(&structured(&called)?, "text")?;
        print(&content, output)?;
        Ok(Exit::Done)
    })
}

fn text_on_stdin() -> Result<String, Failure> {
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
        return Err(Failure::new(Exit::Failed, fault).help("send a file instead"));
    }
    Ok(content)
}

fn set(args: &ClipboardArgs, output: &Output) -> anyhow::Result<Exit> {
    let content = text_on_stdin()?;
    let (tool, name) = (ToolName::ClipboardSet, NamedService::of(&args.service, "")?);
    with_service(tool, &name, "", output, async |server, service| {
        let arguments = [("content".to_owned(), content.into())];
        let called = server
            .call(service, arguments.into_iter().collect(), false)
            .await?;
        structured(&called)?;
        Ok(Exit::Done)
    })
}
