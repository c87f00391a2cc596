//! `anklume sign`: signs files with a key of another machine, or fetches its public key. Finds the service that signs.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rmcp::model::Tool;
use serde_json::{Map, Value};

use super::mcp::{ServerClient, with_client};
use super::output::Output;
use crate::cli::{ChannelArgs, SignArgs};
use crate::error::{Exit, Failure};
use crate::mcp::TOOL_KEY;
use crate::mcp::client::Called;
use crate::mcp::client::pieces::{ArgumentPayload, PayloadSource, PiecesError};
use crate::name::ToolName;
use crate::text::Foreign;
use crate::transport::{self, Transport};

/// The environment variable that names the service that signs: `PROVIDER` or `PROVIDER/SERVICE`.
pub(super) const SIGN: &str = "ANKLUME_SIGN";
/// Maximum length of a name of a server in a message, in characters.
const NAME_SHOWN: usize = 80;
/// Maximum number of names in a message.
const NAMES_MAX: usize = 10;
/// Suffix of a signature's file.
const SUFFIX: &str = "asc";

/// The service that signs, as far as the user named it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SignerName {
    pub(super) provider: Option<String>,
    pub(super) service: Option<String>,
}

impl SignerName {
    /// Parses `PROVIDER` or `PROVIDER/SERVICE`; an empty text names nothing.
    pub(super) fn parse(text: &str) -> Self {
        let part = |part: &str| (!part.is_empty()).then(|| part.to_owned());
        match text.split_once('/') {
            Some((provider, service)) => Self {
                provider: part(provider),
                service: part(service),
            },
            None => Self {
                provider: part(text),
                service: None,
            },
        }
    }
}

/// A key as its provider describes it.
#[derive(Debug)]
pub(super) struct PublicKey {
    /// The fingerprints of the key and of its parts that can sign, in upper-case hexadecimal.
    pub(super) fingerprints: Vec<String>,
    pub(super) user_ids: Vec<String>,
    /// ASCII-armored.
    pub(super) armored: String,
}

/// A signature.
#[derive(Debug)]
pub(super) struct Signature {
    /// ASCII-armored.
    pub(super) armored: String,
    pub(super) fingerprint: String,
    pub(super) algorithm: String,
    /// RFC 3339.
    pub(super) time: String,
}

/// Runs `anklume sign`.
pub(super) fn run(args: &SignArgs, output: &Output) -> anyhow::Result<Exit> {
    if !args.public_key && args.files.is_empty() {
        let failure = Failure::new(Exit::Usage, "no file is named");
        return Err(failure
            .help("name files to sign, `-` for stdin, or `--public-key`")
            .into());
    }
    for file in args.files.iter().filter(|file| !is_stdin(file)) {
        let signature = signature_file(file);
        if !args.force && fs::symlink_metadata(&signature).is_ok() {
            let shown = shown(&signature);
            let failure = Failure::new(Exit::Failed, format!("`{shown}` already exists"));
            return Err(failure
                .help("remove it, or replace it with `--force`")
                .into());
        }
    }
    let mut name = match &args.channel.instance {
        Some(instance) => SignerName::parse(instance),
        None => SignerName::parse(&std::env::var(SIGN).unwrap_or_default()),
    };
    name.service = args.service.clone().or(name.service);
    with_signer(&name, &args.channel, output, async |server, service| {
        if args.public_key {
            let key = public_key(server, service).await?;
            output.answer(key.armored.as_bytes())?;
        }
        for file in &args.files {
            sign_file(server, service, file, output).await?;
        }
        Ok(Exit::Done)
    })
}

fn is_stdin(file: &Path) -> bool {
    file == Path::new("-")
}

fn shown(path: &Path) -> String {
    path.display().to_string().escape_debug().to_string()
}

fn signature_file(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(SUFFIX);
    name.into()
}

async fn sign_file(
    server: &mut ServerClient,
    service: &str,
    file: &Path,
    output: &Output,
) -> anyhow::Result<()> {
    if is_stdin(file) {
        let signature = sign(server, service, PayloadSource::new(io::stdin())).await?;
        output.answer(signature.armored.as_bytes())?;
        return Ok(());
    }
    let opened = File::open(file).map_err(|why| {
        Failure::new(
            Exit::Failed,
            format!("cannot read `{}`: {why}", shown(file)),
        )
    })?;
    let signature = sign(server, service, PayloadSource::of_file(opened)).await?;
    let target = signature_file(file);
    write(&target, signature.armored.as_bytes()).map_err(|why| {
        Failure::new(
            Exit::Failed,
            format!("cannot write `{}`: {why}", shown(&target)),
        )
    })?;
    output.say(&format!("created {}", shown(&target)));
    Ok(())
}

/// Writes a file whole or not at all.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder.unwrap_or_else(|| Path::new(".")))?;
    file.write_all(content)?;
    file.persist(path)?;
    Ok(())
}

/// Finds the service that signs and runs `work` with its name over its channel.
pub(super) fn with_signer(
    name: &SignerName,
    args: &ChannelArgs,
    output: &Output,
    work: impl AsyncFnOnce(&mut ServerClient, &str) -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    let provider = match &name.provider {
        Some(provider) => Some(provider.clone()),
        None if args.socket.is_some() => None,
        None => Some(only_provider(name, args, output)?),
    };
    let channel = ChannelArgs {
        instance: provider.clone(),
        ..args.clone()
    };
    with_client(&channel, output, async |server, transport| {
        let tools = match transport {
            Transport::Socket(_) => server.tools().await?,
            Transport::Local | Transport::Exec(_) => server.callable().await?,
        };
        let service = only_service(&tools, name, provider.as_deref())?;
        work(server, &service).await
    })
}

/// Returns the only provider of this machine that offers a service that signs.
fn only_provider(name: &SignerName, args: &ChannelArgs, output: &Output) -> anyhow::Result<String> {
    let providers = transport::providers();
    if providers.is_empty() {
        let failure = Failure::new(Exit::Usage, "no machine is named that signs");
        let help = format!("name it: `-i PROVIDER`, or `{SIGN}=PROVIDER` in the environment");
        return Err(failure.help(help).into());
    }
    let (mut found, mut silent) = (Vec::new(), Vec::new());
    for provider in &providers {
        let channel = ChannelArgs {
            instance: Some(provider.clone()),
            ..args.clone()
        };
        let mut signs = false;
        let asked = with_client(&channel, output, async |server, _| {
            let tools = server.tools().await?;
            signs = signing(&tools, name.service.as_deref()).next().is_some();
            Ok(Exit::Done)
        });
        match asked {
            Ok(Exit::Done) if signs => found.push(provider.clone()),
            Ok(Exit::Done) => {}
            Ok(exit) => return Err(Failure::new(exit, "interrupted").into()),
            Err(why) => silent.push((provider, why)),
        }
    }
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => {
            if let Some((_, why)) = silent.into_iter().next() {
                // Its services are unknown, so it may be the one.
                return Err(why);
            }
            let all = providers.join(", ");
            let message = format!(
                "no service of {} signs for this machine",
                all.escape_debug()
            );
            let help = "ask the operator for a service with `tool: gpg_sign`";
            Err(Failure::new(Exit::Refused, message).help(help).into())
        }
        several => {
            let message = format!(
                "several providers sign: {}",
                several.join(", ").escape_debug()
            );
            let help = format!("name one: `-i PROVIDER`, or `{SIGN}=PROVIDER` in the environment");
            Err(Failure::new(Exit::Usage, message).help(help).into())
        }
    }
}

/// The tools that sign; with a name, only that one.
fn signing<'t>(tools: &'t [Foreign<Tool>], only: Option<&'t str>) -> impl Iterator<Item = &'t str> {
    let signs = |tool: &&Foreign<Tool>| {
        let meta = tool.raw().meta.as_ref();
        let behind = meta
            .and_then(|meta| meta.0.get(TOOL_KEY))
            .and_then(Value::as_str);
        behind == Some(ToolName::GpgSign.as_str())
    };
    let names = tools.iter().filter(signs).map(|tool| &*tool.raw().name);
    names.filter(move |name| only.is_none_or(|only| only == *name))
}

fn only_service(
    tools: &[Foreign<Tool>],
    name: &SignerName,
    provider: Option<&str>,
) -> Result<String, Failure> {
    let named = name.service.as_deref();
    let all: Vec<&str> = signing(tools, named).collect();
    // The operator may call the tool itself as well as the services.
    let services: Vec<&str> = all
        .iter()
        .copied()
        .filter(|name| *name != ToolName::GpgSign.as_str())
        .collect();
    let provider = provider.unwrap_or("the provider").escape_debug();
    match (services.as_slice(), all.as_slice()) {
        ([only], _) | ([], [only]) => Ok((*only).to_owned()),
        ([], _) => {
            let message = match named {
                Some(named) => format!(
                    "`{}` is no service of {provider} that signs",
                    named.escape_debug()
                ),
                None => format!("no service of {provider} signs for this machine"),
            };
            let help = "ask the operator for a service with `tool: gpg_sign`";
            Err(Failure::new(Exit::Refused, message).help(help))
        }
        (several, _) => {
            let first = several.iter().take(NAMES_MAX);
            let shown: Vec<String> = first
                .map(|name| Foreign::new(*name).shown(NAME_SHOWN))
                .collect();
            let message = format!("several services of {provider} sign: {}", shown.join(", "));
            Err(Failure::new(Exit::Usage, message).help("name one: `--service SERVICE`"))
        }
    }
}

/// Fetches the public key of a service that signs; nothing is signed.
pub(super) async fn public_key(
    server: &mut ServerClient,
    service: &str,
) -> anyhow::Result<PublicKey> {
    let arguments = [("data", Value::from("")), ("public_key", true.into())];
    let arguments = arguments.map(|(key, value)| (key.to_owned(), value));
    let called = server
        .call(service, arguments.into_iter().collect(), false)
        .await?;
    let result = result(&called)?;
    let texts = |key: &str| {
        let list = result
            .get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        list.filter_map(|text| text.as_str().map(str::to_owned))
            .collect()
    };
    Ok(PublicKey {
        fingerprints: texts("fingerprints"),
        user_ids: texts("user_ids"),
        armored: text(&result, "public_key")?,
    })
}

/// Signs content.
pub(super) async fn sign(
    server: &mut ServerClient,
    service: &str,
    source: PayloadSource,
) -> anyhow::Result<Signature> {
    let payload = ArgumentPayload {
        name: "data".to_owned(),
        size: false,
        digest: false,
        source,
    };
    let sent = server.send_pieces(service, &Map::new(), payload).await;
    let called = sent.map_err(|why| match why {
        PiecesError::Client(why) => anyhow::Error::from(why),
        other => other.into(),
    })?;
    let result = result(&called)?;
    Ok(Signature {
        armored: text(&result, "signature")?,
        fingerprint: text(&result, "fingerprint")?,
        algorithm: text(&result, "algorithm")?,
        time: text(&result, "time")?,
    })
}

/// Returns the structured result of a call; a failed tool is a failure.
fn result(called: &Called) -> Result<Map<String, Value>, Failure> {
    let result = called.result.raw();
    if called.has_failed() {
        let blocks = result.content.iter().filter_map(|block| block.as_text());
        let words: Vec<&str> = blocks.map(|text| text.text.as_str()).collect();
        let words = Foreign::new(words.join(" ")).shown(crate::mcp::client::WORDS_SHOWN);
        return Err(Failure::new(
            Exit::Failed,
            format!("the provider did not sign: {words}"),
        ));
    }
    let structured = result
        .structured_content
        .as_ref()
        .and_then(Value::as_object);
    structured.cloned().ok_or_else(incomplete)
}

fn text(result: &Map<String, Value>, key: &str) -> Result<String, Failure> {
    let text = result.get(key).and_then(Value::as_str);
    text.map(str::to_owned).ok_or_else(incomplete)
}

fn incomplete() -> Failure {
    Failure::new(Exit::Failed, "the provider's answer is not a signature")
        .help("its anklume may be older than this one: `anklume apply` on the host installs this one there")
}
