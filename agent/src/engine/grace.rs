//! Grace periods, waited for on a thread of their own: each takes milliseconds.

use std::io;
use std::sync::Arc;
use std::sync::mpsc as thread_channel;
use std::thread;
use std::time::{Duration, Instant};

use isthmus_core::reconcile::GraceTicket;
use tokio::sync::mpsc;
use tracing::{error, info};

/// Between two tries to get a grace period.
const RETRY: Duration = Duration::from_secs(1);

/// The kernel refuses a grace period, so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NoGrace {
    pub error: String,
    pub since: Instant,
    pub tries: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("no thread for grace periods is to be had: {0}")]
    NoThread(#[from] io::Error),
    #[error("the thread of grace periods has ended")]
    GraceEnded,
    #[error("the thread that closes UDP sockets of removed backends has ended")]
    OrphansEnded,
}

type Said<Ticket = GraceTicket> = Result<Ticket, Arc<NoGrace>>;

/// Ways to the thread, and from it.
type Ends = (
    thread_channel::Sender<GraceTicket>,
    mpsc::UnboundedReceiver<Said>,
);

/// Starts the thread. It tries for each ticket until the kernel grants a grace period, and says what came of each try.
pub(super) fn spawn(
    wait: impl Fn() -> io::Result<()> + Send + 'static,
) -> Result<Ends, EngineError> {
    let (ask, asked) = thread_channel::channel();
    // One ticket is under way at a time: the queues hold one at most, and one word a try.
    let (tell, told) = mpsc::unbounded_channel();
    thread::Builder::new()
        .name("grace".to_owned())
        .spawn(move || serve(&asked, &tell, wait, RETRY))?;
    Ok((ask, told))
}

/// Ends when nobody asks, or listens, any more.
fn serve<Ticket>(
    asked: &thread_channel::Receiver<Ticket>,
    tell: &mpsc::UnboundedSender<Said<Ticket>>,
    wait: impl Fn() -> io::Result<()>,
    retry: Duration,
) {
    while let Ok(ticket) = asked.recv() {
        let (since, mut tries) = (Instant::now(), 0);
        while let Err(error) = wait() {
            tries += 1;
            if tries == 1 {
                error!(%error, "no grace period: what was freed stays unused until one passes");
            }
            let error = error.to_string();
            let fault = NoGrace {
                error,
                since,
                tries,
            };
            if tell.send(Err(Arc::new(fault))).is_err() {
                return;
            }
            thread::sleep(retry);
        }
        if tries > 0 {
            info!(tries, "grace periods pass again");
        }
        if tell.send(Ok(ticket)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_refused_grace_period_is_told_and_tried_again() {
        let (ask, asked) = thread_channel::channel();
        let (tell, mut told) = mpsc::unbounded_channel();
        ask.send("ticket").unwrap();
        drop(ask);
        let refusals = Cell::new(2);
        let wait = || match refusals.get() {
            0 => Ok(()),
            left => {
                refusals.set(left - 1);
                Err(io::Error::from_raw_os_error(12))
            }
        };
        serve(&asked, &tell, wait, Duration::ZERO);
        for tries in 1..=2 {
            let fault = told.try_recv().unwrap().unwrap_err();
            assert_eq!(fault.tries, tries);
            assert!(fault.error.contains("memory"), "{}", fault.error);
        }
        assert_eq!(told.try_recv().unwrap().unwrap(), "ticket");
        assert!(told.try_recv().is_err());
    }
}
