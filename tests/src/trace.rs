//! The kernel's own trace of its tracepoints, beside the programs that run there.
//!
//! Some kernels shield their init: while one of its threads is what a timer interrupted, tracing programs are not run, without
//! a word, and no count of missed runs tells. The trace has those events all the same, each with the thread that was interrupted.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::leftovers::left;

const PREFIX: &str = "isthmus-";
const INIT: &str = "/proc/1/task";
/// Of each CPU: some ten thousand events.
const BUFFER_KIB: &str = "4096";
/// The first pid namespace, in which numbers are the trace's (include/linux/proc_ns.h, `PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Events of some tracepoints, from [`Trace::begin`] on.
#[derive(Debug)]
pub struct Trace {
    /// tracefs, mounted nowhere.
    _tracefs: OwnedFd,
    /// An instance of its own: nobody else's events, nor for anybody else.
    instance: PathBuf,
    /// Threads of init at the beginning.
    init: BTreeSet<String>,
}

impl Trace {
    /// Of tracepoints, as `group/name`, those events that fit a filter (Documentation/trace/events.rst).
    ///
    /// # Errors
    /// Without tracefs, where this process may not use it, or where it cannot know init's threads by the trace's numbers.
    pub fn begin(events: &[(&str, &str)]) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let namespace = fs::read_link("/proc/self/ns/pid").context("the pid namespace")?;
        ensure!(
            namespace == Path::new(FIRST_PID_NAMESPACE),
            "{} is not the first pid namespace",
            namespace.display()
        );
        let tracefs = mount_tracefs().context("tracefs")?;
        // The directory of the mount lives as long as the descriptor.
        let root = PathBuf::from(format!("/proc/self/fd/{}", tracefs.as_raw_fd()));
        let instances = root.join("instances");
        for killed in left(&instances, PREFIX)? {
            let _ = fs::remove_dir(killed);
        }
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{nth}", std::process::id());
        let trace = Self {
            _tracefs: tracefs,
            instance: instances.join(name),
            init: threads_of_init()?,
        };
        fs::create_dir(&trace.instance).context("an instance of the trace")?;
        write(&trace.instance.join("buffer_size_kb"), BUFFER_KIB)?;
        for (event, filter) in events {
            let event = trace.instance.join("events").join(event);
            write(&event.join("filter"), filter)?;
            write(&event.join("enable"), "1")?;
        }
        Ok(trace)
    }

    /// Events that interrupted a thread of init since the last call: their names, and what followed those in their lines. Nothing that
    /// is traced may be under way.
    ///
    /// # Errors
    /// If the trace lost some.
    pub fn on_top_of_init(&self) -> Result<Vec<(String, String)>> {
        for cpu in fs::read_dir(self.instance.join("per_cpu"))? {
            let stats = fs::read_to_string(cpu?.path().join("stats"))?;
            ensure!(stats.contains("overrun: 0\n"), "events were lost: {stats}");
        }
        let file = self.instance.join("trace");
        let text = fs::read_to_string(&file).context("the trace")?;
        write(&file, "")?;
        let mut init = threads_of_init()?;
        init.extend(self.init.iter().cloned());
        let events = text.lines().filter_map(parse);
        let events = events.filter(|(thread, _, _)| init.contains(*thread));
        Ok(events
            .map(|(_, name, fields)| (name.to_owned(), fields.to_owned()))
            .collect())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // What is left is swept by the next one.
        let _ = fs::remove_dir(&self.instance);
    }
}

fn mount_tracefs() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {text:?} to {}", file.display()))
}

fn threads_of_init() -> Result<BTreeSet<String>> {
    let names = fs::read_dir(INIT).context(INIT)?;
    let names = names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

/// `COMM-THREAD [CPU] FLAGS TIME: EVENT: FIELDS`: the thread, the event and its fields. Of what follows the command's name, which may hold
/// anything, nothing holds a bracket.
fn parse(line: &str) -> Option<(&str, &str, &str)> {
    if line.starts_with('#') {
        return None;
    }
    let (head, rest) = line.rsplit_once(" [")?;
    let thread = head.trim_end().rsplit('-').next()?;
    let (_, rest) = rest.split_once(": ")?;
    let (event, fields) = rest.split_once(": ")?;
    Some((thread, event, fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed() {
        for (line, wanted) in [
            ("# tracer: nop", None),
            ("", None),
            (
                "          <idle>-0       [001] .Ns2. 49474.875819: inet_sk_error_report: family=AF_INET error=110",
                Some(("0", "inet_sk_error_report", "family=AF_INET error=110")),
            ),
            (
                " tokio-rt-worker-75      [000] ..s2. 49578.748032: tcp_retransmit_skb: skbaddr=0: x",
                Some(("75", "tcp_retransmit_skb", "skbaddr=0: x")),
            ),
            ("  a - b-7 [010] d.... 1.5: e: f", Some(("7", "e", "f"))),
        ] {
            assert_eq!(parse(line), wanted, "{line}");
        }
    }
}
