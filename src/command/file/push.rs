//! `anklume file push`: sends files and folders to a provider's portal.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::FileType;
use rustix::io::Errno;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{MODE, check_count, shown, unreadable};
use crate::catalogue::{PortalPath, changed_at};
use crate::cli::FilePushArgs;
use crate::command::bar::TransferBar;
use crate::command::mcp::ServerClient;
use crate::command::output::Output;
use crate::command::service::{
    NamedService, WordKind, call, send, structured, text, with_service_again,
};
use crate::digest::Digester;
use crate::dir::{BENEATH, Dir, NotRead, READ, RegularFile, SEARCH};
use crate::error::{Exit, Failure};
use crate::mcp::client::Called;
use crate::mcp::client::pieces::{Moved, PayloadSource, PiecesError};
use crate::name::ToolName;
use crate::text::escaped;

/// Part of a provider's message that a name is taken.
const EXISTS: &str = "already exists";

/// What is sent: a file, a folder without entries, or stdin.
struct Outgoing {
    content: OutgoingContent,
    /// As the user names it.
    shown: String,
    /// Its path in the provider.
    remote: String,
}

enum OutgoingContent {
    Stdin,
    /// The open folder that contains it, and its path below it.
    File(Rc<Dir>, String),
    EmptyFolder,
}

pub(super) fn run(args: &FilePushArgs, output: &Output) -> anyhow::Result<Exit> {
    let (name, files) = NamedService::of_words(&args.service, &args.files, WordKind::Files, "")?;
    if files.is_empty() {
        let failure = Failure::new(Exit::Usage, "no file is named");
        return Err(failure
            .help("name files or folders, or `-` for stdin")
            .into());
    }
    if let (Some(_), [_, _, ..]) = (&args.name, files) {
        let failure = Failure::new(Exit::Usage, "`--name` is for one file");
        return Err(failure.help("send the files one by one").into());
    }
    let mut all = Vec::new();
    for path in files {
        outgoing(path, args.name.as_deref(), &mut all)?;
    }
    let mut names = BTreeSet::new();
    if let Some(one) = all.iter().find(|one| !names.insert(&one.remote)) {
        let message = format!(
            "`{}` is the second one that is sent as `{}`",
            one.shown,
            escaped(&one.remote)
        );
        let failure = Failure::new(Exit::Usage, message);
        return Err(failure.help("send it by itself, with `--name NAME`").into());
    }
    let mut push = Push {
        sent: Vec::new(),
        bar: TransferBar::new(output),
    };
    let pushed = with_service_again(
        ToolName::FileAccept,
        &name,
        output,
        &mut push,
        Push::advanced,
        &async |server: &mut ServerClient, service: &str, push: &mut Push| {
            while let Some(one) = all.get(push.sent.len()) {
                push.bar.begin(&one.shown);
                let sent = push.send_one(server, service, one).await;
                push.bar.end();
                let sent = sent?;
                let (file, path) = (&sent.file, escaped(&sent.path));
                output.say(&if sent.existed {
                    format!("{file} is there already, as {path}")
                } else {
                    format!("sent {file} as {path}")
                });
                push.sent.push(sent);
                push.bar.next();
            }
            Ok(Exit::Done)
        },
    );
    push.bar.end();
    let (done, count) = (push.sent.len(), all.len());
    match &pushed {
        Ok(Exit::Interrupted) => {
            let left = all.iter().skip(done);
            let mut left = left.filter(|one| matches!(one.content, OutgoingContent::File(..)));
            let again = left.next().map_or(
                "",
                |_| "; the same command sends the rest, and within a day goes on where it was",
            );
            output.say(&format!("{done} of {count} were sent{again}"));
        }
        Err(_) if done > 0 => output.say(&format!(
            "{done} of {count} were sent; the same command does not send them again"
        )),
        _ => {}
    }
    // A failure is a document of its own.
    if output.is_json() && pushed.is_ok() {
        output.json(&push.sent)?;
    }
    pushed
}

/// A file that was sent, for programs.
#[derive(Serialize)]
struct SentFile {
    file: String,
    /// Its path in the provider's portal.
    path: String,
    /// True if it was there already with the same content.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    existed: bool,
}

/// How far a run is, over all its connections.
struct Push {
    sent: Vec<SentFile>,
    bar: TransferBar,
}

impl Push {
    /// Returns a number that grows with each step.
    fn advanced(&self) -> u64 {
        let done = u64::try_from(self.sent.len()).unwrap_or(u64::MAX);
        self.bar.all_moved().saturating_add(done)
    }

    /// Sends one file, unless it is there already.
    async fn send_one(
        &mut self,
        server: &mut ServerClient,
        service: &str,
        one: &Outgoing,
    ) -> anyhow::Result<SentFile> {
        let mut moved = |bytes, total| self.bar.moved(bytes, total);
        let mut sent = send_content(server, service, one, &mut moved).await;
        if let Err(why) = &sent
            && let Some(PiecesError::Changed) = why.downcast_ref()
        {
            // What an earlier run left under this name has been discarded.
            sent = send_content(server, service, one, &mut moved).await;
        }
        let called = sent.map_err(|why| match one.content {
            OutgoingContent::Stdin => {
                let message = format!("cannot send `-`: {why}");
                let failure = Failure::new(Exit::Failed, message);
                let help = "stdin cannot be read again: run the whole command again";
                failure.help(help).into()
            }
            _ => why.context(format!("cannot send `{}`", one.shown)),
        })?;
        let mut result = structured(&called);
        if let Err(failure) = &result
            && failure.message.contains(EXISTS)
            && let Some(there) = with_same_content(server, service, one).await?
        {
            result = Ok(there);
        }
        let result = result.map_err(|failure| {
            let message = format!("`{}` was not sent: {}", one.shown, failure.message);
            let failure = Failure { message, ..failure };
            if failure.message.contains(EXISTS) {
                failure.help("its content differs; send this one with `--name NAME`")
            } else {
                failure
            }
        })?;
        Ok(SentFile {
            file: one.shown.clone(),
            path: text(&result, "path")?,
            existed: result.get("existed") == Some(&true.into()),
        })
    }
}

/// Asks whether the provider has the file with the content that it has here; returns the answer if it has. A short file is
/// always sent with its digest, so this is for long ones.
async fn with_same_content(
    server: &mut ServerClient,
    service: &str,
    one: &Outgoing,
) -> anyhow::Result<Option<Map<String, Value>>> {
    let OutgoingContent::File(folder, path) = &one.content else {
        return Ok(None);
    };
    let Ok(Some(RegularFile { mut file, stat })) = folder.regular(path) else {
        return Ok(None);
    };
    let mut digest = Digester::default();
    io::copy(&mut file, &mut digest).map_err(|why| unreadable(&one.shown, &why))?;
    let arguments = [
        ("path", Value::from(one.remote.clone())),
        ("data", "".into()),
        ("offset", 0.into()),
        ("size", stat.st_size.into()),
        ("sha256", digest.end().into()),
        ("resume", true.into()),
    ];
    let arguments = arguments.map(|(name, value)| (name.to_owned(), value));
    let called = call(server, service, &arguments.into_iter().collect()).await?;
    Ok(structured(&called).ok())
}

async fn send_content(
    server: &mut ServerClient,
    service: &str,
    one: &Outgoing,
    moved: Moved<'_>,
) -> anyhow::Result<Called> {
    let mut arguments = Map::new();
    arguments.insert("path".to_owned(), one.remote.clone().into());
    let source = match &one.content {
        OutgoingContent::Stdin => PayloadSource::new(io::stdin()),
        OutgoingContent::EmptyFolder => {
            arguments.insert("folder".to_owned(), true.into());
            PayloadSource::new(io::empty())
        }
        OutgoingContent::File(folder, path) => {
            let unread = |why: Errno| unreadable(&one.shown, &why.into());
            let opened = folder.regular(path).map_err(|why| match why {
                NotRead::System(why) => unread(why),
                NotRead::Link | NotRead::NotRegular => not_sent(&one.shown),
            })?;
            let RegularFile { file, stat } = opened.ok_or_else(|| unread(Errno::NOENT))?;
            let mode = format!("{:04o}", stat.st_mode & MODE);
            arguments.insert("mode".to_owned(), mode.into());
            let modified = changed_at(stat.st_mtime, stat.st_mtime_nsec);
            arguments.extend(modified.map(|time| ("modified".to_owned(), Value::from(time))));
            PayloadSource::of_file(file)
        }
    };
    let is_file = !matches!(one.content, OutgoingContent::EmptyFolder);
    send(server, service, arguments, source, is_file, moved).await
}

fn not_sent(shown: &str) -> Failure {
    let message = format!("`{shown}` is neither a file nor a folder");
    Failure::new(Exit::Failed, message).help("links, devices and pipes are not sent")
}

/// Returns a path in the provider, if every provider takes it.
fn path_there(path: &str, shown: &str) -> Result<String, Failure> {
    let checked = PortalPath::new(path).map_err(|fault| {
        let message = format!("`{shown}` cannot be sent: {fault}");
        Failure::new(Exit::Failed, message)
            .help("rename it, name it there with `--name NAME`, or send an archive")
    })?;
    Ok(checked.as_str().to_owned())
}

fn nameless(shown: &str) -> Failure {
    let message = format!("`{shown}` has no name that the provider could use");
    Failure::new(Exit::Usage, message).help("name it there: `--name NAME`")
}

/// Adds a file, stdin, or everything in a folder.
fn outgoing(path: &Path, name: Option<&str>, all: &mut Vec<Outgoing>) -> Result<(), Failure> {
    let shown = shown(path);
    let shown = match shown.trim_end_matches('/') {
        "" => shown,
        shorter => shorter.to_owned(),
    };
    if path == Path::new("-") {
        let remote = path_there(name.ok_or_else(|| nameless("-"))?, "-")?;
        let content = OutgoingContent::Stdin;
        all.push(Outgoing {
            content,
            shown,
            remote,
        });
        return Ok(());
    }
    let last = path.file_name().and_then(|last| last.to_str());
    let remote = name.or(last).ok_or_else(|| nameless(&shown))?;
    let remote = path_there(remote, &shown)?;
    // A link that the user names is followed; those inside a folder are not.
    let path = fs::canonicalize(path).map_err(|why| unreadable(&shown, &why))?;
    let unread = |why: Errno| unreadable(&shown, &why.into());
    match Dir::open(&path, READ, BENEATH) {
        Ok(folder) => return folder_files(&Rc::new(folder), &shown, &remote, all),
        Err(Errno::NOTDIR) => {}
        Err(why) => return Err(unread(why)),
    }
    let last = path.file_name().and_then(|last| last.to_str());
    let last = last.ok_or_else(|| nameless(&shown))?.to_owned();
    let above = path.parent().unwrap_or_else(|| Path::new("/"));
    let above = Rc::new(Dir::open(above, SEARCH, BENEATH).map_err(unread)?);
    let is = above.stat(&last).map_err(unread)?;
    if !is.is_some_and(|is| FileType::from_raw_mode(is.st_mode).is_file()) {
        return Err(not_sent(&shown));
    }
    all.push(Outgoing {
        content: OutgoingContent::File(above, last),
        shown,
        remote,
    });
    Ok(())
}

/// Adds everything in a folder, in the order of the names; nothing is opened through a link.
fn folder_files(
    top: &Rc<Dir>,
    shown: &str,
    remote: &str,
    all: &mut Vec<Outgoing>,
) -> Result<(), Failure> {
    let mut folders = vec![String::new()];
    while let Some(at) = folders.pop() {
        let below = |name: &str| match at.as_str() {
            "" => name.to_owned(),
            at => format!("{at}/{name}"),
        };
        let unread = |why: Errno| {
            let path = format!("{shown}/{}", at.escape_debug());
            unreadable(path.trim_end_matches('/'), &why.into())
        };
        let folder = top.dir(&at).map_err(unread)?;
        let mut entries = Vec::new();
        let listed = rustix::fs::Dir::read_from(folder.handle().as_fd()).map_err(unread)?;
        for entry in listed {
            let name = entry.map_err(unread)?.file_name().to_owned();
            let name = name.into_string().map_err(|why| {
                let name = why.into_cstring();
                let name = name.to_string_lossy();
                let message = format!("`{shown}/{}` is not a name in UTF-8", name.escape_debug());
                Failure::new(Exit::Failed, message)
                    .help("rename it, or send an archive of the folder")
            })?;
            if ![".", ".."].contains(&name.as_str()) {
                entries.push(name);
            }
        }
        if entries.is_empty() {
            all.push(Outgoing {
                content: OutgoingContent::EmptyFolder,
                shown: format!("{shown}/{}", at.escape_debug()),
                remote: format!("{remote}/{at}").trim_end_matches('/').to_owned(),
            });
        }
        entries.sort_unstable();
        let mut inner = Vec::new();
        for name in entries {
            let path = below(&name);
            let shown = format!("{shown}/{}", path.escape_debug());
            let Some(is) = folder.stat(&name).map_err(unread)? else {
                continue;
            };
            match FileType::from_raw_mode(is.st_mode) {
                // Checked here already, so that no folder is too deep.
                FileType::Directory => {
                    path_there(&format!("{remote}/{path}"), &shown)?;
                    inner.push(path);
                }
                FileType::RegularFile => all.push(Outgoing {
                    remote: path_there(&format!("{remote}/{path}"), &shown)?,
                    content: OutgoingContent::File(Rc::clone(top), path),
                    shown,
                }),
                _ => return Err(not_sent(&shown)),
            }
        }
        check_count(all.len())?;
        folders.extend(inner.into_iter().rev());
    }
    Ok(())
}
