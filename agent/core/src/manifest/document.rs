//! YAML and JSON as a tree that remembers its lines.
//!
//! A tree, and not types that derive `Deserialize`: what is wrong is then said in a user's words, with the field's
//! path and line, and a field that nobody knows costs nothing.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Spanned, UserMessageFormatter};

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node<'a> {
    /// From 1, within the document.
    pub(super) line: u32,
    pub(super) value: Value<'a>,
}

#[derive(Debug)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(Cow<'a, str>),
    List(Vec<Node<'a>>),
    Map(Vec<(Cow<'a, str>, Node<'a>)>),
}

/// Why text is no YAML.
#[derive(Debug)]
pub(super) struct SyntaxFault {
    /// From 1, within the document.
    pub(super) line: u32,
    pub(super) message: String,
}

/// One document of a file.
#[derive(Debug)]
pub(super) struct Document<'a> {
    pub(super) text: &'a str,
    /// Lines of the file before it.
    pub(super) lines_before: u32,
}

/// The documents of a file, in order, one at a time: a file of ten thousand objects is never in memory as a tree.
/// Those that say nothing are left out.
///
/// A line that starts with `---` or `...` ends a document wherever it stands (YAML forbids it even within a quoted or
/// block scalar), so cutting there needs no parser.
pub(super) fn documents(text: &str) -> impl Iterator<Item = Document<'_>> {
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines_before = 0;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let document = cut(rest);
            let (text, says) = (&rest[..document.length], document.says);
            rest = &rest[document.length..];
            let start = lines_before;
            lines_before += document.lines;
            if says {
                return Some(Document {
                    text,
                    lines_before: start,
                });
            }
        }
        None
    })
}

struct Cut {
    length: usize,
    lines: u32,
    /// Whether there is anything but comments.
    says: bool,
}

fn cut(text: &str) -> Cut {
    let mut cut = Cut {
        length: 0,
        lines: 0,
        says: false,
    };
    let mut opened = false;
    for line in text.split_inclusive('\n') {
        let marks = |mark: &str| {
            line.strip_prefix(mark)
                .is_some_and(|after| after.trim_start().len() < after.len() || after.is_empty())
        };
        if marks("---") {
            if cut.says || opened {
                return cut;
            }
            opened = true;
            cut.says |= !is_quiet(&line[3..]);
        } else if marks("...") {
            cut.length += line.len();
            cut.lines += 1;
            return cut;
        } else if !line.starts_with('%') || opened {
            cut.says |= !is_quiet(line);
        }
        cut.length += line.len();
        cut.lines += 1;
    }
    cut
}

fn is_quiet(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

/// Bytes that a small document's aliases may say again.
const ALIASED: usize = 64 << 10;

/// Reads one document. What it takes is bounded by the length of the text, whatever aliases it has.
pub(super) fn parse(text: &str) -> Result<Node<'_>, SyntaxFault> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            // A `List` of everything in a cluster is one document.
            max_events: 64_000_000,
            max_nodes: 32_000_000,
            max_total_scalar_bytes: ALIASED + 4 * text.len(),
        },
        // A few hundred bytes can name millions of nodes: aliases may say the text once more, and a little beside it.
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: ALIASED / 16 + text.len(),
        },
        // `yes` and `on` are words to an API server that reads JSON.
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| SyntaxFault {
        line: error
            .location()
            .map_or(1, |at| u32::try_from(at.line()).unwrap_or(u32::MAX))
            .max(1),
        message: plain(
            &error
                .without_snippet()
                .render_with_formatter(&UserMessageFormatter),
        ),
    })
}

/// The message without its own mention of the place, which we print in front.
fn plain(message: &str) -> String {
    if message.contains("total_replayed_events") {
        return "its aliases say more than its text; write out what they stand for".to_owned();
    }
    let message = message.lines().next().unwrap_or_default();
    let end = message.find(" at line ").unwrap_or(message.len());
    message[..end].trim_end_matches([':', '.', ' ']).to_owned()
}

impl<'de: 'a, 'a> Deserialize<'de> for Node<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value<'a>>::deserialize(deserializer)?;
        let line = u32::try_from(spanned.referenced.line()).map_err(D::Error::custom)?;
        Ok(Self {
            line,
            value: spanned.value,
        })
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Value<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value<'de>, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value<'de>, E> {
        Ok(Value::Integer(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value<'de>, E> {
        Ok(Value::Integer(value.into()))
    }
    fn visit_i128<E>(self, value: i128) -> Result<Value<'de>, E> {
        Ok(Value::Integer(value))
    }
    fn visit_u128<E>(self, value: u128) -> Result<Value<'de>, E> {
        // No field of ours reaches here: it is out of every range, and says so as any large number does.
        Ok(Value::Integer(i128::try_from(value).unwrap_or(i128::MAX)))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value<'de>, E> {
        Ok(Value::Float(value))
    }
    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(value)))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(value.to_owned())))
    }
    fn visit_string<E>(self, value: String) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(value)))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value<'de>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value<'de>, A::Error> {
        let mut map = Vec::new();
        while let Some(Key(key)) = entries.next_key()? {
            map.push((key, entries.next_value()?));
        }
        Ok(Value::Map(map))
    }
}

/// A key, borrowed from the text where it stands there as it is.
struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyText;
        impl<'de> Visitor<'de> for KeyText {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(key)))
            }
            fn visit_str<E>(self, key: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(key.to_owned())))
            }
        }
        deserializer.deserialize_str(KeyText)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use super::*;

    #[test]
    fn documents_are_cut_where_yaml_cuts_them() {
        let rows: [(&str, &[(&str, u32)]); 8] = [
            ("", &[]),
            ("# only\n---\n# words\n", &[]),
            ("a: 1\n", &[("a: 1\n", 0)]),
            (
                "# c\n---\na: 1\n---\nb: 2\n",
                &[("# c\n---\na: 1\n", 0), ("---\nb: 2\n", 3)],
            ),
            (
                "a: 1\n...\n%YAML 1.2\n---\nb: 2",
                &[("a: 1\n...\n", 0), ("%YAML 1.2\n---\nb: 2", 2)],
            ),
            ("a: |\n  ---\n  x\n", &[("a: |\n  ---\n  x\n", 0)]),
            (
                "--- {a: 1}\n--- {b: 2}\n",
                &[("--- {a: 1}\n", 0), ("--- {b: 2}\n", 1)],
            ),
            ("a: 1\n---x: 2\n", &[("a: 1\n---x: 2\n", 0)]),
        ];
        for (text, wanted) in rows {
            let got: Vec<_> = documents(text).map(|d| (d.text, d.lines_before)).collect();
            assert_eq!(got, wanted, "{text:?}");
        }
    }

    #[test]
    fn aliases_may_repeat_and_may_not_explode() {
        let ports = "a: &ports [{port: 80, protocol: TCP}, {port: 53, protocol: UDP}]\n";
        let services: String = (0..50).map(|n| format!("s{n}: *ports\n")).collect();
        parse(&format!("{ports}{services}")).unwrap();

        let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (one, next) in "abcdefgh".chars().zip("bcdefghi".chars()) {
            let of = vec![format!("*{one}"); 10].join(", ");
            bomb.push_str(&format!("{next}: &{next} [{of}]\n"));
        }
        let fault = parse(&bomb).unwrap_err();
        assert!(fault.message.starts_with("its aliases"), "{fault:?}");
        let text = format!(
            "a: &a {}\nb: [{}]\n",
            "x".repeat(60_000),
            "*a, ".repeat(20_000)
        );
        let fault = parse(&text).unwrap_err();
        assert!(fault.message.contains("scalar"), "{fault:?}");
    }

    #[test]
    fn a_node_knows_its_line() {
        let node = parse("---\na: 1\nb:\n  - x\n  - {c: true,\n     d: null}\n").unwrap();
        let Value::Map(map) = &node.value else {
            panic!("{node:?}")
        };
        assert_eq!(map[0].1.line, 2);
        let Value::List(list) = &map[1].1.value else {
            panic!("{node:?}")
        };
        assert_eq!((list[0].line, list[1].line), (4, 5));
        let Value::Map(inner) = &list[1].value else {
            panic!("{node:?}")
        };
        assert!(matches!(
            inner[0].1,
            Node {
                line: 5,
                value: Value::Bool(true)
            }
        ));
        assert!(matches!(
            inner[1].1,
            Node {
                line: 6,
                value: Value::Null
            }
        ));
    }

    #[test]
    fn a_fault_knows_its_line_and_says_it_once() {
        for (text, line) in [
            ("a: 1\nb: [1, 2\n", 3),
            ("a: 1\na: 2\n", 2),
            ("a: *nowhere\n", 1),
            ("a: \"x\nb: 1", 2),
        ] {
            let fault = parse(text).unwrap_err();
            assert!(fault.line.abs_diff(line) <= 1, "{text:?}: {fault:?}");
            assert!(
                !fault.message.contains("line ") && !fault.message.is_empty(),
                "{fault:?}"
            );
        }
    }
}
