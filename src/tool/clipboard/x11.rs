//! Reads the clipboard of an X server as its owner offers it, and holds images there (ICCCM §2).
//!
//! Does not use arboard, which asks for types that the owner never offered; owners may answer such requests with
//! anything. If the owner does not answer, the MCP server kills this process.

use x11rb::COPY_DEPTH_FROM_PARENT;
use x11rb::CURRENT_TIME;
use x11rb::NONE;
use x11rb::connection::{Connection as _, RequestConnection as _};
use x11rb::errors::ReplyOrIdError;
use x11rb::protocol::Event;
use x11rb::protocol::xproto::{
    Atom, AtomEnum, ConnectionExt as _, CreateWindowAux, EventMask, PropMode, Property,
    SELECTION_NOTIFY_EVENT, SelectionNotifyEvent, Window, WindowClass,
};
use x11rb::rust_connection::RustConnection;
use x11rb::wrapper::ConnectionExt as _;

use super::HolderAnswer;
use super::offer::{ClipboardOffer, Content, Encoding, OfferSource, TYPES_MAX};
use crate::catalogue::PNG;

/// The type that lists the other types.
const TARGETS: &str = "TARGETS";
/// Maximum length of what precedes the content in a request, in bytes.
const REQUEST_HEADER: usize = 64;

/// A connection to an X server, with a window that receives the content.
#[derive(Debug)]
pub(super) struct X11 {
    connection: RustConnection,
    window: Window,
    /// The clipboard selection.
    clipboard: Atom,
    /// The property to which owners write their content.
    property: Atom,
    /// The type of content that is sent incrementally.
    incr: Atom,
}

/// Any failure on an open connection.
impl From<ReplyOrIdError> for HolderAnswer {
    fn from(_: ReplyOrIdError) -> Self {
        Self::Refused
    }
}

impl X11 {
    /// Connects to the display that the environment names.
    pub(super) fn connect() -> Result<Self, HolderAnswer> {
        let (connection, screen) =
            RustConnection::connect(None).map_err(|_| HolderAnswer::Unreachable)?;
        Ok(Self::new(connection, screen)?)
    }

    fn new(connection: RustConnection, screen: usize) -> Result<Self, ReplyOrIdError> {
        let window = connection.generate_id()?;
        let root = connection.setup().roots.get(screen);
        let root = root.map_or(NONE, |screen| screen.root);
        connection.create_window(
            COPY_DEPTH_FROM_PARENT,
            window,
            root,
            0,
            0,
            1,
            1,
            0,
            WindowClass::INPUT_OUTPUT,
            0,
            // Incremental content is announced by changes to the property.
            &CreateWindowAux::new().event_mask(EventMask::PROPERTY_CHANGE),
        )?;
        Ok(Self {
            clipboard: atom(&connection, "CLIPBOARD")?,
            property: atom(&connection, "ANKLUME")?,
            incr: atom(&connection, "INCR")?,
            connection,
            window,
        })
    }

    /// Asks the owner for its content as this type; returns the actual type and the bytes, or `None` if it refuses.
    fn ask(&self, target: &str, max: usize) -> Result<Option<(Atom, Content)>, ReplyOrIdError> {
        let target = atom(&self.connection, target)?;
        self.connection
            .delete_property(self.window, self.property)?;
        self.connection.convert_selection(
            self.window,
            self.clipboard,
            target,
            self.property,
            CURRENT_TIME,
        )?;
        self.connection.flush()?;
        loop {
            // Only one request is pending, so this is its answer.
            let Event::SelectionNotify(answer) = self.connection.wait_for_event()? else {
                continue;
            };
            if answer.property == NONE {
                return Ok(None);
            }
            let (kind, content) = self.take(max)?;
            if kind == self.incr {
                return self.take_increments(max).map(Some);
            }
            // xsel sends a second notification after incremental content.
            if kind != NONE {
                return Ok(Some((kind, content)));
            }
        }
    }

    /// Takes the property; returns its type and content.
    fn take(&self, max: usize) -> Result<(Atom, Content), ReplyOrIdError> {
        // In units of four bytes.
        let length = u32::try_from(max.div_ceil(4) + 1).unwrap_or(u32::MAX);
        let reply = self
            .connection
            .get_property(false, self.window, self.property, AtomEnum::ANY, 0, length)?
            .reply()?;
        // This lets a waiting owner continue.
        self.connection
            .delete_property(self.window, self.property)?;
        self.connection.flush()?;
        let mut content = Content::default();
        content.add(&reply.value, max);
        content.bytes += u64::from(reply.bytes_after);
        Ok((reply.type_, content))
    }

    /// Takes content that is sent as many properties, the last of which is empty (ICCCM §2.7.2).
    fn take_increments(&self, max: usize) -> Result<(Atom, Content), ReplyOrIdError> {
        let mut whole = Content::default();
        loop {
            match self.connection.wait_for_event()? {
                Event::PropertyNotify(event)
                    if event.atom == self.property && event.state == Property::NEW_VALUE => {}
                _ => continue,
            }
            let (kind, part) = self.take(max)?;
            if kind == NONE {
                // A late event about a property that has already been taken.
                continue;
            }
            if part.bytes == 0 {
                return Ok((kind, whole));
            }
            whole.bytes += part.bytes - part.kept.len() as u64;
            whole.add(&part.kept, max);
        }
    }

    fn names(&self, targets: &[u8]) -> Result<Vec<String>, ReplyOrIdError> {
        let atoms = targets.chunks_exact(4).take(TYPES_MAX);
        let requests: Vec<_> = atoms
            .filter_map(|bytes| Some(Atom::from_ne_bytes(bytes.try_into().ok()?)))
            .map(|atom| self.connection.get_atom_name(atom))
            .collect();
        let mut names = Vec::new();
        for name in requests {
            // An owner may offer atoms that do not exist.
            if let Ok(name) = name?.reply() {
                names.push(String::from_utf8_lossy(&name.name).into_owned());
            }
        }
        Ok(names)
    }

    /// Holds a PNG on the clipboard until another program takes it over or the display ends; calls `answer` once it is there.
    pub(super) fn hold(
        &self,
        png: &[u8],
        answer: impl FnOnce(HolderAnswer),
    ) -> Result<(), ReplyOrIdError> {
        if png.len().saturating_add(REQUEST_HEADER) > self.connection.maximum_request_bytes() {
            answer(HolderAnswer::Refused);
            return Ok(());
        }
        let [targets, image] = [TARGETS, PNG].map(|name| atom(&self.connection, name));
        let (targets, image) = (targets?, image?);
        self.connection
            .set_selection_owner(self.window, self.clipboard, CURRENT_TIME)?;
        let owner = self
            .connection
            .get_selection_owner(self.clipboard)?
            .reply()?;
        if owner.owner != self.window {
            answer(HolderAnswer::Refused);
            return Ok(());
        }
        answer(HolderAnswer::Held);
        loop {
            let request = match self.connection.wait_for_event()? {
                Event::SelectionRequest(request) => request,
                Event::SelectionClear(_) => return Ok(()),
                _ => continue,
            };
            // Clients that predate ICCCM name no property (§2.2).
            let property = if request.property == NONE {
                request.target
            } else {
                request.property
            };
            let connection = &self.connection;
            let (replace, requestor) = (PropMode::REPLACE, request.requestor);
            let mut given = property;
            if request.target == targets {
                let kinds = [targets, image];
                connection.change_property32(
                    replace,
                    requestor,
                    property,
                    AtomEnum::ATOM,
                    &kinds,
                )?;
            } else if request.target == image {
                connection.change_property8(replace, requestor, property, image, png)?;
            } else {
                given = NONE;
            }
            let notification = SelectionNotifyEvent {
                response_type: SELECTION_NOTIFY_EVENT,
                sequence: 0,
                time: request.time,
                requestor,
                selection: request.selection,
                target: request.target,
                property: given,
            };
            connection.send_event(false, requestor, EventMask::NO_EVENT, notification)?;
            connection.flush()?;
        }
    }

    fn look(&self) -> Result<Option<ClipboardOffer>, ReplyOrIdError> {
        let owner = self.connection.get_selection_owner(self.clipboard)?;
        let owner = owner.reply()?.owner;
        if owner == NONE {
            return Ok(None);
        }
        let (types, is_cut) = match self.ask(TARGETS, 4 * TYPES_MAX)? {
            Some((_, listed)) => {
                let is_cut = listed.bytes > 4 * TYPES_MAX as u64;
                (self.names(&listed.kept)?, is_cut)
            }
            // An owner that does not support `TARGETS` may still provide text.
            None => (["UTF8_STRING", "STRING"].map(str::to_owned).to_vec(), false),
        };
        Ok(Some(ClipboardOffer {
            owner,
            types,
            is_cut,
        }))
    }
}

fn atom(connection: &RustConnection, name: &str) -> Result<Atom, ReplyOrIdError> {
    let reply = connection.intern_atom(false, name.as_bytes())?.reply()?;
    Ok(reply.atom)
}

impl OfferSource for X11 {
    fn offered(&mut self) -> Result<Option<ClipboardOffer>, HolderAnswer> {
        Ok(self.look()?)
    }

    fn content(
        &mut self,
        name: &str,
        max: usize,
    ) -> Result<Option<(Content, Encoding)>, HolderAnswer> {
        let answer = self.ask(name, max)?;
        Ok(answer.map(|(kind, content)| {
            // The owner chooses the encoding of `TEXT` and indicates it by the actual type.
            let is_string = kind == Atom::from(AtomEnum::STRING);
            let encoding = if is_string {
                Encoding::Latin1
            } else {
                Encoding::Utf8
            };
            (content, encoding)
        }))
    }
}
