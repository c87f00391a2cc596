//! `file_provide`: the content of a regular file below the portal.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{FileType, Stat, fstat};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::listing::{self, list};
use super::partial::leads_to_reserved;
use super::portal::Portal;
use crate::catalogue::{
    BadArguments, FileProvide, PIECE, Payload, PortalPath, Provided, WHOLE_PORTAL, changed_at,
    parse,
};
use crate::digest::{hex, sha256};
use crate::name::ToolName;
use crate::policy::{Caller, Grant};
use crate::text;
use crate::tool::{BlockingStop, Copies, Settings, ToolError, ToolOutcome, ToolSession, blocking};

/// Maximum number of files that one connection may be reading in pieces; beyond it, the least recent one is forgotten.
const READS_MAX: usize = 16;
/// Maximum size of the answer with a folder's entries, in bytes: each name, once as text and once in JSON.
const LISTING_MAX: usize = listing::ANSWER_MAX * 1024;
/// Maximum offset at which a read may be resumed, in bytes: what precedes it is read again.
const RESUME_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// The files that one connection is reading in pieces, by the path that the caller sent; the least recent comes first.
#[derive(Debug, Clone, Default)]
pub(in crate::tool) struct Reads(Arc<Mutex<VecDeque<(PortalPath, ReadProgress)>>>);

#[derive(Debug)]
struct ReadProgress {
    identity: ProvidedIdentity,
    /// Digest of everything before `next`; `None` if it was not read in order.
    digest: Option<Sha256>,
    next: u64,
}

/// Metadata that identifies an unchanged file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ProvidedIdentity {
    device: u64,
    inode: u64,
    size: u64,
    mode: u32,
    modified: (i64, u64),
    changed: (i64, u64),
}

pub(in crate::tool) async fn provide(
    grant: &Grant,
    session: &ToolSession,
    copies: Copies,
) -> Result<ToolOutcome, ToolError> {
    let arguments: FileProvide = parse(ToolName::FileProvide, grant.arguments())?;
    let caller = grant.caller().clone();
    let settings = Arc::clone(&session.settings);
    if arguments.entries == Some(true) {
        let path = match arguments.path.as_str() {
            WHOLE_PORTAL => None,
            path => Some(PortalPath::new(path)?),
        };
        let offset = arguments.offset.unwrap_or(0);
        return blocking(move |_| list(&settings, path.as_ref(), &caller, offset)).await;
    }
    let path = PortalPath::new(&arguments.path)?;
    let FileProvide { offset, length, .. } = arguments;
    let resume = arguments.resume == Some(true);
    if resume && offset.unwrap_or(0) > RESUME_MAX {
        let message = format!("with `resume`, `offset` is at most {RESUME_MAX}");
        return Err(BadArguments::from(message).into());
    }
    let _permit = settings.resumption(resume).await;
    let is_whole = offset.is_none() && length.is_none();
    let offset = offset.unwrap_or(0);
    let length = length.unwrap_or(PIECE).min(copies.payload_max());
    let reads = session.reads.clone();
    blocking(move |stop| {
        let source = FileSource::open(&settings, &path, &caller)?;
        if is_whole {
            source.whole(copies)
        } else {
            if resume {
                reads.put(path.clone(), source.progress_to(offset, stop)?);
            }
            source.part(offset, length, &path, &reads, copies)
        }
    })
    .await
}

/// Returns the maximum size of an answer in memory, in bytes.
pub(in crate::tool) fn largest_answer(arguments: &Map<String, Value>, copies: Copies) -> usize {
    let number = |name| arguments.get(name).and_then(Value::as_u64);
    if arguments.get("entries") == Some(&Value::Bool(true)) {
        return LISTING_MAX;
    }
    let requested = match (number("offset"), number("length")) {
        (_, Some(length)) => length,
        (Some(_), None) => PIECE,
        (None, None) => copies.payload_max(),
    };
    copies.memory_of(requested.min(copies.payload_max()))
}

#[derive(Debug)]
pub(super) struct FileSource {
    path: PortalPath,
    file: File,
    identity: ProvidedIdentity,
}

impl FileSource {
    /// Opens the first existing file among those to which a path may refer.
    pub(super) fn open(
        settings: &Settings,
        requested: &PortalPath,
        caller: &Caller,
    ) -> Result<Self, ToolError> {
        if leads_to_reserved(requested) {
            let path = requested.to_string();
            return Err(ToolError::NotFound { path });
        }
        let portal = Portal::open(settings)?;
        let paths = match caller {
            Caller::Operator => vec![requested.clone()],
            Caller::Consumer(name) => vec![
                requested.below(&format!("outgoing/{name}")),
                requested.below("outgoing/all"),
            ],
        };
        for path in &paths {
            match Self::open_one(&portal, path) {
                Err(ToolError::NotFound { .. }) => {}
                opened => return opened,
            }
        }
        // The error names the path that the caller sent, not the paths that were tried.
        let path = requested.to_string();
        Err(ToolError::NotFound { path })
    }

    fn open_one(portal: &Portal, path: &PortalPath) -> Result<Self, ToolError> {
        // Also checked before opening, because opening a device can have side effects.
        regular(&portal.look(path)?, path)?;
        let file = portal.read(path)?;
        let stat = regular(&file, path)?;
        Ok(Self {
            path: path.clone(),
            file: file.into(),
            identity: ProvidedIdentity::of(&stat),
        })
    }

    pub(super) fn whole(self, copies: Copies) -> Result<ToolOutcome, ToolError> {
        let (path, size, max) = (&self.path, self.identity.size, copies.payload_max());
        if size > max {
            return Err(ToolError::TooLarge(format!(
                "`{path}` has {size} bytes, but one call returns at most {max}; \
                 read it in pieces with `offset` and `length`, {PIECE} bytes each"
            )));
        }
        let bytes = self.read(0, size)?;
        let digest = sha256(&bytes);
        self.answer(0, &bytes, Some(digest), copies)
    }

    fn part(
        self,
        offset: u64,
        length: u64,
        requested: &PortalPath,
        reads: &Reads,
        copies: Copies,
    ) -> Result<ToolOutcome, ToolError> {
        let size = self.identity.size;
        let Some(rest) = size.checked_sub(offset) else {
            let (path, size) = (&self.path, text::bytes(size));
            let message = format!("`offset` is {offset}, and `{path}` has {size}");
            return Err(BadArguments::from(message).into());
        };
        let mut progress = reads.take(requested, &self, offset)?;
        let length = length.min(rest);
        let bytes = self.read(offset, length)?;
        progress.digest = progress.digest.map(|digest| digest.chain_update(&bytes));
        progress.next = offset.saturating_add(length);
        let mut digest = None;
        if length == rest {
            digest = progress.digest.map(|whole| hex(&whole.finalize()));
        } else {
            reads.put(requested.clone(), progress);
        }
        self.answer(offset, &bytes, digest, copies)
    }

    /// Reads what precedes `offset` again, for the digest of the whole.
    fn progress_to(&self, offset: u64, stop: &BlockingStop) -> Result<ReadProgress, ToolError> {
        let mut digest = Sha256::new();
        let (mut next, end) = (0, offset.min(self.identity.size));
        while next < end {
            stop.check()?;
            let length = PIECE.min(end - next);
            digest.update(self.read(next, length)?);
            next += length;
        }
        Ok(ReadProgress {
            identity: self.identity,
            digest: Some(digest),
            next: offset,
        })
    }

    /// Reads exactly this part; fails if the file changes meanwhile.
    fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, ToolError> {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => changed(&self.path),
            _ => ToolError::system(format!("read `{}`", self.path), error),
        })?;
        if ProvidedIdentity::of(&fstat_of(&self.file, &self.path)?) != self.identity {
            return Err(changed(&self.path));
        }
        Ok(bytes)
    }

    fn answer(
        self,
        offset: u64,
        bytes: &[u8],
        sha256: Option<String>,
        copies: Copies,
    ) -> Result<ToolOutcome, ToolError> {
        let text = STANDARD.encode(bytes);
        let (length, size) = (bytes.len() as u64, self.identity.size);
        let provided = Provided {
            path: self.path.as_str().to_owned(),
            size,
            offset,
            length,
            complete: offset.saturating_add(length) == size,
            data: (copies == Copies::Two).then(|| Payload::of(text.clone())),
            sha256,
            mode: Some(format!("{:04o}", self.identity.mode & 0o777)),
            modified: changed_at(self.identity.modified.0, self.identity.modified.1),
            ..Provided::default()
        };
        ToolOutcome::new(text, &provided)
    }
}

impl Reads {
    pub(in crate::tool) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(PortalPath, ReadProgress)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a file's progress out of the list; the first piece starts over.
    fn take(
        &self,
        requested: &PortalPath,
        source: &FileSource,
        offset: u64,
    ) -> Result<ReadProgress, ToolError> {
        let mut reads = self.lock();
        let at = reads.iter().position(|(path, _)| path == requested);
        let known = at.and_then(|at| reads.remove(at));
        let fresh = |digest| ReadProgress {
            identity: source.identity,
            digest,
            next: offset,
        };
        match known {
            _ if offset == 0 => Ok(fresh(Some(Sha256::new()))),
            Some((_, known)) if known.identity != source.identity => Err(changed(&source.path)),
            Some((_, known)) if known.next == offset => Ok(known),
            // A read from the middle: there is nothing to compare with, and no digest at the end.
            Some(_) | None => Ok(fresh(None)),
        }
    }

    fn put(&self, requested: PortalPath, progress: ReadProgress) {
        let mut reads = self.lock();
        // Another call may have put back progress for the same file meanwhile.
        reads.retain(|(path, _)| *path != requested);
        if reads.len() >= READS_MAX {
            reads.pop_front();
        }
        reads.push_back((requested, progress));
    }
}

impl ProvidedIdentity {
    fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

fn fstat_of(file: &impl AsFd, path: &PortalPath) -> Result<Stat, ToolError> {
    fstat(file).map_err(|refused| ToolError::system(format!("look at `{path}`"), refused))
}

/// Refuses anything but a regular file with one name: another name could be outside the portal.
fn regular(file: &impl AsFd, path: &PortalPath) -> Result<Stat, ToolError> {
    let stat = fstat_of(file, path)?;
    let fault = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if stat.st_nlink <= 1 => return Ok(stat),
        FileType::RegularFile => {
            "has a second name (a hard link), which may lie outside the portal"
        }
        FileType::Directory => "is a folder, which `entries` lists",
        FileType::Symlink => "is a symbolic link, which is not followed",
        FileType::Fifo => "is a named pipe",
        FileType::Socket => "is a socket",
        _ => "is a device",
    };
    Err(ToolError::Refused(format!(
        "`{path}` {fault}; only regular files can be read"
    )))
}

fn changed(path: &PortalPath) -> ToolError {
    ToolError::Changed {
        path: path.to_string(),
    }
}
