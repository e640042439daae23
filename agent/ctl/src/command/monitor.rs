use std::process::ExitCode;

use anyhow::{Result, bail};
use isthmus_proto::node::v1 as proto;
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Global, Monitor};
use crate::client::Agent;
use crate::output::{Style, note, print_on, render_line};
use crate::report::monitor::{MonitorEvent, kinds};

/// Until Ctrl-C, until nobody reads, or until the agent ends: only the last is a failure.
pub async fn watch(global: &Global, filters: Monitor) -> Result<ExitCode> {
    let asked = proto::MonitorRequest {
        service: filters.service.unwrap_or_default(),
        kinds: filters
            .types
            .iter()
            .flat_map(|kind| kinds(*kind))
            .map(|kind| (*kind).into())
            .collect(),
        cluster: filters
            .cluster
            .map(|name| name.to_string())
            .unwrap_or_default(),
    };
    let mut events = Agent::connect(&global.socket).await?.monitor(asked).await?;
    // Before anybody is told that Ctrl-C ends it.
    let mut interrupt = signal(SignalKind::interrupt())?;
    note("Monitoring; Ctrl-C ends it.");
    let style = Style::for_stdout(global);
    loop {
        let message = tokio::select! {
            _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
            message = events.message() => message,
        };
        // A killed agent breaks the stream, one that stops ends it.
        let Ok(Some(event)) = message else {
            bail!(
                "the agent at {} has ended; nothing more is seen",
                global.socket.display()
            );
        };
        let event = MonitorEvent::new(event, OffsetDateTime::now_utc());
        if !print_on(&render_line(&event, global.output, style)?)? {
            return Ok(ExitCode::SUCCESS);
        }
    }
}
