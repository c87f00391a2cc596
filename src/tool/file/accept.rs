//! `file_accept`: a new file below the portal, written completely or not at all.

use std::sync::Arc;

use rustix::fs::Mode;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::portal::{self, Portal, explain};
use super::unpublished::Unpublished;
use super::usage::QuotaReservation;
use crate::catalogue::{Accepted, BadArguments, FileAccept, PortalPath, parse};
use crate::digest::hex;
use crate::name::MachineName;
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
}

/// One call's piece, or the whole file.
#[derive(Debug)]
pub(super) struct UploadPiece {
    pub(super) path: PortalPath,
    pub(super) caller: Caller,
    pub(super) data: Vec<u8>,
    pub(super) options: UploadOptions,
    pub(super) last: bool,
}

pub(in crate::tool) async fn accept(
    grant: &Grant,
    session: &ToolSession,
) -> Result<ToolOutcome, ToolError> {
    let arguments: FileAccept = parse(grant.tool(), grant.arguments())?;
    let caller = grant.caller().clone();
    let mut path = PortalPath::new(&arguments.path)?;
    if let Caller::Consumer(name) = &caller {
        path = path.below(&incoming(name));
    }
    let settings = Arc::clone(&session.settings);
    let Some(offset) = arguments.offset else {
        pieces::not_final(arguments.r#final)?;
        return blocking(move |stop| {
            let piece = UploadPiece::new(path, caller, &arguments, true)?;
            let upload = Upload::begin(&settings, &piece)?;
            upload
                .take(&settings, &piece, stop)?
                .finish(&settings, stop)
        })
        .await;
    };
    let (turn, upload) = session
        .uploads
        .take(path.as_str(), &format!("`{path}`"), offset)?;
    blocking(move |stop| {
        let last = arguments.r#final == Some(true);
        let piece = UploadPiece::new(path, caller, &arguments, last);
        take_piece(&settings, turn, upload, piece, stop)
    })
    .await
}

fn incoming(consumer: &MachineName) -> String {
    format!("incoming/{consumer}")
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
            let upload = Upload::begin(settings, &piece)?;
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
        sha256: None,
    };
    turn.wait(upload.size, upload);
    ToolOutcome::new(pieces::progress(accepted.size), &accepted)
}

impl UploadPiece {
    fn new(
        path: PortalPath,
        caller: Caller,
        arguments: &FileAccept,
        last: bool,
    ) -> Result<Self, ToolError> {
        let mut data = arguments.data.decode()?;
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
        let sha256 = arguments.sha256.as_ref();
        let options = UploadOptions {
            mode: arguments.mode.as_ref().map(mode).transpose()?,
            size: arguments.size,
            sha256: sha256.map(|sha256| sha256.to_ascii_lowercase()),
        };
        Ok(Self {
            path,
            caller,
            data,
            options,
            last,
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
        self.mode = self.mode.or(other.mode);
        self.size = self.size.or(other.size);
        self.sha256 = self.sha256.take().or_else(|| other.sha256.clone());
        Ok(())
    }

    fn mode(&self) -> Mode {
        Mode::from_raw_mode(self.mode.unwrap_or(FILE_MODE))
    }
}

impl Upload {
    /// Begins an upload, if the file's name is free.
    pub(super) fn begin(settings: &Settings, piece: &UploadPiece) -> Result<Self, ToolError> {
        let portal = Portal::open_or_make(settings)?;
        let path = &piece.path;
        let (_, name) = path.split();
        if let Some(parent) = portal.parent(path)?
            && parent
                .stat(name)
                .map_err(|refused| explain(refused, path, "look for"))?
                .is_some()
        {
            return Err(name_taken(path));
        }
        let mut reservation = match &piece.caller {
            Caller::Operator => None,
            Caller::Consumer(consumer) => {
                let folder = incoming(consumer);
                Some(settings.usage.reserve(folder, settings.incoming_max))
            }
        };
        if let Some(size) = piece.options.size {
            if let Some(reservation) = &mut reservation {
                reservation.grow(&portal, size)?;
            }
            portal.check_space(size)?;
        }
        let file = Unpublished::create(portal.nearest(path)?, piece.options.mode())
            .map_err(|refused| explain(refused, path, "write"))?;
        Ok(Self {
            path: path.clone(),
            file,
            size: 0,
            digest: Sha256::new(),
            options: piece.options.clone(),
            reservation,
        })
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
        if let Some(reservation) = &mut self.reservation {
            reservation.grow(&Portal::open(settings)?, size)?;
        }
        self.file
            .write(&piece.data)
            .map_err(|refused| ToolError::system(format!("write `{}`", self.path), refused))?;
        self.digest.update(&piece.data);
        self.size = size;
        Ok(self)
    }

    /// Gives the file its name, unless its digest differs from the announced one.
    pub(super) fn finish(
        self,
        settings: &Settings,
        stop: &BlockingStop,
    ) -> Result<ToolOutcome, ToolError> {
        let Self { path, options, .. } = self;
        let actual = hex(&self.digest.finalize());
        let mode = options.mode();
        if options.size.is_some_and(|announced| self.size != announced) {
            let actual = self.size;
            let message = format!(
                "`size` differs from the size of the content, {actual}; nothing was written"
            );
            return Err(BadArguments::from(message).into());
        }
        if let Some(announced) = options.sha256.filter(|announced| *announced != actual) {
            return Err(ToolError::Digest { actual, announced });
        }
        stop.check()?;
        // The path is opened again: folders may have been moved since the first piece.
        let (parent, folders) = Portal::open_or_make(settings)?.make_parent(&path)?;
        let (_, name) = path.split();
        let published = self.file.publish(&parent, name, mode);
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
        };
        ToolOutcome::new(accepted.path.clone(), &accepted)
    }
}

fn name_taken(path: &PortalPath) -> ToolError {
    ToolError::Exists {
        path: path.to_string(),
    }
}
