//! The codes of findings: stable, each a heading in `docs/diagnostics.md`.
//!
//! A code names the kind of fault, never the place; what a user reads stands in `docs/`.

use crate::diagnostic::codes;

codes! {
    /// A kind of finding.
    pub(super) enum Code {
        /// Nothing to read.
        NotFound = "not-found",
        /// A file and a folder.
        BothPresent = "both-present",
        /// A folder without `base.yml`.
        MissingBase = "missing-base",
        /// A file that is not read.
        StrayFile = "stray-file",
        /// A symbolic link in the folder.
        Symlink = "symlink",
        /// Not a regular file.
        NotAFile = "not-a-file",
        /// A file beyond the limit.
        TooLarge = "too-large",
        /// The system refuses to read it.
        Unreadable = "unreadable",
        /// A byte that is not UTF-8.
        NotUtf8 = "not-utf8",
        /// A file that declares nothing.
        EmptyFile = "empty-file",
        /// Not YAML.
        YamlSyntax = "yaml-syntax",
        /// A `%YAML` or `%TAG` line.
        YamlDirective = "yaml-directive",
        /// A second `---`.
        SecondDocument = "second-document",
        /// An anchor.
        YamlAnchor = "yaml-anchor",
        /// An alias.
        YamlAlias = "yaml-alias",
        /// A merge key.
        YamlMergeKey = "yaml-merge-key",
        /// A tag.
        YamlTag = "yaml-tag",
        /// A key that is no text.
        ComplexKey = "complex-key",
        /// A key twice in one map.
        DuplicateKey = "duplicate-key",
        /// Nested too deep.
        TooDeep = "too-deep",
        /// Too many values.
        TooManyValues = "too-many-values",
        /// More findings than are shown.
        TooManyFindings = "too-many-findings",
        /// A value of the wrong type.
        WrongType = "wrong-type",
        /// A key without a value.
        EmptyValue = "empty-value",
        /// A key that must be there.
        MissingKey = "missing-key",
        /// A key that the section does not have.
        UnknownKey = "unknown-key",
        /// A key that has no effect here.
        UnusedKey = "unused-key",
        /// A value that the key does not have.
        InvalidValue = "invalid-value",
        /// A number outside the range.
        OutOfRange = "out-of-range",
        /// A number in a notation that readers disagree on.
        AmbiguousNumber = "ambiguous-number",
        /// Not an absolute path.
        InvalidPath = "invalid-path",
        /// Twice in one list.
        DuplicateItem = "duplicate-item",
        /// Not a name.
        InvalidName = "invalid-name",
        /// A name that means something else.
        ReservedName = "reserved-name",
        /// A bridge name beyond 15 characters.
        NameTooLong = "name-too-long",
        /// A domain and a machine with one name.
        SameName = "same-name",
        /// A domain in two files.
        DuplicateDomain = "duplicate-domain",
        /// A machine in two domains.
        DuplicateMachine = "duplicate-machine",
        /// Neither a domain nor a machine.
        UnknownName = "unknown-name",
        /// Not a profile of the domain.
        UnknownProfile = "unknown-profile",
        /// Not the base of subnets.
        InvalidSubnet = "invalid-subnet",
        /// A `subnet_id` twice.
        DuplicateSubnet = "duplicate-subnet",
        /// A zone beyond the last subnet.
        ZoneOverflow = "zone-overflow",
        /// Not an IPv4 address.
        InvalidAddress = "invalid-address",
        /// Not in the domain's subnet.
        AddressOutsideSubnet = "address-outside-subnet",
        /// An address that no machine may have.
        ReservedAddress = "reserved-address",
        /// An address twice.
        DuplicateAddress = "duplicate-address",
        /// No address left to give out.
        NoAddressLeft = "no-address-left",
        /// A service name twice on one machine.
        DuplicateService = "duplicate-service",
        /// Not a tool.
        UnknownTool = "unknown-tool",
        /// A consumer that is no machine.
        UnknownConsumer = "unknown-consumer",
        /// A consumer that is a domain.
        DomainAsConsumer = "domain-as-consumer",
        /// A machine that serves itself.
        OwnConsumer = "own-consumer",
        /// A consumer twice.
        DuplicateConsumer = "duplicate-consumer",
        /// A consumer in a disabled domain.
        DisabledConsumer = "disabled-consumer",
        /// A fixed argument that the tool does not take.
        InvalidArgument = "invalid-argument",
        /// A privileged machine that offers or calls a service.
        PrivilegedEnd = "privileged-end",
        /// A privileged container.
        PrivilegedContainer = "privileged-container",
        /// A device with a channel's name.
        ReservedDeviceName = "reserved-device-name",
        /// A proxy at a channel's path.
        ProxyIntoChannels = "proxy-into-channels",
        /// A proxy at a host path that a machine can write to.
        ProxyIntoSharedFolder = "proxy-into-shared-folder",
        /// A disk or device at a host path that a machine can exchange.
        SourceInSharedFolder = "source-in-shared-folder",
        /// A disk that shares the channels' folder.
        DeviceSharesChannels = "device-shares-channels",
        /// A disk over anklume's files inside a machine.
        DiskOverAnklume = "disk-over-anklume",
        /// A device name twice on one machine.
        DuplicateDevice = "duplicate-device",
        /// Two disks at one path.
        DuplicateMount = "duplicate-mount",
        /// A container where a virtual machine is wiser.
        ContainerInUntrustedDomain = "container-in-untrusted-domain",
        /// A policy about a disabled domain.
        DisabledDomain = "disabled-domain",
        /// Exclusive AI access that cannot be.
        AiAccess = "ai-access",
        /// No domain for the firewall machine.
        FirewallMode = "firewall-mode",
        /// Several machines with the GPU.
        SeveralGpus = "several-gpus",
        /// A GPU for several machines.
        SharedGpu = "shared-gpu",
    }
}
