//! One linked cluster's stream, for as long as the link is there.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_core::mesh::{Fault, FromServer, Patience, Terms};
use isthmus_core::model::ClusterName;
use tokio::time::{sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::config::MeshEndpoint;
use crate::dial::{Failure, connect};
use crate::hub::HubHandle;
use crate::redial::{Redial, beats};
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
    /// `tls` is what the file names, else the mesh server's own.
    pub names_tls: bool,
    pub file: PathBuf,
}

impl LinkSpec {
    /// A stream that this one made is as good as one that the other would make. Certificates that a link gets may be the
    /// mesh server's own; but whoever gave them waits for a stream with them, and cannot know that.
    pub(crate) fn leads_as(&self, other: &Self) -> bool {
        let way = |spec: &Self| {
            let tls = (spec.tls.clone(), spec.names_tls);
            (spec.endpoints.clone(), tls, spec.terms.id)
        };
        way(self) == way(other)
    }
}

/// The first wait before a connection is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// Connects, listens, and connects again, until `shutdown`.
pub async fn run(link: Arc<LinkSpec>, hub: HubHandle, shutdown: CancellationToken) {
    let tls = Tls::new(link.tls.clone());
    let mut redial = Redial::new(RETRY);
    for endpoint in link.endpoints.iter().cycle() {
        let attempt = attempt(&link, endpoint, &tls, &hub, &mut redial);
        let Some(failure) = shutdown.run_until_cancelled(attempt).await else {
            return;
        };
        let next = redial.fail(&failure, Instant::now());
        if let Some(again) = next.say {
            tracing::warn!(peer = %link.name, endpoint = %endpoint, error = failure.words, again, "link is not connected");
        }
        hub.close(link.name.clone(), failure.words, failure.refused)
            .await;
        if shutdown
            .run_until_cancelled(sleep(next.wait))
            .await
            .is_none()
        {
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
    redial: &mut Redial,
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
    let (mut patience, mut beat) = (Patience::new(Instant::now()), beats(Duration::from_secs(1)));
    loop {
        let said = tokio::select! {
            _ = beat.tick() => {
                stream.beat();
                continue;
            }
            // The stream is asked before the clock.
            said = timeout_at(patience.deadline().into(), stream.next()) => said,
        };
        let said = match said {
            Ok(Ok(said)) => said,
            Ok(Err(failure)) => return failure,
            Err(_) if patience.judge(Instant::now()).is_ok() => continue,
            Err(_) => return Failure::silent(endpoint),
        };
        patience.hear(Instant::now());
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
            if redial.greet(Instant::now()) {
                tracing::info!(peer = %link.name, endpoint = %endpoint, "link is connected");
            }
            patience.greet(heartbeat);
            beat = beats(heartbeat);
        }
    }
}
