//! `anklume file pull`: fetches files and folders from a provider's portal.

use std::fs::{self, FileTimes, Permissions};
use std::io::{self, IsTerminal as _, Stdout, Write};
use std::mem;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rmcp::model::CallToolResult;
use rustix::fs::{CWD, Mode, RenameFlags, renameat_with, statvfs};
use rustix::io::Errno;
use rustix::process::umask;
use serde_json::{Map, Value};
use tempfile::{NamedTempFile, TempDir};

use super::list::{FolderEntries, entries, not_fetched};
use super::{MODE, NEW_MODE, check_count, fresh, shown, unwritable};
use crate::catalogue::PortalPath;
use crate::cli::FilePullArgs;
use crate::command::bar::TransferBar;
use crate::command::mcp::{ServerClient, client_error};
use crate::command::output::Output;
use crate::command::service::{NamedService, WordKind, structured, with_service_again};
use crate::dir::write_in_parts;
use crate::error::{Exit, Failure};
use crate::mcp::client::pieces::{Fetched, Fetching, PiecesError};
use crate::name::ToolName;
use crate::text::{Foreign, escaped};

/// Maximum number of bytes that one run fetches: a provider must not be able to fill the disk for ever.
const FETCHED_MAX: u64 = 64 * 1024 * 1024 * 1024;

pub(super) fn run(args: &FilePullArgs, output: &Output) -> anyhow::Result<Exit> {
    let (name, names) = NamedService::of_words(&args.service, &args.names, WordKind::Names, "")?;
    if names.is_empty() {
        let failure = Failure::new(Exit::Usage, "no file is named");
        return Err(failure
            .help("`anklume file list` shows what can be fetched")
            .into());
    }
    let folder = args.output.clone().unwrap_or_else(|| PathBuf::from("."));
    let to_stdout = folder == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        let message = "a file of another machine is not printed to a terminal";
        let failure = Failure::new(Exit::Usage, message);
        return Err(failure
            .help("pipe it to a program, or name a folder: `-o DIR`")
            .into());
    }
    if !to_stdout {
        check_folder(&folder)?;
    }
    let mut wanted: Vec<Wanted> = Vec::new();
    for name in names {
        let remote = name.trim_end_matches('/').to_owned();
        if to_stdout {
            let target = None;
            wanted.push(Wanted { remote, target });
            continue;
        }
        let last = Path::new(&remote).file_name();
        let last = last.ok_or_else(|| {
            let message = format!("`{}` names no file", name.escape_debug());
            Failure::new(Exit::Usage, message)
                .help("name files or folders, such as `reports/july.pdf`")
        })?;
        let target = Some(folder.join(last));
        let is_named = wanted.iter().any(|other| other.target == target);
        let is_there = |target: &PathBuf| target.symlink_metadata().is_ok();
        if let Some(target) = target
            .as_ref()
            .filter(|target| is_named || is_there(target))
        {
            return Err(exists(target).into());
        }
        wanted.push(Wanted { remote, target });
    }
    let mut pull = Pull {
        folder,
        done: 0,
        fetching: Fetching::default(),
        tree: None,
        bar: TransferBar::new(output),
        umask: current_umask(),
        fetched: 0,
        created: Vec::new(),
    };
    let pulled = with_service_again(
        ToolName::FileProvide,
        &name,
        output,
        &mut pull,
        Pull::advanced,
        &async |server: &mut ServerClient, service: &str, pull: &mut Pull| {
            while let Some(one) = wanted.get(pull.done) {
                let lines = pull.fetch_one(server, service, one).await;
                pull.bar.end();
                lines?.iter().for_each(|line| output.say(line));
                let target = one.target.as_ref();
                pull.created
                    .extend(target.map(|target| target.display().to_string()));
                pull.done += 1;
            }
            Ok(Exit::Done)
        },
    );
    pull.bar.end();
    if matches!(pulled, Ok(Exit::Interrupted)) {
        let current = wanted.get(pull.done).filter(|_| !to_stdout);
        let current = current.map(|one| escaped(&one.remote));
        let current = current.map_or_else(String::new, |current| {
            format!("; nothing of `{current}` was kept")
        });
        output.say(&format!(
            "{} of {} were fetched{current}",
            pull.done,
            wanted.len()
        ));
    }
    if output.is_json() && !to_stdout && pulled.is_ok() {
        output.json(&pull.created)?;
    }
    pulled
}

/// Checks that the folder to write to exists.
fn check_folder(folder: &Path) -> Result<(), Failure> {
    let name = shown(folder);
    let fault = match fs::metadata(folder) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => format!("`{name}` is not a folder"),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            let message = format!("the folder `{name}` does not exist");
            return Err(Failure::new(Exit::Failed, message).help("create it first"));
        }
        Err(why) => format!("cannot write to `{name}`: {why}"),
    };
    Err(Failure::new(Exit::Failed, fault))
}

/// A file or folder of the provider.
struct Wanted {
    remote: String,
    /// The new file or folder; `None` for stdout.
    target: Option<PathBuf>,
}

/// How far a run is, over all its connections.
struct Pull {
    /// In which new files and folders are made.
    folder: PathBuf,
    done: usize,
    /// The current file.
    fetching: Fetching<Sink>,
    /// The current folder.
    tree: Option<Tree>,
    bar: TransferBar,
    umask: u32,
    /// Bytes of the files that have been begun.
    fetched: u64,
    /// The new files and folders.
    created: Vec<String>,
}

/// A folder of which every file is fetched before it gets its name.
struct Tree {
    folder: TempDir,
    /// Paths of files below the folder that are still to be fetched, the next one last.
    left: Vec<String>,
    files: usize,
    /// Number of entries that the provider does not hand out.
    left_out: u64,
}

/// A new file, or stdout.
#[derive(Debug)]
enum Sink {
    Stdout(Stdout),
    File(NamedTempFile),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(stdout) => stdout.write(bytes),
            Self::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.flush(),
            Self::File(file) => file.flush(),
        }
    }
}

/// What a provider says of a file, besides its content.
struct Attributes {
    mode: Option<u32>,
    modified: Option<Timestamp>,
}

impl Pull {
    /// Returns a number that grows with each step.
    fn advanced(&self) -> u64 {
        let left = self
            .tree
            .as_ref()
            .map_or(0, |tree| tree.files - tree.left.len());
        let steps = u64::try_from(self.done + left).unwrap_or(u64::MAX);
        self.bar.all_moved().saturating_add(steps)
    }

    /// Fetches one file or folder; returns the lines to say of it.
    async fn fetch_one(
        &mut self,
        server: &mut ServerClient,
        service: &str,
        wanted: &Wanted,
    ) -> anyhow::Result<Vec<String>> {
        let Wanted { remote, target } = wanted;
        let is_folder = self.tree.is_some();
        let mut fetched = Err(None);
        if !is_folder {
            let folder = target.as_ref().map(|_| self.folder.clone());
            fetched = self
                .file(server, service, remote, folder)
                .await?
                .map_err(Some);
        }
        match (fetched, target) {
            (Ok((Sink::Stdout(_), _)), _) | (Ok(_), None) => return Ok(Vec::new()),
            (Ok((Sink::File(file), attributes)), Some(target)) => {
                self.keep(file, target, &attributes)?;
                return Ok(vec![format!("created {}", shown(target))]);
            }
            (Err(Some(failure)), None) => return Err(failure.into()),
            (Err(Some(failure)), Some(_)) => {
                let Some(tree) = self.tree(server, service, remote).await? else {
                    return Err(failure.into());
                };
                self.tree = Some(tree);
            }
            (Err(None), _) => {}
        }
        // A folder is not written to stdout.
        let Some(target) = target else {
            return Ok(Vec::new());
        };
        while let Some((top, path)) = self.tree.as_ref().and_then(Tree::next) {
            let here = top.join(&path);
            let above = here.parent().unwrap_or(&top).to_owned();
            let remote = format!("{remote}/{path}");
            let (sink, attributes) = self.file(server, service, &remote, Some(above)).await??;
            if let Sink::File(file) = sink {
                self.keep(file, &here, &attributes)?;
            }
            if let Some(tree) = &mut self.tree {
                tree.left.pop();
            }
        }
        match self.tree.take() {
            Some(tree) => Ok(tree.keep(target)?),
            None => Ok(Vec::new()),
        }
    }

    /// Fetches a file; the inner error is that of the tool.
    async fn file(
        &mut self,
        server: &mut ServerClient,
        service: &str,
        remote: &str,
        folder: Option<PathBuf>,
    ) -> anyhow::Result<Result<(Sink, Attributes), Failure>> {
        let shown = remote.escape_debug().to_string();
        self.bar.begin(&shown);
        let mut arguments = Map::new();
        arguments.insert("path".to_owned(), Value::from(remote));
        let before = &mut self.fetched;
        let mut new = |size: u64| {
            let Some(folder) = &folder else {
                return Ok(Sink::Stdout(io::stdout()));
            };
            *before = before.saturating_add(size);
            check_size(*before, size, folder)?;
            fresh(folder).map(Sink::File)
        };
        let bar = &mut self.bar;
        let mut moved = |bytes, total| bar.moved(bytes, total);
        let fetched = server.fetch(
            service,
            &arguments,
            &mut self.fetching,
            &mut new,
            &mut moved,
        );
        let fetched = fetched.await.map_err(|why| match why {
            PiecesError::TooLargeToFetch(_) => {
                let failure = Failure::new(Exit::Failed, format!("`{shown}` is larger than 4 GiB"));
                failure.help("split it in the provider").into()
            }
            why => client_error(why).context(format!("cannot fetch `{shown}`")),
        });
        let (mut sink, result) = match fetched? {
            Fetched::Pieces(result, sink) => (sink, result),
            Fetched::Whole(called) => {
                if let Err(failure) = structured(&called) {
                    // What was fetched before a connection broke is of no use.
                    mem::take(&mut self.fetching);
                    let message = format!("`{shown}` was not fetched: {}", failure.message);
                    return Ok(Err(Failure { message, ..failure }));
                }
                let result = called.result;
                let mut bytes = Vec::new();
                let blocks = result.raw().content.iter();
                for block in blocks.filter_map(|block| block.as_text()) {
                    // `fetch` has decoded it once, to check it.
                    STANDARD.decode_vec(&block.text, &mut bytes)?;
                }
                let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                let mut sink = new(size).map_err(|why| not_kept(&shown, why))?;
                write_in_parts(&mut sink, &bytes).map_err(|why| not_kept(&shown, why))?;
                (sink, result)
            }
        };
        sink.flush().map_err(|why| not_kept(&shown, why))?;
        // The next file begins anew.
        mem::take(&mut self.fetching);
        self.bar.next();
        Ok(Ok((sink, Attributes::of(&result))))
    }

    /// Gives a fetched file its permissions, its time of last change and its name.
    fn keep(
        &self,
        file: NamedTempFile,
        target: &Path,
        attributes: &Attributes,
    ) -> Result<(), Failure> {
        let failed = |why| unwritable(target, &why);
        let mode = attributes.mode.unwrap_or(NEW_MODE) & !self.umask;
        let permissions = Permissions::from_mode(mode);
        file.as_file()
            .set_permissions(permissions)
            .map_err(failed)?;
        if let Some(modified) = attributes.modified {
            let times = FileTimes::new().set_modified(SystemTime::from(modified));
            file.as_file().set_times(times).map_err(failed)?;
        }
        let kept = file.persist_noclobber(target);
        kept.map_err(|why| match why.error.kind() {
            io::ErrorKind::AlreadyExists => exists(target),
            _ => failed(why.error),
        })?;
        Ok(())
    }

    /// Lists everything in a provider's folder, and makes its folders here; returns `None` if it is not a folder.
    async fn tree(
        &self,
        server: &mut ServerClient,
        service: &str,
        remote: &str,
    ) -> anyhow::Result<Option<Tree>> {
        let listed = entries(server, service, remote).await?;
        let Ok(FolderEntries { entries, left_out }) = listed else {
            return Ok(None);
        };
        let folder = tempfile::Builder::new()
            .prefix(".anklume-")
            .permissions(Permissions::from_mode(MODE))
            .tempdir_in(&self.folder)
            .map_err(|why| unwritable(&self.folder, &why))?;
        let (mut left, mut left_out) = (entries, left_out);
        let (mut files, mut count) = (Vec::new(), left.len());
        while let Some(path) = left.pop() {
            let Some(inner) = path.strip_suffix('/') else {
                files.push(path);
                continue;
            };
            let below = format!("{remote}/{inner}");
            // Bounds how deep and how long a provider's paths are.
            PortalPath::new(&below)
                .map_err(|fault| Failure::new(Exit::Failed, format!("cannot fetch it: {fault}")))?;
            let made = folder.path().join(inner);
            fs::create_dir(&made).map_err(|why| unwritable(&made, &why))?;
            let below = super::list::entries(server, service, &below).await??;
            count += below.entries.len();
            check_count(count)?;
            left_out = left_out.saturating_add(below.left_out);
            let paths = below.entries.into_iter();
            left.extend(paths.map(|entry| format!("{path}{entry}")));
        }
        // Reversed, because the next one is taken from the end.
        files.sort_unstable_by(|one, other| other.cmp(one));
        Ok(Some(Tree {
            files: files.len(),
            folder,
            left: files,
            left_out,
        }))
    }
}

impl Tree {
    /// Returns the folder, and the path below it of the next file.
    fn next(&self) -> Option<(PathBuf, String)> {
        let next = self.left.last()?.clone();
        Some((self.folder.path().to_owned(), next))
    }

    /// Gives the folder its name; returns the lines to say of it.
    fn keep(self, target: &Path) -> Result<Vec<String>, Failure> {
        // From here on, what was fetched stays, whatever happens.
        let made = self.folder.keep();
        rename_new(&made, target).map_err(|failure| {
            let kept = format!("everything was fetched, and is in `{}`", shown(&made));
            failure.help(kept)
        })?;
        let files = self.files;
        let plural = if files == 1 { "file" } else { "files" };
        let target = shown(target);
        let mut lines = vec![format!("created {target} with {files} {plural}")];
        if self.left_out > 0 {
            lines.push(not_fetched(self.left_out, &format!("`{target}`")));
        }
        Ok(lines)
    }
}

impl Attributes {
    /// Reads them from an answer; what cannot be read counts as missing.
    fn of(result: &Foreign<CallToolResult>) -> Self {
        let content = result.raw().structured_content.as_ref();
        let text = |key| content.and_then(|content| content.get(key)?.as_str());
        let mode = text("mode").and_then(|mode| u32::from_str_radix(mode, 8).ok());
        Self {
            mode: mode.map(|mode| mode & MODE),
            modified: text("modified").and_then(|time| time.parse().ok()),
        }
    }
}

/// Gives a folder a name that nothing has yet.
fn rename_new(made: &Path, target: &Path) -> Result<(), Failure> {
    match renameat_with(CWD, made, CWD, target, RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) => Err(exists(target)),
        // The file system lacks this flag; without it, a folder replaces at most an empty one.
        Err(Errno::INVAL | Errno::NOSYS) if target.symlink_metadata().is_err() => {
            fs::rename(made, target).map_err(|why| unwritable(target, &why))
        }
        renamed => renamed.map_err(|why| unwritable(target, &why.into())),
    }
}

/// Checks that a run that has begun `fetched` bytes fetches no more than its limit, and that the folder's disk has room
/// for the next `size` of them.
fn check_size(fetched: u64, size: u64, folder: &Path) -> io::Result<()> {
    if fetched > FETCHED_MAX {
        let gib = FETCHED_MAX >> 30;
        return Err(io::Error::other(format!(
            "one run fetches at most {gib} GiB; fetch the rest with another one"
        )));
    }
    let disk = statvfs(folder)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if size > free {
        let why = format!("{size} bytes do not fit: the disk has {free} left");
        return Err(io::Error::new(io::ErrorKind::StorageFull, why));
    }
    Ok(())
}

/// The error stays its cause: a closed pipe is not reported.
fn not_kept(shown: &str, why: io::Error) -> anyhow::Error {
    let message = format!("cannot fetch `{shown}`: the content cannot be stored: {why}");
    anyhow::Error::from(why).context(Failure::new(Exit::Failed, message))
}

fn exists(target: &Path) -> Failure {
    let message = format!("`{}` already exists", shown(target));
    Failure::new(Exit::Failed, message).help("remove it, or fetch into another folder: `-o DIR`")
}

/// Returns the permissions that new files of this process do not get.
fn current_umask() -> u32 {
    // It can only be read by setting it.
    let mask = umask(Mode::from_raw_mode(0o077));
    umask(mask);
    mask.as_raw_mode()
}
