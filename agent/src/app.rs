//! Puts the parts together: the only file that knows every one, and their order of start and stop.
//!
//! Start: datapath (maps, programs), what the maps already hold, the engine, the sources, then API and HTTP. Stop: all of
//! them at once, and the process when the last has written what it keeps; the datapath stays as it is. A part that ends
//! before that ends the agent, with exit status 1.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Context;
use isthmus_core::desired::Here;
use isthmus_core::manifest::ManifestOptions;
use isthmus_core::reconcile::Reconciler;
use isthmus_core::store::Owner;
use isthmus_mesh::http::{self, Hold, Readiness};
use isthmus_mesh::parts::{Parts, STOP_TIME};
use isthmus_mesh::source::files::{self, SourceStatus, SourceUpdate};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::api::{self, ApiSocket};
use crate::config::{AgentArgs, Switch};
use crate::datapath::{self, Datapath};
use crate::engine::{Engine, Event, Start};
use crate::events::{self, Monitors};
use crate::metrics::NodeMetrics;
use crate::tally::Tally;
use crate::view::View;

/// Events that wait for the engine. A source that is faster waits itself.
const EVENTS_MAX: usize = 256;

/// Runs the agent until it is told to stop.
///
/// # Errors
/// If it cannot start. Nothing that is attached is taken away.
pub fn run(args: AgentArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    datapath::share_one_heap();
    let mut datapath = Datapath::open(&args.datapath()?)?;
    let (reconciler, adopted) = Reconciler::adopt(datapath.tables()?, args.cluster()?.id)
        .context("reading back the maps")?;
    info!(?adopted, serving = datapath.adopted(), "maps opened");
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(
        args,
        started,
        datapath_parts(&mut datapath),
        datapath,
        reconciler,
    ));
    // Blocking calls to a dead file system or peer must not hold up the end.
    runtime.shutdown_background();
    result
}

fn datapath_parts(datapath: &mut Datapath) -> Start {
    let serving = datapath.adopted();
    Start {
        serving,
        replaces: !serving && datapath.is_linked(),
        follows: datapath.is_linked(),
    }
}

async fn serve(
    args: AgentArgs,
    started: Instant,
    start: Start,
    mut datapath: Datapath,
    reconciler: Reconciler,
) -> anyhow::Result<()> {
    if let Some(words) = datapath.words() {
        info!("programs of a debugging build: they say what they do at the level debug");
        tokio::spawn(words.pass_on());
    }
    let shutdown = CancellationToken::new();
    let readiness = Readiness::default();
    let cluster = args.cluster()?;
    let node = args.node_name();
    let here = Here {
        cluster: cluster.id,
        node: &node,
        programmed: args.services.into(),
    };
    let ring = datapath.events()?;
    let counters = datapath.counter_reader()?;
    let tally = Arc::new(Tally::new(&datapath)?);
    let datapath = Arc::new(Mutex::new(datapath));
    let monitors = Arc::new(Monitors::default());

    let attach_hold = readiness.hold("the programs are not attached yet");
    let (mut engine, published) = Engine::new(
        here,
        reconciler,
        Arc::clone(&datapath),
        Arc::clone(&monitors),
        Arc::clone(&tally),
        &start,
        attach_hold,
    )?;
    if start.serving {
        engine.take_over();
    }
    let (sender, engine_events) = mpsc::channel(EVENTS_MAX);
    let mut parts = Parts::default();
    parts.spawn("the engine", engine.run(engine_events, shutdown.clone()));
    parts.spawn(
        "the reader of what programs tell",
        events::read_ring(
            ring,
            counters,
            sender.clone(),
            Arc::clone(&monitors),
            shutdown.clone(),
        ),
    );

    let dir = args.source_dir();
    let location = format!("dir:{}", dir.display());
    let source_hold = readiness.hold(format!("the first list of {location} is not complete"));
    let updates = files::watch(
        dir,
        ManifestOptions {
            service_cidrs: args.service_cidr.clone(),
        },
        shutdown.clone(),
    );
    let (source_status, source) = watch::channel(Arc::new(SourceStatus::new(location)));
    parts.run(
        "the source",
        from_source(
            updates,
            source_status,
            source_hold,
            sender.clone(),
            shutdown.clone(),
        ),
    );

    let mesh = crate::mesh::start(&mut parts, &args, &cluster, sender, shutdown.clone())?;
    if let Some(mesh) = mesh.clone() {
        parts.run(
            "the watcher of peers",
            events::watch_peers(mesh, Arc::clone(&monitors), shutdown.clone()),
        );
    }

    let view = Arc::new(View {
        cluster: cluster.name,
        cluster_id: cluster.id,
        programmed: args.services.into(),
        node,
        started,
        bpffs: args.bpffs_dir(),
        readiness: readiness.clone(),
        datapath,
        published,
        source,
        mesh,
        monitors,
        shutdown: shutdown.clone(),
        passive_health: args.passive_health == Switch::On,
        peer_stale_after: args.peer_stale_after,
        cluster_ttl: args.cluster_ttl,
    });
    let socket = ApiSocket::bind(&args.socket, &args.socket_group)?;
    parts.spawn(
        "the node API",
        api::serve(socket, Arc::clone(&view), shutdown.clone()),
    );
    let mut registry = http::registry("isthmus-agent", env!("CARGO_PKG_VERSION"));
    registry.register_collector(Box::new(NodeMetrics { view, tally }));
    let listener = http::listen(&args.http).await?;
    parts.run(
        "the HTTP server",
        http::serve(listener, Arc::new(registry), readiness, shutdown.clone()),
    );

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = parts.first_end() => Err(ended),
    };
    info!("stopping; the datapath keeps working. `isthmus-agent cleanup` removes it");
    shutdown.cancel();
    Ok(result.and(parts.finish(STOP_TIME).await)?)
}

/// Passes on what the source says, and keeps its status for those who ask. A source that hangs does not hold up the end.
async fn from_source(
    mut updates: mpsc::Receiver<SourceUpdate>,
    status: watch::Sender<Arc<SourceStatus>>,
    hold: Hold,
    events: mpsc::Sender<Event>,
    shutdown: CancellationToken,
) {
    let mut hold = Some(hold);
    let mut sound = None;
    while let Some(Some(update)) = shutdown.run_until_cancelled(updates.recv()).await {
        if update.batch.complete {
            hold = None;
        }
        if let (Some(hold), Some((cause, _))) = (&hold, &update.status.unreadable) {
            hold.because(format!("{}: {cause}", update.status.location));
        }
        let is_sound = update.status.is_sound();
        status.send_replace(update.status);
        let rows = (!update.batch.is_empty()).then_some(Event::Rows {
            owner: Owner::Local,
            batch: update.batch,
            seen: update.seen,
        });
        let said = (sound.replace(is_sound) != Some(is_sound)).then_some(Event::Sound(is_sound));
        for event in rows.into_iter().chain(said) {
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_source_that_hangs_does_not_hold_up_the_end() {
        let (_hangs, updates) = mpsc::channel(1);
        let (status, _) = watch::channel(Arc::new(SourceStatus::new("dir:/dead".to_owned())));
        let hold = Readiness::default().hold("its first list");
        let (events, _engine) = mpsc::channel(1);
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let ended = from_source(updates, status, hold, events, shutdown);
        let ended = tokio::time::timeout(Duration::from_secs(20), ended).await;
        assert!(ended.is_ok());
    }
}
