//! From a file's bytes to the objects that it names.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{ObjectName, Problem, ProblemKind};

use super::address::Cidrs;
use super::annotation;
use super::decode::{At, Fault, quoted};
use super::document::{documents, parse};
use super::intern::Interner;
use super::pod::Pod;
use super::service::Service;
use super::slice::Slice;
use super::unhandled;

/// What takes part in making rows. Values are equal if they make equal rows.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Object {
    Service(Arc<Service>),
    Pod(Arc<Pod>),
    Slice(Arc<Slice>),
    /// A Node, of which only its zone counts; empty if it has none.
    Node {
        name: Arc<str>,
        zone: Arc<str>,
    },
    /// A Namespace, of which only counts whether its Services may be global.
    Namespace {
        global: bool,
    },
}

impl Object {
    pub(super) fn service(self) -> Option<Arc<Service>> {
        if let Self::Service(service) = self {
            Some(service)
        } else {
            None
        }
    }
    pub(super) fn pod(self) -> Option<Arc<Pod>> {
        if let Self::Pod(pod) = self {
            Some(pod)
        } else {
            None
        }
    }
    pub(super) fn slice(self) -> Option<Arc<Slice>> {
        if let Self::Slice(slice) = self {
            Some(slice)
        } else {
            None
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Kind {
    Service,
    Pod,
    Slice,
    Node,
    Namespace,
}

impl Kind {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::Slice => "EndpointSlice",
            Self::Node => "Node",
            Self::Namespace => "Namespace",
        }
    }

    /// Objects of this kind are in no namespace.
    const fn is_of_the_cluster(self) -> bool {
        matches!(self, Self::Node | Self::Namespace)
    }
}

/// Names an object among all files.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct ObjectId {
    pub(super) kind: Kind,
    /// With an empty namespace for what is in none.
    pub(super) name: ObjectName,
}

impl ObjectId {
    /// `Service production/backend`
    pub(super) fn words(&self) -> String {
        let kind = self.kind.word();
        if self.kind.is_of_the_cluster() {
            format!("{kind} {}", self.name.name)
        } else {
            format!("{kind} {}", self.name)
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) id: ObjectId,
    pub(super) line: u32,
    pub(super) object: Object,
}

/// A file that was read without a fault.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) objects: Vec<Placed>,
    /// What it asks for and does not get, or says twice.
    pub(super) findings: Vec<Problem>,
    /// Objects of kinds that we know, by kind.
    pub(super) known: BTreeMap<&'static str, usize>,
    /// Objects of other kinds, by `kind.group`.
    pub(super) unknown: BTreeMap<String, usize>,
}

/// Most faults told of one file: its user mends the first ones first.
const FAULTS_MAX: usize = 20;

/// Reads a whole file.
///
/// # Errors
/// All that is wrong, at most [`FAULTS_MAX`]; the file is then not used at all. Messages lack the fate of the last
/// good version.
pub(super) fn read(
    path: &str,
    bytes: &[u8],
    cidrs: &Cidrs,
    texts: &mut Interner,
) -> Result<Contents, Vec<Problem>> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let lines = bytes[..e.valid_up_to()]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count();
        vec![broken(
            format!("{path}:{}", lines + 1),
            String::new(),
            String::new(),
            "is not UTF-8 text".to_owned(),
        )]
    })?;
    let mut reader = Reader {
        path,
        cidrs,
        texts,
        lines_before: 0,
        contents: Contents::default(),
        faults: Vec::new(),
    };
    for document in documents(text) {
        reader.lines_before = document.lines_before;
        match parse(document.text) {
            Ok(node) => reader.any(&At::root(&node), None),
            Err(fault) => {
                let place = reader.place(fault.line);
                reader
                    .faults
                    .push(broken(place, String::new(), String::new(), fault.message));
            }
        }
        if reader.faults.len() >= FAULTS_MAX {
            break;
        }
    }
    if reader.faults.is_empty() {
        Ok(reader.contents)
    } else {
        Err(reader.faults)
    }
}

fn broken(place: String, object: String, field: String, message: String) -> Problem {
    Problem {
        kind: ProblemKind::Broken,
        place,
        object,
        field,
        message,
    }
}

/// What decoding an object needs beside the object.
pub(super) struct Context<'c> {
    pub(super) cidrs: &'c Cidrs,
    pub(super) texts: &'c mut Interner,
    findings: Vec<(ProblemKind, Fault)>,
}

impl Context<'_> {
    /// Understood and not done.
    pub(super) fn not_handled(&mut self, at: &At<'_>, reason: impl Into<String>) {
        self.findings
            .push((ProblemKind::NotHandled, at.fault(reason)));
    }

    /// Two things contradict each other; `message` says which one holds.
    pub(super) fn conflict(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.findings
            .push((ProblemKind::Conflict, at.fault(message)));
    }
}

struct Reader<'r> {
    path: &'r str,
    cidrs: &'r Cidrs,
    texts: &'r mut Interner,
    lines_before: u32,
    contents: Contents,
    faults: Vec<Problem>,
}

impl Reader<'_> {
    fn place(&self, line: u32) -> String {
        format!("{}:{}", self.path, self.lines_before + line)
    }

    /// An object, or a list of them. `implied`: what a typed list (`ServiceList`) says of its items.
    fn any(&mut self, at: &At<'_>, implied: Option<(&str, &str)>) {
        if let Err(fault) = self.try_any(at, implied) {
            self.fault(String::new(), fault);
        }
    }

    fn fault(&mut self, object: String, fault: Fault) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(broken(
                self.place(fault.line),
                object,
                fault.field,
                fault.message,
            ));
        }
    }

    fn try_any(&mut self, at: &At<'_>, implied: Option<(&str, &str)>) -> Result<(), Fault> {
        if !at.is_map() {
            return Err(
                at.fault("is no Kubernetes object: a mapping with apiVersion and kind is expected")
            );
        }
        let missing = |key| at.fault(format!("is no Kubernetes object: {key} is missing"));
        let api_version = match (at.text_of("apiVersion")?, implied) {
            (Some(text), _) => text,
            (None, Some((api_version, _))) => api_version.to_owned(),
            (None, None) => return Err(missing("apiVersion")),
        };
        let kind = match (at.text_of("kind")?, implied) {
            (Some(text), _) => text,
            (None, Some((_, kind))) => kind.to_owned(),
            (None, None) => return Err(missing("kind")),
        };
        if let (Some(item_kind), Some(items)) = (kind.strip_suffix("List"), at.get("items")?) {
            let implied = (!item_kind.is_empty()).then_some((api_version.as_str(), item_kind));
            for item in items.list()? {
                self.any(&item, implied);
            }
            return Ok(());
        }
        self.object(at, &api_version, &kind);
        Ok(())
    }

    fn object(&mut self, at: &At<'_>, api_version: &str, kind: &str) {
        let known = match (api_version, kind) {
            ("v1", "Service") => Kind::Service,
            ("v1", "Pod") => Kind::Pod,
            ("discovery.k8s.io/v1", "EndpointSlice") => Kind::Slice,
            ("v1", "Node") => Kind::Node,
            ("v1", "Namespace") => Kind::Namespace,
            _ => return self.foreign(at, api_version, kind),
        };
        *self.contents.known.entry(known.word()).or_default() += 1;
        let mut context = Context {
            cidrs: self.cidrs,
            texts: &mut *self.texts,
            findings: Vec::new(),
        };
        let meta = match Meta::read(at, known, &mut context) {
            Ok(meta) => meta,
            Err(fault) => return self.fault(kind.to_owned(), fault),
        };
        let decoded = match known {
            Kind::Service => Service::read(at, &meta, &mut context)
                .map(|s| s.map(|s| Object::Service(Arc::new(s)))),
            Kind::Pod => {
                Pod::read(at, &meta, &mut context).map(|pod| Some(Object::Pod(Arc::new(pod))))
            }
            Kind::Slice => {
                Slice::read(at, &meta, &mut context).map(|s| s.map(|s| Object::Slice(Arc::new(s))))
            }
            Kind::Node => Ok(Some(Object::Node {
                name: meta.name.name.clone(),
                zone: meta.zone(&mut context),
            })),
            Kind::Namespace => annotation::read_namespace(at, &mut context)
                .map(|global| Some(Object::Namespace { global })),
        };
        let findings = context.findings;
        let id = ObjectId {
            kind: known,
            name: meta.name,
        };
        for (kind, finding) in findings {
            self.finding(kind, id.words(), finding);
        }
        match decoded {
            Ok(Some(object)) => {
                let line = self.lines_before + at.line();
                self.contents.objects.push(Placed { id, line, object });
            }
            Ok(None) => {}
            Err(fault) => self.fault(id.words(), fault),
        }
    }

    fn finding(&mut self, kind: ProblemKind, object: String, fault: Fault) {
        let place = self.place(fault.line);
        self.contents.findings.push(Problem {
            kind,
            place,
            object,
            field: fault.field,
            message: fault.message,
        });
    }

    /// A kind that makes no rows.
    fn foreign(&mut self, at: &At<'_>, api_version: &str, kind: &str) {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let Some(rule) = unhandled::rule(group, kind) else {
            let name = if group.is_empty() {
                kind.to_owned()
            } else {
                format!("{kind}.{group}")
            };
            *self.contents.unknown.entry(name).or_default() += 1;
            return;
        };
        *self.contents.known.entry(rule.kind).or_default() += 1;
        for finding in rule.findings(at) {
            self.finding(ProblemKind::NotHandled, unhandled::words(kind, at), finding);
        }
    }
}

/// Pairs in the order of their keys.
pub(super) type Labels = Vec<(Arc<str>, Arc<str>)>;

/// `metadata`, as far as rows depend on it.
#[derive(Debug)]
pub(super) struct Meta {
    pub(super) name: ObjectName,
    pub(super) labels: Labels,
    /// Has a deletion timestamp.
    pub(super) deleted: bool,
}

impl Meta {
    fn read(at: &At<'_>, kind: Kind, context: &mut Context<'_>) -> Result<Self, Fault> {
        let metadata = at.required("metadata")?;
        let name = metadata.required("name")?;
        let text = name.text()?;
        if !is_name(text) {
            return Err(name.fault(format!("{} is no name for an object", quoted(text))));
        }
        let namespace = match metadata.get("namespace")? {
            _ if kind.is_of_the_cluster() => context.texts.get(""),
            Some(namespace) => {
                let text = namespace.text()?;
                if !is_name(text) {
                    return Err(
                        namespace.fault(format!("{} is no name for a namespace", quoted(text)))
                    );
                }
                context.texts.get(text)
            }
            None => context.texts.get("default"),
        };
        let labels = metadata
            .get("labels")?
            .map(|at| labels(&at, context.texts))
            .transpose()?
            .unwrap_or_default();
        Ok(Self {
            name: ObjectName {
                namespace,
                name: context.texts.get(text),
            },
            labels,
            deleted: metadata.get("deletionTimestamp")?.is_some(),
        })
    }

    pub(super) fn label(&self, key: &str) -> Option<&Arc<str>> {
        self.labels
            .iter()
            .find(|(name, _)| &**name == key)
            .map(|(_, value)| value)
    }

    fn zone(&self, context: &mut Context<'_>) -> Arc<str> {
        self.label("topology.kubernetes.io/zone")
            .cloned()
            .unwrap_or_else(|| context.texts.get(""))
    }
}

/// Bytes of a label's value, and of a port's name.
pub(super) const LABEL_MAX: usize = 63;
/// Bytes of a name, of an object or a node.
pub(super) const NAME_MAX: usize = 253;

/// Labels, or a selector.
pub(super) fn labels(at: &At<'_>, texts: &mut Interner) -> Result<Labels, Fault> {
    let mut labels = at
        .entries()?
        .map(|(key, value)| Ok((texts.get(key), texts.get(value.text_within(LABEL_MAX)?))))
        .collect::<Result<Labels, Fault>>()?;
    labels.sort_unstable();
    Ok(labels)
}

/// DNS subdomain (RFC 1123), the widest rule that an API server has for our kinds.
fn is_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= NAME_MAX
        && bytes.first().is_some_and(|&byte| inner(byte))
        && bytes.last().is_some_and(|&byte| inner(byte))
        && bytes
            .iter()
            .all(|&byte| inner(byte) || byte == b'-' || byte == b'.')
}
