//! Exchanges messages between anklume's own processes: length-prefixed JSON, and a descriptor if one is attached.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Time to poll before blocking: waking a thread takes longer than most responses, and calls come in bursts.
const SPIN: Duration = Duration::from_micros(100);

/// A socket whose reader polls briefly before it blocks, and keeps the descriptor attached to a message.
pub(crate) struct SpinRead<S> {
    pub(crate) socket: S,
    descriptor: Option<OwnedFd>,
}

impl<S: AsFd> SpinRead<S> {
    pub(crate) const fn new(socket: S) -> Self {
        Self {
            socket,
            descriptor: None,
        }
    }

    /// Takes the descriptor attached to the last message.
    pub(crate) const fn take_descriptor(&mut self) -> Option<OwnedFd> {
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
pub(crate) fn send(
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
pub(crate) fn framed(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; size_of::<u32>()];
    serde_json::to_writer(&mut bytes, message)?;
    let length = u32::try_from(bytes.len() - size_of::<u32>()).map_err(io::Error::other)?;
    if let Some(prefix) = bytes.first_chunk_mut() {
        *prefix = length.to_le_bytes();
    }
    Ok(bytes)
}

/// Receives a message of at most `max` bytes. Fails at the end of the stream, and on an overlong or invalid message.
pub(crate) fn receive<T: DeserializeOwned>(from: &mut impl BufRead, max: u32) -> io::Result<T> {
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

/// Receives the first message on a socket, and the descriptor attached to it.
pub(crate) fn receive_with_descriptor<T: DeserializeOwned>(
    from: SpinRead<impl AsFd>,
    max: u32,
) -> io::Result<(T, Option<OwnedFd>)> {
    let mut reader = BufReader::new(from);
    let message = receive(&mut reader, max)?;
    Ok((message, reader.get_mut().take_descriptor()))
}

/// Receives a message as [`receive`] does, without blocking the thread.
pub(crate) async fn receive_async<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    max: u32,
) -> io::Result<T> {
    Ok(serde_json::from_slice(&receive_bytes(from, max).await?)?)
}

/// Receives the bytes of a message, without its length. Fails as [`receive`] does.
pub(crate) async fn receive_bytes(
    from: &mut (impl AsyncRead + Unpin),
    max: u32,
) -> io::Result<Vec<u8>> {
    let length = from.read_u32_le().await?;
    if length > max {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    from.take(length.into()).read_to_end(&mut bytes).await?;
    Ok(bytes)
}
