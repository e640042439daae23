//! Rust sources, read as plainly as these checks need: no macros expanded, no conditions decided.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Every `.rs` below a package's directory that is its own: another package's directory inside it is not.
pub(super) fn below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in
            fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                if !path.join("Cargo.toml").is_file() && !path.ends_with("target") {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The files that a crate root pulls in by `mod`, `#[path]` and `include!`, itself among them.
pub(super) fn reached_from(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut reached = BTreeSet::new();
    let mut open = vec![(
        root.to_path_buf(),
        root.parent().unwrap_or(root).to_path_buf(),
    )];
    while let Some((file, children)) = open.pop() {
        if !reached.insert(file.clone()) {
            continue;
        }
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let beside = file.parent().unwrap_or(&file);
        for named in named_by(&text) {
            let candidates = match &named {
                Named::Module(name) => vec![
                    children.join(format!("{name}.rs")),
                    children.join(name).join("mod.rs"),
                ],
                Named::File(path) => vec![beside.join(path)],
            };
            if let Some(found) = candidates.into_iter().find(|path| path.is_file()) {
                let below = match &named {
                    Named::Module(name) => children.join(name),
                    Named::File(_) => found.parent().unwrap_or(&found).to_path_buf(),
                };
                open.push((found, below));
            }
        }
    }
    Ok(reached)
}

#[derive(Debug, PartialEq, Eq)]
enum Named {
    Module(String),
    File(String),
}

fn named_by(text: &str) -> Vec<Named> {
    let mut named = Vec::new();
    let mut path = None;
    for line in text.lines().map(str::trim) {
        if let Some(given) = quoted_after(line, "#[path") {
            path = Some(given);
        } else if let Some(included) = quoted_after(line, "include!(") {
            named.push(Named::File(included));
        } else if let Some(module) = module(line) {
            named.push(path.take().map_or(Named::Module(module), Named::File));
        }
    }
    named
}

fn quoted_after(line: &str, beginning: &str) -> Option<String> {
    let rest = line.strip_prefix(beginning)?;
    rest.split('"').nth(1).map(str::to_owned)
}

/// The name in `mod name;`, with any visibility and attributes on its line before it.
fn module(line: &str) -> Option<String> {
    let declaration = line.split("//").next()?.trim().strip_suffix(';')?;
    let (before, name) = declaration.rsplit_once("mod ")?;
    let before = before.trim_end();
    let visible = before.is_empty()
        || before == "pub"
        || before.ends_with(')')
        || before.ends_with("] pub")
        || before.ends_with(']');
    let plain = name.trim().trim_start_matches("r#");
    (visible && !plain.is_empty() && plain.chars().all(|c| c.is_alphanumeric() || c == '_'))
        .then(|| plain.to_owned())
}

/// Lines counted from 1, without what stands in comments and string literals.
pub(super) fn code_lines(text: &str) -> impl Iterator<Item = (usize, String)> + '_ {
    let mut state = State::Code;
    text.lines()
        .enumerate()
        .map(move |(index, line)| (index + 1, code_of(line, &mut state)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Code,
    Block,
    Text,
    /// A raw string, and how many `#` close it.
    Raw(usize),
}

fn code_of(line: &str, state: &mut State) -> String {
    let characters: Vec<char> = line.chars().collect();
    let at = |index: usize| characters.get(index).copied();
    let mut code = String::new();
    let mut index = 0;
    while let Some(character) = at(index) {
        index += 1;
        match *state {
            State::Block if character == '*' && at(index) == Some('/') => {
                (*state, index) = (State::Code, index + 1);
            }
            State::Text if character == '\\' => index += 1,
            State::Text if character == '"' => *state = State::Code,
            State::Raw(marks)
                if character == '"' && (0..marks).all(|mark| at(index + mark) == Some('#')) =>
            {
                (*state, index) = (State::Code, index + marks);
            }
            State::Block | State::Text | State::Raw(_) => {}
            State::Code => match character {
                '/' if at(index) == Some('/') => break,
                '/' if at(index) == Some('*') => (*state, index) = (State::Block, index + 1),
                // Not the beginning of a string: the character literals '"' and '\"'.
                '\'' if at(index) == Some('"') && at(index + 1) == Some('\'') => index += 2,
                '\'' if at(index) == Some('\\') && at(index + 1) == Some('"') => index += 3,
                '"' => {
                    let marks = code.chars().rev().take_while(|c| *c == '#').count();
                    let raw = code.trim_end_matches('#').ends_with('r');
                    *state = if raw { State::Raw(marks) } else { State::Text };
                }
                other => code.push(other),
            },
        }
    }
    code
}

/// Whether `word` stands in `code` by itself.
pub(super) fn has_word(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        !code[..at].chars().next_back().is_some_and(part)
            && !code[at + word.len()..].chars().next().is_some_and(part)
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

    use super::*;

    #[test]
    fn declarations_of_modules_are_read() {
        for (line, wanted) in [
            ("mod a;", Some("a")),
            ("pub(crate) mod b_2; // why", Some("b_2")),
            ("#[cfg(test)] mod tests;", Some("tests")),
            ("pub mod r#type;", Some("type")),
            ("mod inline {", None),
            ("// mod gone;", None),
            ("let x = mod_of(y);", None),
        ] {
            assert_eq!(module(line).as_deref(), wanted, "{line}");
        }
    }

    #[test]
    fn paths_and_includes_are_followed() {
        let text = "#[path = \"other/place.rs\"]\nmod place;\ninclude!(\"generated/v1.rs\");\n";
        assert_eq!(
            named_by(text),
            [
                Named::File("other/place.rs".into()),
                Named::File("generated/v1.rs".into())
            ]
        );
    }

    #[test]
    fn strings_and_comments_are_not_code() {
        let text = "a /* b\nc */ d \"e \\\" f\" g // h\nr#\"i\nj\"# k\nlet q = '\"'; l";
        let code: Vec<String> = code_lines(text).map(|(_, line)| line).collect();
        assert_eq!(code, ["a ", " d  g ", "r#", " k", "let q = ; l"]);
    }

    #[test]
    fn this_package_reaches_its_own_files() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let reached = reached_from(&here.join("src/main.rs")).unwrap();
        assert_eq!(
            below(here).unwrap(),
            reached.into_iter().collect::<Vec<_>>()
        );
    }
}
