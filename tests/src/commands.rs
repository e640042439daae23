//! What people call: `up`, `down`, `exec`, `status`.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use isthmus_tests::host::Host;
use isthmus_tests::state::{Turn, demolish, labs, must_be_there};
use isthmus_tests::{Lab, LabName, LabSpec, Programs};
use nix::sys::signal::{SigSet, Signal};

pub(crate) fn up(
    file: &Path,
    name: &LabName,
    bare: bool,
    foreground: bool,
    programs: Programs,
) -> Result<()> {
    let start = Instant::now();
    let spec = LabSpec::read(file)?;
    let lab = Lab::build(name.as_str(), &spec, programs)?;
    if !bare {
        lab.start()?;
    }
    show(&lab)?;
    let took = start.elapsed().as_secs_f64();
    if foreground {
        say(&format!("up after {took:.1} s; Ctrl-C removes it"))?;
        wait_for_signal()?;
        return lab.down();
    }
    lab.keep()?;
    say(&format!(
        "up after {took:.1} s; `cargo xtask lab down {name}` removes it"
    ))
}

/// SIGINT, SIGTERM and SIGHUP, which end an owner and its lab.
fn ends() -> SigSet {
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])
}

fn wait_for_signal() -> Result<()> {
    ends().thread_block()?;
    ends().wait()?;
    Ok(())
}

/// From now on these signals remove the lab before they end this process. Call it before there is a second thread.
/// (The lab's warden would remove it as well, but after the prompt is back.)
pub(crate) fn remove_on_signal(name: &LabName) -> Result<()> {
    ends().thread_block()?;
    let name = name.clone();
    std::thread::spawn(move || {
        let signal = ends().wait();
        let removed = Host::prepare().and_then(|host| demolish(&host, &name));
        let said = match &removed {
            Ok(()) => "interrupted; cleaned up".to_owned(),
            Err(e) => format!("interrupted; not cleaned up: {e:#}"),
        };
        let _ = writeln!(std::io::stderr(), "{said}");
        std::process::exit(128 + signal.map_or(0, |s| s as i32));
    });
    Ok(())
}

pub(crate) fn down(name: &LabName) -> Result<()> {
    let start = Instant::now();
    must_be_there(name)?;
    let host = Host::prepare()?;
    let _turn = Turn::take(Duration::from_secs(600))?;
    demolish(&host, name)?;
    say(&format!(
        "lab {name} is gone after {:.1} s",
        start.elapsed().as_secs_f64()
    ))
}

pub(crate) fn exec(name: &LabName, place: &str, command: &[String]) -> Result<ExitCode> {
    let lab = Lab::open(name.as_str())?;
    let (program, arguments) = command
        .split_first()
        .unwrap_or_else(|| unreachable!("clap wants a command"));
    let mut inside = match lab.node(place) {
        Ok(node) => node.command(program)?,
        Err(_) => {
            let pod = lab.pod(place).with_context(|| {
                format!("{place} is no node (`cargo xtask lab status {name}` lists nodes and pods)")
            })?;
            pod.command(program)?
        }
    };
    Err(inside.args(arguments).exec().into())
}

pub(crate) fn status(name: Option<&LabName>) -> Result<()> {
    match name {
        Some(name) => show(&Lab::open(name.as_str())?),
        None => {
            for name in labs()? {
                say(name.as_str())?;
            }
            Ok(())
        }
    }
}

fn show(lab: &Lab) -> Result<()> {
    say(&format!("lab {}", lab.name()))?;
    for node in lab.nodes() {
        let addresses = node.plan().addresses;
        let running = ["mesh", "agent"].into_iter().flat_map(|part| {
            let pids = node.pids(part);
            pids.into_iter().map(move |pid| format!("  {part} {pid}"))
        });
        let running: String = running.collect();
        let line = format!(
            "  node {:<26} {:<12} {:<16}{running}",
            node.name(),
            addresses.v4,
            addresses.v6
        );
        say(line.trim_end())?;
        for pod in lab.pods().iter().filter(|p| p.plan().node == *node.plan()) {
            let addresses = pod.plan().addresses;
            say(&format!(
                "    pod {:<25} {:<12} {}",
                pod.name(),
                addresses.v4,
                addresses.v6
            ))?;
        }
    }
    Ok(())
}

pub(crate) fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

pub(crate) fn complain(error: &anyhow::Error) {
    // Nobody is left to tell if standard error is gone.
    let _ = writeln!(std::io::stderr(), "Error: {error:#}");
}
