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
        for named in named_by(&text, beside, &children) {
            let found = named
                .candidates
                .into_iter()
                .find(|(path, _)| path.is_file());
            open.extend(found);
        }
    }
    Ok(reached)
}

/// Another file that a file names: where it may be, and for each where its own modules would lie.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    candidates: Vec<(PathBuf, PathBuf)>,
}

/// `beside` is the file's directory; `children` is that of its modules.
fn named_by(text: &str, beside: &Path, children: &Path) -> Vec<Named> {
    let mut named = Vec::new();
    let mut given = None;
    // Inline modules that are open: the depth of braces outside each, and the directory of what they declare.
    let mut inline: Vec<(usize, PathBuf)> = Vec::new();
    let mut depth: usize = 0;
    for (raw, (_, code)) in text.lines().zip(code_lines(text)) {
        let (raw, code) = (raw.trim(), code.trim());
        let below = inline.last().map_or(children, |(_, directory)| directory);
        // A path in a file is meant from the file; one inside an inline module, from where its modules lie.
        let origin = if inline.is_empty() { beside } else { below };
        let file_in = |origin: &Path, path: String| {
            let path = origin.join(path);
            let directory = path.parent().unwrap_or(origin).to_path_buf();
            Named {
                candidates: vec![(path, directory)],
            }
        };
        let file = |path| file_in(origin, path);
        if let Some(path) = quoted_after(raw, "#[path") {
            given = Some(path);
        } else if let Some(path) = quoted_after(raw, "include!(") {
            // Wherever it stands, it is meant from the file.
            named.push(file_in(beside, path));
        } else if let Some(module) = module(code, ';') {
            named.push(given.take().map_or_else(
                || {
                    let directory = below.join(&module);
                    let flat = below.join(format!("{module}.rs"));
                    Named {
                        candidates: vec![
                            (flat, directory.clone()),
                            (directory.join("mod.rs"), directory),
                        ],
                    }
                },
                file,
            ));
        } else if let Some(module) = module(code, '{') {
            let directory = given
                .take()
                .map_or_else(|| below.join(&module), |path| origin.join(path));
            inline.push((depth, directory));
        }
        for character in code.chars() {
            match character {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        if code.contains('}') {
            inline.retain(|(outside, _)| *outside < depth);
        }
    }
    named
}

fn quoted_after(line: &str, beginning: &str) -> Option<String> {
    let rest = line.strip_prefix(beginning)?;
    rest.split('"').nth(1).map(str::to_owned)
}

/// The name in `mod name;` or `mod name {`, with any visibility and attributes on its line before it.
fn module(code: &str, end: char) -> Option<String> {
    let (before, name) = code.strip_suffix(end)?.rsplit_once("mod ")?;
    let before = before.trim_end();
    let visible = before.is_empty()
        || before == "pub"
        || before.ends_with([')', ']'])
        || before.ends_with("] pub");
    let plain = name.trim().trim_start_matches("r#");
    let named = !plain.is_empty() && plain.chars().all(|c| c.is_alphanumeric() || c == '_');
    (visible && named).then(|| plain.to_owned())
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
            ("pub(crate) mod b_2;", Some("b_2")),
            ("#[cfg(test)] mod tests;", Some("tests")),
            ("pub mod r#type;", Some("type")),
            ("mod inline {", None),
            ("let x = mod_of(y);", None),
        ] {
            assert_eq!(module(line, ';').as_deref(), wanted, "{line}");
        }
        assert_eq!(module("pub mod inline {", '{').as_deref(), Some("inline"));
    }

    /// The first places where the named files may be.
    fn places(text: &str) -> Vec<String> {
        let named = named_by(text, Path::new("src"), Path::new("src/own"));
        named
            .iter()
            .map(|named| named.candidates[0].0.display().to_string())
            .collect()
    }

    #[test]
    fn paths_includes_and_inline_modules_are_followed() {
        let text = "#[path = \"other/place.rs\"]\nmod place;\ninclude!(\"generated/v1.rs\");\n";
        assert_eq!(places(text), ["src/other/place.rs", "src/generated/v1.rs"]);
        let text = "#[path = \"lab\"]\nmod lab {\n    mod a; // why\n    fn f() {}\n    mod b;\n}\n// mod gone;\nmod c;\nmod d {\n    mod e;\n}\n";
        assert_eq!(
            places(text),
            [
                "src/lab/a.rs",
                "src/lab/b.rs",
                "src/own/c.rs",
                "src/own/d/e.rs"
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
