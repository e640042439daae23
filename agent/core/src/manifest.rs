//! Manifests as a source: files become objects, objects become rows.
//!
//! [`Manifests`] is told of files and gives batches of row changes. It does what an API server and its controllers would
//! have done with the same objects: addresses for Services that have none, endpoints from selectors and Pods where
//! there are no EndpointSlices. What is wrong is said in the user's words, and what was good before stays.

mod address;
mod annotation;
mod decode;
mod document;
mod endpoint;
mod intern;
mod labels;
mod namespaces;
mod object;
mod pod;
mod service;
mod slice;
#[cfg(test)]
mod tests;
mod unhandled;
mod world;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::model::{Batch, ObjectName, Problem, ProblemKind};

use address::Cidrs;
use intern::Interner;
use object::{Contents, Object, ObjectId, Placed};
use world::World;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ManifestOptions {
    /// `--service-cidr`: ranges for addresses of Services that give none. The first one of a family counts, and the
    /// first of all gives its family to a Service that asks for none.
    ///
    /// Empty where nobody connects to these Services, as in a mesh server: none has an address but those that it gives,
    /// and one that asks for no family has endpoints of both.
    pub service_cidrs: Vec<ipnet::IpNet>,
}

/// What a path holds now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileContent {
    Present(Arc<[u8]>),
    /// The file is gone, and its objects with it.
    Removed,
    /// The file is there and cannot be read, for this reason; what was read before stays.
    Unreadable(String),
}

/// What there is, for people.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ManifestSummary {
    pub files: usize,
    /// Rows as of the last batch.
    pub services: usize,
    pub endpoints: usize,
    /// Objects of kinds that Isthmus knows, handled by this version or not, by kind.
    pub objects: BTreeMap<String, usize>,
    /// Objects of other kinds, by `Kind.group` (`Deployment.apps`; only `ConfigMap` in the core group).
    pub unknown_kinds: BTreeMap<String, usize>,
}

/// All files of a source and the rows that they make. Holds objects, not text.
#[derive(Debug)]
pub struct Manifests {
    cidrs: Cidrs,
    files: BTreeMap<Arc<str>, File>,
    /// Who names an object, in the order of paths; the first one holds it.
    named: HashMap<ObjectId, Vec<Named>>,
    /// Objects that are named more than once.
    repeated: BTreeSet<ObjectId>,
    world: World,
    texts: Interner,
    /// Sums over all files, kept as files change.
    known: BTreeMap<&'static str, usize>,
    unknown: BTreeMap<String, usize>,
    /// Files with faults or findings.
    telling: BTreeSet<Arc<str>>,
    revision: u64,
}

#[derive(Debug, Default)]
struct File {
    /// The last content without a fault.
    good: Option<Good>,
    /// What is wrong with the content now.
    faults: Vec<Problem>,
}

#[derive(Debug)]
struct Good {
    since: Duration,
    /// In the order of the file.
    objects: Vec<ObjectId>,
    findings: Vec<Problem>,
    /// As vectors, not maps: ten thousand files of one kind each are usual.
    known: Vec<(&'static str, usize)>,
    unknown: Vec<(String, usize)>,
}

/// One place that names an object. Orders by path, then by the place in the file.
#[derive(Debug)]
struct Named {
    path: Arc<str>,
    line: u32,
    object: Object,
}

impl Manifests {
    #[must_use]
    pub fn new(options: ManifestOptions) -> Self {
        Self {
            cidrs: Cidrs::new(&options.service_cidrs),
            files: BTreeMap::new(),
            named: HashMap::new(),
            repeated: BTreeSet::new(),
            world: World::default(),
            texts: Interner::default(),
            known: BTreeMap::new(),
            unknown: BTreeMap::new(),
            telling: BTreeSet::new(),
            revision: 0,
        }
    }

    /// A file is new, changed, gone, or was read once more. `path` is relative to the source's root; `now` only serves
    /// the ages in messages. Costs what the file holds, whatever else there is.
    pub fn update(&mut self, path: &str, content: FileContent, now: Duration) {
        match content {
            FileContent::Removed => {
                let Some(file) = self.files.remove(path) else {
                    return;
                };
                let told = self.telling.remove(path);
                self.told_changes(told);
                if let Some(good) = file.good {
                    self.count(None, Some(&good));
                    self.replace(&Arc::from(path), &good.objects, Vec::new());
                }
            }
            FileContent::Unreadable(cause) => {
                self.fault(
                    path,
                    vec![whole_file(path, format!("cannot be read: {cause}"))],
                );
            }
            FileContent::Present(bytes) => {
                // A writer empties a file before it fills it. Who wants its objects gone removes the file.
                let emptied = bytes.iter().all(u8::is_ascii_whitespace) && self.has_objects(path);
                let read = if emptied {
                    Err(vec![whole_file(
                        path,
                        "is empty; remove the file to remove its objects".to_owned(),
                    )])
                } else {
                    object::read(path, &bytes, &self.cidrs, &mut self.texts)
                };
                match read {
                    Ok(contents) => self.accept(path, contents, now),
                    Err(faults) => self.fault(path, faults),
                }
            }
        }
    }

    /// The file is not used as it stands; what was good before stays.
    fn fault(&mut self, path: &str, faults: Vec<Problem>) {
        let (path, file) = self.file(path);
        let changed = file.faults != faults;
        file.faults = faults;
        self.telling.insert(path);
        self.told_changes(changed);
    }

    fn told_changes(&mut self, changed: bool) {
        self.revision += u64::from(changed);
    }

    /// Whether objects are told of together, so that any change may change what is told of others.
    fn has_rivals(&self) -> bool {
        !self.repeated.is_empty()
            || !self.world.namespaces().overruled().is_empty()
            || self.world.addresses().contested().next().is_some()
    }

    fn count(&mut self, came: Option<&Good>, gone: Option<&Good>) {
        if let Some(good) = came {
            for (kind, count) in &good.known {
                *self.known.entry(kind).or_default() += count;
            }
            for (kind, count) in &good.unknown {
                *self.unknown.entry(kind.clone()).or_default() += count;
            }
        }
        if let Some(good) = gone {
            for (kind, count) in &good.known {
                *self.known.entry(kind).or_default() -= count;
            }
            for (kind, count) in &good.unknown {
                *self.unknown.entry(kind.clone()).or_default() -= count;
            }
            self.known.retain(|_, count| *count != 0);
            self.unknown.retain(|_, count| *count != 0);
        }
    }

    fn file(&mut self, path: &str) -> (Arc<str>, &mut File) {
        let path = match self.files.get_key_value(path) {
            Some((path, _)) => path.clone(),
            None => path.into(),
        };
        (path.clone(), self.files.entry(path).or_default())
    }

    fn has_objects(&self, path: &str) -> bool {
        let good = self.files.get(path).and_then(|file| file.good.as_ref());
        good.is_some_and(|good| !good.known.is_empty() || !good.unknown.is_empty())
    }

    fn accept(&mut self, path: &str, contents: Contents, now: Duration) {
        let Contents {
            objects,
            findings,
            known,
            unknown,
        } = contents;
        let ids = objects.iter().map(|placed| placed.id.clone()).collect();
        let good = Good {
            since: now,
            objects: ids,
            findings,
            known: known.into_iter().collect(),
            unknown: unknown.into_iter().collect(),
        };
        let before = self.files.get_mut(path).and_then(|file| file.good.take());
        self.count(Some(&good), before.as_ref());
        let (had_objects, had_findings) = before
            .map(|good| (good.objects, good.findings))
            .unwrap_or_default();
        let (path, file) = self.file(path);
        let changed = !file.faults.is_empty() || had_findings != good.findings;
        file.faults.clear();
        let tells = !good.findings.is_empty();
        file.good = Some(good);
        if tells {
            self.telling.insert(path.clone());
        } else {
            self.telling.remove(&path);
        }
        self.told_changes(changed);
        self.replace(&path, &had_objects, objects);
    }

    /// A file's objects in place of those that it had.
    fn replace(&mut self, path: &Arc<str>, before: &[ObjectId], after: Vec<Placed>) {
        let had_rivals = self.has_rivals();
        let mut touched: BTreeMap<ObjectId, Option<Object>> = BTreeMap::new();
        for id in before.iter().chain(after.iter().map(|placed| &placed.id)) {
            if !touched.contains_key(id) {
                let holder = self
                    .named
                    .get(id)
                    .and_then(|named| named.first())
                    .map(|named| named.object.clone());
                touched.insert(id.clone(), holder);
            }
        }
        for id in before {
            if let Some(named) = self.named.get_mut(id) {
                named.retain(|one| one.path != *path);
            }
        }
        for placed in after {
            let named = self.named.entry(placed.id).or_default();
            let at = named.partition_point(|one| one.path <= *path);
            named.reserve_exact(1);
            named.insert(
                at,
                Named {
                    path: path.clone(),
                    line: placed.line,
                    object: placed.object,
                },
            );
        }
        for (id, old) in touched {
            let named = self.named.get(&id).map(Vec::as_slice).unwrap_or_default();
            let new = named.first().map(|named| named.object.clone());
            match named.len() {
                0 | 1 => self.repeated.remove(&id),
                _ => self.repeated.insert(id.clone()),
            };
            if new.is_none() {
                self.named.remove(&id);
            }
            if old != new {
                self.world.apply(&id, old, new, &mut self.texts);
            }
        }
        self.told_changes(had_rivals || self.has_rivals());
    }

    /// The net changes of rows since the last call, in an order that depends on nothing but the rows. What became equal
    /// again in between is not in it. `complete` is false: whoever lists the files knows.
    #[must_use]
    pub fn take_batch(&mut self) -> Batch {
        Batch {
            changes: self.world.take(&mut self.texts),
            complete: false,
        }
    }

    /// All that is wrong, contradictory or not done, in order. Costs what there is to tell.
    #[must_use]
    pub fn problems(&self, now: Duration) -> Vec<Problem> {
        let mut problems = Vec::new();
        for file in self.telling.iter().filter_map(|path| self.files.get(path)) {
            let fate = match &file.good {
                Some(good) => format!(
                    "last good version ({} old) stays",
                    age(now.saturating_sub(good.since))
                ),
                None => "nothing of the file is used".to_owned(),
            };
            problems.extend(file.faults.iter().map(|fault| {
                let message = format!("{}; {fate}", fault.message);
                Problem {
                    message,
                    ..fault.clone()
                }
            }));
            problems.extend(
                file.good
                    .iter()
                    .flat_map(|good| good.findings.iter().cloned()),
            );
        }
        problems.extend(self.repeated.iter().flat_map(|id| self.repetition(id)));
        problems.extend(self.contested());
        let overruled = self.world.namespaces().overruled().iter();
        problems.extend(overruled.map(|name| self.overruled(name)));
        problems.sort();
        problems.dedup();
        problems
    }

    fn repetition(&self, id: &ObjectId) -> Vec<Problem> {
        let Some([holder, others @ ..]) = self.named.get(id).map(Vec::as_slice) else {
            return Vec::new();
        };
        let problem = |other: &Named| Problem {
            kind: ProblemKind::Conflict,
            place: format!("{}:{}", other.path, other.line),
            object: id.words(),
            field: String::new(),
            message: format!(
                "is in {}:{} too, which holds; remove one of them",
                holder.path, holder.line
            ),
        };
        others.iter().map(problem).collect()
    }

    /// A Service that would be global but for its Namespace.
    fn overruled(&self, name: &ObjectName) -> Problem {
        let id = ObjectId {
            kind: object::Kind::Service,
            name: name.clone(),
        };
        Problem {
            kind: ProblemKind::NotHandled,
            place: self.place(&id),
            object: id.words(),
            field: "metadata.annotations".to_owned(),
            message: format!(
                "has backends of this cluster only: Namespace {} says {}: \"false\"",
                name.namespace,
                annotation::NAMESPACE_GLOBAL
            ),
        }
    }

    /// Where the object stands that holds its name.
    fn place(&self, id: &ObjectId) -> String {
        let named = self.named.get(id).and_then(|named| named.first());
        named
            .map(|named| format!("{}:{}", named.path, named.line))
            .unwrap_or_default()
    }

    /// Services without the address that they claim.
    fn contested(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (address, claims) in self.world.addresses().contested() {
            let mut claims = claims.iter();
            let Some(holder) = claims.next() else {
                continue;
            };
            for loser in claims.filter(|claim| claim.name != holder.name) {
                let id = ObjectId {
                    kind: object::Kind::Service,
                    name: loser.name.clone(),
                };
                let whose = if loser.derived {
                    "its derived address"
                } else {
                    "its address"
                };
                problems.push(Problem {
                    kind: ProblemKind::Conflict,
                    place: self.place(&id),
                    object: id.words(),
                    field: "spec.clusterIP".to_owned(),
                    message: format!(
                        "{whose} {address} is held by Service {}, so it has none; set spec.clusterIP to a free one",
                        holder.name
                    ),
                });
            }
        }
        problems
    }

    #[must_use]
    pub fn summary(&self) -> ManifestSummary {
        let (services, endpoints) = self.world.counts();
        ManifestSummary {
            files: self.files.len(),
            services,
            endpoints,
            objects: self
                .known
                .iter()
                .map(|(kind, count)| ((*kind).to_owned(), *count))
                .collect(),
            unknown_kinds: self.unknown.clone(),
        }
    }

    /// Differs from an earlier one if [`Self::problems`] may tell something else now, but for ages.
    #[must_use]
    pub fn problems_revision(&self) -> u64 {
        self.revision
    }

    /// Whether any file is not used as it stands, so that messages have ages.
    #[must_use]
    pub fn has_faults(&self) -> bool {
        let mut telling = self.telling.iter().filter_map(|path| self.files.get(path));
        telling.any(|file| !file.faults.is_empty())
    }
}

fn whole_file(path: &str, message: String) -> Problem {
    let (object, field) = (String::new(), String::new());
    Problem {
        kind: ProblemKind::Broken,
        place: path.to_owned(),
        object,
        field,
        message,
    }
}

/// `12s`, `4m12s`, `3h07m`, `2d04h`.
fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds / 3600 % 24),
    }
}
