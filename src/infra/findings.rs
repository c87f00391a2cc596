//! Collects a file's findings in the order of the checks, and returns them in file order.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use super::Unapplied;
use crate::diagnostic::{Diagnostic, Faults, Place, Severity, Source, codes};
use crate::name::closest;

/// Help for typographic quotes and spaces, which editors and web pages insert.
pub(super) const LOOKALIKE: &str =
    "write straight quotes (`\"`) for “ and ”, and a space for each no-break space (U+00A0)";

/// Maximum number of findings kept; further ones are only counted.
const FINDINGS_MAX: usize = 10_000;

/// Maximum number of names compared for "did you mean" suggestions, because comparisons take time.
const COMPARISONS_MAX: usize = 200_000;
/// Maximum length of a compared string, in bytes.
const COMPARED_MAX: usize = 64;

/// A location in a file: a [`Place`] without the file's text, small enough to be stored in every node of a large file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct At {
    /// Index of the source.
    pub(super) file: u32,
    /// First byte.
    pub(super) start: u32,
    /// First byte after the location.
    pub(super) end: u32,
    /// Line, from 1.
    pub(super) line: u32,
    /// Column in characters, from 1.
    pub(super) column: u32,
}

/// The findings so far, and the files to which they refer.
#[derive(Debug)]
pub(super) struct Findings {
    sources: Vec<Arc<Source>>,
    found: Vec<(At, Diagnostic)>,
    beyond: usize,
    scratch: Diagnostic,
    unapplied: Vec<(&'static str, At)>,
    comparisons: usize,
}

impl Findings {
    /// Creates an empty list of findings for these files.
    pub(super) fn new(sources: Vec<Arc<Source>>) -> Self {
        Self {
            sources,
            found: Vec::new(),
            beyond: 0,
            scratch: too_many(0),
            unapplied: Vec::new(),
            comparisons: COMPARISONS_MAX,
        }
    }

    /// Returns the full form of a location.
    pub(super) fn place(&self, at: At) -> Option<Place> {
        let source = self.sources.get(at.file as usize)?;
        Some(Place {
            source: Arc::clone(source),
            line: at.line as usize,
            column: at.column as usize,
            bytes: at.start as usize..at.end as usize,
        })
    }

    /// Returns, for example, `infra.yml:12`, for messages that mention a second location.
    pub(super) fn short(&self, at: At) -> String {
        self.sources
            .get(at.file as usize)
            .map(|source| format!("{}:{}", source.path, at.line))
            .unwrap_or_default()
    }

    /// Returns the number of findings so far.
    pub(super) const fn count(&self) -> usize {
        self.found.len()
    }

    /// Adds a fault, which causes the file to be refused.
    pub(super) fn error(
        &mut self,
        code: Code,
        at: At,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        self.add(Severity::Error, code, at, message.into())
    }

    /// Adds a warning, which does not cause the file to be refused.
    pub(super) fn warning(
        &mut self,
        code: Code,
        at: At,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        self.add(Severity::Warning, code, at, message.into())
    }

    /// Adds a finding of this severity.
    pub(super) fn add(
        &mut self,
        severity: Severity,
        code: Code,
        at: At,
        message: String,
    ) -> &mut Diagnostic {
        if self.found.len() >= FINDINGS_MAX {
            self.beyond += 1;
            return &mut self.scratch;
        }
        let mut finding = Diagnostic::new(severity, code.as_str(), message);
        finding.place = self.place(at);
        self.found.push((at, finding));
        self.found
            .last_mut()
            .map_or(&mut self.scratch, |(_, last)| last)
    }

    /// Reports a missing key; `owner` names the section that lacks it.
    pub(super) fn missing(&mut self, at: At, owner: &str, key: &str, help: impl Into<String>) {
        let message = format!("{owner} has no `{key}`");
        self.error(Code::MissingKey, at, message).help(help);
    }

    /// Records the location of a key that must be unique; if it is already known, returns the first one, for messages.
    pub(super) fn earlier<K: Eq + Hash>(
        &self,
        places: &mut HashMap<K, At>,
        key: K,
        at: At,
    ) -> Option<String> {
        match places.entry(key) {
            Entry::Occupied(first) => Some(self.short(*first.get())),
            Entry::Vacant(free) => {
                free.insert(at);
                None
            }
        }
    }

    /// Records the first location of a key that anklume checks but does not apply itself.
    pub(super) fn unapplied(&mut self, key: &'static str, at: At) {
        if !self.unapplied.iter().any(|(known, _)| *known == key) {
            self.unapplied.push((key, at));
        }
    }

    /// Takes the keys that anklume itself does not apply, in file order.
    pub(super) fn take_unapplied(&mut self) -> Vec<Unapplied> {
        let mut unapplied = std::mem::take(&mut self.unapplied);
        unapplied.sort_by_key(|(_, at)| (at.file, at.start));
        unapplied
            .into_iter()
            .filter_map(|(key, at)| self.place(at).map(|place| Unapplied { key, place }))
            .collect()
    }

    /// Returns the candidate that a mistyped name most likely meant.
    pub(super) fn closest<'t>(
        &mut self,
        text: &str,
        candidates: impl IntoIterator<Item = &'t str>,
    ) -> Option<&'t str> {
        if text.len() > COMPARED_MAX {
            return None;
        }
        let budget = self.comparisons;
        let mut compared = 0;
        let (text, mut swapped) = (text.to_lowercase(), None);
        let near = closest(
            &text,
            candidates
                .into_iter()
                .take(budget)
                .inspect(|_| compared += 1)
                .filter(|candidate| candidate.len() <= COMPARED_MAX)
                .inspect(|near| {
                    if strsim::osa_distance(&text, near) == 1
                        && strsim::hamming(&text, near) == Ok(2)
                    {
                        swapped = Some(*near);
                    }
                }),
        );
        self.comparisons -= compared;
        swapped.or(near)
    }

    /// Takes this many comparisons from the budget; returns false if too few are left.
    pub(super) fn may_compare(&mut self, names: usize) -> bool {
        let left = self.comparisons.checked_sub(names);
        self.comparisons = left.unwrap_or(self.comparisons);
        left.is_some()
    }

    /// Returns the phrase that messages use for the input.
    pub(super) fn this_file(&self) -> &'static str {
        if self.sources.len() > 1 {
            "these files"
        } else {
            "this file"
        }
    }

    /// Returns all findings in file order: the warnings of a valid file, or the faults and warnings of a refused one.
    pub(super) fn finish(mut self) -> Result<Vec<Diagnostic>, Faults> {
        let mut severities = self.found.iter().map(|(_, finding)| finding.severity);
        let refused = self.beyond > 0 || severities.any(|severity| severity == Severity::Error);
        self.found
            .sort_by_key(|(at, _)| (at.file, at.start, at.line, at.column));
        // A fault in a shared volume is found once for each of its machines.
        self.found.dedup();
        for (_, finding) in &mut self.found {
            let place = finding.place.as_ref();
            let marked = place.and_then(|place| place.source.text.get(place.bytes.start..));
            if marked.is_some_and(|text| text.starts_with(['“', '‘', '\u{a0}'])) {
                finding.help(LOOKALIKE);
            }
        }
        let mut all: Vec<Diagnostic> = self.found.into_iter().map(|(_, finding)| finding).collect();
        if self.beyond > 0 {
            all.push(too_many(self.beyond));
        }
        if refused { Err(Faults(all)) } else { Ok(all) }
    }
}

fn too_many(beyond: usize) -> Diagnostic {
    let message = format!("{beyond} more findings are not shown");
    let mut finding = Diagnostic::new(Severity::Error, Code::TooManyFindings.as_str(), message);
    finding.help("fix these first");
    finding
}

codes! {
    /// The stable codes of findings. Each is a heading in `docs/diagnostics.md` and names a fault, never its location.
    pub(super) enum Code {
        NotFound = "not-found",
        BothPresent = "both-present",
        MissingBase = "missing-base",
        StrayFile = "stray-file",
        Symlink = "symlink",
        NotAFile = "not-a-file",
        TooLarge = "too-large",
        Unreadable = "unreadable",
        NotUtf8 = "not-utf8",
        EmptyFile = "empty-file",
        YamlSyntax = "yaml-syntax",
        YamlDirective = "yaml-directive",
        SecondDocument = "second-document",
        YamlAnchor = "yaml-anchor",
        YamlAlias = "yaml-alias",
        YamlMergeKey = "yaml-merge-key",
        YamlTag = "yaml-tag",
        ComplexKey = "complex-key",
        DuplicateKey = "duplicate-key",
        TooDeep = "too-deep",
        TooManyValues = "too-many-values",
        TooManyFindings = "too-many-findings",
        WrongType = "wrong-type",
        EmptyValue = "empty-value",
        MissingKey = "missing-key",
        UnknownKey = "unknown-key",
        UnusedKey = "unused-key",
        InvalidValue = "invalid-value",
        OutOfRange = "out-of-range",
        AmbiguousNumber = "ambiguous-number",
        InvalidPath = "invalid-path",
        DuplicateItem = "duplicate-item",
        ConflictingKeys = "conflicting-keys",
        InvalidName = "invalid-name",
        ReservedName = "reserved-name",
        NameTooLong = "name-too-long",
        SameName = "same-name",
        DuplicateDomain = "duplicate-domain",
        DuplicateMachine = "duplicate-machine",
        UnknownName = "unknown-name",
        UnknownProfile = "unknown-profile",
        InvalidSubnet = "invalid-subnet",
        DuplicateSubnet = "duplicate-subnet",
        ZoneOverflow = "zone-overflow",
        InvalidAddress = "invalid-address",
        AddressOutsideSubnet = "address-outside-subnet",
        ReservedAddress = "reserved-address",
        DuplicateAddress = "duplicate-address",
        NoAddressLeft = "no-address-left",
        DuplicateService = "duplicate-service",
        UnknownTool = "unknown-tool",
        InvalidCommand = "invalid-command",
        UnpinnedTool = "unpinned-tool",
        InvalidLock = "invalid-lock",
        UnknownConsumer = "unknown-consumer",
        DomainAsConsumer = "domain-as-consumer",
        OwnConsumer = "own-consumer",
        DuplicateConsumer = "duplicate-consumer",
        DisabledConsumer = "disabled-consumer",
        InvalidArgument = "invalid-argument",
        InvalidCondition = "invalid-condition",
        PrivilegedEnd = "privileged-end",
        PrivilegedContainer = "privileged-container",
        ReservedDeviceName = "reserved-device-name",
        ProxyIntoChannels = "proxy-into-channels",
        ProxyIntoSharedFolder = "proxy-into-shared-folder",
        SourceInSharedFolder = "source-in-shared-folder",
        DeviceSharesChannels = "device-shares-channels",
        DiskOverAnklume = "disk-over-anklume",
        DuplicateDevice = "duplicate-device",
        DuplicateMount = "duplicate-mount",
        ContainerInUntrustedDomain = "container-in-untrusted-domain",
        DisabledDomain = "disabled-domain",
        PolicyAddress = "policy-address",
        PolicyWithoutEffect = "policy-without-effect",
        AiAccess = "ai-access",
        FirewallMode = "firewall-mode",
        SeveralGpus = "several-gpus",
        SharedGpu = "shared-gpu",
    }
}
