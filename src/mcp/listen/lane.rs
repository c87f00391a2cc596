//! A caller's lane: a thread and a runtime of its own, for all that one caller asks.
//!
//! In one runtime the requests of all callers wait in one queue, and whoever asks most has most of it. Threads are what
//! the kernel shares the processors among: one that has much to do waits for its turn, one that wakes now and then gets it.

use std::io;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

/// Threads of a caller for work that blocks: as many as the tools of one connection that run at a time.
const THREADS: usize = 8;
/// How long work that was given up may take to clean up behind itself.
const LAST_WORK: Duration = Duration::from_millis(500);

/// A lane's runtime. One that comes to nothing is dropped inside the server's own, where it may not wait for its end.
struct Own(Option<Runtime>);

impl Own {
    /// Runs the work to its end, and gives what it gave up a moment.
    fn run(mut self, work: impl Future<Output = ()>) {
        if let Some(runtime) = self.0.take() {
            runtime.block_on(work);
            runtime.shutdown_timeout(LAST_WORK);
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Starts work in a lane of its own; what is given back ends when it has ended.
///
/// `prepare` is called at once, in the lane's runtime; the thread has the caller's `name`.
///
/// # Errors
///
/// No thread or no runtime can be made, or `prepare` fails.
pub(super) fn start<F>(
    name: &str,
    prepare: impl FnOnce() -> io::Result<F>,
) -> io::Result<impl Future<Output = ()> + Send + 'static>
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(THREADS)
        .build()?;
    let handle = runtime.handle().clone();
    let runtime = Own(Some(runtime));
    let work = {
        let _inside = handle.enter();
        prepare()?
    };
    let (ended, end) = oneshot::channel::<()>();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            runtime.run(work);
            drop(ended);
        })?;
    // The sender says nothing; that it is gone is the word.
    Ok(async { end.await.unwrap_or_default() })
}

/// Lets this process have as many files open as the system allows it: each lane takes a few, each connection one, and
/// what systemd starts has 1024, of which one caller may take a quarter.
pub(super) fn allow_many() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: maximum,
        maximum,
    };
    // Where that is forbidden, what there is has to do.
    let _ = setrlimit(Resource::Nofile, most);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_cannot_be_prepared_leaves_the_server_as_it_was() {
        let failed = start("alice", || {
            Err::<std::future::Ready<()>, _>(io::ErrorKind::Other.into())
        });
        assert!(failed.is_err());
        let (said, heard) = oneshot::channel();
        let lane = start("bob", || {
            Ok(async move { said.send("served").unwrap_or_default() })
        })
        .unwrap();
        assert_eq!(heard.await, Ok("served"));
        lane.await;
    }
}
