//! What the reader sees while something takes time: one line a step, with its seconds.
//!
//! On a terminal the line counts while the step runs, and never is longer than the terminal is wide: a line that wraps
//! cannot be taken back. Elsewhere there are plain lines, one when a step begins and one
//! when it ends. Everything goes to standard error, so that `--json` of the programs behind stays alone on standard output.

use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
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
    columns: usize,
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
        columns(),
    ));
    outcome
}

impl Step {
    fn begin(label: &str) -> Self {
        let (begun, columns) = (Instant::now(), columns());
        if !std::io::stderr().is_terminal() {
            say(&format!("{label} ..."));
            return Self {
                label: label.to_owned(),
                begun,
                columns,
                ticker: None,
            };
        }
        let (stop, stopped) = mpsc::channel::<()>();
        let text = label.to_owned();
        let thread = thread::spawn(move || {
            loop {
                if !ASIDE.load(Ordering::SeqCst) {
                    let line = row(&shortened(&text, columns), "", begun.elapsed(), columns);
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
            columns,
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
        say(&row(&self.label, remark, taken, self.columns));
    }
}

/// As wide as a line gets, and what of that its seconds take.
const WIDEST: usize = 99;
const SECONDS: usize = 9;

fn row(label: &str, remark: &str, taken: Duration, columns: usize) -> String {
    let text = if remark.is_empty() {
        label.to_owned()
    } else {
        format!("{label}: {remark}")
    };
    let width = columns.saturating_sub(SECONDS);
    format!("{text:<width$} {:>6.1} s", taken.as_secs_f64())
}

/// The label, or so much of it that its row fits.
fn shortened(label: &str, columns: usize) -> String {
    let room = columns.saturating_sub(SECONDS);
    if label.chars().count() <= room {
        return label.to_owned();
    }
    let mut short: String = label.chars().take(room.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// How wide a line may be where the reader sees it.
fn columns() -> usize {
    let stderr = std::io::stderr();
    if !stderr.is_terminal() {
        return WIDEST;
    }
    let said = stderr.as_fd().try_clone_to_owned().and_then(|terminal| {
        Command::new("stty")
            .arg("size")
            .stdin(terminal)
            .stderr(Stdio::null())
            .output()
    });
    said.ok()
        .and_then(|said| of_size(&String::from_utf8_lossy(&said.stdout)))
        .unwrap_or(WIDEST)
}

/// Reads rows and columns, as stty prints them. A terminal that does not know its size has none of them.
fn of_size(said: &str) -> Option<usize> {
    let columns: usize = said.split_whitespace().nth(1)?.parse().ok()?;
    (columns > 0).then(|| columns.min(WIDEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_ends_with_its_seconds_in_one_column() {
        let short = row("build", "", Duration::from_millis(1_250), WIDEST);
        let long = row("build", "3 binaries", Duration::from_secs(120), WIDEST);
        assert_eq!(short.len(), long.len());
        assert!(short.ends_with("   1.2 s"), "{short}");
        assert!(
            long.starts_with("build: 3 binaries ") && long.ends_with(" 120.0 s"),
            "{long}"
        );
    }

    #[test]
    fn a_line_that_is_taken_back_fits_the_terminal() {
        let label = "setup: apt, as root: install llvm-22-dev bpftool iproute2 nftables, and what they need";
        for columns in [20, 80, WIDEST] {
            let taken = Duration::from_millis(9_999_900);
            let line = row(&shortened(label, columns), "", taken, columns);
            assert_eq!(line.chars().count(), columns, "{line}");
            assert!(line.ends_with(" 9999.9 s"), "{line}");
        }
        assert_eq!(shortened("build", 80), "build");
        assert_eq!(of_size("24 80\n"), Some(80));
        assert_eq!(of_size("50 200\n"), Some(WIDEST));
        assert_eq!(of_size("0 0\n"), None);
        assert_eq!(of_size(""), None);
    }
}
