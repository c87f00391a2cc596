//! The codes of what stands in the way: stable, each a heading in `docs/diagnostics.md`.

use crate::diagnostic::codes;

codes! {
    /// A kind of obstacle.
    pub(super) enum PlanCode {
        /// A thing of the name is there, and not anklume's.
        NotOurs = "not-ours",
        /// `--adopt` names nothing of the file.
        NothingToAdopt = "nothing-to-adopt",
        /// Another file of the same `project_name`.
        OtherInfrastructure = "other-infrastructure",
        /// A project that is not as a domain's must be.
        ProjectFeatures = "project-features",
        /// A bridge of that name cannot be made.
        BridgeName = "bridge-name",
        /// Somebody else's network has these addresses.
        SubnetInUse = "subnet-in-use",
        /// A machine that the file does not declare has the address.
        AddressInUse = "address-in-use",
        /// A container is declared as a virtual machine, or the other way round.
        MachineType = "machine-type",
        /// No image to make the machine of.
        NoImage = "no-image",
        /// No storage pool.
        NoPool = "no-pool",
        /// A disk's folder is not on the host.
        NoSource = "no-source",
        /// The host's users get to what a machine writes as the host's root.
        OpenShare = "open-share",
        /// A machine could exchange what another device shares; a code of the file's too.
        SourceInSharedFolder = "source-in-shared-folder",
        /// anklume's own folders cannot be made.
        HostFolder = "host-folder",
        /// A consumer's number is somebody else's.
        UidInUse = "uid-in-use",
        /// A proxy at a channel's path; a code of the file's too.
        ProxyIntoChannels = "proxy-into-channels",
    }
}
