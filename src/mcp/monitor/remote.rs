//! A consumer's process, which asks its server.

use std::fmt;
use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::protocol::{ANSWER_MAX, Answer, Awake, Question, receive, send};
use super::{Admitted, Monitor, NotNow, Unlogged};
use crate::audit::{Call, Outcome};
use crate::mcp::live::{Fresh, Live, Policy, PolicyError};

/// The server, as its consumer's process sees it.
pub(crate) struct Remote {
    server: Arc<Server>,
    /// The consumer's part of the policy, asked for when the services file is another.
    live: Live,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").finish_non_exhaustive()
    }
}

/// The other end of a socket. One question at a time: its answer takes less than passing it on to another thread would.
struct Server {
    socket: Mutex<BufReader<Awake<UnixStream>>>,
    /// Hears that there is no server any more.
    lost: Box<dyn Fn() + Send + Sync>,
}

impl Server {
    fn ask(&self, question: &Question) -> io::Result<Answer> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let answer =
            send(&socket.get_ref().0, question).and_then(|()| receive(&mut *socket, ANSWER_MAX));
        if answer.is_err() {
            (self.lost)();
        }
        answer
    }
}

impl Remote {
    /// Asks for the policy first. `services` is the file that tells when it may be another; `lost` hears that there is no
    /// server any more: from then on no call runs.
    ///
    /// # Errors
    ///
    /// There is no server.
    pub(crate) fn new(
        socket: UnixStream,
        services: &Path,
        lost: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, PolicyError> {
        let server = Arc::new(Server {
            socket: Mutex::new(BufReader::new(Awake(socket))),
            lost: Box::new(lost),
        });
        let (asked, path) = (Arc::clone(&server), services.to_owned());
        let read = move || policy(&asked, &path);
        let first = read()?.policy;
        Ok(Self {
            server,
            live: Live::with(services, Box::new(read), first, Box::new(|_| {})),
        })
    }
}

fn policy(server: &Server, services: &Path) -> Result<Fresh, PolicyError> {
    let io = |source| PolicyError::Io {
        path: services.to_owned(),
        source,
    };
    match server.ask(&Question::Policy).map_err(io)? {
        Answer::Policy {
            services,
            digest,
            settled,
        } => Ok(Fresh {
            policy: Arc::new(Policy { services, digest }),
            settled,
        }),
        _ => Err(io(io::ErrorKind::InvalidData.into())),
    }
}

impl Monitor for Remote {
    fn policy(&self) -> Arc<Policy> {
        self.live.current()
    }

    fn policy_anew(&self) -> Arc<Policy> {
        self.live.forget();
        self.live.current()
    }

    fn admit(&self, line: Call) -> Result<Box<dyn Admitted>, NotNow> {
        match self.server.ask(&Question::Admit(Box::new(line))) {
            Ok(Answer::Admitted(place)) => Ok(Box::new(Place {
                server: Arc::clone(&self.server),
                place: Some(place),
            })),
            Ok(Answer::Overloaded(full)) => Err(NotNow::Overloaded(full)),
            Ok(Answer::Changed) => {
                self.live.forget();
                Err(NotNow::Changed)
            }
            _ => Err(NotNow::Unlogged),
        }
    }

    fn log(&self, line: Call) -> Result<(), Unlogged> {
        done(&self.server.ask(&Question::Log(Box::new(line))))
    }
}

fn done(answer: &io::Result<Answer>) -> Result<(), Unlogged> {
    match answer {
        Ok(Answer::Done) => Ok(()),
        _ => Err(Unlogged),
    }
}

/// A call's place at the server.
struct Place {
    server: Arc<Server>,
    place: Option<u64>,
}

impl Admitted for Place {
    fn ended(mut self: Box<Self>, outcome: Outcome, bytes_out: u64) -> Result<(), Unlogged> {
        let Some(place) = self.place.take() else {
            return Ok(());
        };
        done(&self.server.ask(&Question::Ended {
            place,
            outcome,
            bytes_out,
        }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            // A server that is gone has nothing to free.
            let _ = self.server.ask(&Question::Left { place });
        }
    }
}
