//! The command line of Isthmus. It asks the node's agent over a unix socket, and writes links and certificates.
//!
//! `command` acts, `report` holds what is shown and judges it, `table` and `text` lay it out. Everything in `report` is
//! a pure function of the agent's answer.
#![forbid(unsafe_code)]

mod cli;
mod client;
mod command;
mod output;
mod report;
#[cfg(test)]
mod schemas;
mod table;
mod text;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return output::fail(&anyhow::Error::new(error)),
    };
    match runtime.block_on(command::run(cli)) {
        Ok(code) => code,
        Err(error) => output::fail(&error),
    }
}
