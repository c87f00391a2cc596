//! `anklume sign`: signs files with a key of another machine, or fetches its public key.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::bar::TransferBar;
use super::file::{fresh, shown, unreadable, unwritable};
use super::mcp::ServerClient;
use super::output::Output;
use super::service::{NamedService, WordKind, call, print, send, structured, text, with_service};
use crate::cli::SignArgs;
use crate::error::{Exit, Failure};
use crate::mcp::client::Called;
use crate::mcp::client::pieces::{Moved, PayloadSource};
use crate::name::ToolName;

/// The environment variable that names the service that signs: `PROVIDER` or `PROVIDER/SERVICE`.
pub(super) const SIGN: &str = "ANKLUME_SIGN";
/// Suffix of a signature's file.
const SUFFIX: &str = "asc";

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
    let otherwise = std::env::var(SIGN).unwrap_or_default();
    let (name, files) =
        NamedService::of_words(&args.service, &args.files, WordKind::Files, &otherwise)?;
    if args.public_key && !files.is_empty() {
        let failure = Failure::new(Exit::Usage, "`--public-key` signs no files");
        return Err(failure.help("name only the provider").into());
    }
    if !args.public_key && files.is_empty() {
        let failure = Failure::new(Exit::Usage, "no file is named");
        return Err(failure
            .help("name files to sign, `-` for stdin, or `--public-key`")
            .into());
    }
    for file in files.iter().filter(|file| !is_stdin(file)) {
        // Before anything is signed.
        fs::metadata(file).map_err(|why| unreadable(&shown(file), &why))?;
        let signature = signature_file(file);
        if !args.force && fs::symlink_metadata(&signature).is_ok() {
            let shown = shown(&signature);
            let failure = Failure::new(Exit::Failed, format!("`{shown}` already exists"));
            return Err(failure
                .help("remove it, or replace it with `--force`")
                .into());
        }
    }
    let mut bar = TransferBar::new(output);
    let signed = with_signer(&name, output, async |server, service| {
        if args.public_key {
            let key = public_key(server, service).await?;
            print(&key.armored, output)?;
        }
        for file in files {
            bar.begin(&shown(file));
            let signed = sign_file(server, service, file, args.force, &mut bar).await;
            bar.end();
            let created =
                signed.map_err(|why| why.context(format!("cannot sign `{}`", shown(file))))?;
            match created {
                SignatureTarget::File(path) => output.say(&format!("created {}", shown(&path))),
                SignatureTarget::Stdout(armored) => print(&armored, output)?,
            }
            bar.next();
        }
        Ok(Exit::Done)
    });
    bar.end();
    if matches!(signed, Ok(Exit::Interrupted)) {
        output.say("interrupted: the file that was being signed has no signature");
    }
    signed
}

fn is_stdin(file: &Path) -> bool {
    file == Path::new("-")
}

fn signature_file(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(SUFFIX);
    name.into()
}

/// Where a signature goes.
enum SignatureTarget {
    /// It is in this file.
    File(PathBuf),
    /// It is to be printed: that of stdin.
    Stdout(String),
}

/// Signs a file, and writes the signature beside it.
async fn sign_file(
    server: &mut ServerClient,
    service: &str,
    file: &Path,
    force: bool,
    bar: &mut TransferBar,
) -> anyhow::Result<SignatureTarget> {
    let mut moved = |bytes, total| bar.moved(bytes, total);
    if is_stdin(file) {
        let source = PayloadSource::new(io::stdin());
        let signature = sign(server, service, source, &mut moved).await?;
        return Ok(SignatureTarget::Stdout(signature.armored));
    }
    let opened = File::open(file).map_err(|why| unreadable(&shown(file), &why))?;
    let source = PayloadSource::of_file(opened);
    let signature = sign(server, service, source, &mut moved).await?;
    let target = signature_file(file);
    let written = write(&target, signature.armored.as_bytes(), force);
    written.map_err(|why| unwritable(&target, &why))?;
    Ok(SignatureTarget::File(target))
}

/// Writes a file whole or not at all.
fn write(path: &Path, content: &[u8], force: bool) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let mut file = fresh(folder.unwrap_or_else(|| Path::new(".")))?;
    file.write_all(content)?;
    if force {
        file.persist(path)?;
    } else {
        file.persist_noclobber(path)?;
    }
    Ok(())
}

/// Finds the service that signs and runs `work` with its name over its channel.
pub(super) fn with_signer(
    name: &NamedService,
    output: &Output,
    work: impl AsyncFnOnce(&mut ServerClient, &str) -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    let otherwise = format!(", or `{SIGN}=PROVIDER` in the environment");
    with_service(ToolName::GpgSign, name, &otherwise, output, work)
}

/// Fetches the public key of a service that signs; nothing is signed.
pub(super) async fn public_key(
    server: &mut ServerClient,
    service: &str,
) -> anyhow::Result<PublicKey> {
    let arguments = [("data", Value::from("")), ("public_key", true.into())];
    let arguments = arguments.map(|(key, value)| (key.to_owned(), value));
    let called = call(server, service, &arguments.into_iter().collect()).await?;
    let result = structured(&called)?;
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
    moved: Moved<'_>,
) -> anyhow::Result<Signature> {
    let called = send(server, service, Map::new(), source, false, moved).await?;
    signature(&called)
}

fn signature(called: &Called) -> anyhow::Result<Signature> {
    let result = structured(called)?;
    Ok(Signature {
        armored: text(&result, "signature")?,
        fingerprint: text(&result, "fingerprint")?,
        algorithm: text(&result, "algorithm")?,
        time: text(&result, "time")?,
    })
}
