//! Certificates of this process, read again when their files change, and handshakes whose failures speak to an operator.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error as RustlsError, RootCertStore,
    ServerConfig,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::extensions::GeneralName;

use crate::config::TlsPaths;

#[derive(Clone, Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: String },
    #[error("{} holds no certificate in PEM", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{} holds no private key in PEM", path.display())]
    NoKey { path: PathBuf },
    #[error("{} cannot be used: {cause}", path.display())]
    Unusable { path: PathBuf, cause: String },
}

/// What a certificate says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// DNS names it is good for.
    pub names: Vec<String>,
    pub not_after: OffsetDateTime,
}

impl Certificate {
    /// `None` if it cannot be parsed.
    #[must_use]
    pub fn parse(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(der).ok()?;
        let names = parsed.subject_alternative_name().ok().flatten().into_iter();
        let names = names
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            });
        Some(Self {
            names: names.collect(),
            not_after: parsed.validity().not_after.to_datetime(),
        })
    }

    /// `2026-11-23T09:00:00Z`.
    #[must_use]
    pub fn expiry(&self) -> String {
        self.not_after
            .format(&Rfc3339)
            .unwrap_or_else(|_| self.not_after.to_string())
    }
}

/// The three files, and what was last read from them.
#[derive(Debug)]
pub struct Tls {
    paths: TlsPaths,
    read: Mutex<Option<Read>>,
}

#[derive(Clone, Debug)]
struct Read {
    stamps: [Option<(SystemTime, u64)>; 3],
    configs: Configs,
    /// The files changed to this, which cannot be used; `configs` is the last good one.
    problem: Option<String>,
}

/// Ready to shake hands with.
#[derive(Clone, Debug)]
pub struct Configs {
    pub client: Arc<ClientConfig>,
    pub server: Arc<ServerConfig>,
    pub certificate: Certificate,
}

impl Tls {
    #[must_use]
    pub fn new(paths: TlsPaths) -> Self {
        Self {
            paths,
            read: Mutex::new(None),
        }
    }

    #[must_use]
    pub fn paths(&self) -> &TlsPaths {
        &self.paths
    }

    /// For a new connection: as the files are now, or as they last were good.
    ///
    /// # Errors
    /// The files cannot be used, and never could.
    pub fn configs(&self) -> Result<Configs, TlsError> {
        let stamps = [&self.paths.ca, &self.paths.cert, &self.paths.key].map(|path| stamp(path));
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = read.as_ref().filter(|read| read.stamps == stamps) {
            return Ok(read.configs.clone());
        }
        match (build(&self.paths), read.as_mut()) {
            (Ok(configs), _) => {
                *read = Some(Read {
                    stamps,
                    configs: configs.clone(),
                    problem: None,
                });
                Ok(configs)
            }
            (Err(error), Some(last)) => {
                tracing::warn!(%error, "certificates changed and cannot be used; the last good ones stay");
                last.stamps = stamps;
                last.problem = Some(error.to_string());
                Ok(last.configs.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Our certificate as last read, and what is wrong with the files as they are now.
    #[must_use]
    pub fn status(&self) -> (Option<Certificate>, Option<String>) {
        match self.configs() {
            Ok(configs) => {
                let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
                (
                    Some(configs.certificate),
                    read.as_ref().and_then(|read| read.problem.clone()),
                )
            }
            Err(error) => (None, Some(error.to_string())),
        }
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    // The inode tells a file renamed into place within the clock's grain.
    Some((
        metadata.modified().ok()?,
        metadata.ino() ^ metadata.len().rotate_left(32),
    ))
}

fn build(paths: &TlsPaths) -> Result<Configs, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&paths.ca)? {
        roots.add(certificate).map_err(unusable(&paths.ca))?;
    }
    let roots = Arc::new(roots);
    let chain = certificates(&paths.cert)?;
    let unreadable = |cause: io::Error| TlsError::Unreadable {
        path: paths.key.clone(),
        cause: cause.to_string(),
    };
    let key = fs::read(&paths.key).map_err(unreadable)?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| TlsError::NoKey {
        path: paths.key.clone(),
    })?;
    let parsed = Certificate::parse(&chain[0]);
    let certificate = parsed.ok_or_else(|| TlsError::NoCertificate {
        path: paths.cert.clone(),
    })?;
    let versions = &[&rustls::version::TLS13];
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(unusable(&paths.cert))?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain.clone(), key.clone_key())
        .map_err(unusable(&paths.cert))?;
    client.alpn_protocols = vec![b"h2".to_vec()];
    // A session resumed would show neither side the other's new certificate.
    client.resumption = rustls::client::Resumption::disabled();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
        .build()
        .map_err(|cause| TlsError::Unusable {
            path: paths.ca.clone(),
            cause: cause.to_string(),
        })?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(unusable(&paths.cert))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(unusable(&paths.cert))?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    server.send_tls13_tickets = 0;
    Ok(Configs {
        client: Arc::new(client),
        server: Arc::new(server),
        certificate,
    })
}

fn unusable(path: &Path) -> impl Fn(RustlsError) -> TlsError {
    let path = path.to_owned();
    move |cause| TlsError::Unusable {
        path: path.clone(),
        cause: cause.to_string(),
    }
}

/// At least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |cause: io::Error| TlsError::Unreadable {
        path: path.to_owned(),
        cause: cause.to_string(),
    };
    let pem = fs::read(path).map_err(unreadable)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|cause| TlsError::Unusable {
        path: path.to_owned(),
        cause: cause.to_string(),
    })?;
    if found.is_empty() {
        Err(TlsError::NoCertificate {
            path: path.to_owned(),
        })
    } else {
        Ok(found)
    }
}

/// Why a connection that we made failed, if TLS is to blame: what, and the way out.
#[must_use]
pub fn client_words(error: &io::Error, paths: &TlsPaths) -> Option<String> {
    let (ca, cert) = (paths.ca.display(), paths.cert.display());
    Some(match rustls_error(error)? {
        RustlsError::InvalidCertificate(wrong) => match wrong {
            CertificateError::ExpiredContext { not_after, .. } => {
                let when = i64::try_from(not_after.as_secs()).ok();
                let when =
                    when.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
                let when = when
                    .and_then(|when| when.format(&Rfc3339).ok())
                    .unwrap_or_default();
                format!(
                    "its certificate expired at {when}: renew it on that side, nothing needs a restart"
                )
            }
            CertificateError::Expired => {
                "its certificate has expired: renew it on that side".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet: do the clocks of both sides agree?".to_owned()
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!(
                    "its certificate is not signed by an authority in {ca}: wrong CA on one of the two sides"
                )
            }
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => {
                let presented: Vec<&str> = presented.iter().map(|name| inner_name(name)).collect();
                format!(
                    "its certificate is for {}, not for {}: the endpoint is another cluster's, or the name is wrong",
                    presented.join(", "),
                    expected.to_str()
                )
            }
            other => format!("its certificate cannot be used: {other}"),
        },
        RustlsError::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => {
                format!("it turns down our certificate {cert}: expired; renew it")
            }
            AlertDescription::UnknownCA
            | AlertDescription::DecryptError
            | AlertDescription::BadCertificate => {
                format!(
                    "it turns down our certificate {cert}: not signed by an authority in its --tls-ca"
                )
            }
            other => format!("it turns down our certificate {cert}: {other:?}"),
        },
        RustlsError::InvalidMessage(_) => {
            "it does not speak TLS: is this a mesh server's port?".to_owned()
        }
        other => format!("TLS: {other}"),
    })
}

/// Why a connection made to us failed.
#[must_use]
pub fn server_words(error: &io::Error) -> String {
    match rustls_error(error) {
        Some(RustlsError::InvalidCertificate(wrong)) => {
            format!("its certificate was turned down: {wrong}")
        }
        Some(RustlsError::NoCertificatesPresented) => "it showed no certificate".to_owned(),
        Some(RustlsError::AlertReceived(alert)) => {
            format!("it turned down our certificate: {alert:?}")
        }
        Some(other) => other.to_string(),
        None => io_words(error),
    }
}

/// Why a connection broke. What TLS says of one that ends without a farewell is meant for programmers.
#[must_use]
pub fn io_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the other side closed it".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "the other side reset it".to_owned()
        }
        _ => error.to_string(),
    }
}

fn rustls_error(error: &io::Error) -> Option<&RustlsError> {
    error.get_ref()?.downcast_ref()
}

/// rustls shows a name as `DnsName("x")`.
fn inner_name(shown: &str) -> &str {
    shown.split('"').nth(1).unwrap_or(shown)
}
