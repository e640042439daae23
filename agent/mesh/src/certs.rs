//! A certificate authority and certificates for people who have none.
//!
//! `DIR` gets `ca.crt`; `mesh.crt` and `mesh.key` for the mesh server (`mesh.CLUSTER.mesh.isthmus.dev`; it serves with
//! them, and shows them to the peers that it links to); `agent.crt` and `agent.key` for the agents
//! (`agent.CLUSTER.mesh.isthmus.dev`). The authority's own key lies in the authority's directory, and is what signs
//! the certificates of the next cluster.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use isthmus_core::model::ClusterName;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// What every name in a certificate ends in.
pub const DOMAIN: &str = "mesh.isthmus.dev";

/// The name of a cluster's mesh server, as its certificate says it.
#[must_use]
pub fn mesh_name(cluster: &ClusterName) -> String {
    format!("mesh.{cluster}.{DOMAIN}")
}

/// The name of a cluster's agents, as their certificates say it.
#[must_use]
pub fn agent_name(cluster: &ClusterName) -> String {
    format!("agent.{cluster}.{DOMAIN}")
}

#[derive(Debug, thiserror::Error)]
pub enum CertError {
    #[error("cannot {operation} {}: {cause}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        cause: io::Error,
    },
    #[error("{} is no key that can be used: {cause}; move it away to have a new one made", path.display())]
    KeyInvalid { path: PathBuf, cause: rcgen::Error },
    #[error("{} and {} are not a certificate authority: {cause}", cert.display(), key.display())]
    AuthorityInvalid {
        cert: PathBuf,
        key: PathBuf,
        cause: rcgen::Error,
    },
    #[error("{} is there and {} is not: an authority needs both; bring it back, or move the other away", found.display(), missing.display())]
    AuthorityIncomplete { found: PathBuf, missing: PathBuf },
    #[error("cannot make the certificate of {name}: {cause}")]
    Unmade { name: String, cause: rcgen::Error },
}

/// From when to when certificates are good.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    pub from: OffsetDateTime,
    pub to: OffsetDateTime,
}

impl Validity {
    /// From an hour ago, so that clocks may differ.
    #[must_use]
    pub fn days(days: i64) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            from: now - Duration::HOUR,
            to: now + Duration::days(days),
        }
    }
}

/// Days that a certificate of [`issue`] is good for.
pub const CERT_DAYS: i64 = 365;
const CA_DAYS: i64 = 3650;

/// Makes what is missing, and certificates anew: those of `cluster` into `out`, signed by the authority in `authority`
/// (`ca.crt`, `ca.key`; made if neither is there), or in `out` itself. A key that is there is used, never replaced.
/// Returns the files written.
///
/// # Errors
/// What was written before stays.
pub fn issue(
    cluster: &ClusterName,
    out: &Path,
    authority: Option<&Path>,
) -> Result<Vec<PathBuf>, CertError> {
    issue_for(cluster, out, authority, Validity::days(CERT_DAYS))
}

/// As [`issue`], good for a time of your own.
///
/// # Errors
/// As [`issue`].
pub fn issue_for(
    cluster: &ClusterName,
    out: &Path,
    authority: Option<&Path>,
    validity: Validity,
) -> Result<Vec<PathBuf>, CertError> {
    let mut written = Vec::new();
    fs::create_dir_all(out).map_err(io_error("create", out))?;
    let home = authority.unwrap_or(out);
    let (ca_pem, issuer) = open_authority(home, &mut written)?;
    if home != out {
        write(&out.join("ca.crt"), &ca_pem, &mut written)?;
    }
    for (file, name) in [("mesh", mesh_name(cluster)), ("agent", agent_name(cluster))] {
        let key = open_key(&out.join(format!("{file}.key")), &mut written)?;
        let unmade = |cause| CertError::Unmade {
            name: name.clone(),
            cause,
        };
        let mut params = CertificateParams::new([name.clone()]).map_err(unmade)?;
        params.distinguished_name = named(&name);
        (params.not_before, params.not_after) = (validity.from, validity.to);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Agents only ask; mesh servers are asked, and ask their peers.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if file == "mesh" {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &issuer).map_err(unmade)?;
        write(
            &out.join(format!("{file}.crt")),
            &certificate.pem(),
            &mut written,
        )?;
    }
    Ok(written)
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn open_authority(
    home: &Path,
    written: &mut Vec<PathBuf>,
) -> Result<(String, Issuer<'static, KeyPair>), CertError> {
    let (cert, key) = (home.join("ca.crt"), home.join("ca.key"));
    let invalid = |cause| CertError::AuthorityInvalid {
        cert: cert.clone(),
        key: key.clone(),
        cause,
    };
    match (cert.exists(), key.exists()) {
        (true, true) => {
            let pem = fs::read_to_string(&cert).map_err(io_error("read", &cert))?;
            let pair = open_key(&key, written)?;
            let issuer = Issuer::from_ca_cert_pem(&pem, pair).map_err(invalid)?;
            Ok((pem, issuer))
        }
        (false, false) => {
            fs::create_dir_all(home).map_err(io_error("create", home))?;
            let pair = open_key(&key, written)?;
            let mut params = CertificateParams::default();
            // Two authorities never have one name: the wrong one is then "unknown", not "a bad signature".
            params.distinguished_name =
                named(&format!("Isthmus mesh CA {:08x}", rand::random::<u32>()));
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let validity = Validity::days(CA_DAYS);
            (params.not_before, params.not_after) = (validity.from, validity.to);
            let pem = params.self_signed(&pair).map_err(invalid)?.pem();
            write(&cert, &pem, written)?;
            Ok((pem, Issuer::new(params, pair)))
        }
        (found, _) => {
            let (found, missing) = if found { (cert, key) } else { (key, cert) };
            Err(CertError::AuthorityIncomplete { found, missing })
        }
    }
}

/// The key in this file; a new one, readable by its owner only, if there is none.
fn open_key(path: &Path, written: &mut Vec<PathBuf>) -> Result<KeyPair, CertError> {
    let invalid = |cause| CertError::KeyInvalid {
        path: path.to_owned(),
        cause,
    };
    match fs::read_to_string(path) {
        Ok(pem) => KeyPair::from_pem(&pem).map_err(invalid),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let pair = KeyPair::generate().map_err(invalid)?;
            // create_new: a key that came meanwhile is not overwritten either.
            let mut file = File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
                .map_err(io_error("create", path))?;
            file.write_all(pair.serialize_pem().as_bytes())
                .map_err(io_error("write", path))?;
            written.push(path.to_owned());
            Ok(pair)
        }
        Err(error) => Err(io_error("read", path)(error)),
    }
}

/// Renamed into place: a server that reads it at this moment reads the old one or the new one.
fn write(path: &Path, text: &str, written: &mut Vec<PathBuf>) -> Result<(), CertError> {
    let beside = PathBuf::from(format!("{}.new", path.display()));
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(io_error("write", path))?;
    written.push(path.to_owned());
    Ok(())
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CertError {
    let path = path.to_owned();
    move |cause| CertError::Io {
        operation,
        path,
        cause,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_private_and_kept_and_one_authority_signs_for_many() {
        let directory = tempfile::tempdir().unwrap();
        let (ca, east, west) = (
            directory.path().join("ca"),
            directory.path().join("e"),
            directory.path().join("w"),
        );
        let written = issue(&"east".parse().unwrap(), &east, Some(&ca)).unwrap();
        assert_eq!(written.len(), 7);
        issue(&"west".parse().unwrap(), &west, Some(&ca)).unwrap();
        assert_eq!(
            fs::read(east.join("ca.crt")).unwrap(),
            fs::read(west.join("ca.crt")).unwrap()
        );
        assert!(!east.join("ca.key").exists());
        for key in [
            ca.join("ca.key"),
            east.join("mesh.key"),
            east.join("agent.key"),
        ] {
            assert_eq!(
                fs::metadata(&key).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
        let (key, cert) = (
            fs::read(east.join("mesh.key")).unwrap(),
            fs::read(east.join("mesh.crt")).unwrap(),
        );
        let again = issue(&"east".parse().unwrap(), &east, Some(&ca)).unwrap();
        assert_eq!(again.len(), 3, "{again:?}");
        assert_eq!(fs::read(east.join("mesh.key")).unwrap(), key);
        assert_ne!(fs::read(east.join("mesh.crt")).unwrap(), cert);
        fs::remove_file(ca.join("ca.crt")).unwrap();
        assert!(matches!(
            issue(&"east".parse().unwrap(), &east, Some(&ca)),
            Err(CertError::AuthorityIncomplete { .. })
        ));
    }
}
