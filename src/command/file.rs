//! `anklume file`: sends files and folders to another machine, and fetches files from it.

use std::fs::{self, Permissions};
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::FileType;
use rustix::io::Errno;
use serde_json::{Map, Value};
use tempfile::NamedTempFile;

use super::mcp::ServerClient;
use super::output::Output;
use super::service::{NamedService, send, structured, text, transferred, with_service};
use crate::cli::{FileCommand, FilePullArgs, FilePushArgs};
use crate::dir::{BENEATH, Dir, NotRead, READ, RegularFile, SEARCH};
use crate::error::{Exit, Failure};
use crate::mcp::client::pieces::{Fetched, PayloadSource, PiecesError};
use crate::name::ToolName;

/// Maximum number of files of one run.
const FILES_MAX: usize = 100_000;
/// Maximum number of folders inside one another.
const DEPTH_MAX: usize = 64;
/// The permissions that are sent; the others are special.
const MODE: u32 = 0o777;
/// Permissions of a new file.
const NEW_MODE: u32 = 0o644;

/// Runs `anklume file …`.
pub(super) fn run(command: &FileCommand, output: &Output) -> anyhow::Result<Exit> {
    match command {
        FileCommand::Push(args) => push(args, output),
        FileCommand::Pull(args) => pull(args, output),
    }
}

/// A file or stdin to send.
struct Outgoing {
    /// The open folder that contains it, and its path below it; `None` for stdin.
    place: Option<(Rc<Dir>, String)>,
    /// As the user names it.
    shown: String,
    /// Its path in the provider.
    remote: String,
}

fn push(args: &FilePushArgs, output: &Output) -> anyhow::Result<Exit> {
    if let (Some(_), [_, _, ..]) = (&args.name, args.files.as_slice()) {
        let failure = Failure::new(Exit::Usage, "`--name` is for one file");
        return Err(failure.help("send the files one by one").into());
    }
    let mut all = Vec::new();
    for path in &args.files {
        outgoing(path, args.name.as_deref(), &mut all)?;
    }
    let name = NamedService::of(&args.service, "");
    let tool = ToolName::FileAccept;
    with_service(tool, &name, "", output, async |server, service| {
        for (done, one) in all.iter().enumerate() {
            if let Err(why) = push_one(server, service, one, output).await {
                if done > 0 {
                    output.say(&format!("{done} of {} files were sent", all.len()));
                }
                return Err(why);
            }
        }
        Ok(Exit::Done)
    })
}

async fn push_one(
    server: &mut ServerClient,
    service: &str,
    one: &Outgoing,
    output: &Output,
) -> anyhow::Result<()> {
    let mut arguments = Map::new();
    arguments.insert("path".to_owned(), one.remote.clone().into());
    let source = match &one.place {
        None => PayloadSource::new(io::stdin()),
        Some((folder, path)) => {
            let unread = |why: Errno| unreadable(&one.shown, &why.into());
            let opened = folder.regular(path).map_err(|why| match why {
                NotRead::System(why) => unread(why),
                NotRead::Link | NotRead::NotRegular => not_sent(&one.shown),
            })?;
            let RegularFile { file, stat } = opened.ok_or_else(|| unread(Errno::NOENT))?;
            let mode = format!("{:04o}", stat.st_mode & MODE);
            arguments.insert("mode".to_owned(), mode.into());
            PayloadSource::of_file(file)
        }
    };
    let sent = send(server, service, arguments, source, true).await;
    let called = sent.map_err(|why| why.context(format!("cannot send `{}`", one.shown)))?;
    let result = structured(&called).map_err(|failure| Failure {
        message: format!("`{}` was not sent: {}", one.shown, failure.message),
        ..failure
    })?;
    let path = text(&result, "path")?;
    output.say(&format!("sent {} as {}", one.shown, path.escape_debug()));
    Ok(())
}

/// Returns a path as it is shown in a message.
pub(super) fn shown(path: &Path) -> String {
    path.display().to_string().escape_debug().to_string()
}

pub(super) fn unreadable(shown: &str, why: &io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("cannot read `{shown}`: {why}"))
}

fn not_sent(shown: &str) -> Failure {
    let message = format!("`{shown}` is neither a file nor a folder");
    Failure::new(Exit::Failed, message).help("links, devices and pipes are not sent")
}

fn nameless(shown: &str) -> Failure {
    let message = format!("`{shown}` has no name that the provider could use");
    Failure::new(Exit::Usage, message).help("name it there: `--name NAME`")
}

/// Adds a file, stdin, or every file of a folder.
fn outgoing(path: &Path, name: Option<&str>, all: &mut Vec<Outgoing>) -> Result<(), Failure> {
    let shown = shown(path);
    if path == Path::new("-") {
        let remote = name.ok_or_else(|| nameless("-"))?.to_owned();
        let place = None;
        all.push(Outgoing {
            place,
            shown,
            remote,
        });
        return Ok(());
    }
    let last = path.file_name().and_then(|last| last.to_str());
    let remote = name.or(last).ok_or_else(|| nameless(&shown))?.to_owned();
    // A link that the user names is followed; those inside a folder are not.
    let path = fs::canonicalize(path).map_err(|why| unreadable(&shown, &why))?;
    let unread = |why: Errno| unreadable(&shown, &why.into());
    match Dir::open(&path, READ, BENEATH) {
        Ok(folder) => {
            let before = all.len();
            folder_files(&Rc::new(folder), &shown, &remote, all)?;
            if all.len() == before {
                let message = format!("`{shown}` contains no file");
                let failure = Failure::new(Exit::Failed, message);
                return Err(failure.help("folders without files are not sent"));
            }
            return Ok(());
        }
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
        place: Some((above, last)),
        shown,
        remote,
    });
    Ok(())
}

/// Adds every file of a folder, in the order of their names; nothing is opened through a link.
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
        entries.sort_unstable();
        let mut inner = Vec::new();
        for name in entries {
            let path = below(&name);
            let shown = format!("{shown}/{}", path.escape_debug());
            let Some(is) = folder.stat(&name).map_err(unread)? else {
                continue;
            };
            match FileType::from_raw_mode(is.st_mode) {
                FileType::Directory => inner.push(path),
                FileType::RegularFile => all.push(Outgoing {
                    remote: format!("{remote}/{path}"),
                    place: Some((Rc::clone(top), path)),
                    shown,
                }),
                _ => return Err(not_sent(&shown)),
            }
        }
        let is_deep = at.split('/').count() >= DEPTH_MAX && !inner.is_empty();
        if is_deep || all.len() > FILES_MAX {
            let message = if is_deep {
                format!("`{shown}` has more than {DEPTH_MAX} folders inside one another")
            } else {
                format!("these are more than {FILES_MAX} files")
            };
            return Err(Failure::new(Exit::Failed, message).help("send an archive"));
        }
        folders.extend(inner.into_iter().rev());
    }
    Ok(())
}

fn pull(args: &FilePullArgs, output: &Output) -> anyhow::Result<Exit> {
    let folder = args.output.clone().unwrap_or_else(|| PathBuf::from("."));
    let mut wanted: Vec<(&String, Option<PathBuf>)> = Vec::new();
    if folder == Path::new("-") && io::stdout().is_terminal() {
        let message = "a file of another machine is not printed to a terminal";
        let failure = Failure::new(Exit::Usage, message);
        return Err(failure
            .help("pipe it to a program, or name a folder: `-o DIR`")
            .into());
    }
    for name in &args.names {
        if folder == Path::new("-") {
            wanted.push((name, None));
            continue;
        }
        let last = Path::new(name).file_name().filter(|_| !name.ends_with('/'));
        let last = last.ok_or_else(|| {
            let message = format!("`{}` names no file", name.escape_debug());
            Failure::new(Exit::Usage, message).help("name files, such as `reports/july.pdf`")
        })?;
        let target = folder.join(last);
        let is_named = wanted
            .iter()
            .any(|(_, other)| other.as_ref() == Some(&target));
        if is_named || target.symlink_metadata().is_ok() {
            return Err(exists(&target).into());
        }
        wanted.push((name, Some(target)));
    }
    let name = NamedService::of(&args.service, "");
    let tool = ToolName::FileProvide;
    with_service(tool, &name, "", output, async |server, service| {
        for (name, target) in &wanted {
            match target {
                None => fetch(server, service, name, || Ok(io::stdout()))
                    .await
                    .map(drop)?,
                Some(target) => {
                    let file = fetch(server, service, name, || fresh(&folder)).await?;
                    let kept = file.persist_noclobber(target);
                    kept.map_err(|why| match why.error.kind() {
                        io::ErrorKind::AlreadyExists => exists(target),
                        _ => unwritable(target, &why.error),
                    })?;
                    output.say(&format!("created {}", shown(target)));
                }
            }
        }
        Ok(Exit::Done)
    })
}

fn exists(target: &Path) -> Failure {
    let message = format!("`{}` already exists", shown(target));
    Failure::new(Exit::Failed, message).help("remove it, or fetch into another folder: `-o DIR`")
}

pub(super) fn unwritable(path: &Path, why: &io::Error) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("cannot write `{}`: {why}", shown(path)),
    )
}

/// Creates a temporary file in a folder.
pub(super) fn fresh(folder: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".anklume-")
        .permissions(Permissions::from_mode(NEW_MODE))
        .tempfile_in(folder)
}

/// Fetches a file into the writer that `new` makes, and returns it once the digest of the whole has been checked.
async fn fetch<F: Write>(
    server: &mut ServerClient,
    service: &str,
    name: &str,
    new: impl Fn() -> io::Result<F>,
) -> anyhow::Result<F> {
    let mut arguments = Map::new();
    arguments.insert("path".to_owned(), Value::from(name));
    let fetched = server.fetch(service, &arguments, &new).await;
    let fetched = fetched.map_err(|why| {
        let shown = name.escape_debug();
        match why {
            PiecesError::TooLargeToFetch(_) => {
                let message = format!("`{shown}` is larger than 4 GiB");
                let failure = Failure::new(Exit::Failed, message);
                failure.help("split it in the provider").into()
            }
            why => transferred(why).context(format!("cannot fetch `{shown}`")),
        }
    });
    let mut file = match fetched? {
        Fetched::Pieces(_, file) => file,
        Fetched::Whole(called) => {
            structured(&called).map_err(|failure| Failure {
                message: format!(
                    "`{}` was not fetched: {}",
                    name.escape_debug(),
                    failure.message
                ),
                ..failure
            })?;
            let mut file = new()?;
            let result = called.result.raw();
            for block in result.content.iter().filter_map(|block| block.as_text()) {
                // `fetch` has decoded it once, to check it.
                file.write_all(&STANDARD.decode(&block.text)?)?;
            }
            file
        }
    };
    file.flush()?;
    Ok(file)
}
