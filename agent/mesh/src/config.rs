//! One list of settings per binary, three ways to say each: flag, environment, `--config FILE`.
//!
//! A binary declares its flags with clap and nothing else. [`load`] adds for each of them `ISTHMUS_FLAG` in the
//! environment and the key `flag` in the YAML file; a flag beats the environment, which beats the file, which beats the
//! default. It adds `--config` and `--print-config` too.

mod common;
mod file;
mod print;
mod value;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};

pub use common::{Cluster, CommonArgs, TlsArgs, TlsPaths};
pub use value::{MeshEndpoint, SourceSpec, cidr, duration, listen_address, peer_endpoint, percent};

use file::Setting;

/// A binary's settings, read.
#[derive(Debug)]
pub struct Loaded<T> {
    pub args: T,
    /// `--print-config`: the text to print before leaving with 0.
    pub print: Option<String>,
}

/// Why settings were not read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Also `--help` and `--version`, which clap counts as errors.
    #[error("{0}")]
    Usage(#[from] clap::Error),
    #[error("--config {}: {cause}", path.display())]
    FileUnreadable {
        path: PathBuf,
        cause: std::io::Error,
    },
    #[error("{}:{line}: {message}", path.display())]
    FileInvalid {
        path: PathBuf,
        line: u64,
        message: String,
    },
    #[error("{}:{line}: unknown key {key:?}{}", path.display(), meant(nearest))]
    UnknownKey {
        path: PathBuf,
        line: u64,
        key: String,
        nearest: Option<String>,
    },
    /// A value that came from `place`, the environment or a line of the file.
    #[error("{place}: {message}")]
    ValueInvalid { place: String, message: String },
    /// What a flag says alone is good, and together with the others is not.
    #[error("{flag} {message}")]
    Invalid { flag: &'static str, message: String },
}

fn meant(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map(|nearest| format!("; did you mean {nearest:?}?"))
        .unwrap_or_default()
}

impl ConfigError {
    /// Says so as a command does, and ends the process: 2 for wrong usage, 0 after `--help` and `--version`.
    pub fn exit(&self) -> ! {
        if let Self::Usage(error) = self {
            error.exit();
        }
        eprintln!("Error: {self}");
        std::process::exit(2)
    }
}

/// Reads the settings of this process.
///
/// # Errors
/// As [`load_from`]; [`ConfigError::exit`] says them as a command does.
pub fn load<T: CommandFactory + FromArgMatches>() -> Result<Loaded<T>, ConfigError> {
    load_from(std::env::args_os(), |name| std::env::var_os(name))
}

/// As [`load`], from these arguments (the program's name first) and this environment.
///
/// # Errors
/// Wrong usage in any of the three ways, in words for a user.
pub fn load_from<T: CommandFactory + FromArgMatches>(
    args: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Loaded<T>, ConfigError> {
    let args: Vec<_> = args.into_iter().collect();
    let command = with_own_flags(T::command());
    let said = Said::collect(&command, &args, &environment)?;
    let mut matches = command
        .clone()
        .mut_args(|arg| said.as_default(arg))
        .try_get_matches_from(&args)
        .map_err(|error| said.blame(error))?;
    let wants_print = matches.get_flag(PRINT);
    let print = wants_print.then(|| print::text(&command, &matches, &said));
    let args = T::from_arg_matches_mut(&mut matches)?;
    Ok(Loaded { args, print })
}

const CONFIG: &str = "config";
const PRINT: &str = "print-config";

fn with_own_flags(command: Command) -> Command {
    let command = command
        .arg(
            Arg::new(CONFIG)
                .long(CONFIG)
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Read settings from this YAML file; its keys are the flags without their dashes"),
        )
        .arg(
            Arg::new(PRINT)
                .long(PRINT)
                .action(clap::ArgAction::SetTrue)
                .help("Print every setting with its unit and where it comes from, then leave"),
        );
    command.after_help(
        "Each flag can be given as ISTHMUS_FLAG in the environment (--node-name: ISTHMUS_NODE_NAME) and as a key of \
         --config. A flag beats the environment, which beats the file.",
    )
}

/// `--node-name`: `ISTHMUS_NODE_NAME`.
fn variable(flag: &str) -> String {
    format!("ISTHMUS_{}", flag.to_uppercase().replace('-', "_"))
}

/// What environment and file say, by flag.
#[derive(Debug)]
struct Said {
    path: PathBuf,
    environment: BTreeMap<String, OsString>,
    file: BTreeMap<String, Setting>,
}

impl Said {
    fn collect(
        command: &Command,
        args: &[OsString],
        environment: &impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        let flags: Vec<_> = command
            .get_arguments()
            .filter_map(|arg| arg.get_long())
            .filter(|flag| *flag != PRINT)
            .collect();
        let said = |flag: &&str| {
            // An empty variable is how a unit file says nothing.
            let value = environment(&variable(flag)).filter(|value| !value.is_empty())?;
            Some(((*flag).to_owned(), value))
        };
        let environment: BTreeMap<_, _> = flags.iter().filter_map(said).collect();
        // Only to find the file: what is wrong elsewhere is told by the second reading.
        let matches = command
            .clone()
            .ignore_errors(true)
            .try_get_matches_from(args)
            .ok();
        let path = matches.and_then(|matches| matches.get_one::<PathBuf>(CONFIG).cloned());
        let path = path.or_else(|| environment.get(CONFIG).map(PathBuf::from));
        let Some(path) = path else {
            return Ok(Self {
                path: PathBuf::new(),
                environment,
                file: BTreeMap::new(),
            });
        };
        let keys: Vec<_> = flags
            .into_iter()
            .filter(|flag| *flag != CONFIG && *flag != "help" && *flag != "version")
            .collect();
        let file = file::read(&path, &keys)?;
        Ok(Self {
            path,
            environment,
            file,
        })
    }

    /// Environment and file speak to clap as an argument's default: so a flag beats them, and values are checked alike.
    fn as_default(&self, arg: Arg) -> Arg {
        let Some(flag) = arg.get_long() else {
            return arg;
        };
        let values: Vec<OsString> = match (self.environment.get(flag), self.file.get(flag)) {
            (Some(value), _) => vec![value.clone()],
            (None, Some(setting)) => setting.values.iter().map(OsString::from).collect(),
            (None, None) => return arg,
        };
        let values = match arg.get_value_delimiter() {
            Some(delimiter) => values
                .iter()
                .flat_map(|value| split(value, delimiter))
                .collect(),
            None => values,
        };
        arg.required(false).default_values(values)
    }

    /// Where the value of `flag` comes from: `flag`, `ISTHMUS_FLAG`, `FILE:LINE` or `default`.
    fn origin(&self, flag: &str, source: Option<ValueSource>) -> String {
        match (source, self.environment.get(flag), self.file.get(flag)) {
            (Some(ValueSource::CommandLine), ..) => "flag".to_owned(),
            (_, Some(_), _) => variable(flag),
            (_, None, Some(setting)) => format!("{}:{}", self.path.display(), setting.line),
            (Some(_), None, None) => "default".to_owned(),
            (None, None, None) => "not set".to_owned(),
        }
    }

    /// clap speaks of the flag; who wrote the value in the environment or the file is told of that.
    fn blame(&self, error: clap::Error) -> ConfigError {
        let context = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.as_str()),
            _ => None,
        };
        let about_value = matches!(
            error.kind(),
            ErrorKind::InvalidValue | ErrorKind::ValueValidation
        );
        let flag = context(ContextKind::InvalidArg)
            .and_then(|arg| arg.strip_prefix("--")?.split([' ', '=']).next());
        let (true, Some(flag), Some(value)) =
            (about_value, flag, context(ContextKind::InvalidValue))
        else {
            return error.into();
        };
        let is_ours =
            |said: &str| said == value || said.split(',').any(|part| part.trim() == value);
        let from_environment = self
            .environment
            .get(flag)
            .and_then(|said| said.to_str())
            .is_some_and(is_ours);
        let from_file = self
            .file
            .get(flag)
            .is_some_and(|setting| setting.values.iter().any(|said| is_ours(said)));
        if !from_environment && !from_file {
            return error.into();
        }
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let allowed = match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(allowed)) => {
                Some(format!("one of {} is expected", allowed.join(", ")))
            }
            _ => None,
        };
        let words = cause
            .or(allowed)
            .unwrap_or_else(|| "is not valid".to_owned());
        let place = match from_environment {
            true => variable(flag),
            false => format!("{}: {flag}", self.origin(flag, None)),
        };
        ConfigError::ValueInvalid {
            place,
            message: format!("{value:?}: {words}"),
        }
    }
}

fn split(value: &OsStr, delimiter: char) -> Vec<OsString> {
    match value.to_str() {
        Some(text) => text
            .split(delimiter)
            .map(|part| part.trim().into())
            .collect(),
        None => vec![value.to_owned()],
    }
}

/// The values of a flag as they were written.
fn raw(matches: &ArgMatches, id: &str) -> Vec<String> {
    let values = matches.get_raw(id).into_iter().flatten();
    values
        .map(|value| value.to_string_lossy().into_owned())
        .collect()
}

#[cfg(test)]
mod tests;
