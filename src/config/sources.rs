//! Where settings come from: a TOML file, the environment, the command line.
//!
//! All become `--flag=value` in the end, and clap parses them with the parser of the field.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Args, FromArgMatches};
use toml::de::{DeTable, DeValue};

use super::Config;

const PREFIX: &str = "FLOTILLA_";

/// Variables with our prefix that are not settings of a node: read by the CLI, or by what starts it.
const OTHER_VARIABLES: [&str; 4] = ["FLOTILLA_CONFIG", "FLOTILLA_URL", "FLOTILLA_BIN", "FLOTILLA_KEEP"];

/// Settings that have several values: lists in the file, separated by commas elsewhere.
const LISTS: [&str; 2] = ["peers", "cors_origins"];

/// Settings that are true or false.
const SWITCHES: [&str; 1] = ["insecure_peers"];

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody gave it.
    Default,
    /// A configuration file, and the line if one can be named.
    File(PathBuf, Option<usize>),
    /// An environment variable.
    Variable(String),
    /// A command line flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File(path, Some(line)) => write!(f, "{}, line {line}", path.display()),
            Self::File(path, None) => write!(f, "{}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Why a configuration was refused: which key, from where, and the reason.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} ({origin}): {reason}")]
pub(crate) struct Refused {
    /// The setting (`raft.heartbeat`), or what stands in its place.
    pub(crate) key: String,
    /// Where its value came from.
    pub(crate) origin: Origin,
    /// What is wrong with it, and what would be right.
    pub(crate) reason: String,
}

impl Refused {
    pub(super) fn new(key: impl Into<String>, origin: Origin, reason: impl Into<String>) -> Self {
        Self { key: key.into(), origin, reason: reason.into() }
    }
}

/// The settings given on the command line, as text, and the file that `--config` names.
///
/// Flattened into a subcommand, it adds a flag for each setting.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags {
    file: Option<PathBuf>,
    values: Vec<(String, OsString)>,
}

impl Flags {
    /// No flags but `--config`.
    #[cfg(test)]
    pub(crate) fn from_file(file: PathBuf) -> Self {
        Self { file: Some(file), values: Vec::new() }
    }
}

impl Args for Flags {
    fn augment_args(command: clap::Command) -> clap::Command {
        let file = clap::Arg::new("config")
            .long("config")
            .value_name("FILE")
            .env("FLOTILLA_CONFIG")
            .value_parser(clap::value_parser!(PathBuf))
            .help("TOML file of these settings; environment variables (FLOTILLA_RAFT_KEEP for --raft-keep) and flags win over it");
        optional(Config::augment_args(command.arg(file)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let given = |key: &String| matches.value_source(key) == Some(ValueSource::CommandLine);
        let values = Config::keys().into_iter().filter(given).map(|key| {
            let raw: Vec<&OsStr> = matches.get_raw(&key).into_iter().flatten().collect();
            let value = raw.join(OsStr::new(","));
            (key, value)
        });
        Ok(Self { file: matches.get_one("config").cloned(), values: values.collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The values that somebody gave, each accepted by its parser.
#[derive(Debug, Default)]
pub(super) struct Given(BTreeMap<String, (String, Origin)>);

impl Given {
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    pub(super) fn origin(&self, key: &str) -> Origin {
        self.0.get(key).map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    pub(super) fn origins(self) -> BTreeMap<String, Origin> {
        self.0.into_iter().map(|(key, (_, origin))| (key, origin)).collect()
    }

    pub(super) fn insert(&mut self, key: String, value: String, origin: Origin) {
        self.0.insert(key, (value, origin));
    }

    fn insert_checked(&mut self, key: String, value: String, origin: Origin) -> Result<(), Refused> {
        match command().try_get_matches_from(flag(&key, &value)) {
            Ok(_) => self.insert(key, value, origin),
            Err(error) => {
                return Err(Refused::new(key, origin, format!("{value:?}: {}", reason(&error))));
            }
        }
        Ok(())
    }
}

/// Collects what file, environment and flags give; the later source wins.
pub(super) fn merge(
    flags: &Flags,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Given, Refused> {
    let mut given = Given::default();
    if let Some(path) = &flags.file {
        read_file(path, &mut given)?;
    }
    read_environment(environment, &mut given)?;
    for (key, value) in &flags.values {
        let origin = Origin::Flag(flag_name(key));
        let value = text(key, value.clone(), &origin)?;
        given.insert_checked(key.clone(), value, origin)?;
    }
    Ok(given)
}

/// Parses all values together, which cannot fail: each was parsed alone before.
pub(super) fn parse(given: &Given) -> clap::ArgMatches {
    let flags = given.0.iter().flat_map(|(key, (value, _))| flag(key, value));
    command().try_get_matches_from(flags).expect("each value was checked when it was read")
}

/// Settings whose default is computed are no clap defaults, but nobody is obliged to give them.
fn optional(command: clap::Command) -> clap::Command {
    command.mut_args(|argument| argument.required(false))
}

fn command() -> clap::Command {
    optional(Config::augment_args(clap::Command::new("settings").no_binary_name(true).disable_help_flag(true)))
}

fn flag(key: &str, value: &str) -> Option<String> {
    // An empty list is written as an empty text, which is no element of it.
    let empty_list = LISTS.contains(&key) && value.is_empty();
    (!empty_list).then(|| format!("{}={value}", flag_name(key)))
}

fn flag_name(key: &str) -> String {
    format!("--{}", key.replace(['.', '_'], "-"))
}

fn variable_name(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_uppercase())
}

/// What clap has to say about a value, without its frame of usage and flags.
fn reason(error: &clap::Error) -> String {
    if let Some(source) = std::error::Error::source(error) {
        return source.to_string();
    }
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) if !values.is_empty() => format!("must be one of {}", values.join(", ")),
        _ => "a value is missing".to_owned(),
    }
}

fn text(key: &str, value: OsString, origin: &Origin) -> Result<String, Refused> {
    value.into_string().map_err(|_| Refused::new(key, origin.clone(), "is not UTF-8"))
}

fn read_environment(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    given: &mut Given,
) -> Result<(), Refused> {
    let keys: BTreeMap<String, String> = Config::keys().into_iter().map(|key| (variable_name(&key), key)).collect();
    for (name, value) in environment {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
            continue;
        };
        if OTHER_VARIABLES.contains(&name) || is_service_link(name) {
            continue;
        }
        let origin = Origin::Variable(name.to_owned());
        let Some(key) = keys.get(name) else {
            let reason = "no setting has this name; see `flotilla serve --help`";
            return Err(Refused::new(name, origin, reason));
        };
        let value = text(key, value, &origin)?;
        given.insert_checked(key.clone(), value, origin)?;
    }
    Ok(())
}

/// Kubernetes sets these in every pod beside a Service called `flotilla` or `flotilla-…`:
/// `FLOTILLA_SERVICE_HOST`, `FLOTILLA_SERVICE_PORT_HTTP`, `FLOTILLA_PORT`, `FLOTILLA_PORT_5000_TCP_ADDR`.
fn is_service_link(name: &str) -> bool {
    let (_, port) = name.split_once("_PORT").unwrap_or((name, "none"));
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || port.is_empty()
        || port.strip_prefix('_').is_some_and(|port| port.starts_with(|c: char| c.is_ascii_digit()))
}

fn read_file(path: &Path, given: &mut Given) -> Result<(), Refused> {
    let at = |line| Origin::File(path.to_owned(), line);
    let content = std::fs::read_to_string(path)
        .map_err(|error| Refused::new("the configuration file", at(None), format!("cannot be read: {error}")))?;
    let line = |offset: usize| content.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1;
    let document = DeTable::parse(&content).map_err(|error| {
        let line = error.span().map(|span| line(span.start));
        Refused::new("the configuration file", at(line), format!("is not TOML: {}", error.message()))
    })?;
    let known = Config::keys();
    for (name, value) in document.get_ref() {
        let origin = at(Some(line(name.span().start)));
        let DeValue::Table(section) = value.get_ref() else {
            insert_from_file(&known, name.get_ref().to_string(), value.get_ref(), origin, given)?;
            continue;
        };
        let prefix = format!("{}.", name.get_ref());
        if !known.iter().any(|key| key.starts_with(&prefix)) {
            return Err(Refused::new(name.get_ref().as_ref(), origin, "there is no such section"));
        }
        for (name, value) in section {
            let origin = at(Some(line(name.span().start)));
            insert_from_file(&known, format!("{prefix}{}", name.get_ref()), value.get_ref(), origin, given)?;
        }
    }
    Ok(())
}

fn insert_from_file(
    known: &[String],
    key: String,
    value: &DeValue<'_>,
    origin: Origin,
    given: &mut Given,
) -> Result<(), Refused> {
    if !known.contains(&key) {
        return Err(Refused::new(key, origin, "no setting has this name; see `flotilla serve --help`"));
    }
    match plain(value, LISTS.contains(&key.as_str()), SWITCHES.contains(&key.as_str())) {
        Some(value) => given.insert_checked(key, value, origin),
        None => Err(Refused::new(key, origin, format!("{} is no type for this setting", value.type_str()))),
    }
}

/// A TOML value as it would stand behind a flag.
fn plain(value: &DeValue<'_>, list: bool, switch: bool) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Boolean(value) if switch => Some(value.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.to_string()),
        DeValue::Array(items) if list => {
            let items: Option<Vec<String>> = items.iter().map(|item| plain(item.get_ref(), false, false)).collect();
            items.map(|items| items.join(","))
        }
        _ => None,
    }
}
