use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A cluster's number, 1..=511. Which half a mesh uses is a mesh-wide choice; 0 means "no cluster".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct ClusterId(u16);

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cluster id {0} is not 1..511")]
pub struct InvalidClusterId(pub u64);

impl ClusterId {
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for ClusterId {
    type Error = InvalidClusterId;
    fn try_from(id: u16) -> Result<Self, Self::Error> {
        if (1..=511).contains(&id) {
            Ok(Self(id))
        } else {
            Err(InvalidClusterId(u64::from(id)))
        }
    }
}

impl From<ClusterId> for u16 {
    fn from(id: ClusterId) -> Self {
        id.0
    }
}

impl FromStr for ClusterId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id: u16 = text
            .parse()
            .map_err(|_| format!("cluster id {text:?} is not 1..511"))?;
        Self::try_from(id).map_err(|e| e.to_string())
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A cluster's name: at most 32 characters, `^([a-z0-9][-a-z0-9]*)?[a-z0-9]$`, not `default` (Cilium's rule for a
/// meshed cluster). Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(Arc<str>);

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidClusterName {
    #[error("cluster name {0:?} is not 1 to 32 lower-case letters, digits and inner '-'")]
    Shape(String),
    #[error("cluster name \"default\" cannot join a mesh; give the cluster a name of its own")]
    Default,
}

impl ClusterName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = InvalidClusterName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let bytes = text.as_bytes();
        let shaped = bytes.len() <= 32
            && bytes.first().is_some_and(|&c| inner(c))
            && bytes.last().is_some_and(|&c| inner(c))
            && bytes.iter().all(|&c| inner(c) || c == b'-');
        match text {
            _ if !shaped => Err(InvalidClusterName::Shape(text.to_owned())),
            "default" => Err(InvalidClusterName::Default),
            _ => Ok(Self(text.into())),
        }
    }
}

impl TryFrom<String> for ClusterName {
    type Error = InvalidClusterName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "east", "us-west-2", "0", &"a".repeat(32)] {
            assert!(good.parse::<ClusterName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "East",
            "a.b",
            "a_b",
            &"a".repeat(33),
            "default",
            "é",
        ] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_bounded() {
        assert!(ClusterId::try_from(0).is_err());
        assert!(ClusterId::try_from(512).is_err());
        assert_eq!(ClusterId::try_from(511).map(ClusterId::get), Ok(511));
    }
}
