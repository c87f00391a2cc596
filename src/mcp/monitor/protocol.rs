//! Defines the protocol between a worker and its server: one request, one response, each as length-prefixed JSON.

use std::io::{self, BufRead, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::AdmitError;
use crate::audit::{Call, CallEnd};
use crate::services::Services;
use crate::tool::Resource;

/// Maximum length of a request, in bytes: a call's log line has bounded names and reasons.
pub(super) const REQUEST_MAX: u32 = 64 * 1024;
/// Maximum length of a response, in bytes: one consumer's services, from a file of at most 16 MiB.
pub(super) const RESPONSE_MAX: u32 = 32 * 1024 * 1024;

/// A worker's requests to its server.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum MonitorRequest {
    /// Send the policy in force.
    Policy,
    Admit(Box<Call>),
    /// Log how this call ended; its answer is sent afterwards.
    Ended {
        /// The call's place from [`Response::Admit`].
        place: u64,
        end: CallEnd,
    },
    /// Log that this call ended with its connection.
    Abandoned {
        place: u64,
    },
    /// Log a call that did not run.
    Log(Box<Call>),
    /// Start the helper that runs the tools for this resource.
    Helper(Resource),
    /// Lend the part of this consumer's memory that is not reserved for it.
    Borrow,
    /// Take that memory back.
    GiveBack,
}

/// The server's response.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Response {
    Policy {
        /// The part of the policy that concerns this consumer.
        services: Services,
        /// The digest of the whole policy.
        digest: String,
        /// True if the policy remains valid until its file changes.
        settled: bool,
    },
    /// The place of the running call, or the reason why it does not run.
    Admit(Result<u64, AdmitError>),
    /// The call could not be logged.
    Unlogged,
    /// True if the memory is lent.
    Lent(bool),
    /// The socket to the helper is attached to this message.
    Helper,
    /// The helper could not be started, for this reason.
    NoHelper(String),
    Done,
}

/// Time to poll before blocking: waking a thread takes longer than most responses, and calls come in bursts.
const SPIN: Duration = Duration::from_micros(100);

/// A socket whose reader polls briefly before it blocks, and keeps the descriptor attached to a message.
pub(super) struct SpinRead<S> {
    pub(super) socket: S,
    descriptor: Option<OwnedFd>,
}

impl<S: AsFd> SpinRead<S> {
    pub(super) const fn new(socket: S) -> Self {
        Self {
            socket,
            descriptor: None,
        }
    }

    /// Takes the descriptor attached to the last message.
    pub(super) const fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptor.take()
    }

    fn receive(&mut self, bytes: &mut [u8], flags: RecvFlags) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        let slice = &mut [IoSliceMut::new(bytes)];
        let read = recvmsg(&self.socket, slice, &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptor = descriptors.last();
            }
        }
        Ok(read.bytes)
    }
}

impl<S: AsFd> Read for SpinRead<S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let since = Instant::now();
        while since.elapsed() < SPIN {
            match self.receive(bytes, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => std::thread::yield_now(),
                read => return Ok(read?),
            }
        }
        Ok(self.receive(bytes, RecvFlags::empty())?)
    }
}

/// Sends a message, with a descriptor if one is given.
pub(super) fn send(
    mut to: &UnixStream,
    message: &impl Serialize,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let bytes = framed(message)?;
    let mut sent = 0;
    if let Some(descriptor) = descriptor {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut descriptors = SendAncillaryBuffer::new(&mut space);
        let one = [descriptor];
        descriptors.push(SendAncillaryMessage::ScmRights(&one));
        // The descriptor is sent with the first byte.
        let slice = [IoSlice::new(&bytes)];
        sent = sendmsg(to, &slice, &mut descriptors, SendFlags::NOSIGNAL)?;
    }
    to.write_all(bytes.get(sent..).unwrap_or_default())
}

/// Encodes a message, prefixed with its length. Fails if the message is too long.
pub(in crate::mcp) fn framed(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; size_of::<u32>()];
    serde_json::to_writer(&mut bytes, message)?;
    let length = u32::try_from(bytes.len() - size_of::<u32>()).map_err(io::Error::other)?;
    if let Some(prefix) = bytes.first_chunk_mut() {
        *prefix = length.to_le_bytes();
    }
    Ok(bytes)
}

/// Receives a message of at most `max` bytes. Fails at the end of the stream, and on an overlong or invalid message.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl BufRead, max: u32) -> io::Result<T> {
    let mut length = [0; size_of::<u32>()];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > max {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    from.take(length.into()).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}
