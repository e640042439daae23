//! `--print-config`: what holds, as a file that `--config` reads, each line with its unit and origin.

use clap::{Arg, ArgMatches, Command};

use super::{CONFIG, PRINT, Said, raw};

pub(super) fn text(command: &Command, matches: &ArgMatches, said: &Said) -> String {
    let mut text = String::new();
    for arg in command.get_arguments() {
        let Some(flag) = arg.get_long() else { continue };
        if matches!(flag, CONFIG | PRINT | "help" | "version") || arg.is_hide_set() {
            continue;
        }
        let id = arg.get_id().as_str();
        let values = raw(matches, id);
        let line = match values.as_slice() {
            [] => format!("# {flag}:"),
            [one] => format!("{flag}: {}", scalar(one)),
            many => format!(
                "{flag}: [{}]",
                many.iter()
                    .map(|one| scalar(one))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        };
        let origin = said.origin(flag, matches.value_source(id));
        text.push_str(&format!("{line:<56} # {}; {origin}\n", unit(arg)));
    }
    text
}

/// What a value is, in the words of its help.
fn unit(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    let possible = arg.get_possible_values();
    match names.first() {
        _ if !possible.is_empty() => possible
            .iter()
            .map(|value| value.get_name())
            .collect::<Vec<_>>()
            .join(" or "),
        Some(name) => name.to_lowercase(),
        None => "on or off".to_owned(),
    }
}

/// The text as YAML reads it back.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '-' | '_');
    let safe = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && text.chars().all(plain);
    if safe {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}
