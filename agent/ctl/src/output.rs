//! From a report to the terminal: format, colours, exit code.

use std::borrow::Cow;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::Serialize;

use crate::cli::{Format, Global};

pub const API_VERSION: &str = "isthmus.dev/v1";

/// Something that a command shows.
pub trait Report: Serialize + JsonSchema {
    /// `kind` of the JSON.
    const KIND: &'static str;
    /// For people. Ends with a line feed.
    fn text(&self, wide: bool, style: Style) -> String;
    /// True if the command exits 1.
    fn is_bad(&self) -> bool;
}

/// What `-o json` and `-o yaml` print: a report with its kind.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Document<'a, R> {
    pub api_version: &'static str,
    pub kind: &'static str,
    #[serde(flatten)]
    pub report: &'a R,
}

impl<'a, R: Report> Document<'a, R> {
    pub fn new(report: &'a R) -> Self {
        Self {
            api_version: API_VERSION,
            kind: R::KIND,
            report,
        }
    }
}

/// What a piece of text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    Plain,
    Bold,
    Good,
    Warn,
    Bad,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    colour: bool,
}

impl Style {
    #[cfg(test)]
    pub const PLAIN: Self = Self { colour: false };
    #[cfg(test)]
    pub const COLOUR: Self = Self { colour: true };

    /// Colours for people only: standard output is a terminal, and nobody said no (no-color.org).
    pub fn for_stdout(global: &Global) -> Self {
        let said_no =
            global.no_color || std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            colour: io::stdout().is_terminal() && !said_no && !dumb,
        }
    }
    pub fn paint(self, paint: Paint, text: &str) -> Cow<'_, str> {
        let code = match paint {
            Paint::Bold => 1,
            Paint::Bad => 31,
            Paint::Good => 32,
            Paint::Warn => 33,
            Paint::Plain => 0,
        };
        if !self.colour || code == 0 {
            return Cow::Borrowed(text);
        }
        Cow::Owned(format!("\u{1b}[{code}m{text}\u{1b}[0m"))
    }
}

/// Prints a report as asked, and gives its exit code.
pub fn show<R: Report>(report: &R, global: &Global) -> Result<ExitCode> {
    print(&render(report, global.output, Style::for_stdout(global))?)?;
    Ok(ExitCode::from(u8::from(report.is_bad())))
}

pub fn render<R: Report>(report: &R, format: Format, style: Style) -> Result<String> {
    let document = Document::new(report);
    Ok(match format {
        Format::Table => report.text(false, style),
        Format::Wide => report.text(true, style),
        Format::Json => serde_json::to_string_pretty(&document)? + "\n",
        Format::Yaml => serde_saphyr::to_string(&document).context("cannot write YAML")?,
    })
}

/// One of many reports that follow each other: a line of JSON, a document of YAML.
pub fn render_line<R: Report>(report: &R, format: Format, style: Style) -> Result<String> {
    Ok(match format {
        Format::Json => serde_json::to_string(&Document::new(report))? + "\n",
        Format::Yaml => format!("---\n{}", render(report, format, style)?),
        Format::Table | Format::Wide => render(report, format, style)?,
    })
}

/// To standard output. A reader that went away (`| head`) is no error.
pub fn print(text: &str) -> Result<()> {
    print_on(text).map(drop)
}

/// To standard output; false if its reader went away.
pub fn print_on(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
}

/// Says something on standard error that is no part of what was asked for.
pub fn note(text: &str) {
    // Nobody is left to hear that standard error is closed.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Says on standard error why a command failed.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    // Nobody is left to hear that standard error is closed.
    let _ = writeln!(io::stderr(), "Error: {error:#}");
    ExitCode::FAILURE
}
