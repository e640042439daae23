//! What the reader sees while something takes time: one line a step, with its seconds.
//!
//! On a terminal the line counts while the step runs. Elsewhere there are plain lines, one when a step begins and one
//! when it ends. Everything goes to standard error, so that `--json` of the programs behind stays alone on standard output.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Prints one line. Nothing is lost when nobody listens any more.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Somebody else has the terminal: a step under way keeps off its line.
static ASIDE: AtomicBool = AtomicBool::new(false);

/// Does `work`, which may ask the reader something, on a line of its own.
pub(crate) fn aside<T>(work: impl FnOnce() -> T) -> T {
    ASIDE.store(true, Ordering::SeqCst);
    if std::io::stderr().is_terminal() {
        let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
    }
    let outcome = work();
    ASIDE.store(false, Ordering::SeqCst);
    outcome
}

/// A step that is under way.
#[derive(Debug)]
struct Step {
    label: String,
    begun: Instant,
    ticker: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Does `work` as one step: its line, its seconds, and whether it failed.
pub(crate) fn step<T>(label: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    step_with(label, work, |_| String::new())
}

/// As [`step`], with a remark about the outcome behind the label.
pub(crate) fn step_with<T>(
    label: &str,
    work: impl FnOnce() -> Result<T>,
    remark: impl FnOnce(&T) -> String,
) -> Result<T> {
    let step = Step::begin(label);
    let outcome = work();
    match &outcome {
        Ok(value) => step.end(&remark(value)),
        Err(_) => step.end("FAILED"),
    }
    outcome
}

/// Announces a step whose program prints for itself, does it, and closes it with its seconds.
pub(crate) fn spoken_step<T>(label: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say(&format!("-- {label}"));
    let begun = Instant::now();
    let outcome = work();
    say(&row(
        label,
        if outcome.is_ok() { "" } else { "FAILED" },
        begun.elapsed(),
    ));
    outcome
}

impl Step {
    fn begin(label: &str) -> Self {
        let begun = Instant::now();
        if !std::io::stderr().is_terminal() {
            say(&format!("{label} ..."));
            return Self {
                label: label.to_owned(),
                begun,
                ticker: None,
            };
        }
        let (stop, stopped) = mpsc::channel::<()>();
        let text = label.to_owned();
        let thread = thread::spawn(move || {
            loop {
                if !ASIDE.load(Ordering::SeqCst) {
                    let line = row(&text, "", begun.elapsed());
                    let _ = write!(std::io::stderr().lock(), "\r\x1b[K{line}");
                }
                if stopped.recv_timeout(Duration::from_millis(500))
                    != Err(RecvTimeoutError::Timeout)
                {
                    return;
                }
            }
        });
        Self {
            label: label.to_owned(),
            begun,
            ticker: Some((stop, thread)),
        }
    }

    fn end(self, remark: &str) {
        let taken = self.begun.elapsed();
        if let Some((stop, thread)) = self.ticker {
            drop(stop);
            let _ = thread.join();
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
        say(&row(&self.label, remark, taken));
    }
}

fn row(label: &str, remark: &str, taken: Duration) -> String {
    let text = if remark.is_empty() {
        label.to_owned()
    } else {
        format!("{label}: {remark}")
    };
    format!("{text:<90} {:>6.1} s", taken.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_ends_with_its_seconds_in_one_column() {
        let short = row("build", "", Duration::from_millis(1_250));
        let long = row("build", "3 binaries", Duration::from_secs(120));
        assert_eq!(short.len(), long.len());
        assert!(short.ends_with("   1.2 s"), "{short}");
        assert!(
            long.starts_with("build: 3 binaries ") && long.ends_with(" 120.0 s"),
            "{long}"
        );
    }
}
