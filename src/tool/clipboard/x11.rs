//! The clipboard of an X server, read as its owner offers it (ICCCM §2).
//!
//! By hand and not by arboard, which asks for types that the owner never offered: owners answer that with anything.
//! Whoever waits for this process ends it when the owner does not answer.

use x11rb::COPY_DEPTH_FROM_PARENT;
use x11rb::CURRENT_TIME;
use x11rb::NONE;
use x11rb::connection::Connection as _;
use x11rb::errors::ReplyOrIdError;
use x11rb::protocol::Event;
use x11rb::protocol::xproto::{
    Atom, AtomEnum, ConnectionExt as _, CreateWindowAux, EventMask, GetPropertyReply, Property,
    Window, WindowClass,
};
use x11rb::rust_connection::RustConnection;

use super::answer::HolderAnswer;
use super::offer::{ClipboardOffer, Content, Encoding, OfferSource, TYPES_MAX};
use crate::catalogue::CLIPBOARD_MAX;

/// A connection to an X server, with a window of ours to which owners hand their content.
pub(super) struct X11 {
    connection: RustConnection,
    window: Window,
    /// The selection that is the clipboard.
    clipboard: Atom,
    /// Where owners put what we ask for.
    property: Atom,
    /// The type of content that comes bit by bit.
    incr: Atom,
}

impl std::fmt::Debug for X11 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("X11")
    }
}

impl X11 {
    /// Connects to the display that the environment names.
    pub(super) fn connect() -> Result<Self, HolderAnswer> {
        let (connection, screen) =
            RustConnection::connect(None).map_err(|_| HolderAnswer::Unreachable)?;
        Self::on(connection, screen).map_err(|_| HolderAnswer::Refused)
    }

    fn on(connection: RustConnection, screen: usize) -> Result<Self, ReplyOrIdError> {
        let window = connection.generate_id()?;
        let root = connection
            .setup()
            .roots
            .get(screen)
            .map(|screen| screen.root);
        connection.create_window(
            COPY_DEPTH_FROM_PARENT,
            window,
            root.unwrap_or(NONE),
            0,
            0,
            1,
            1,
            0,
            WindowClass::INPUT_OUTPUT,
            0,
            // Content that comes bit by bit is announced by changes of the property.
            &CreateWindowAux::new().event_mask(EventMask::PROPERTY_CHANGE),
        )?;
        let mut x11 = Self {
            connection,
            window,
            clipboard: NONE,
            property: NONE,
            incr: NONE,
        };
        x11.clipboard = x11.atom("CLIPBOARD")?;
        x11.property = x11.atom("ANKLUME")?;
        x11.incr = x11.atom("INCR")?;
        Ok(x11)
    }

    fn owner(&self) -> Result<Window, ReplyOrIdError> {
        let owner = self.connection.get_selection_owner(self.clipboard)?;
        Ok(owner.reply()?.owner)
    }

    fn atom(&self, name: &str) -> Result<Atom, ReplyOrIdError> {
        Ok(self
            .connection
            .intern_atom(false, name.as_bytes())?
            .reply()?
            .atom)
    }

    /// Asks the owner for its content as a type: its real type and the bytes. `None`: it does not give it so.
    fn ask(&self, target: Atom, most: usize) -> Result<Option<(Atom, Content)>, ReplyOrIdError> {
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
            // One question at a time: this answers ours, by whatever name.
            let Event::SelectionNotify(answer) = self.connection.wait_for_event()? else {
                continue;
            };
            if answer.property == NONE {
                return Ok(None);
            }
            let (reply, content) = self.take(most)?;
            if reply.type_ == self.incr {
                return self.bit_by_bit(most).map(Some);
            }
            // xsel says a second time that it has given what came bit by bit.
            if reply.type_ != NONE {
                return Ok(Some((reply.type_, content)));
            }
        }
    }

    /// Takes the property: what it holds up to `most` bytes, and how many there were.
    fn take(&self, most: usize) -> Result<(GetPropertyReply, Content), ReplyOrIdError> {
        // In units of four bytes.
        let length = u32::try_from(most.div_ceil(4) + 1).unwrap_or(u32::MAX);
        let mut reply = self
            .connection
            .get_property(false, self.window, self.property, AtomEnum::ANY, 0, length)?
            .reply()?;
        // For an owner that waits, this says that it may go on.
        self.connection
            .delete_property(self.window, self.property)?;
        self.connection.flush()?;
        let mut content = Content::default();
        content.add(&std::mem::take(&mut reply.value), most);
        content.bytes += u64::from(reply.bytes_after);
        Ok((reply, content))
    }

    /// Takes content that comes in many properties, of which an empty one is the last (ICCCM §2.7.2).
    fn bit_by_bit(&self, most: usize) -> Result<(Atom, Content), ReplyOrIdError> {
        let mut whole = Content::default();
        loop {
            match self.connection.wait_for_event()? {
                Event::PropertyNotify(event)
                    if event.atom == self.property && event.state == Property::NEW_VALUE => {}
                _ => continue,
            }
            let (reply, bit) = self.take(most)?;
            if reply.type_ == NONE {
                // The news of what we have taken already.
                continue;
            }
            if bit.bytes == 0 {
                return Ok((reply.type_, whole));
            }
            whole.bytes += bit.bytes - bit.kept.len() as u64;
            whole.add(&bit.kept, most);
        }
    }

    fn names(&self, targets: &[u8]) -> Result<Vec<String>, ReplyOrIdError> {
        let atoms = targets.chunks_exact(4).take(TYPES_MAX);
        let asked: Vec<_> = atoms
            .filter_map(|bytes| Some(Atom::from_ne_bytes(bytes.try_into().ok()?)))
            .map(|atom| self.connection.get_atom_name(atom))
            .collect();
        let mut names = Vec::new();
        for name in asked {
            // An owner may offer atoms that there are not.
            if let Ok(name) = name?.reply() {
                names.push(String::from_utf8_lossy(&name.name).into_owned());
            }
        }
        Ok(names)
    }

    fn look(&self) -> Result<Option<ClipboardOffer>, ReplyOrIdError> {
        let owner = self.owner()?;
        if owner == NONE {
            return Ok(None);
        }
        let targets = self.atom("TARGETS")?;
        let (types, is_cut) = match self.ask(targets, 4 * TYPES_MAX)? {
            Some((_, listed)) => {
                let is_cut = listed.bytes > 4 * TYPES_MAX as u64;
                (self.names(&listed.kept)?, is_cut)
            }
            // Older than the list of targets: text it may give all the same.
            None => (["UTF8_STRING", "STRING"].map(str::to_owned).to_vec(), false),
        };
        Ok(Some(ClipboardOffer {
            owner,
            types,
            is_cut,
        }))
    }

    fn given(&self, name: &str) -> Result<Option<(Content, Encoding)>, ReplyOrIdError> {
        let given = self.ask(self.atom(name)?, CLIPBOARD_MAX)?;
        Ok(given.map(|(kind, content)| {
            // `TEXT` is whatever its owner likes, and says so by its type.
            let encoding = if kind == Atom::from(AtomEnum::STRING) {
                Encoding::Latin1
            } else {
                Encoding::Utf8
            };
            (content, encoding)
        }))
    }
}

impl OfferSource for X11 {
    fn offered(&mut self) -> Result<Option<ClipboardOffer>, HolderAnswer> {
        self.look().map_err(|_| HolderAnswer::Refused)
    }

    fn content(&mut self, name: &str) -> Result<Option<(Content, Encoding)>, HolderAnswer> {
        self.given(name).map_err(|_| HolderAnswer::Refused)
    }
}
