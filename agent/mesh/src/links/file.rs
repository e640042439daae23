//! One link's file, a `ClusterLink`.

use std::fs;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use isthmus_core::mesh::{CIDRS_MAX, Terms};
use isthmus_core::model::{ClusterId, ClusterName, Problem, ProblemKind};
use serde::Deserialize;
use serde_saphyr::{Spanned, UserMessageFormatter};

use crate::config::{TlsPaths, cidr, peer_endpoint};
use crate::link::LinkSpec;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    api_version: Spanned<String>,
    kind: Spanned<String>,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    name: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    id: Option<Spanned<u64>>,
    endpoints: Spanned<Vec<Spanned<String>>>,
    tls: Option<TlsFiles>,
    cidrs: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default)]
    limits: Limits,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    rows: Option<u64>,
    bytes: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsFiles {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

/// Reads one file. `tls` is what a link without its own uses.
pub(super) fn read(
    path: &Path,
    own: &ClusterName,
    tls: Option<&TlsPaths>,
) -> Result<LinkSpec, Problem> {
    let text = fs::read_to_string(path)
        .map_err(|error| at(path, 0, "", format!("cannot be read: {error}")))?;
    let options = serde_saphyr::options! { with_snippet: false };
    let document: Document =
        serde_saphyr::from_str_with_options(&text, options).map_err(|error| {
            let message = error
                .without_snippet()
                .render_with_formatter(&UserMessageFormatter);
            let end = message.find(" at line ").unwrap_or(message.len());
            let line = error.location().map_or(1, |at| at.line());
            at(
                path,
                line,
                "",
                message[..end].trim_end_matches([':', ' ']).to_owned(),
            )
        })?;
    let wrong = |line: u64, field: &str, message: String| Err(at(path, line, field, message));
    let (version, kind) = (&document.api_version, &document.kind);
    if version.value != "mesh.isthmus.dev/v1alpha1" {
        let message = format!("{:?} is not mesh.isthmus.dev/v1alpha1", version.value);
        return wrong(version.referenced.line(), "apiVersion", message);
    }
    if kind.value != "ClusterLink" {
        return wrong(
            kind.referenced.line(),
            "kind",
            format!("{:?} is not ClusterLink", kind.value),
        );
    }
    let said = &document.metadata.name;
    let name = match said.value.parse::<ClusterName>() {
        Ok(name) if name == *own => {
            let message = format!("\"{name}\" is this cluster itself: a link's name is its peer's");
            return wrong(said.referenced.line(), "metadata.name", message);
        }
        Ok(name) => name,
        Err(error) => return wrong(said.referenced.line(), "metadata.name", error.to_string()),
    };
    let id = match &document.spec.id {
        None => None,
        Some(said) => match u16::try_from(said.value)
            .ok()
            .and_then(|id| ClusterId::try_from(id).ok())
        {
            Some(id) => Some(id),
            None => {
                return wrong(
                    said.referenced.line(),
                    "spec.id",
                    format!("{} is not 1..511", said.value),
                );
            }
        },
    };
    let mut endpoints = Vec::new();
    for (n, said) in document.spec.endpoints.value.iter().enumerate() {
        match peer_endpoint(&said.value) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(message) => {
                return wrong(
                    said.referenced.line(),
                    &format!("spec.endpoints[{n}]"),
                    message,
                );
            }
        }
    }
    if endpoints.is_empty() {
        let line = document.spec.endpoints.referenced.line();
        return wrong(
            line,
            "spec.endpoints",
            "is empty: write at least one HOST:PORT".to_owned(),
        );
    }
    let base = path.parent().unwrap_or(Path::new("."));
    let own_tls = |files: TlsFiles| TlsPaths {
        ca: base.join(files.ca),
        cert: base.join(files.cert),
        key: base.join(files.key),
    };
    let names_tls = document.spec.tls.is_some();
    let Some(tls) = document.spec.tls.map(own_tls).or_else(|| tls.cloned()) else {
        return wrong(
            0,
            "spec.tls",
            "is missing, and the mesh server has no --tls-ca, --tls-cert and --tls-key".to_owned(),
        );
    };
    let cidrs = match document.spec.cidrs {
        Some(said) => Some(ranges(path, &said)?),
        None => None,
    };
    let Limits { rows, bytes } = document.spec.limits;
    Ok(LinkSpec {
        name,
        terms: Terms {
            id,
            cidrs,
            rows_max: rows.unwrap_or(Terms::ROWS_MAX),
            bytes_max: bytes.unwrap_or(Terms::BYTES_MAX),
        },
        endpoints,
        tls,
        names_tls,
        file: path.to_owned(),
    })
}

fn ranges(path: &Path, said: &Spanned<Vec<Spanned<String>>>) -> Result<Vec<IpNet>, Problem> {
    if said.value.len() > CIDRS_MAX {
        let message = format!("has more than {CIDRS_MAX} ranges");
        return Err(at(path, said.referenced.line(), "spec.cidrs", message));
    }
    let ranges = said.value.iter().enumerate().map(|(n, said)| {
        let field = format!("spec.cidrs[{n}]");
        cidr(&said.value).map_err(|message| at(path, said.referenced.line(), &field, message))
    });
    ranges.collect()
}

pub(super) fn broken(message: String) -> Problem {
    let (place, object, field) = (String::new(), String::new(), String::new());
    Problem {
        kind: ProblemKind::Broken,
        place,
        object,
        field,
        message,
    }
}

pub(super) fn at(path: &Path, line: u64, field: &str, message: String) -> Problem {
    let file = path
        .file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy();
    let place = if line == 0 {
        file.into_owned()
    } else {
        format!("{file}:{line}")
    };
    Problem {
        place,
        field: field.to_owned(),
        ..broken(message)
    }
}
