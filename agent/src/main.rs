//! `isthmus-agent`: parses, and calls.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use isthmus_agent::config::{AgentArgs, AgentCommand};
use isthmus_agent::{app, datapath};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // The proof of the cgroup runs this program again, before it has a configuration.
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if let [command, cgroup, address] = args.as_slice()
        && command == "probe-connect"
    {
        return probe(Path::new(cgroup), &address.to_string_lossy());
    }
    let loaded = isthmus_mesh::config::load::<AgentArgs>().unwrap_or_else(|error| error.exit());
    if let Some(text) = loaded.print {
        #[expect(clippy::print_stdout, reason = "--print-config asks for it")]
        {
            print!("{text}");
        }
        return ExitCode::SUCCESS;
    }
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let result = match &loaded.args.command {
        Some(AgentCommand::Cleanup) => cleanup(loaded.args.bpffs_dir()),
        None => app::run(loaded.args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn cleanup(bpffs: PathBuf) -> anyhow::Result<()> {
    let pins = datapath::cleanup(&bpffs)?;
    tracing::info!(bpffs = %bpffs.display(), pins, "detached, unpinned and removed");
    Ok(())
}

fn probe(cgroup: &Path, address: &str) -> ExitCode {
    let Ok(address) = address.parse::<SocketAddr>() else {
        return ExitCode::FAILURE;
    };
    match datapath::probe_connect(cgroup, address) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(_) => ExitCode::FAILURE,
    }
}
