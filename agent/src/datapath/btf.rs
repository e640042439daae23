//! Where members of the running kernel's structures lie, by its BTF (Documentation/bpf/btf.rst).

use std::collections::HashMap;
use std::{fs, io};

const FILE: &str = "/sys/kernel/btf/vmlinux";

/// Of the kinds of types, those that a search walks through.
mod kind {
    pub const INT: u32 = 1;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const ENUM64: u32 = 19;
}

#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    #[error("{FILE}: {0}; the kernel has to be built with CONFIG_DEBUG_INFO_BTF")]
    Unreadable(#[from] io::Error),
    #[error("{FILE} ends early or names what is not in it")]
    Malformed,
    #[error("{FILE} knows no {0}")]
    Missing(String),
}

/// A structure's members: name (empty for an anonymous one), type, and place in bits.
struct Struct<'a> {
    members: Vec<(&'a str, u32, u32)>,
}

/// The structures and unions of a BTF blob, by name and by type id.
struct Types<'a> {
    by_id: HashMap<u32, Struct<'a>>,
    /// What typedefs stand for.
    defined: HashMap<u32, u32>,
    by_name: HashMap<&'a str, u32>,
}

/// Offsets in bytes of members, each as `(structure, member)`, or `(structure, "member.of.member")`. Members of anonymous
/// structures within count as the structure's own.
///
/// # Errors
/// If the kernel tells no BTF, or has no such member.
pub fn offsets<'a>(
    members: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<u32>, BtfError> {
    let bytes = fs::read(FILE)?;
    find(&bytes, members)
}

fn find<'a>(
    bytes: &[u8],
    members: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<u32>, BtfError> {
    let types = Types::parse(bytes).ok_or(BtfError::Malformed)?;
    members
        .into_iter()
        .map(|(structure, member)| {
            let id = types.by_name.get(structure);
            id.and_then(|id| types.path(*id, member))
                .ok_or_else(|| BtfError::Missing(format!("{structure}.{member}")))
        })
        .collect()
}

/// How deep anonymous structures may nest.
const DEPTH_MAX: u32 = 8;

impl<'a> Types<'a> {
    /// `None` if the bytes contradict themselves. Only this machine's byte order: the file is its kernel's.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;
        let magic = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
        if magic != MAGIC {
            return None;
        }
        let header = |at| word(bytes, at);
        let start = header(4)? as usize;
        let types = part(bytes, start, header(8)?, header(12)?)?;
        let strings = part(bytes, start, header(16)?, header(20)?)?;
        let mut this = Self {
            by_id: HashMap::new(),
            defined: HashMap::new(),
            by_name: HashMap::new(),
        };
        let (mut at, mut id) = (0, 0);
        while at < types.len() {
            id += 1;
            let name = word(types, at)?;
            let info = word(types, at + 4)?;
            at += 12;
            let (count, with_flag) = (info as usize & 0xffff, info >> 31 != 0);
            match info >> 24 & 0x1f {
                kind::STRUCT | kind::UNION => {
                    let mut members = Vec::with_capacity(count);
                    for _ in 0..count {
                        let offset = word(types, at + 8)?;
                        // With the flag the top byte is a bit field's width.
                        let bits = if with_flag {
                            offset & 0x00ff_ffff
                        } else {
                            offset
                        };
                        members.push((
                            text(strings, word(types, at)?)?,
                            word(types, at + 4)?,
                            bits,
                        ));
                        at += 12;
                    }
                    let name = text(strings, name)?;
                    if !name.is_empty() {
                        this.by_name.entry(name).or_insert(id);
                    }
                    this.by_id.insert(id, Struct { members });
                }
                kind::TYPEDEF => {
                    this.defined.insert(id, word(types, at - 4)?);
                }
                kind::INT | kind::VAR | kind::DECL_TAG => at += 4,
                kind::ARRAY => at += 12,
                kind::ENUM | kind::FUNC_PROTO => at += 8 * count,
                kind::DATASEC | kind::ENUM64 => at += 12 * count,
                _ => {}
            }
        }
        Some(this)
    }

    fn path(&self, mut id: u32, path: &str) -> Option<u32> {
        let mut place = 0;
        for name in path.split('.') {
            // No name would find what is anonymous.
            let named = Some(name).filter(|name| !name.is_empty())?;
            let (offset, kind) = self.member(id, named, 0)?;
            place += offset;
            id = *self.defined.get(&kind).unwrap_or(&kind);
        }
        Some(place)
    }

    /// Where a member is, and its type.
    fn member(&self, id: u32, wanted: &str, depth: u32) -> Option<(u32, u32)> {
        let structure = self.by_id.get(&id).filter(|_| depth < DEPTH_MAX)?;
        structure.members.iter().find_map(|(name, kind, bits)| {
            if *name == wanted {
                return Some((bits / 8, *kind));
            }
            if !name.is_empty() {
                return None;
            }
            let (offset, kind) = self.member(*kind, wanted, depth + 1)?;
            Some((bits / 8 + offset, kind))
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn part(bytes: &[u8], start: usize, offset: u32, len: u32) -> Option<&[u8]> {
    let from = start.checked_add(offset as usize)?;
    bytes.get(from..from.checked_add(len as usize)?)
}

fn text(strings: &[u8], at: u32) -> Option<&str> {
    let rest = strings.get(at as usize..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

    use super::*;

    /// `struct outer { int a; struct { int b; union { int c; }; }; }`, with an int before and a typedef of it after; then
    /// `struct whole { int a; typedef struct outer b; }`.
    fn blob() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0b\0c\0whole\0";
        let mut types: Vec<u32> = vec![1, kind::INT << 24, 4, 32];
        types.extend([0, kind::UNION << 24 | 1, 4, 15, 1, 0]);
        types.extend([0, kind::STRUCT << 24 | 2, 8, 13, 1, 0, 0, 2, 32]);
        types.extend([5, kind::STRUCT << 24 | 2, 12, 11, 1, 0, 0, 3, 32]);
        types.extend([1, kind::TYPEDEF << 24, 4]);
        types.extend([17, kind::STRUCT << 24 | 2, 16, 11, 1, 0, 13, 5, 32]);
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, len(&types), len(&types), len(strings)] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(&types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_of_anonymous_structures_are_the_structures_own() {
        let wanted = [("outer", "a"), ("outer", "b"), ("outer", "c")];
        assert_eq!(find(&blob(), wanted).unwrap(), [0, 4, 8]);
    }

    #[test]
    fn a_path_leads_through_members_and_their_typedefs() {
        let wanted = [("whole", "a"), ("whole", "b.a"), ("whole", "b.c")];
        assert_eq!(find(&blob(), wanted).unwrap(), [0, 4, 12]);
        for path in ["a.b", "b.b.c", "b.", ".b"] {
            assert!(find(&blob(), [("whole", path)]).is_err(), "{path}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = find(&blob(), [("outer", "d")]).unwrap_err();
        assert!(error.to_string().ends_with("knows no outer.d"), "{error}");
    }

    #[test]
    fn no_prefix_panics() {
        let blob = blob();
        for len in 0..blob.len() {
            let _ = find(&blob[..len], [("outer", "c")]);
        }
    }
}
