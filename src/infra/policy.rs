//! The network policies that a file declares: who may reach whom across domains.

use std::net::Ipv4Addr;

use crate::name::{DomainName, MachineName};

/// One policy between two domains, with an effect: both ends have known addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Where connections come from.
    pub from: NetworkEnd,
    /// Where they go.
    pub to: NetworkEnd,
    /// The destination ports; `None`: all of them, and ping.
    pub ports: Option<Vec<u16>>,
    /// The protocols.
    pub protocols: Vec<Protocol>,
    /// True if the other direction is permitted too.
    pub bidirectional: bool,
}

/// A machine, or all machines of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkEnd {
    /// The domain.
    pub domain: DomainName,
    /// The machine with its fixed address; `None`: all machines of the domain.
    pub machine: Option<(MachineName, Ipv4Addr)>,
}

impl NetworkEnd {
    /// Its name in the file.
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.machine {
            Some((machine, _)) => machine.as_str(),
            None => self.domain.as_str(),
        }
    }
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Both protocols.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The word in `infra.yml` and in Incus.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}
