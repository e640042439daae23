//! What values mean, and what to say when they mean nothing.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

/// `3s`, `250ms`, `1h30m`: numbers with units, never without.
///
/// # Errors
/// Words for the user.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!(
            "{text:?} is no duration: write a number with a unit (ms, s, m, h, d), as in 3s or 1m30s"
        )
    };
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let after = &rest[digits..];
        let letters = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        let seconds = match &after[..letters] {
            "ms" => None,
            "s" => Some(1),
            "m" => Some(60),
            "h" => Some(3600),
            "d" => Some(86400),
            _ => return Err(wrong()),
        };
        let part = match seconds {
            Some(seconds) => number.checked_mul(seconds).map(Duration::from_secs),
            None => Some(Duration::from_millis(number)),
        };
        total = part
            .and_then(|part| total.checked_add(part))
            .ok_or_else(wrong)?;
        rest = &after[letters..];
    }
    Ok(total)
}

/// `50%`, from 0% to 100%.
///
/// # Errors
/// Words for the user.
pub fn percent(text: &str) -> Result<u8, String> {
    let number = text
        .strip_suffix('%')
        .and_then(|digits| digits.parse().ok());
    let percent = number.filter(|percent| *percent <= 100);
    percent.ok_or_else(|| format!("{text:?} is no share: write a whole number from 0% to 100%"))
}

/// `10.96.0.0/12`, `fd00::/64`: a range of addresses, nothing set behind its prefix.
///
/// # Errors
/// Words for the user.
pub fn cidr(text: &str) -> Result<IpNet, String> {
    let cidr: IpNet = text.parse().map_err(|_| {
        format!("{text:?} is no range of addresses: write 10.96.0.0/12 or fd00:10:96::/108")
    })?;
    if cidr == cidr.trunc() {
        return Ok(cidr);
    }
    let meant = cidr.trunc();
    Err(format!(
        "{cidr} has bits set behind its prefix; did you mean {meant}?"
    ))
}

/// `127.0.0.1:9970`, `[::]:4260`.
///
/// # Errors
/// Words for the user.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is no address to listen on: write ADDRESS:PORT, as in 127.0.0.1:9970 or [::]:4260 (no names)")
    })
}

/// Where objects come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SourceSpec {
    /// A directory of manifests.
    Dir(PathBuf),
}

impl FromStr for SourceSpec {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            _ if text == "kube" || text.starts_with("kube:") => {
                Err("Kubernetes as a source is not in this version; write dir:PATH, a directory of manifests".to_owned())
            }
            _ if text.starts_with('/') => Err(format!("{text:?} is no source; did you mean dir:{text}?")),
            _ => Err(format!("{text:?} is no source; write dir:PATH, a directory of manifests")),
        }
    }
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

/// Where a mesh server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MeshEndpoint {
    /// A name or an address (IPv6 without its brackets), and a port. mTLS.
    Tcp { host: String, port: u16 },
    /// A socket of this host. No TLS: its file's mode is the guard.
    Unix(PathBuf),
}

impl FromStr for MeshEndpoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no mesh server: write HOST:PORT (the port is 4260 by default), [IPV6]:PORT or unix:PATH"
            )
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(wrong())
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port
            .parse()
            .ok()
            .filter(|&port| port != 0)
            .ok_or_else(wrong)?;
        let bracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let host = match bracketed {
            Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_ok() => v6,
            None if !host.is_empty() && !host.contains([':', '/', ' ', '[', ']']) => host,
            _ => return Err(wrong()),
        };
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for MeshEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where a peer's mesh server listens: `HOST:PORT`, the host a name or an address; IPv6 in brackets.
///
/// # Errors
/// Words for the user.
pub fn peer_endpoint(text: &str) -> Result<MeshEndpoint, String> {
    match text.parse()? {
        MeshEndpoint::Unix(_) => {
            Err("a peer is reached over the network: write HOST:PORT".to_owned())
        }
        endpoint @ MeshEndpoint::Tcp { .. } => Ok(endpoint),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, millis) in [
            ("3s", 3000),
            ("250ms", 250),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("0s", 0),
        ] {
            assert_eq!(
                duration(text).unwrap(),
                Duration::from_millis(millis),
                "{text}"
            );
        }
        for bad in [
            "",
            "3",
            "s",
            "3 s",
            "-3s",
            "3.5s",
            "3sec",
            "99999999999999999999s",
            "999999999999999999d",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_are_whole_percents() {
        assert_eq!((percent("0%"), percent("100%")), (Ok(0), Ok(100)));
        for bad in ["", "%", "50", "101%", "-1%", "0.5%", "50 %", "1000%"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_end_with_their_prefix() {
        assert!(cidr("10.12.0.0/16").is_ok() && cidr("fd00:12::/48").is_ok());
        for (bad, word) in [
            ("10.12.0.0", "is no range"),
            ("10.12.0.0/33", "is no range"),
            ("10.12.0.1/16", "did you mean 10.12.0.0/16?"),
        ] {
            assert!(cidr(bad).unwrap_err().contains(word), "{bad}");
        }
    }

    #[test]
    fn sources_are_directories() {
        assert_eq!("dir:/etc/x".parse(), Ok(SourceSpec::Dir("/etc/x".into())));
        for (bad, word) in [
            ("kube", "not in this version"),
            ("/etc/x", "did you mean dir:/etc/x?"),
            ("dir:", "write dir:PATH"),
            ("etcd", "write"),
        ] {
            assert!(
                bad.parse::<SourceSpec>().unwrap_err().contains(word),
                "{bad}"
            );
        }
    }

    #[test]
    fn mesh_endpoints_are_names_addresses_or_sockets() {
        for text in [
            "mesh.east.example:4260",
            "10.0.0.1:1",
            "[fd00::1]:4260",
            "unix:/run/isthmus/mesh.sock",
        ] {
            assert_eq!(text.parse::<MeshEndpoint>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "host",
            "host:",
            "host:0",
            "host:65536",
            ":4260",
            "fd00::1:4260",
            "[host]:1",
            "unix:",
            "unix:relative",
            "https://x:1",
        ] {
            assert!(bad.parse::<MeshEndpoint>().is_err(), "{bad}");
        }
        assert!(peer_endpoint("10.0.0.1:1").is_ok());
        assert!(peer_endpoint("unix:/a").unwrap_err().contains("HOST:PORT"));
    }
}
