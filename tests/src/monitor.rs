//! `agentctl monitor` of a node, as scenarios follow it.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::client::monotonic;
use crate::lab::Node;
use crate::wait::{SOON, wait_for};

/// What it tells of one event, as far as scenarios ask.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub event: String,
    pub service: Option<String>,
    pub protocol: Option<String>,
    /// The backend's.
    pub address: Option<IpAddr>,
    /// The backend's, or the peer.
    pub cluster: Option<String>,
    pub cause: Option<String>,
    /// The client's mark.
    pub client: Option<u32>,
    /// Tiers' names; none for no backend at all.
    pub tier_before: Option<String>,
    pub tier: Option<String>,
    /// A peer's states.
    pub peer_before: Option<String>,
    pub peer: Option<String>,
    /// How many were lost.
    pub lost: Option<u64>,
    pub lasts_seconds: Option<f64>,
    /// When it was told here (`CLOCK_MONOTONIC`, nanoseconds).
    #[serde(skip)]
    pub at: u64,
}

/// A running `agentctl monitor`. It ends when dropped.
#[derive(Debug)]
pub struct Monitor {
    child: Child,
    told: Arc<Mutex<Vec<Event>>>,
}

impl Node<'_> {
    /// Starts one. It tells nothing of what was before its agent heard of it: see that it tells of something first.
    pub fn monitor(&self, arguments: &[&str]) -> Result<Monitor> {
        let mut command = Command::new(self.lab.programs.find("agentctl")?);
        command.args(["monitor", "-o", "json"]).args(arguments);
        command.arg("--socket").arg(self.agent_socket());
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("cannot start agentctl monitor")?;
        let lines = child.stdout.take().context("no output of agentctl")?;
        let told = Arc::new(Mutex::new(Vec::new()));
        let ours = Arc::clone(&told);
        std::thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                let Ok(event) = serde_json::from_str::<Event>(&line) else {
                    continue;
                };
                let at = monotonic();
                let mut told = ours.lock().unwrap_or_else(PoisonError::into_inner);
                told.push(Event { at, ..event });
            }
        });
        Ok(Monitor { child, told })
    }
}

impl Monitor {
    /// All that it has told so far.
    #[must_use]
    pub fn told(&self) -> Vec<Event> {
        let told = self.told.lock();
        told.unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// All of a kind that it has told so far.
    #[must_use]
    pub fn of(&self, kind: &str) -> Vec<Event> {
        let told = self.told().into_iter();
        told.filter(|event| event.event == kind).collect()
    }
    /// The same, once they are so many.
    pub fn wait(&self, kind: &str, least: usize) -> Result<Vec<Event>> {
        let what = format!("{least} of {kind} are told");
        let (_, told) = wait_for(&what, SOON, || {
            let told = self.of(kind);
            Ok((told.len() >= least).then_some(told))
        })?;
        Ok(told)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It may have ended already, with its agent.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
