//! Annotations of a Service: Cilium's for services of several clusters, with its older names for them.

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
const AFFINITY: [&str; 2] = ["service.cilium.io/affinity", "io.cilium/service-affinity"];

/// Other annotations that ask for something. Those that end in `/` stand for all that begin so.
const NOT_HANDLED: [(&str, &str); 4] = [
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
        "endpoints that are not ready are not used by this version",
    ),
];

pub(super) fn read(service: &At<'_>, context: &mut Context<'_>) -> Result<Mesh, Fault> {
    let metadata = service.required("metadata")?;
    let Some(annotations) = metadata.get("annotations")? else {
        return Ok(Mesh::default());
    };
    for (key, at) in annotations.entries()? {
        let value = at.text()?;
        let ours = [GLOBAL, SHARED, AFFINITY]
            .iter()
            .flatten()
            .any(|known| *known == key);
        let rule = NOT_HANDLED
            .iter()
            .find(|(name, _)| key == *name || name.ends_with('/') && key.starts_with(name));
        if let Some((_, reason)) = rule
            && !ours
            && !matches!(
                value.to_ascii_lowercase().as_str(),
                "" | "false" | "disabled"
            )
        {
            context.not_handled(&at, *reason);
        }
    }

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
    let mut value = |at: At<'_>| -> Result<T, Fault> {
        let text = at.text()?;
        Ok(read(text).unwrap_or_else(|(taken, words)| {
            context.not_handled(&at, format!("{} {words}", quoted(text)));
            taken
        }))
    };
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
