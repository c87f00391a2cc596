//! Checks `mcp`: a machine's users and its server. Unknown keys are faults.

use super::tools;
use crate::infra::field::Fields;
use crate::infra::findings::Findings;
use crate::infra::{Confinement, McpUsers};
use crate::limits::{CHILDREN_MAX, MEMORY_MAX, MEMORY_MIN};

const KEYS: [&str; 9] = [
    "run_as",
    "uid",
    "gid",
    "allow_unlogged",
    "memory",
    "confinement",
    "tools",
    "servers",
    "children",
];

/// Maximum user or group id; the next one means "no id" to the kernel.
const ID_MAX: u32 = 0xffff_fffe;

/// Reads a machine's `mcp` section.
pub(super) fn read(fields: Fields<'_, '_>, findings: &mut Findings) -> McpUsers {
    let Some(fields) = fields.strict().map("mcp", findings) else {
        return McpUsers::default();
    };
    fields.known("`mcp`", &KEYS, findings);
    McpUsers {
        uid: fields.integer("uid", 0..=ID_MAX, findings).unwrap_or(0),
        gid: fields.integer("gid", 0..=ID_MAX, findings).unwrap_or(0),
        run_as: tools::user(fields, findings),
        allow_unlogged: fields.flag("allow_unlogged", findings).unwrap_or_default(),
        memory: fields.size("memory", MEMORY_MIN..=MEMORY_MAX, findings),
        confinement: match fields.choice("confinement", &["available", "required"], findings) {
            Some("required") => Confinement::Required,
            _ => Confinement::Available,
        },
        tools: tools::read(fields, findings),
        servers: tools::read_servers(fields, findings),
        children: fields.integer("children", 1..=CHILDREN_MAX, findings),
    }
}
