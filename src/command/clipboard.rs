//! `anklume clipboard`: prints and sets the clipboard of another machine, and offers that of this one.

use std::io::{self, IsTerminal as _, Read as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Map;

use super::mcp::with_client;
use super::output::Output;
use super::service::{NamedService, print, structured, text, with_service};
use crate::catalogue::{OFFER_TO, ONE_CALL_MAX, PNG, PNG_START, Payload};
use crate::cli::{ChannelArgs, ClipboardArgs, ClipboardCommand, ClipboardOfferArgs, ServiceArgs};
use crate::error::{Exit, Failure};
use crate::mcp::client::Called;
use crate::name::ToolName;
use crate::text::Foreign;
use crate::transport::Transport;

/// Maximum number of bytes to set; of a text, the provider accepts less.
const CONTENT_MAX: u64 = ONE_CALL_MAX;

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
    let (stdins, others): (Vec<&String>, Vec<&String>) =
        args.words.iter().partition(|word| *word == "-");
    let provider = match (others.as_slice(), &args.instance) {
        ([], named) => named.clone(),
        ([provider], None) => Some((*provider).clone()),
        _ => {
            let failure = Failure::new(Exit::Usage, "several providers are named");
            return Err(failure
                .help("to offer a text, pipe it to this command: `printf %s TEXT | anklume clipboard offer --to MACHINE -`")
                .into());
        }
    };
    let stdin = match stdins.first() {
        Some(_) => Some(text_of(stdin()?, "stdin is not UTF-8 text")?),
        None => None,
    };
    let channel = ChannelArgs {
        instance: provider,
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
            let called = server.call(tool, arguments.into_iter().collect(), true);
            let called = called.await?;
            let result = structured(&called)?;
            if image(&called)?.is_some() {
                let message = "the clipboard holds an image; only a text can be offered";
                return Err(Failure::new(Exit::Failed, message)
                    .help("send it as a file")
                    .into());
            }
            text(&result, "text")?
        };
        if content.is_empty() {
            let message = match stdin {
                Some(_) => "stdin is empty, so there is nothing to offer",
                None => "the clipboard contains no text, so there is nothing to offer",
            };
            return Err(Failure::new(Exit::Failed, message)
                .help("copy a text first, or pipe one to this command: `-`")
                .into());
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
    let (tool, name) = (ToolName::ClipboardGet, named(args)?);
    with_service(tool, &name, "", output, async |server, service| {
        let called = server.call(service, Map::new(), true).await?;
        let result = structured(&called)?;
        let Some(png) = image(&called)? else {
            print(&text(&result, "text")?, output)?;
            return Ok(Exit::Done);
        };
        if io::stdout().is_terminal() {
            let message = "the clipboard holds an image, which is not printed to a terminal";
            let failure = Failure::new(Exit::Usage, message);
            return Err(failure.help("write it to a file: `> picture.png`").into());
        }
        output.answer(&png)?;
        Ok(Exit::Done)
    })
}

/// Returns the service that the command names.
fn named(args: &ClipboardArgs) -> Result<NamedService, Failure> {
    let provider = args.provider.as_ref().or(args.service.instance.as_ref());
    let service = ServiceArgs {
        instance: provider.cloned(),
        ..args.service.clone()
    };
    NamedService::of(&service, "")
}

/// Returns the image in an answer, a PNG; `None` if the clipboard holds a text.
fn image(called: &Called) -> Result<Option<Vec<u8>>, Failure> {
    let mut blocks = called.result.raw().content.iter();
    let Some(image) = blocks.find_map(|block| block.as_image()) else {
        return Ok(None);
    };
    let png = Payload::decode_png(&image.data).ok();
    let png = png.filter(|_| image.mime_type == PNG);
    let unusable = || Failure::new(Exit::Failed, "the provider's image is not a PNG");
    png.map(Some).ok_or_else(unusable)
}

/// Reads stdin, up to the most that a clipboard takes.
fn stdin() -> Result<Vec<u8>, Failure> {
    let mut content = Vec::new();
    let read = io::stdin().take(CONTENT_MAX + 1).read_to_end(&mut content);
    let size =
        read.map_err(|why| Failure::new(Exit::Failed, format!("cannot read stdin: {why}")))?;
    if u64::try_from(size).unwrap_or(u64::MAX) > CONTENT_MAX {
        let fault = format!("stdin has more than {CONTENT_MAX} bytes");
        return Err(Failure::new(Exit::Failed, fault).help("send a file instead"));
    }
    Ok(content)
}

/// Returns content as text, or else the failure with this fault.
fn text_of(content: Vec<u8>, fault: &str) -> Result<String, Failure> {
    String::from_utf8(content).map_err(|_| Failure::new(Exit::Failed, fault))
}

fn set(args: &ClipboardArgs, output: &Output) -> anyhow::Result<Exit> {
    let content = stdin()?;
    let argument = if content.starts_with(PNG_START) {
        ("image".to_owned(), STANDARD.encode(content).into())
    } else {
        let text = text_of(content, "stdin is neither UTF-8 text nor a PNG")?;
        ("content".to_owned(), text.into())
    };
    let (tool, name) = (ToolName::ClipboardSet, named(args)?);
    with_service(tool, &name, "", output, async |server, service| {
        let arguments = [argument].into_iter().collect();
        let called = server.call(service, arguments, false).await?;
        structured(&called)?;
        Ok(Exit::Done)
    })
}
