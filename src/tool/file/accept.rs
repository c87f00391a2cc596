//! `file_accept`: a new file below the portal, whole or not at all.

use std::io;
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::portal::{self, Portal, explain};
use super::unpublished::Unpublished;
use super::usage::QuotaReservation;
use crate::catalogue::{Accepted, FileAccept, PortalPath, parse};
use crate::digest::hex;
use crate::policy::{Caller, Grant};
use crate::text;
use crate::tool::blocking::BlockingStop;
use crate::tool::pieces::{self, TransferStep, TransferTurn, contradicts};
use crate::tool::{Settings, ToolError, ToolOutcome, ToolSession, blocking};

/// Permissions of files whose caller names none.
const FILE_MODE: u32 = 0o644;

/// A file on its way into the portal.
#[derive(Debug)]
pub(in crate::tool) struct Upload {
    path: PortalPath,
    file: Unpublished,
    size: u64,
    digest: Sha256,
    wishes: Wishes,
    /// `None` for the operator, who has no limit but the disk's.
    room: Option<QuotaReservation>,
}

/// A caller's wishes for a file; any piece may state them, and no other may contradict.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    mode: Option<u32>,
    sha256: Option<String>,
}

/// One call: what it brings and where to.
#[derive(Debug)]
pub(super) struct UploadPiece {
    pub(super) path: PortalPath,
    pub(super) caller: Caller,
    pub(super) data: Vec<u8>,
    pub(super) wishes: Wishes,
    pub(super) last: bool,
}

/// Runs `file_accept`.
pub(in crate::tool) async fn accept(
    grant: &Grant,
    session: &ToolSession,
) -> Result<ToolOutcome, ToolError> {
    let arguments: FileAccept = parse(grant.tool(), grant.arguments())?;
    let path = destination(&arguments.path, grant.caller())?;
    let settings = Arc::clone(&session.settings);
    let caller = grant.caller().clone();
    let Some(offset) = arguments.offset else {
        if arguments.r#final.is_some() {
            return Err(ToolError::Arguments(
                "`final` without `offset`: a piece says where it begins".to_owned(),
            ));
        }
        return blocking::run(move |stop| {
            let piece = UploadPiece::new(path, caller, &arguments, true)?;
            let upload = Upload::begin(&settings, &piece)?;
            upload
                .take(&settings, &piece, stop)?
                .finish(&settings, stop)
        })
        .await;
    };
    let (turn, state) = session
        .uploads
        .take(path.as_str(), &format!("`{path}`"), offset)?;
    blocking::run(move |stop| {
        let last = arguments.r#final == Some(true);
        let piece = UploadPiece::new(path, caller, &arguments, last);
        take_piece(&settings, turn, state, piece, stop)
    })
    .await
}

/// Path for a caller's file.
fn destination(path: &str, caller: &Caller) -> Result<PortalPath, ToolError> {
    let path = PortalPath::new(path)?;
    Ok(match caller {
        Caller::Operator => path,
        Caller::Consumer(name) => path.below(&incoming(name.as_str())),
    })
}

/// The folder of a consumer's files.
fn incoming(consumer: &str) -> String {
    format!("incoming/{consumer}")
}

/// One piece of a file.
fn take_piece(
    settings: &Settings,
    turn: TransferTurn<Upload>,
    state: TransferStep<Upload>,
    piece: Result<UploadPiece, ToolError>,
    stop: &BlockingStop,
) -> Result<ToolOutcome, ToolError> {
    let (piece, mut upload) = match (piece, state) {
        (Ok(piece), TransferStep::Begin) => {
            let upload = Upload::begin(settings, &piece)?;
            (piece, upload)
        }
        (Ok(piece), TransferStep::Continue(upload)) => (piece, upload),
        (Err(refused), TransferStep::Begin) => return Err(refused),
        (Err(refused), TransferStep::Continue(upload)) => {
            // A bad piece is no reason to lose the good ones.
            turn.wait(upload.size, upload);
            return Err(refused);
        }
    };
    if let Err(refused) = upload.wishes.agree(&piece.wishes) {
        turn.wait(upload.size, upload);
        return Err(refused);
    }
    let last = piece.last;
    let upload = upload.take(settings, &piece, stop)?;
    if last {
        return upload.finish(settings, stop);
    }
    let size = upload.size;
    let taken = Accepted {
        path: upload.path.as_str().to_owned(),
        size,
        complete: false,
        sha256: None,
    };
    turn.wait(size, upload);
    ToolOutcome::new(
        format!("{} taken; the next piece begins there", text::bytes(size)),
        &taken,
    )
}

impl UploadPiece {
    fn new(
        path: PortalPath,
        caller: Caller,
        arguments: &FileAccept,
        last: bool,
    ) -> Result<Self, ToolError> {
        let data = arguments.data.decode()?;
        pieces::not_empty(&data, last)?;
        Ok(Self {
            path,
            caller,
            data,
            wishes: Wishes::of(arguments)?,
            last,
        })
    }
}

impl Wishes {
    fn of(arguments: &FileAccept) -> Result<Self, ToolError> {
        let mode = arguments.mode.as_deref().map(|mode| {
            // The catalogue lets nothing pass but three octal digits; what is no number here is refused all the same.
            u32::from_str_radix(mode, 8)
                .ok()
                .filter(|mode| *mode <= 0o777)
                .ok_or_else(|| ToolError::Arguments("`mode` is not octal".to_owned()))
        });
        Ok(Self {
            mode: mode.transpose()?,
            sha256: arguments
                .sha256
                .as_ref()
                .map(|sha256| sha256.to_ascii_lowercase()),
        })
    }

    /// Takes over what is said for the first time; what contradicts is refused.
    fn agree(&mut self, other: &Self) -> Result<(), ToolError> {
        if self.mode.is_some() && other.mode.is_some() && self.mode != other.mode {
            return Err(contradicts("mode"));
        }
        if self.sha256.is_some() && other.sha256.is_some() && self.sha256 != other.sha256 {
            return Err(contradicts("sha256"));
        }
        self.mode = self.mode.or(other.mode);
        self.sha256 = self.sha256.take().or_else(|| other.sha256.clone());
        Ok(())
    }
}

impl Upload {
    /// A file on its way, where nothing of its name is there yet.
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
            return Err(taken(path));
        }
        let room = match &piece.caller {
            Caller::Operator => None,
            Caller::Consumer(consumer) => {
                let folder = incoming(consumer.as_str());
                Some(settings.usage.room(&folder, settings.incoming_max))
            }
        };
        let mut wishes = Wishes::default();
        wishes.agree(&piece.wishes)?;
        let mode = Mode::from_raw_mode(wishes.mode.unwrap_or(FILE_MODE));
        let file = Unpublished::create(portal.nearest(path)?, mode)
            .map_err(|refused| explain(refused, path, "write"))?;
        Ok(Self {
            path: path.clone(),
            file,
            size: 0,
            digest: Sha256::new(),
            wishes,
            room,
        })
    }

    /// Adds a piece.
    pub(super) fn take(
        mut self,
        settings: &Settings,
        piece: &UploadPiece,
        stop: &BlockingStop,
    ) -> Result<Self, ToolError> {
        stop.check()?;
        let length = u64::try_from(piece.data.len()).unwrap_or(u64::MAX);
        let size = self.size.saturating_add(length);
        if let Some(room) = &mut self.room {
            room.fit(&Portal::open(settings)?, size)?;
        }
        self.file
            .write(&piece.data)
            .map_err(|refused| ToolError::system(format!("write `{}`", self.path), refused))?;
        self.digest.update(&piece.data);
        self.size = size;
        Ok(self)
    }

    /// Gives the file its name, if it is what was announced.
    pub(super) fn finish(
        self,
        settings: &Settings,
        stop: &BlockingStop,
    ) -> Result<ToolOutcome, ToolError> {
        let Self {
            path,
            file,
            size,
            digest,
            wishes,
            room,
        } = self;
        let found = hex(&digest.finalize());
        if let Some(announced) = wishes.sha256.filter(|announced| *announced != found) {
            return Err(ToolError::Digest { found, announced });
        }
        stop.check()?;
        // The portal is walked again: folders may have been moved since the first piece.
        let (parent, folders) = Portal::open_or_make(settings)?.make_parent(&path)?;
        let mode = Mode::from_raw_mode(wishes.mode.unwrap_or(FILE_MODE));
        let (_, name) = path.split();
        file.publish(&parent, name, mode)
            .map_err(|refused| not_published(refused, &path))?;
        portal::sync(&parent);
        if let Some(room) = room {
            room.used(folders);
        }
        let accepted = Accepted {
            path: path.as_str().to_owned(),
            size,
            complete: true,
            sha256: Some(found),
        };
        ToolOutcome::new(path.as_str().to_owned(), &accepted)
    }
}

fn not_published(refused: io::Error, path: &PortalPath) -> ToolError {
    match Errno::from_io_error(&refused) {
        Some(Errno::EXIST) => taken(path),
        Some(errno) => explain(errno, path, "write"),
        None => ToolError::system(format!("write `{path}`"), refused),
    }
}

fn taken(path: &PortalPath) -> ToolError {
    ToolError::Exists {
        path: path.to_string(),
    }
}
