//! `clustermesh certs`, for people who have no PKI.

use std::process::ExitCode;

use anyhow::Result;
use isthmus_mesh::certs;

use crate::cli::{Certs, Global};
use crate::output::show;
use crate::report::certs::ClusterCertificates;

pub(super) fn issue(global: &Global, order: &Certs) -> Result<ExitCode> {
    let written = certs::issue(&order.cluster, &order.out, order.ca.as_deref())?;
    let authority = order.ca.as_ref().unwrap_or(&order.out);
    let report = ClusterCertificates {
        cluster: order.cluster.as_str().to_owned(),
        written: written
            .iter()
            .map(|file| file.display().to_string())
            .collect(),
        authority: authority.display().to_string(),
        valid_for_days: certs::CERT_DAYS,
    };
    show(&report, global)
}
