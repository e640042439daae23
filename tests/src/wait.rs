//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const POLL: Duration = Duration::from_millis(1);
/// Longer than anything takes that agents and mesh servers do at once.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// Polls `condition` until it holds and says how long that took; an error names `what` was waited for.
pub fn wait_until(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> bool,
) -> Result<Duration> {
    wait_for(what, deadline, || Ok(condition().then_some(()))).map(|(took, ())| took)
}

/// Polls `probe` until it finds something. Its last error is told if it never does.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<(Duration, T)> {
    let start = Instant::now();
    loop {
        let last = match probe() {
            Ok(Some(found)) => return Ok((start.elapsed(), found)),
            Ok(None) => None,
            Err(e) => Some(e),
        };
        if start.elapsed() >= deadline {
            match last {
                Some(error) => {
                    return Err(error.context(format!("waited {deadline:?} in vain: {what}")));
                }
                None => bail!("waited {deadline:?} in vain: {what}"),
            }
        }
        std::thread::sleep(POLL);
    }
}
