//! One linked cluster's stream, for as long as the link is there.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_core::mesh::{Backoff, Fault, FromServer, Terms};
use isthmus_core::model::ClusterName;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::config::MeshEndpoint;
use crate::dial::{Failure, connect};
use crate::hub::HubHandle;
use crate::seldom::Seldom;
use crate::tls::Tls;

/// What a link's file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkSpec {
    /// The peer's name.
    pub name: ClusterName,
    /// What the peer may be and say.
    pub terms: Terms,
    /// Tried in turn.
    pub endpoints: Vec<MeshEndpoint>,
    pub tls: crate::config::TlsPaths,
    pub file: PathBuf,
}

impl LinkSpec {
    /// A stream that this one made is as good as one that the other would make.
    pub(crate) fn leads_as(&self, other: &Self) -> bool {
        let way = |spec: &Self| (spec.endpoints.clone(), spec.tls.clone(), spec.terms.id);
        way(self) == way(other)
    }
}

/// Waits between tries: short, so that a mended wire is found at once; a try against a silent peer takes two seconds by
/// itself.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Waits after a refusal: somebody has to change something first.
const RETRY_REFUSED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// Before the server's hello.
const GREETING: Duration = Duration::from_secs(3);

/// Connects, listens, and connects again, until `shutdown`.
pub async fn run(link: Arc<LinkSpec>, hub: HubHandle, shutdown: CancellationToken) {
    let tls = Tls::new(link.tls.clone());
    let (mut broken, mut refused) = (
        Backoff::new(RETRY.0, RETRY.1),
        Backoff::new(RETRY_REFUSED.0, RETRY_REFUSED.1),
    );
    let mut seldom = Seldom::default();
    for endpoint in link.endpoints.iter().cycle() {
        let mut greeted = None;
        let attempt = attempt(&link, endpoint, &tls, &hub, &mut seldom, &mut greeted);
        let Some(failure) = shutdown.run_until_cancelled(attempt).await else {
            return;
        };
        let now = Instant::now();
        if let Some(since) = greeted {
            seldom.was_well(since, now);
        }
        if let Some(again) = seldom.due(&failure.words, now) {
            tracing::warn!(peer = %link.name, endpoint = %endpoint, error = failure.words, again, "link is not connected");
        }
        hub.close(link.name.clone(), failure.words, failure.refused)
            .await;
        if greeted.is_some() {
            broken.reset();
            refused.reset();
        }
        let backoff = if failure.refused {
            &mut refused
        } else {
            &mut broken
        };
        let wait = backoff.next(rand::random());
        if shutdown.run_until_cancelled(sleep(wait)).await.is_none() {
            return;
        }
    }
}

/// One connection's life.
async fn attempt(
    link: &LinkSpec,
    endpoint: &MeshEndpoint,
    tls: &Tls,
    hub: &HubHandle,
    seldom: &mut Seldom,
    greeted: &mut Option<Instant>,
) -> Failure {
    hub.dial(link.name.clone(), endpoint.to_string()).await;
    let transport = match connect(endpoint, Some(tls), &link.name).await {
        Ok(transport) => transport,
        Err(failure) => return failure,
    };
    let Some(hello) = hub.open(link.name.clone()).await else {
        return Fault::Unlinked.into();
    };
    let mut stream = match transport.watch(&hello).await {
        Ok(stream) => stream,
        Err(failure) => return failure,
    };
    let (mut patience, mut beat) = (GREETING, beats(Duration::from_secs(1)));
    let mut heard = Instant::now();
    loop {
        let said = tokio::select! {
            _ = beat.tick() => {
                stream.beat();
                continue;
            }
            // The stream is asked before the clock: what has come is heard, even if we were stopped for a while.
            said = timeout_at((heard + patience).into(), stream.next()) => said,
        };
        let said = match said {
            Ok(Ok(said)) => said,
            Ok(Err(failure)) => return failure,
            Err(_) => return Failure::silent(endpoint),
        };
        heard = Instant::now();
        let heartbeat = match &said.message {
            FromServer::Hello(hello) => Some(hello.heartbeat),
            _ => None,
        };
        match hub.receive(link.name.clone(), said).await {
            Ok(Some(id)) => stream.relist(id),
            Ok(None) => {}
            Err(fault) => return fault.into(),
        }
        if let Some(heartbeat) = heartbeat {
            *greeted = Some(Instant::now());
            if seldom
                .due(&format!("{endpoint} is connected"), Instant::now())
                .is_some()
            {
                tracing::info!(peer = %link.name, endpoint = %endpoint, "link is connected");
            }
            (patience, beat) = (3 * heartbeat, beats(heartbeat));
        }
    }
}

fn beats(every: Duration) -> Interval {
    let mut beats = interval(every);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats
}
