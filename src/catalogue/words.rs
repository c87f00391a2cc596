//! What is said of each tool to whoever lists it. Limits in the texts are checked against the constants by a test.

use crate::name::ToolName;

/// Title, text and hints of one tool.
pub(super) struct Words {
    pub(super) title: &'static str,
    pub(super) description: &'static str,
    pub(super) read_only: bool,
    pub(super) destructive: bool,
    pub(super) idempotent: bool,
}

/// The words of a tool.
pub(super) const fn of(tool: ToolName) -> Words {
    match tool {
        ToolName::GpgSign => GPG_SIGN,
        ToolName::ClipboardGet => CLIPBOARD_GET,
        ToolName::ClipboardSet => CLIPBOARD_SET,
        ToolName::FileAccept => FILE_ACCEPT,
        ToolName::FileProvide => FILE_PROVIDE,
    }
}

// Not read-only: a client that runs read-only tools unasked must not sign unasked.
const GPG_SIGN: Words = Words {
    title: "Sign with GnuPG",
    description: "Makes a detached OpenPGP signature of the given bytes with a key that stays on the machine. \
        The text of the result, and its `signature`, is the ASCII-armored signature. \
        In one call up to 8388608 bytes; beyond that, up to 4294967296 bytes in pieces of 1048576 bytes with \
        `offset`, and `final` on the last.",
    read_only: false,
    destructive: false,
    idempotent: false,
};

const CLIPBOARD_GET: Words = Words {
    title: "Read the clipboard",
    description: "Gives the text on the machine's clipboard, at most 65536 bytes; nothing there is an empty text.",
    read_only: true,
    destructive: false,
    idempotent: true,
};

const CLIPBOARD_SET: Words = Words {
    title: "Set the clipboard",
    description: "Replaces what is on the machine's clipboard with a text of at most 65536 bytes.",
    read_only: false,
    destructive: true,
    idempotent: true,
};

const FILE_ACCEPT: Words = Words {
    title: "Hand a file in",
    description: "Writes a new file below the machine's portal. Never overwrites; the file is there whole or not at all. \
        The text of the result is where it was written, relative to the portal. \
        In one call up to 8388608 bytes; beyond that in pieces of 1048576 bytes with `offset`, and `final` on the last.",
    read_only: false,
    destructive: false,
    idempotent: false,
};

const FILE_PROVIDE: Words = Words {
    title: "Hand a file out",
    description: "Reads a file below the machine's portal. The text of the result, and its `data`, is the content in base64. \
        In one call up to 3145728 bytes; larger files in pieces with `offset` and `length`, 1048576 bytes each.",
    read_only: true,
    destructive: false,
    idempotent: true,
};
