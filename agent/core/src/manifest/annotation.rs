//! Annotations for services of several clusters: Cilium's, with its older names for them.

use crate::model::Affinity;

use super::decode::{At, Fault, quoted};
use super::object::Context;

/// What a Service says of other clusters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Mesh {
    pub(super) global: bool,
    pub(super) shared: bool,
    pub(super) affinity: Affinity,
}

const GLOBAL: [&str; 2] = ["service.cilium.io/global", "io.cilium/global-service"];
const SHARED: [&str; 2] = ["service.cilium.io/shared", "io.cilium/shared-service"];
/// Ours, and without an older name.
const PASSIVE_HEALTH: &str = "mesh.isthmus.dev/passive-health";
const AFFINITY: [&str; 2] = ["service.cilium.io/affinity", "io.cilium/service-affinity"];
/// Of a Namespace.
pub(super) const NAMESPACE_GLOBAL: &str = "clustermesh.cilium.io/global";

/// Other annotations that ask for something, and what to say of them. Those that end in `/` stand for all that begin so.
type NotHandled = [(&'static str, &'static str)];

const OF_SERVICE: &NotHandled = &[
    (
        "service.cilium.io/",
        "this annotation of Cilium is not done by this version",
    ),
    ("mesh.isthmus.dev/", "this version has no such annotation"),
    (
        "service.kubernetes.io/topology-mode",
        "preference by zone is not done by this version; all endpoints are used alike",
    ),
    (
        "service.alpha.kubernetes.io/tolerate-unready-endpoints",
        "this annotation is of old; write spec.publishNotReadyAddresses: true",
    ),
];

const OF_NAMESPACE: &NotHandled = &[
    (
        "clustermesh.cilium.io/",
        "this annotation of Cilium is not done by this version",
    ),
    ("mesh.isthmus.dev/", "this version has no such annotation"),
];

pub(super) fn read(service: &At<'_>, context: &mut Context<'_>) -> Result<Mesh, Fault> {
    let metadata = service.required("metadata")?;
    let Some(annotations) = metadata.get("annotations")? else {
        return Ok(Mesh::default());
    };
    let ours = [&GLOBAL[..], &SHARED, &AFFINITY, &[PASSIVE_HEALTH]].concat();
    list_unhandled(&annotations, &ours, OF_SERVICE, context)?;

    let global = one_of(&annotations, GLOBAL, truth, context)?;
    let shared = one_of(&annotations, SHARED, truth, context)?;
    let affinity = one_of(&annotations, AFFINITY, affinity, context)?;
    if global == Some(true) {
        return Ok(Mesh {
            global: true,
            shared: shared.unwrap_or(true),
            affinity: affinity.unwrap_or_default(),
        });
    }
    let idle = [
        (SHARED, shared == Some(true)),
        (AFFINITY, !matches!(affinity, None | Some(Affinity::None))),
    ];
    for (names, asked) in idle {
        if asked && let Some(at) = present(&annotations, names)? {
            context.not_handled(
                &at,
                format!("has no effect without {}: \"true\"", GLOBAL[0]),
            );
        }
    }
    Ok(Mesh::default())
}

/// Whether failures are to eject none of a Service's backends.
pub(super) fn passive_health_off(
    service: &At<'_>,
    context: &mut Context<'_>,
) -> Result<bool, Fault> {
    let metadata = service.required("metadata")?;
    let Some(annotations) = metadata.get("annotations")? else {
        return Ok(false);
    };
    let Some(at) = annotations.get(PASSIVE_HEALTH)? else {
        return Ok(false);
    };
    Ok(match at.text()? {
        "on" => false,
        "off" => true,
        other => {
            let words = format!("{} is neither on nor off; taken as on", quoted(other));
            context.not_handled(&at, words);
            false
        }
    })
}

/// Whether Services of a Namespace may be global. They may unless it says no (Cilium's
/// `clustermesh-default-global-namespace` is true where nobody set it).
pub(super) fn read_namespace(namespace: &At<'_>, context: &mut Context<'_>) -> Result<bool, Fault> {
    let metadata = namespace.required("metadata")?;
    let Some(annotations) = metadata.get("annotations")? else {
        return Ok(true);
    };
    list_unhandled(&annotations, &[NAMESPACE_GLOBAL], OF_NAMESPACE, context)?;
    match annotations.get(NAMESPACE_GLOBAL)? {
        Some(at) => value(&at, truth, context),
        None => Ok(true),
    }
}

fn list_unhandled(
    annotations: &At<'_>,
    ours: &[&str],
    rules: &NotHandled,
    context: &mut Context<'_>,
) -> Result<(), Fault> {
    for (key, at) in annotations.entries()? {
        let asks = !matches!(
            at.text()?.to_ascii_lowercase().as_str(),
            "" | "false" | "disabled"
        );
        let rule = rules
            .iter()
            .find(|(name, _)| key == *name || name.ends_with('/') && key.starts_with(name));
        if let Some((_, reason)) = rule
            && asks
            && !ours.contains(&key)
        {
            context.not_handled(&at, *reason);
        }
    }
    Ok(())
}

/// The annotation under its present name, else under its old one.
fn present<'b>(annotations: &'b At<'_>, names: [&'static str; 2]) -> Result<Option<At<'b>>, Fault> {
    Ok(match annotations.get(names[0])? {
        Some(at) => Some(at),
        None => annotations.get(names[1])?,
    })
}

/// Reads both names of an annotation. The present one holds if they contradict each other.
fn one_of<T: PartialEq + Copy>(
    annotations: &At<'_>,
    names: [&'static str; 2],
    read: impl Fn(&str) -> Result<T, (T, &'static str)>,
    context: &mut Context<'_>,
) -> Result<Option<T>, Fault> {
    let mut value = |at: At<'_>| value(&at, &read, context);
    let new = annotations.get(names[0])?.map(&mut value).transpose()?;
    let old = annotations.get(names[1])?.map(&mut value).transpose()?;
    if let (Some(new), Some(old)) = (new, old)
        && new != old
        && let Some(at) = annotations.get(names[1])?
    {
        context.conflict(
            &at,
            format!("contradicts {}, which holds; remove this one", names[0]),
        );
    }
    Ok(new.or(old))
}

/// What an annotation says; and a finding, if that is taken for something else.
fn value<T>(
    at: &At<'_>,
    read: impl Fn(&str) -> Result<T, (T, &'static str)>,
    context: &mut Context<'_>,
) -> Result<T, Fault> {
    let text = at.text()?;
    Ok(read(text).unwrap_or_else(|(taken, words)| {
        context.not_handled(at, format!("{} {words}", quoted(text)));
        taken
    }))
}

fn truth(text: &str) -> Result<bool, (bool, &'static str)> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        // As Cilium reads it.
        _ => Err((false, "is neither true nor false; taken as false")),
    }
}

fn affinity(text: &str) -> Result<Affinity, (Affinity, &'static str)> {
    match text.to_ascii_lowercase().as_str() {
        "local" => Ok(Affinity::Local),
        "remote" => Ok(Affinity::Remote),
        "none" | "" => Ok(Affinity::None),
        _ => Err((
            Affinity::None,
            "is not local, remote or none; taken as none",
        )),
    }
}
