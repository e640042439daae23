//! The way of rows, from decoded events to BPF maps, in this process: what a service costs (G8), and what one backend costs
//! in a service of any size (G9).

use std::fs;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use isthmus_agent::datapath::{Datapath, DatapathConfig, MapSizes, grace_period};
use isthmus_core::desired::{Here, Programmed, changes};
use isthmus_core::mesh::{Epoch, FromServer, Position, Sequenced};
use isthmus_core::model::{
    Affinity, Batch, ClusterId, Condition, EndpointPort, EndpointRow, ObjectName, PortRow,
    Protocol, RowChange, ServiceRow, ServiceRules,
};
use isthmus_core::reconcile::Reconciler;
use isthmus_core::store::{Owner, Store};
use isthmus_mesh::wire;
use nix::time::{ClockId, clock_gettime};
use prost::Message as _;
use serde_json::json;

use super::arena::{Arena, BACKENDS, SERVICE_CIDR};
use super::machine::pin;
use super::sheet::{Row, Sheet, Target, Unit};
use super::stats::{Estimate, Random, Rounds, column, quantile_estimate};

/// The agent's defaults.
const SIZES: MapSizes = MapSizes {
    services: 65536,
    backends: 65536,
    ring_slots: 262_144,
    affinity: 65536,
};
/// Writes of a round, as in the agent.
const ROUND_WRITES: u32 = 4096;

const SERVICES: u32 = 50_000;
const REPETITIONS: usize = 10;
const MICROSECONDS: f64 = 2.5;
const LIVE_BYTES: f64 = 350.0;
/// Cilium's published figures for a service.
const CILIUM_MICROSECONDS: f64 = 14.2;
const CILIUM_BYTES: f64 = 3500.0;

const ROUNDS: usize = 320;
/// Changes in a round, in each of the two services.
const CHANGES: usize = 16;
const SMALL: u32 = 100;
const HUGE: u32 = 10_000;
const CHURN_MICROSECONDS: f64 = 10.0;
const CHURN_BYTES: f64 = 128.0;
const CHURN_RATIO: f64 = 1.1;

/// Store, derivation and reconciler on maps of their own.
struct Way {
    here: Here<'static>,
    store: Store,
    reconciler: Reconciler,
    /// Keeps the maps.
    _datapath: Datapath,
}

impl Way {
    fn open(arena: &Arena) -> Result<Self> {
        let config = DatapathConfig {
            bpffs: arena.pins().to_owned(),
            cgroup: Some(arena.cgroup().to_owned()),
            sizes: SIZES,
            service_cidrs: vec![SERVICE_CIDR.parse()?],
            translate_pods: true,
            refuse_unknown_port: true,
            refuse_errno: nix::libc::ECONNREFUSED.cast_unsigned(),
            passive_health: true,
        };
        let datapath = Datapath::open(&config)?;
        let cluster = ClusterId::try_from(1)?;
        let (reconciler, found) = Reconciler::adopt(datapath.tables()?, cluster)?;
        ensure!(found.services == 0, "the maps are not new");
        Ok(Self {
            here: Here {
                cluster,
                node: "",
                programmed: Programmed::All,
            },
            store: Store::new(),
            reconciler,
            _datapath: datapath,
        })
    }

    /// Takes a batch until nothing is left to write.
    fn take(&mut self, batch: &Batch) -> Result<Ran> {
        let begun = ran()?;
        let dirty = self.store.apply(Owner::Local, batch);
        let stored = ran()?;
        for change in changes(self.here, self.store.now(), &dirty) {
            self.reconciler.apply(change);
        }
        let derived = ran()?;
        let mut waited = Duration::ZERO;
        loop {
            let progress = self.reconciler.step(Instant::now(), ROUND_WRITES);
            if let Some(ticket) = progress.want_grace {
                let before = ran()?;
                grace_period()?;
                waited += ran()? - before;
                self.reconciler.grace_passed(ticket);
            } else if progress.idle {
                break;
            }
        }
        let counts = self.reconciler.counts();
        ensure!(counts.failing == 0, "{} rows failed", counts.failing);
        Ok(Ran {
            stored: stored - begun,
            derived: derived - stored,
            written: ran()? - derived - waited,
        })
    }
}

/// How long this thread ran, grace periods apart.
#[derive(Clone, Copy, Debug)]
struct Ran {
    stored: Duration,
    derived: Duration,
    written: Duration,
}

impl Ran {
    fn all(self) -> Duration {
        self.stored + self.derived + self.written
    }
}

/// What this thread has run.
fn ran() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Names that many rows share are one, as decoders make them.
struct Names {
    namespace: Arc<str>,
    empty: Arc<str>,
    node: Arc<str>,
}

impl Names {
    fn new() -> Self {
        Self {
            namespace: "bench".into(),
            empty: "".into(),
            node: "node-1".into(),
        }
    }

    fn of(&self, service: u32) -> ObjectName {
        ObjectName {
            namespace: self.namespace.clone(),
            name: format!("service-{service:05}").into(),
        }
    }

    fn service(&self, service: u32, name: &ObjectName) -> RowChange {
        let row = ServiceRow {
            name: name.clone(),
            addresses: vec![Ipv4Addr::from(0x0a60_0100 + service).into()],
            ports: vec![PortRow {
                name: self.empty.clone(),
                protocol: Protocol::Tcp,
                port: 80,
            }],
            global: false,
            shared: false,
            affinity: Affinity::None,
            rules: ServiceRules::default(),
        };
        RowChange::Service(Arc::new(row))
    }

    fn endpoint(&self, name: &ObjectName, host: u32, condition: Condition) -> RowChange {
        let row = EndpointRow {
            service: name.clone(),
            address: Ipv4Addr::from(BACKENDS.0 + 256 + host).into(),
            ports: vec![EndpointPort {
                name: self.empty.clone(),
                protocol: Protocol::Tcp,
                port: 8080,
            }],
            condition,
            reason: self.empty.clone(),
            node: self.node.clone(),
            zone: self.empty.clone(),
        };
        RowChange::Endpoint(Arc::new(row))
    }
}

/// G8.
pub fn services(batches: Option<usize>) -> Result<Sheet> {
    let repetitions = batches.unwrap_or(REPETITIONS).max(2);
    let names = Names::new();
    let cpu = pin()?;
    let (mut times, mut parts, mut live) = (Vec::new(), Vec::new(), 0.0);
    for repetition in 0..repetitions {
        let arena = Arena::enter()?;
        let mut way = Way::open(&arena)?;
        let before = anonymous()?;
        let mut rows = Vec::with_capacity(2 * SERVICES as usize);
        for service in 0..SERVICES {
            let name = names.of(service);
            rows.push(names.service(service, &name));
            rows.push(names.endpoint(&name, service, Condition::Ready));
        }
        let batch = Batch {
            changes: rows,
            complete: true,
        };
        let taken = way.take(&batch)?;
        ensure!(
            way.reconciler.counts().services == SERVICES,
            "not every service is there"
        );
        times.push(micros(taken.all()) / f64::from(SERVICES));
        parts.push([taken.stored, taken.derived, taken.written]);
        drop(batch);
        // The first time only: what is freed stays with the process, and the next finds room in it.
        if repetition == 0 {
            live = (anonymous()? - before) / f64::from(SERVICES);
        }
    }
    let part = |what: &str, place: usize| {
        let times: Vec<f64> = parts
            .iter()
            .map(|parts: &[Duration; 3]| micros(parts[place]) / f64::from(SERVICES))
            .collect();
        Row::new(what, quantile_estimate(&times, 0.5), Unit::Microseconds)
    };
    Ok(Sheet {
        title: "services programmed: 50,000 of one backend each, from decoded rows to maps",
        method: format!(
            "store, derivation and reconciliation in this process on {cpu}, with real maps; time is the thread's own, grace periods apart, {repetitions} times; \
             memory is what became anonymous and stayed, the rows among it, with the allocator's slack; [95% bootstrap interval]; Cilium's figures were not \
             measured here"
        ),
        rows: vec![
            Row::new(
                "CPU for a service, p50",
                quantile_estimate(&times, 0.5),
                Unit::Microseconds,
            )
            .recorded("Cilium, recorded", CILIUM_MICROSECONDS)
            .at_most(Target::Ours(MICROSECONDS)),
            Row::new(
                "CPU for a service, min",
                quantile_estimate(&times, 0.0),
                Unit::Microseconds,
            ),
            part("of that, p50: into the store", 0),
            part("derived, and taken in by the reconciler", 1),
            part("worked off, and written to the kernel", 2),
            Row::new(
                "live memory of a service",
                Estimate::exact(live),
                Unit::Bytes,
            )
            .recorded("Cilium, recorded", CILIUM_BYTES)
            .at_most(Target::Ours(LIVE_BYTES)),
        ],
        raw: json!({"unit": "microseconds", "times": times, "live_bytes": live}),
    })
}

/// G9.
pub fn churn(batches: Option<usize>) -> Result<Sheet> {
    let rounds = batches.unwrap_or(ROUNDS).max(2);
    let names = Names::new();
    let cpu = pin()?;
    let arena = Arena::enter()?;
    let mut way = Way::open(&arena)?;
    let both = [(names.of(0), SMALL), (names.of(1), HUGE)];
    let mut all = Vec::new();
    for (service, (name, size)) in (0..).zip(&both) {
        all.push(names.service(service, name));
        all.extend((0..*size).map(|host| names.endpoint(name, host, Condition::Ready)));
    }
    way.take(&Batch {
        changes: all,
        complete: true,
    })?;
    let mut random = Random::new(9);
    let mut measured = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let mut round = Vec::with_capacity(both.len());
        for (name, size) in &both {
            let mut taken = Duration::ZERO;
            for _ in 0..CHANGES {
                let host = u32::try_from(random.below(*size as usize))?;
                // It goes, and comes again.
                for condition in [Condition::NotReady, Condition::Ready] {
                    let ran = way.take(&Batch {
                        changes: vec![names.endpoint(name, host, condition)],
                        complete: false,
                    })?;
                    taken += ran.all();
                }
            }
            #[expect(clippy::cast_precision_loss, reason = "a small constant")]
            round.push(micros(taken) / (2 * CHANGES) as f64);
        }
        measured.push(round);
    }
    let mut kept = Rounds::default();
    kept.push_load(measured);
    let at = |place| kept.estimate(move |rounds| column(rounds, place, 0.1));
    let ratio = kept.estimate(|rounds| column(rounds, 1, 0.1) / column(rounds, 0, 0.1));
    let small = at(0);
    let sent = encoded(&names, &both[1].0)?;
    Ok(Sheet {
        title: "one backend changes, in a service of 10,000 and in one of 100",
        method: format!(
            "store, derivation and reconciliation in this process on {cpu}, with real maps; time is the thread's own, grace periods apart; 10th percentile \
             over {rounds} interleaved rounds of {CHANGES} random endpoints that become unready and ready again; bytes are those of the mesh message with its \
             frame; [95% bootstrap interval]"
        ),
        rows: vec![
            Row::new(
                format!("CPU for a change, {HUGE} backends"),
                at(1),
                Unit::Microseconds,
            )
            .at_most(Target::Ours(CHURN_MICROSECONDS)),
            Row::new(
                format!("the same over {SMALL} backends"),
                at(1),
                Unit::Microseconds,
            )
            .beside(format!("{SMALL} backends"), small.value, ratio)
            .at_most(Target::Ratio(CHURN_RATIO)),
            Row::new(
                "bytes on the wire",
                Estimate::exact(f64::from(sent)),
                Unit::Bytes,
            )
            .at_most(Target::Ours(CHURN_BYTES)),
        ],
        raw: json!({"unit": "microseconds", "rounds": kept}),
    })
}

/// Bytes that a mesh server sends for one endpoint's change.
fn encoded(names: &Names, name: &ObjectName) -> Result<u32> {
    /// What gRPC puts before a message: a flag and a length.
    const FRAME: usize = 5;
    let message = FromServer::Rows {
        id: ClusterId::try_from(2)?,
        changes: vec![names.endpoint(name, 7, Condition::Ready)],
        bad: Vec::new(),
        position: Some(Position {
            epoch: Epoch(u64::MAX / 3),
            revision: 1_000_000,
            digest: u64::MAX / 3,
        }),
    };
    let said = Sequenced {
        sequence: 1_000_000,
        message,
    };
    Ok(u32::try_from(wire::say(said).encoded_len() + FRAME)?)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Anonymous memory of this process, in bytes.
fn anonymous() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kib.context("/proc/self/status has no RssAnon")? * 1024.0)
}
