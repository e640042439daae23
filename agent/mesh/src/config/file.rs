//! `--config FILE`: a YAML mapping whose keys are flags.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Spanned, UserMessageFormatter};

use super::ConfigError;

/// A key's value.
#[derive(Debug)]
pub(super) struct Setting {
    /// From 1.
    pub(super) line: u64,
    /// As they were written; one, or those of a list.
    pub(super) values: Vec<String>,
}

pub(super) fn read(path: &Path, keys: &[&str]) -> Result<BTreeMap<String, Setting>, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|cause| ConfigError::FileUnreadable {
        path: path.to_owned(),
        cause,
    })?;
    parse(path, &text, keys)
}

fn parse(path: &Path, text: &str, keys: &[&str]) -> Result<BTreeMap<String, Setting>, ConfigError> {
    let options = serde_saphyr::options! { with_snippet: false };
    let Entries(entries) = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let message = error
            .without_snippet()
            .render_with_formatter(&UserMessageFormatter);
        let end = message.find(" at line ").unwrap_or(message.len());
        ConfigError::FileInvalid {
            path: path.to_owned(),
            line: error.location().map_or(1, |at| at.line()),
            message: message[..end].trim_end_matches([':', ' ']).to_owned(),
        }
    })?;
    let mut settings = BTreeMap::new();
    for (key, value) in entries {
        let line = value.referenced.line();
        if !keys.contains(&key.as_str()) {
            let nearest = nearest(&key, keys).map(str::to_owned);
            return Err(ConfigError::UnknownKey {
                path: path.to_owned(),
                line,
                key,
                nearest,
            });
        }
        // A key without a value says nothing: the default holds.
        if let Some(values) = value.value.0 {
            settings.insert(key, Setting { line, values });
        }
    }
    Ok(settings)
}

/// The key that was meant, if one is near enough to be it.
fn nearest<'k>(key: &str, keys: &[&'k str]) -> Option<&'k str> {
    let typed = key.to_lowercase().replace('_', "-");
    let scored = keys
        .iter()
        .map(|known| (strsim::jaro_winkler(&typed, known), *known));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.8).then_some(best.1)
}

struct Entries(Vec<(String, Spanned<Values>)>);

/// None for a null.
struct Values(Option<Vec<String>>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of settings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Values;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or a list of values")
            }
            fn visit_unit<E>(self) -> Result<Values, E> {
                Ok(Values(None))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Values, E> {
                Ok(Values(Some(vec![value.to_string()])))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Values, E> {
                Ok(Values(Some(vec![value.to_string()])))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Values, E> {
                Ok(Values(Some(vec![value.to_string()])))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Values, E> {
                Ok(Values(Some(vec![value.to_string()])))
            }
            fn visit_str<E>(self, value: &str) -> Result<Values, E> {
                Ok(Values(Some(vec![value.to_owned()])))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Values, A::Error> {
                let mut values = Vec::new();
                while let Some(item) = items.next_element::<Values>()? {
                    values.extend(item.0.unwrap_or_default());
                }
                Ok(Values(Some(values)))
            }
        }
        deserializer.deserialize_any(Any)
    }
}
