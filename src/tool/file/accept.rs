//! `file_accept`: a new file below the portal, written completely or not at all.

use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::Mode;
use rustix::io::Errno;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::existing;
use super::partial::{self, Partial};
use super::portal::{self, Portal, explain};
use super::unpublished::Unpublished;
use super::usage::QuotaReservation;
use crate::catalogue::{
    Accepted, BadArguments, FileAccept, Payload, PortalPath, parse_without_data, time_of_change,
};
use crate::digest::hex;
use crate::name::{MachineName, ToolName};
use crate::policy::{Caller, Grant};
use crate::tool::BlockingStop;
use crate::tool::pieces::{self, TransferTurn, contradicts};
use crate::tool::{Settings, ToolError, ToolOutcome, ToolSession, blocking};

const FILE_MODE: u32 = 0o644;

#[derive(Debug)]
pub(in crate::tool) struct Upload {
    path: PortalPath,
    file: Unpublished,
    size: u64,
    digest: Sha256,
    options: UploadOptions,
    /// `None` for the operator, who is limited only by the disk.
    reservation: Option<QuotaReservation>,
}

/// A caller's options for a file; any piece may set them, and none may contradict another.
#[derive(Debug, Clone, Default)]
pub(super) struct UploadOptions {
    mode: Option<u32>,
    /// Of the whole content, in bytes.
    size: Option<u64>,
    /// In lower-case hexadecimal.
    sha256: Option<String>,
    /// Of the last change.
    modified: Option<Timestamp>,
}

/// One call's piece, or the whole file.
#[derive(Debug)]
pub(super) struct UploadPiece {
    pub(super) path: PortalPath,
    pub(super) caller: Caller,
    pub(super) data: Vec<u8>,
    pub(super) options: UploadOptions,
    pub(super) last: bool,
    /// True to go on with what an earlier connection left.
    pub(super) resume: bool,
}

pub(in crate::tool) async fn accept(
    grant: &Grant,
    session: &ToolSession,
) -> Result<ToolOutcome, ToolError> {
    let arguments: FileAccept = parse_without_data(ToolName::FileAccept, grant.arguments())?;
    // Large, so it is neither copied nor decoded here, on the serving thread.
    let sent = grant.shared_arguments();
    let caller = grant.caller().clone();
    let mut path = PortalPath::new(&arguments.path)?;
    if partial::leads_to_reserved(&path) {
        return Err(reserved(&path));
    }
    if let Caller::Consumer(name) = &caller {
        path = path.below(&incoming(name));
    }
    let settings = Arc::clone(&session.settings);
    if arguments.folder == Some(true) {
        check_folder(&arguments, data(&sent))?;
        return blocking(move |stop| make_folder(&settings, &path, &caller, stop)).await;
    }
    let resume = arguments.resume == Some(true);
    let begins = arguments.size.is_some() && arguments.offset == Some(0);
    if resume && !(begins && data(&sent).is_empty()) {
        let message = "`resume` belongs to the first piece, which is empty and has `size`";
        return Err(BadArguments::from(message).into());
    }
    // Reads again what was received.
    let _permit = settings.resumption(resume).await;
    let Some(offset) = arguments.offset else {
        pieces::not_final(arguments.r#final)?;
        return blocking(move |stop| {
            let piece = UploadPiece::new(path, caller, &arguments, data(&sent), true)?;
            if let Some(there) = there_already(&settings, &piece, stop)? {
                return Ok(there);
            }
            let upload = Upload::begin(&settings, &piece, stop)?;
            upload
                .take(&settings, &piece, stop)?
                .finish(&settings, stop)
        })
        .await;
    };
    let (turn, upload) = session
        .uploads
        .take(path.as_str(), &format!("`{path}`"), offset)
        .await?;
    blocking(move |stop| {
        let last = arguments.r#final == Some(true);
        let piece = UploadPiece::new(path, caller, &arguments, data(&sent), last);
        take_piece(&settings, turn, upload, piece, stop)
    })
    .await
}

/// Returns the content that a call sends, in base64.
fn data(arguments: &Map<String, Value>) -> &str {
    let data = arguments.get("data").and_then(Value::as_str);
    data.unwrap_or_default()
}

fn incoming(consumer: &MachineName) -> String {
    format!("incoming/{consumer}")
}

fn reserved(path: &PortalPath) -> ToolError {
    let message = format!("the path is `{path}`, a name that anklume uses for incomplete files");
    BadArguments::from(message).into()
}

/// Checks that a folder is requested without anything that only a file has.
fn check_folder(arguments: &FileAccept, sent: &str) -> Result<(), BadArguments> {
    let FileAccept {
        path: _,
        data: _,
        mode,
        offset,
        r#final,
        size,
        sha256,
        modified,
        resume,
        folder: _,
    } = arguments;
    let is_alone = sent.is_empty()
        && offset.is_none()
        && r#final.is_none()
        && size.is_none()
        && resume.is_none()
        && [mode, sha256, modified].iter().all(|text| text.is_none());
    is_alone
        .then_some(())
        .ok_or_else(|| "a `folder` has only a `path`, and its `data` is empty".into())
}

fn make_folder(
    settings: &Settings,
    path: &PortalPath,
    caller: &Caller,
    stop: &BlockingStop,
) -> Result<ToolOutcome, ToolError> {
    let portal = Portal::open_or_make(settings)?;
    let mut reservation = reservation(settings, caller);
    if let Some(reservation) = &mut reservation {
        // Like an empty file.
        reservation.grow(&portal, 0)?;
    }
    stop.check()?;
    let folders = portal.make_folder(path)?;
    if let Some(reservation) = reservation {
        reservation.commit_folders(folders);
    }
    let accepted = Accepted {
        path: path.as_str().to_owned(),
        size: 0,
        complete: true,
        sha256: None,
        existed: None,
    };
    ToolOutcome::new(accepted.path.clone(), &accepted)
}

/// Begins to count what a caller sends; `None` for the operator.
fn reservation(settings: &Settings, caller: &Caller) -> Option<QuotaReservation> {
    let Caller::Consumer(consumer) = caller else {
        return None;
    };
    let folder = incoming(consumer);
    Some(settings.usage.reserve(folder, settings.incoming_max))
}

fn take_piece(
    settings: &Settings,
    turn: TransferTurn<Upload>,
    mut upload: Option<Upload>,
    piece: Result<UploadPiece, ToolError>,
    stop: &BlockingStop,
) -> Result<ToolOutcome, ToolError> {
    let checked = piece.and_then(|piece| {
        if let Some(upload) = &mut upload {
            upload.options.merge(&piece.options)?;
        }
        Ok(piece)
    });
    let (piece, upload) = match (checked, upload) {
        (Ok(piece), Some(upload)) => (piece, upload),
        (Ok(piece), None) => {
            if let Some(there) = there_already(settings, &piece, stop)? {
                return Ok(there);
            }
            let upload = Upload::begin(settings, &piece, stop)?;
            (piece, upload)
        }
        (Err(refused), upload) => {
            // A bad piece must not discard the good ones.
            if let Some(upload) = upload {
                turn.wait(upload.size, upload);
            }
            return Err(refused);
        }
    };
    let upload = upload.take(settings, &piece, stop)?;
    if piece.last {
        return upload.finish(settings, stop);
    }
    let accepted = Accepted {
        path: upload.path.as_str().to_owned(),
        size: upload.size,
        complete: false,
        sha256: piece.resume.then(|| hex(&upload.digest.clone().finalize())),
        existed: None,
    };
    turn.wait(upload.size, upload);
    ToolOutcome::new(pieces::progress(accepted.size), &accepted)
}

/// Returns the answer for a file that is in place already with the announced digest. A caller that may make this process
/// read much, because it sends only the digest, asks for it with `resume`.
fn there_already(
    settings: &Settings,
    piece: &UploadPiece,
    stop: &BlockingStop,
) -> Result<Option<ToolOutcome>, ToolError> {
    let UploadOptions { size, sha256, .. } = &piece.options;
    let whole = u64::try_from(piece.data.len()).ok();
    let size = if piece.last {
        whole
    } else {
        size.filter(|_| piece.resume)
    };
    let (Some(size), Some(sha256)) = (size, sha256) else {
        return Ok(None);
    };
    let portal = Portal::open_or_make(settings)?;
    if !existing::has_content(&portal, &piece.path, size, sha256, stop)? {
        return Ok(None);
    }
    let accepted = Accepted {
        path: piece.path.as_str().to_owned(),
        size,
        complete: true,
        sha256: Some(sha256.clone()),
        existed: Some(true),
    };
    ToolOutcome::new(accepted.path.clone(), &accepted).map(Some)
}

impl UploadPiece {
    fn new(
        path: PortalPath,
        caller: Caller,
        arguments: &FileAccept,
        data: &str,
        last: bool,
    ) -> Result<Self, ToolError> {
        let mut data = Payload::decode_text(data)?;
        // An empty first piece announces the size.
        if arguments.size.is_none() || arguments.offset != Some(0) {
            data = pieces::not_empty(data, last)?;
        }
        // The catalogue allows only three octal digits; anything else is refused here as well.
        let mode = |text: &String| {
            let mode = u32::from_str_radix(text, 8).ok();
            mode.filter(|mode| *mode <= 0o777)
                .ok_or_else(|| BadArguments::from("`mode` is not octal"))
        };
        let (sha256, modified) = (arguments.sha256.as_ref(), arguments.modified.as_ref());
        let options = UploadOptions {
            mode: arguments.mode.as_ref().map(mode).transpose()?,
            size: arguments.size,
            sha256: sha256.map(|sha256| sha256.to_ascii_lowercase()),
            modified: modified.map(|text| time_of_change(text)).transpose()?,
        };
        Ok(Self {
            path,
            caller,
            data,
            options,
            last,
            resume: arguments.resume == Some(true),
        })
    }
}

impl UploadOptions {
    /// Adopts options that are set for the first time, and refuses contradictions.
    fn merge(&mut self, other: &Self) -> Result<(), ToolError> {
        if self.mode.is_some() && other.mode.is_some() && self.mode != other.mode {
            return Err(contradicts("mode"));
        }
        if self.sha256.is_some() && other.sha256.is_some() && self.sha256 != other.sha256 {
            return Err(contradicts("sha256"));
        }
        if self.size.is_some() && other.size.is_some() && self.size != other.size {
            return Err(contradicts("size"));
        }
        if self.modified.is_some() && other.modified.is_some() && self.modified != other.modified {
            return Err(contradicts("modified"));
        }
        self.mode = self.mode.or(other.mode);
        self.size = self.size.or(other.size);
        self.modified = self.modified.or(other.modified);
        self.sha256 = self.sha256.take().or_else(|| other.sha256.clone());
        Ok(())
    }

    fn mode(&self) -> Mode {
        Mode::from_raw_mode(self.mode.unwrap_or(FILE_MODE))
    }
}

impl Upload {
    /// Begins an upload, or goes on with an earlier one, if the file's name is free.
    pub(super) fn begin(
        settings: &Settings,
        piece: &UploadPiece,
        stop: &BlockingStop,
    ) -> Result<Self, ToolError> {
        let portal = Portal::open_or_make(settings)?;
        let path = &piece.path;
        check_free(&portal, path)?;
        let kept = match piece.options.size {
            Some(size) if piece.resume => {
                if let Caller::Consumer(consumer) = &piece.caller {
                    // What is received counts against the quota of this folder.
                    portal.make_folder(&PortalPath::new(&incoming(consumer))?)?;
                }
                let modified = piece.options.modified.map(|time| time.to_string());
                let modified = modified.as_deref().unwrap_or_default();
                let name = partial::name(path, (size, modified));
                let folders = portal.existing_folders(path);
                let left = partial::find(folders, &name, path, size, stop)?;
                // An earlier connection may have completed it while this one waited.
                check_free(&portal, path)?;
                Some((name, left))
            }
            _ => None,
        };
        let left = kept.as_ref().and_then(|(_, left)| left.as_ref());
        let mut reservation = reservation(settings, &piece.caller);
        if let Some(announced) = piece.options.size {
            let left = left.map_or(0, |left| left.size);
            if let Some(reservation) = &mut reservation {
                if left > 0 {
                    reservation.settle(left);
                }
                reservation.grow(&portal, announced)?;
            }
            portal.check_space(announced.saturating_sub(left))?;
        }
        let mode = piece.options.mode();
        let left = match kept {
            Some((_, Some(left))) => left,
            Some((name, None)) => {
                Partial::new(partial::create(portal.nearest(path)?, &name, path, mode)?)
            }
            None => Partial::new(
                Unpublished::create(portal.nearest(path)?, mode)
                    .map_err(|refused| explain(refused, path, "write"))?,
            ),
        };
        let Partial { file, size, digest } = left;
        let mut upload = Self {
            path: path.clone(),
            file,
            size,
            digest,
            options: piece.options.clone(),
            reservation,
        };
        upload.settle();
        Ok(upload)
    }

    /// Counts what a file that outlives its connection has as used: its reservation may end at any time.
    fn settle(&mut self) {
        if let Some(reservation) = &mut self.reservation
            && self.file.is_kept()
        {
            reservation.settle(self.size);
        }
    }

    /// Reserves space for a file of `size` bytes.
    fn reserve(&mut self, portal: &Portal, size: u64) -> Result<(), ToolError> {
        match &mut self.reservation {
            Some(reservation) => reservation.grow(portal, size),
            None => Ok(()),
        }
    }

    pub(super) fn take(
        mut self,
        settings: &Settings,
        piece: &UploadPiece,
        stop: &BlockingStop,
    ) -> Result<Self, ToolError> {
        stop.check()?;
        let length = u64::try_from(piece.data.len()).unwrap_or(u64::MAX);
        let size = self.size.saturating_add(length);
        if let Some(announced) = self.options.size.filter(|announced| size > *announced) {
            let message = format!(
                "the content has more than the announced {announced} bytes; nothing was written"
            );
            return Err(BadArguments::from(message).into());
        }
        self.reserve(&Portal::open(settings)?, size)?;
        if let Err(refused) = self.file.write(&piece.data) {
            // Most likely the disk is full, so it must not stay.
            self.file.discard();
            let doing = format!("write `{}`", self.path);
            return Err(ToolError::system(doing, refused));
        }
        self.digest.update(&piece.data);
        self.size = size;
        self.settle();
        Ok(self)
    }

    /// Checks the size, and the digest of the content, against what was announced.
    fn check(&self, actual: &str) -> Result<(), ToolError> {
        if self
            .options
            .size
            .is_some_and(|announced| self.size != announced)
        {
            let actual = self.size;
            let message = format!(
                "`size` differs from the size of the content, {actual}; nothing was written"
            );
            return Err(BadArguments::from(message).into());
        }
        match &self.options.sha256 {
            Some(announced) if announced != actual => Err(ToolError::Digest {
                actual: actual.to_owned(),
                announced: announced.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Gives the file its name, unless its size or its digest differs from the announced one. A file that is kept stays if
    /// the call ends before.
    pub(super) fn finish(
        mut self,
        settings: &Settings,
        stop: &BlockingStop,
    ) -> Result<ToolOutcome, ToolError> {
        let actual = hex(&self.digest.clone().finalize());
        if let Err(refused) = self.check(&actual) {
            self.file.discard();
            return Err(refused);
        }
        let Self { path, options, .. } = self;
        let mode = options.mode();
        stop.check()?;
        // The path is opened again: folders may have been moved since the first piece.
        let (parent, folders) = Portal::open_or_make(settings)?.make_parent(&path)?;
        let (_, name) = path.split();
        let published = self
            .file
            .publish(&parent, name, mode, options.modified.map(Into::into));
        published.map_err(|refused| match Errno::from_io_error(&refused) {
            Some(Errno::EXIST) => name_taken(&path),
            Some(errno) => explain(errno, &path, "write"),
            None => ToolError::system(format!("write `{path}`"), refused),
        })?;
        portal::sync(&parent);
        if let Some(reservation) = self.reservation {
            reservation.commit(folders);
        }
        let accepted = Accepted {
            path: path.as_str().to_owned(),
            size: self.size,
            complete: true,
            sha256: Some(actual),
            existed: None,
        };
        ToolOutcome::new(accepted.path.clone(), &accepted)
    }
}

/// Checks that nothing has the file's name yet.
fn check_free(portal: &Portal, path: &PortalPath) -> Result<(), ToolError> {
    let Some(parent) = portal.parent(path)? else {
        return Ok(());
    };
    let found = parent.stat(path.split().1);
    match found.map_err(|refused| explain(refused, path, "look for"))? {
        Some(_) => Err(name_taken(path)),
        None => Ok(()),
    }
}

fn name_taken(path: &PortalPath) -> ToolError {
    ToolError::Exists {
        path: path.to_string(),
    }
}
