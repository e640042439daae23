//! `isthmus-lab`: worlds to play with, and the small programs that run inside them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use isthmus_tests::FlowKind;
use isthmus_tests::client::{self, Target, Transport};
use isthmus_tests::hostile::{self, Behaviour};
use isthmus_tests::{LabName, Programs};

mod commands;
mod demo;

#[derive(Debug, Parser)]
#[command(
    name = "isthmus-lab",
    version,
    about = "Clusters of network namespaces, with real processes and the real kernel"
)]
struct Arguments {
    /// Directory of isthmus-agent, isthmus-mesh, agentctl and isthmus-lab [default: this binary's]
    #[arg(long, global = true, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build the world of a lab file and leave it running
    Up {
        file: PathBuf,
        #[arg(long, default_value = "lab")]
        name: LabName,
        /// Namespaces, wires and pods only: no agent and no mesh server
        #[arg(long)]
        bare: bool,
        /// Stay, and remove the lab at Ctrl-C
        #[arg(long)]
        foreground: bool,
    },
    /// Two clusters and one service: kill, remove, cut and mend under traffic, and count what fails
    Demo {
        /// Leave the lab running, with commands to try
        #[arg(long)]
        keep: bool,
        /// Print one JSON document instead of the story
        #[arg(long)]
        json: bool,
    },
    /// Remove a lab, whatever is left of it
    Down {
        #[arg(default_value = "lab")]
        name: LabName,
    },
    /// Run a command on a node (`east-1`) or in a pod (`east/client`)
    Exec {
        name: LabName,
        place: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show the labs, or one lab's nodes, pods and processes
    Status { name: Option<LabName> },
    /// Become a command inside a namespace and a cgroup
    #[command(hide = true)]
    In {
        #[arg(long)]
        netns: PathBuf,
        #[arg(long)]
        cgroup: PathBuf,
        #[arg(long)]
        detach: bool,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Answer every connection with a name
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        pod: String,
        /// PORT=SERVICE
        #[arg(long = "port", required = true, value_parser = port_and_service)]
        ports: Vec<(u16, String)>,
        /// How long after it has been accepted a connection is answered
        #[arg(long, default_value_t = 0)]
        delay_ms: u64,
    },
    /// Open one connection a request and count who answers
    Client {
        /// ADDRESS:PORT[=SERVICE]
        #[arg(long = "target", required = true)]
        targets: Vec<Target>,
        #[arg(long, value_enum, default_value = "tcp")]
        transport: Transport,
        /// Requests a second; 0 is as fast as it can
        #[arg(long)]
        rate: Option<f64>,
        #[arg(long, default_value_t = 4)]
        workers: usize,
        /// Connected UDP sockets at a time, a worker
        #[arg(long, default_value_t = 1)]
        batch: usize,
        #[arg(long, default_value_t = 1000)]
        timeout_ms: u64,
        /// Report how long each TCP connect took
        #[arg(long)]
        timed: bool,
        /// Let a TCP connect block for as long as the kernel tries
        #[arg(long)]
        blocking: bool,
        /// Obey orders on standard input and report in JSON
        #[arg(long)]
        json_events: bool,
    },
    /// Connect without meaning it, and say what came of it
    #[command(hide = true)]
    Hostile {
        #[arg(long = "target", required = true)]
        targets: Vec<SocketAddr>,
        #[arg(long, value_enum, default_value = "connect")]
        behaviour: Behaviour,
        #[arg(long, default_value_t = 1)]
        connects: u64,
        #[arg(long, default_value_t = 0)]
        hold_ms: u64,
        #[arg(long)]
        wait_to_be_killed: bool,
    },
    /// Ask by one UDP socket, a datagram a line
    #[command(hide = true)]
    Flow {
        #[arg(long)]
        target: SocketAddr,
        #[arg(long)]
        connected: bool,
    },
    /// Keep a flow going in both directions, and tell of it for each line of standard input
    #[command(hide = true)]
    Long {
        #[arg(long)]
        target: SocketAddr,
        #[arg(long, value_enum)]
        kind: FlowKind,
    },
    /// Remove a lab when the owner of standard input is gone
    #[command(hide = true)]
    Warden { name: LabName },
}

fn port_and_service(text: &str) -> Result<(u16, String), String> {
    let (port, service) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not PORT=SERVICE"))?;
    Ok((
        port.parse()
            .map_err(|_| format!("{port:?} is not a port"))?,
        service.to_owned(),
    ))
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            commands::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let programs = || match &arguments.bin_dir {
        Some(dir) => Ok(Programs::in_dir(dir.clone())),
        None => Programs::beside_this_one(),
    };
    match arguments.command {
        Task::Up {
            file,
            name,
            bare,
            foreground,
        } => commands::up(&file, &name, bare, foreground, programs()?)?,
        Task::Demo { keep, json } => demo::run(programs()?, keep, json)?,
        Task::Down { name } => commands::down(&name)?,
        Task::Exec {
            name,
            place,
            command,
        } => return commands::exec(&name, &place, &command),
        Task::Status { name } => commands::status(name.as_ref())?,
        Task::In {
            netns,
            cgroup,
            detach,
            command,
        } => {
            isthmus_tests::process::become_in(&netns, &cgroup, detach, &command)?;
        }
        Task::Serve {
            pod,
            ports,
            delay_ms,
        } => isthmus_tests::serve::serve(&pod, &ports, Duration::from_millis(delay_ms))?,
        Task::Client {
            targets,
            transport,
            rate,
            workers,
            batch,
            timeout_ms,
            timed,
            blocking,
            json_events,
        } => {
            let timeout = Duration::from_millis(timeout_ms);
            let options = client::Options {
                targets,
                transport,
                rate,
                workers,
                batch,
                timeout,
                timed,
                blocking,
            };
            if json_events {
                client::run(&options)?
            } else {
                client::run_for_people(&options)?
            }
        }
        Task::Hostile {
            targets,
            behaviour,
            wait_to_be_killed: true,
            ..
        } => hostile::wait_to_be_killed(&targets, behaviour)?,
        Task::Hostile {
            targets,
            behaviour,
            connects,
            hold_ms,
            ..
        } => hostile::run(&hostile::Options {
            targets,
            behaviour,
            connects,
            hold: Duration::from_millis(hold_ms),
        })?,
        Task::Flow { target, connected } => isthmus_tests::flow::run(target, connected)?,
        Task::Long { target, kind } => isthmus_tests::long::run(target, kind)?,
        Task::Warden { name } => isthmus_tests::warden::watch(&name)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use clap::CommandFactory as _;

    use super::*;

    /// `cargo xtask` takes and refuses lines before it builds this program, by pages of its own.
    #[test]
    fn the_pages_of_xtask_know_every_option_of_what_people_call() {
        let program = Arguments::command();
        for (page, commands) in [
            (include_str!("../../xtask/src/help/demo.txt"), &["demo"][..]),
            (
                include_str!("../../xtask/src/help/lab.txt"),
                &["up", "down", "exec", "status"],
            ),
        ] {
            for name in commands {
                let command = program.find_subcommand(name).unwrap();
                assert!(page.contains(name), "{name}");
                for option in command.get_arguments() {
                    if let Some(long) = option.get_long() {
                        assert!(page.contains(&format!("[--{long}")), "{name}: --{long}");
                    }
                }
            }
        }
    }
}
