//! The command line: one file per subcommand.
//!
//! Exit status, for all: 0 done, 1 failed, 2 asked for something impossible. `cluster status` and
//! `drill` have their own meanings, which their help tells.

mod api;
mod check_config;
mod cluster;
mod dev;
mod drill;
mod gc;
mod node;
mod policy;
mod scrub;
mod serve;
mod settings;
mod tag;
mod trust;
mod watch;

use std::fmt::Display;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use comfy_table::{Table, presets};

use crate::config::{Flags, Loaded};

/// Exit status when the arguments or the configuration are wrong; clap uses it too.
const EXIT_USAGE: u8 = 2;

/// A highly available OCI registry.
#[derive(Debug, Parser)]
#[command(name = "flotilla", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    CheckConfig(check_config::CheckConfig),
    Dev(dev::Dev),
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    #[command(subcommand)]
    Drill(drill::Drill),
    #[command(subcommand)]
    Gc(gc::Gc),
    #[command(subcommand)]
    Node(node::NodeCommand),
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    #[command(subcommand)]
    Scrub(scrub::Scrub),
    #[command(subcommand)]
    Settings(settings::Settings),
    #[command(subcommand)]
    Tag(tag::TagCommand),
    Watch(watch::Watch),
}

/// Does what the command line asks.
pub(crate) fn run() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::CheckConfig(check_config) => check_config.run(),
        Command::Dev(dev) => dev.run(),
        Command::Cluster(cluster) => cluster.run(),
        Command::Drill(drill) => drill.run(),
        Command::Gc(gc) => gc.run(),
        Command::Node(node) => node.run(),
        Command::Policy(policy) => policy.run(),
        Command::Scrub(scrub) => scrub.run(),
        Command::Settings(settings) => settings.run(),
        Command::Tag(tag) => tag.run(),
        Command::Watch(watch) => watch.run(),
    };
    done.unwrap_or_else(|error| {
        complain(format_args!("{error:#}"));
        ExitCode::FAILURE
    })
}

/// The configuration, or the exit status once the reason is told.
fn load(flags: &Flags) -> Result<Loaded, ExitCode> {
    Loaded::load(flags, std::env::vars_os()).map_err(|refused| {
        complain(format_args!("bad configuration: {refused}"));
        ExitCode::from(EXIT_USAGE)
    })
}

/// The text of a file; `-` is standard input.
fn read_document(file: &Path) -> anyhow::Result<String> {
    let text = match file.as_os_str() == "-" {
        true => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        false => std::fs::read_to_string(file),
    };
    text.with_context(|| format!("cannot read {}", file.display()))
}

/// A table without lines between its cells.
fn table<const N: usize>(heads: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(heads);
    table
}

/// Writes a line for the caller. If nobody reads it, the work goes on all the same.
fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Writes a line about something that went wrong.
fn complain(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "flotilla: {line}");
}
