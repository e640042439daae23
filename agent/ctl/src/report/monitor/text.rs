use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::{Happened, MonitorEvent};
use crate::output::{Paint, Style};
use crate::report::mesh::PeerState;
use crate::text::{address_port, clean, count};

const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// `2026-01-02T03:04:05.678Z  ejected          production/backend http/TCP 10.11.1.5:8080 (east): refused, for 5.2s`.
pub(super) fn line(event: &MonitorEvent, style: Style) -> String {
    // A time without a text is not worth a panic.
    let time = event.time.format(TIME).unwrap_or_default();
    let (word, paint) = word(event.event);
    let pad = " ".repeat(WORD_WIDTH.saturating_sub(word.len()));
    format!(
        "{time}  {}{pad}  {}\n",
        style.paint(paint, word),
        clean(&event.text)
    )
}

const WORD_WIDTH: usize = "trial-abandoned".len();

fn word(event: Happened) -> (&'static str, Paint) {
    match event {
        Happened::Ejected => ("ejected", Paint::Bad),
        Happened::TrialBegan => ("trial-began", Paint::Plain),
        Happened::TrialFailed => ("trial-failed", Paint::Bad),
        Happened::TrialAbandoned => ("trial-abandoned", Paint::Warn),
        Happened::Returned => ("returned", Paint::Good),
        Happened::Closed => ("closed", Paint::Warn),
        Happened::Disbelieved => ("disbelieved", Paint::Warn),
        Happened::Capped => ("capped", Paint::Warn),
        Happened::Refused => ("refused", Paint::Bad),
        Happened::AllEjected => ("all-ejected", Paint::Bad),
        Happened::Tier => ("tier", Paint::Warn),
        Happened::Peer => ("peer", Paint::Warn),
        Happened::Untold => ("untold", Paint::Warn),
        Happened::Lost => ("lost", Paint::Bad),
        Happened::Unknown => ("unknown", Paint::Warn),
    }
}

/// Whom it is about, and what happened.
pub(super) fn sentence(event: &MonitorEvent) -> String {
    match event.event {
        Happened::Untold => {
            let lost = event.lost.unwrap_or_default();
            format!("{lost} more came too fast to be told one by one")
        }
        Happened::Lost => {
            let lost = count(event.lost.unwrap_or_default(), "event");
            format!("{lost} lost: this monitor was too slow")
        }
        _ => format!("{}: {}", subject(event), news(event)),
    }
}

fn subject(event: &MonitorEvent) -> String {
    let mut parts = Vec::new();
    if let Some(service) = &event.service {
        parts.push(service.clone());
        let names = [&event.port_name, &event.protocol];
        let port: Vec<&str> = names.into_iter().flatten().map(String::as_str).collect();
        parts.push(port.join("/"));
    } else if let Some(index) = event.service_index {
        parts.push(format!("service {index}, gone meanwhile"));
    }
    if let (Some(address), Some(port)) = (&event.address, event.port) {
        parts.push(address_port(address, port));
    }
    if let Some(cluster) = &event.cluster {
        parts.push(if event.address.is_some() {
            format!("({cluster})")
        } else {
            cluster.clone()
        });
    }
    if parts.is_empty() {
        return "-".to_owned();
    }
    parts.join(" ")
}

fn news(event: &MonitorEvent) -> String {
    let client = || match event.client {
        Some(client) => format!("client {client}"),
        None => "a client".to_owned(),
    };
    let lasts = match event.lasts_seconds {
        Some(lasts) => format!(" for {lasts}"),
        None => String::new(),
    };
    let cause = match &event.cause {
        Some(cause) => format!("{}, ", cause.replace('_', " ")),
        None => String::new(),
    };
    match event.event {
        Happened::Ejected => format!("{cause}left out{lasts}"),
        Happened::TrialBegan => format!("{} tries it", client()),
        Happened::TrialFailed => {
            let times = event.doublings.unwrap_or_default().saturating_add(1);
            format!("{cause}left out{lasts}, the {times}. time in a row")
        }
        Happened::TrialAbandoned => "it ended without a word, the next client tries".to_owned(),
        Happened::Returned => "takes connections again".to_owned(),
        Happened::Closed => format!("{cause}closed to {} alone{lasts}", client()),
        Happened::Disbelieved => format!(
            "{} failed at two backends, its failures do not count until it succeeds",
            client()
        ),
        Happened::Capped => "an ejection was due, and the limit does not allow it".to_owned(),
        Happened::Refused => {
            let reason = event.cause.as_deref().unwrap_or("unknown");
            format!("a connect was refused, {}", reason.replace('_', " "))
        }
        Happened::AllEjected => "every backend is ejected, drawn as if none were".to_owned(),
        Happened::Tier => {
            let tier = |tier: &Option<String>| match tier {
                Some(tier) => tier.clone(),
                None => "no backend".to_owned(),
            };
            format!(
                "{} serves now, {} before",
                tier(&event.tier),
                tier(&event.tier_before)
            )
        }
        Happened::Peer => {
            let why = match &event.cause {
                Some(cause) => format!(", last error {cause}"),
                None => String::new(),
            };
            format!(
                "{} now, {} before{why}",
                peer(event.peer),
                peer(event.peer_before)
            )
        }
        Happened::Untold | Happened::Lost | Happened::Unknown => {
            "this agentctl does not know what the agent said".to_owned()
        }
    }
}

fn peer(state: Option<PeerState>) -> &'static str {
    match state {
        Some(PeerState::Connecting) => "connecting",
        Some(PeerState::Connected) => "connected",
        Some(PeerState::Stale) => "stale",
        Some(PeerState::Dropped) => "dropped",
        Some(PeerState::Refused) => "refused",
        Some(PeerState::Unknown) => "unknown",
        None => "not linked",
    }
}
