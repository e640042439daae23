//! Flags that agent and mesh server share.

use std::path::PathBuf;

use isthmus_core::model::{ClusterId, ClusterName};

use super::{ConfigError, SourceSpec};

/// To be flattened into a binary's own flags.
#[derive(clap::Args, Clone, Debug)]
pub struct CommonArgs {
    /// The name of this cluster: 1 to 32 lower-case letters, digits and inner '-'. No two clusters of a mesh have the
    /// same. Required: it has no default.
    #[arg(long, value_name = "NAME", help_heading = "Cluster")]
    pub cluster_name: Option<ClusterName>,

    /// The number of this cluster, 1 to 511. No two clusters of a mesh have the same. Required: it has no default.
    #[arg(long, value_name = "ID", help_heading = "Cluster")]
    pub cluster_id: Option<ClusterId>,

    /// Where Services, Pods and EndpointSlices come from: dir:PATH, a directory of manifests that is watched.
    #[arg(
        long,
        value_name = "SOURCE",
        default_value = "dir:/etc/isthmus/manifests",
        help_heading = "Cluster"
    )]
    pub source: SourceSpec,

    #[command(flatten)]
    pub tls: TlsArgs,
}

/// Which cluster this is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cluster {
    pub name: ClusterName,
    pub id: ClusterId,
}

impl CommonArgs {
    /// # Errors
    /// Name or id is missing.
    pub fn cluster(&self) -> Result<Cluster, ConfigError> {
        let missing = |flag, message: &str| ConfigError::Invalid {
            flag,
            message: message.to_owned(),
        };
        let name = self.cluster_name.clone().ok_or_else(|| {
            missing(
                "--cluster-name",
                "is missing: give this cluster a name that no other cluster of the mesh has",
            )
        })?;
        let id = self.cluster_id.ok_or_else(|| {
            missing("--cluster-id", "is missing: give this cluster a number, 1 to 511, that no other cluster of the mesh has")
        })?;
        Ok(Cluster { name, id })
    }
}

/// Certificates of this process.
#[derive(clap::Args, Clone, Debug)]
pub struct TlsArgs {
    /// PEM file with the certificates of those whom we believe.
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    pub tls_ca: Option<PathBuf>,

    /// PEM file with our own certificate. All three files are read again when they change.
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    pub tls_cert: Option<PathBuf>,

    /// PEM file with the key of our certificate.
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    pub tls_key: Option<PathBuf>,
}

/// All three files of [`TlsArgs`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsPaths {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl TlsArgs {
    /// The files, or none at all.
    ///
    /// # Errors
    /// Some are given and some are not.
    pub fn paths(&self) -> Result<Option<TlsPaths>, ConfigError> {
        match (&self.tls_ca, &self.tls_cert, &self.tls_key) {
            (None, None, None) => Ok(None),
            (Some(ca), Some(cert), Some(key)) => Ok(Some(TlsPaths {
                ca: ca.clone(),
                cert: cert.clone(),
                key: key.clone(),
            })),
            (ca, cert, _) => {
                let flag = match (ca, cert) {
                    (None, _) => "--tls-ca",
                    (_, None) => "--tls-cert",
                    _ => "--tls-key",
                };
                let message =
                    "is missing: --tls-ca, --tls-cert and --tls-key go together".to_owned();
                Err(ConfigError::Invalid { flag, message })
            }
        }
    }

    /// As [`Self::paths`], where there must be some. `why`: `--mesh is not a unix socket`.
    ///
    /// # Errors
    /// Some are missing.
    pub fn required(&self, why: &str) -> Result<TlsPaths, ConfigError> {
        self.paths()?.ok_or_else(|| ConfigError::Invalid {
            flag: "--tls-ca, --tls-cert and --tls-key",
            message: format!(
                "are required, because {why}; `agentctl clustermesh certs` makes them"
            ),
        })
    }
}
