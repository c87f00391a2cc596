//! Checks the `global` section and `project_name`.

use crate::diagnostic::quote;
use crate::infra::field::{self, Fields};
use crate::infra::findings::{At, Code, Findings};
use crate::infra::network::{self, BASE_SUBNET, ZONE_BASE, ZONE_OCTET};
use crate::infra::raw::{NodeKind, Reading};
use crate::infra::{Addressing, DEFAULT_IMAGE, Global};

const KEYS: [&str; 14] = [
    "addressing",
    "base_subnet",
    "default_os_image",
    "default_connection",
    "default_user",
    "nesting_prefix",
    "gpu_policy",
    "firewall_mode",
    "ai_access_policy",
    "ai_access_default",
    "ai_vram_flush",
    "resource_policy",
    "shared_volumes_base",
    "persistent_data_base",
];

/// Keys that anklume itself does not apply.
const UNAPPLIED: [&str; 7] = [
    "global.default_connection",
    "global.default_user",
    "global.nesting_prefix",
    "global.gpu_policy",
    "global.firewall_mode",
    "global.ai_vram_flush",
    "global.resource_policy",
];

/// Host folder for shared volumes without a source.
const SHARED_VOLUMES: &str = "/srv/anklume/shares";
/// Host folder for persistent data.
const PERSISTENT_DATA: &str = "/srv/anklume/data";

/// The values of `global` that other sections need.
#[derive(Debug)]
pub(super) struct GlobalSettings {
    /// The part kept in the model.
    pub(super) global: Global,
    /// True if `addressing` is present.
    pub(super) zones: bool,
    /// The subnet assignment scheme; `None` after a fault.
    pub(super) scheme: Option<Scheme>,
    pub(super) shared_volumes_base: String,
    pub(super) persistent_data_base: String,
    /// True for `gpu_policy: shared`.
    pub(super) gpus_shared: bool,
    /// Location of `firewall_mode: vm`.
    pub(super) firewall_vm: Option<At>,
    /// Location of `ai_access_policy: exclusive`.
    pub(super) ai_exclusive: Option<At>,
    /// `ai_access_default` and its location.
    pub(super) ai_default: Option<(String, At)>,
}

/// The subnet assignment scheme, parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// `base_subnet` and each domain's `subnet_id`.
    Subnets { base: (u8, u8) },
    /// A zone for each trust level.
    Zones { base: u8 },
}

/// Returns the project's name: `project_name`, or the default.
pub(super) fn project(top: Fields<'_, '_>, default: &str, findings: &mut Findings) -> String {
    let Some(written) = top.text("project_name", findings) else {
        return default.to_owned();
    };
    if written.text.trim().is_empty() || written.text.contains(char::is_control) {
        let message = format!("{} is not a valid project name", quote(written.text));
        findings
            .error(Code::InvalidName, written.at, message)
            .help("choose a name with a visible character, on one line");
    }
    written.text.to_owned()
}

pub(super) fn read(top: Fields<'_, '_>, findings: &mut Findings) -> GlobalSettings {
    // If `global` has the wrong type, this is reported, and the rest of the file is checked with the defaults.
    let fields = top
        .entry("global")
        .and_then(|entry| Fields::of(entry, findings))
        .unwrap_or(Fields::none(top.at));
    fields.known("`global`", &KEYS, findings);
    fields.note_unapplied(&UNAPPLIED, findings);
    let (scheme, addressing) = addressing(fields, findings).unzip();
    let global = Global {
        addressing: addressing.unwrap_or(Addressing::Subnets {
            base_subnet: BASE_SUBNET.to_owned(),
        }),
        default_os_image: image(fields, "default_os_image", findings)
            .unwrap_or_else(|| DEFAULT_IMAGE.to_owned()),
        default_connection: owned(fields, "default_connection", findings),
        default_user: owned(fields, "default_user", findings),
    };
    check_nesting_prefix(fields, findings);
    let gpu_policy = fields.choice("gpu_policy", &["exclusive", "shared"], findings);
    let firewall = fields.choice("firewall_mode", &["host", "vm"], findings);
    resource_policy(fields, findings);
    fields.incus_text("ai_vram_flush", findings);
    let ai_policy = fields.choice("ai_access_policy", &["exclusive", "open"], findings);
    let ai_default = fields.text("ai_access_default", findings);
    GlobalSettings {
        zones: fields
            .entry("addressing")
            .is_some_and(|entry| !field::is_null(&entry.value)),
        scheme,
        global,
        shared_volumes_base: base(fields, "shared_volumes_base", SHARED_VOLUMES, findings),
        persistent_data_base: base(fields, "persistent_data_base", PERSISTENT_DATA, findings),
        gpus_shared: gpu_policy == Some("shared"),
        firewall_vm: fields.place_if("firewall_mode", firewall == Some("vm")),
        ai_exclusive: fields.place_if("ai_access_policy", ai_policy == Some("exclusive")),
        ai_default: ai_default.map(|domain| (domain.text.to_owned(), domain.at)),
    }
}

/// Warns about `nesting_prefix: true`, so that users do not assume that it is applied.
fn check_nesting_prefix(fields: Fields<'_, '_>, findings: &mut Findings) {
    let written = fields.flag("nesting_prefix", findings);
    if let (Some(true), Some(entry)) = (written, fields.entry("nesting_prefix")) {
        let message = "`nesting_prefix` is not applied: names in Incus get no prefix";
        findings
            .warning(Code::UnusedKey, entry.at, message)
            .help("remove it, or set it to `false`");
    }
}

fn owned(fields: Fields<'_, '_>, key: &str, findings: &mut Findings) -> Option<String> {
    fields.text(key, findings).map(|text| text.text.to_owned())
}

/// Reads an image name: one word, passed to Incus unchanged.
pub(super) fn image(fields: Fields<'_, '_>, key: &str, findings: &mut Findings) -> Option<String> {
    let written = fields.text(key, findings)?;
    let forbidden = |c: char| c.is_whitespace() || c.is_control();
    if written.text.is_empty() || written.text.starts_with('-') || written.text.contains(forbidden)
    {
        let message = format!("{} is not a valid image name", quote(written.text));
        findings
            .error(Code::InvalidValue, written.at, message)
            .help(
                "name an image, such as `images:debian/13`: without spaces, not beginning with `-`",
            );
        return None;
    }
    Some(written.text.to_owned())
}

fn base(fields: Fields<'_, '_>, key: &str, default: &str, findings: &mut Findings) -> String {
    fields
        .absolute_path(key, findings)
        .map_or(default, |path| path.text)
        .trim_end_matches('/')
        .to_owned()
}

fn addressing(fields: Fields<'_, '_>, findings: &mut Findings) -> Option<(Scheme, Addressing)> {
    let Some(entry) = fields.filled("addressing", findings) else {
        return subnets(fields, findings);
    };
    let zones = Fields::of(entry, findings)?;
    if let Some(unused) = fields.entry("base_subnet") {
        let message = "`base_subnet` is ignored when `addressing` is set";
        findings
            .warning(Code::UnusedKey, unused.at, message)
            .help("remove `base_subnet`, or `addressing`");
    }
    let keys = ["base_octet", "zone_base", "zone_step"];
    zones.known("`addressing`", &keys, findings);
    zones.integer("base_octet", ZONE_OCTET..=ZONE_OCTET, findings);
    zones.integer("zone_step", 1..=i64::MAX, findings);
    let base = match zones.entry("zone_base") {
        Some(_) => zones.integer("zone_base", 0..=245, findings)?,
        None => ZONE_BASE,
    };
    let written = field::json_map(zones.entries());
    Some((Scheme::Zones { base }, Addressing::Zones { written }))
}

fn subnets(fields: Fields<'_, '_>, findings: &mut Findings) -> Option<(Scheme, Addressing)> {
    const HELP: &str = "write the first two numbers of an address in quotes, such as `\"10.100\"`";
    let (text, at) = match fields.filled("base_subnet", findings) {
        Some(entry) => {
            let in_quotes = match &entry.value.kind {
                NodeKind::Scalar(scalar) => network::base_octets(&scalar.text).is_some(),
                _ => false,
            };
            let written = if in_quotes {
                fields.text("base_subnet", findings)
            } else {
                fields.text_like("base_subnet", || HELP.to_owned(), findings)
            };
            written.map(|written| (written.text, written.at))?
        }
        None => (BASE_SUBNET, fields.at),
    };
    let Some(base) = network::base_octets(text) else {
        let message = format!("{} is not a valid base for subnets", quote(text));
        findings.error(Code::InvalidSubnet, at, message).help(HELP);
        return None;
    };
    let base_subnet = text.to_owned();
    Some((
        Scheme::Subnets { base },
        Addressing::Subnets { base_subnet },
    ))
}

fn resource_policy(fields: Fields<'_, '_>, findings: &mut Findings) {
    let Some(entry) = fields.filled("resource_policy", findings) else {
        return;
    };
    if let NodeKind::Scalar(scalar) = &entry.value.kind
        && scalar.reading() == Reading::Bool(true)
    {
        return;
    }
    let Some(policy) = Fields::of(entry, findings) else {
        return;
    };
    let keys = [
        "mode",
        "cpu_mode",
        "memory_enforce",
        "overcommit",
        "host_reserve",
    ];
    policy.known("`resource_policy`", &keys, findings);
    policy.choice("mode", &["proportional", "equal"], findings);
    policy.choice("cpu_mode", &["allowance", "count"], findings);
    policy.choice("memory_enforce", &["soft", "hard"], findings);
    policy.flag("overcommit", findings);
    if let Some(reserve) = policy.map("host_reserve", findings) {
        reserve.known("`host_reserve`", &["cpu", "memory"], findings);
        for key in ["cpu", "memory"] {
            host_reserve(reserve, key, findings);
        }
    }
}

/// Checks a reserve: `20%`, a positive number or, for memory, `2GiB`.
fn host_reserve(fields: Fields<'_, '_>, key: &str, findings: &mut Findings) {
    const HELP: &str =
        "write a share such as `20%`, a positive number, or, for memory, an amount such as `2GiB`";
    let Some(entry) = fields.filled(key, findings) else {
        return;
    };
    let NodeKind::Scalar(scalar) = &entry.value.kind else {
        if let Some(finding) = field::wrong_entry(entry, "a percentage or a number", findings) {
            finding.help(HELP);
        }
        return;
    };
    let text = scalar.text.as_ref();
    let positive = |text: &str| text.parse::<f64>().is_ok_and(|n| n.is_finite() && n > 0.0);
    let share = |text: &str| text.parse::<u8>().is_ok_and(|n| (1..100).contains(&n));
    let units = ["KiB", "MiB", "GiB", "TiB", "kB", "MB", "GB", "TB", "B"];
    let number = units.iter().find_map(|unit| text.strip_suffix(unit));
    let fits = text.strip_suffix('%').is_some_and(share)
        || positive(text)
        || key == "memory" && number.is_some_and(positive);
    if !fits {
        let message = format!("{} is not a valid reserve", quote(text));
        findings
            .error(Code::InvalidValue, entry.value.at, message)
            .help(HELP);
    }
}
