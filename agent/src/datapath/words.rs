//! What the programs of a debugging build say of themselves (`cargo xtask build --log`), in this process' log.

use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Reads the programs' words. They end with the programs that this process loaded: another agent's are its own.
#[derive(Debug)]
pub struct Words(Logger);

struct Logger(EbpfLogger<&'static dyn log::Log>);

impl std::fmt::Debug for Logger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EbpfLogger")
    }
}

impl Words {
    /// `None` of a build whose programs say nothing.
    pub(super) fn of(ebpf: &mut Ebpf) -> Option<Self> {
        EbpfLogger::init(ebpf)
            .ok()
            .map(|logger| Self(Logger(logger)))
    }

    /// Logs them as they come.
    ///
    /// # Errors
    /// If the runtime cannot wait for them.
    pub async fn pass_on(self) -> io::Result<()> {
        // SAFETY: the ring buffer's descriptor is the logger's own, and closed with it only.
        let ring = unsafe { AsyncFd::register_with_interest(self.0.0, Interest::READABLE) };
        let mut ring = ring?;
        loop {
            let mut ready = ring.readable_mut().await?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}
