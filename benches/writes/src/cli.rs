//! Command line: every option, its unit and its default.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::names::NAMES;

/// Measures replicated writes of Flotilla and of etcd: three local processes each, one client program, in turns.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    /// What to measure.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure both in turns (A B, B A, A B …) and print the ratios Flotilla/etcd.
    Compare(Plan),
    /// Measure one of the two.
    Run(RunArgs),
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Which.
    pub system: Which,
    /// How.
    #[command(flatten)]
    pub plan: Plan,
}

/// A system that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// Three nodes of `flotilla dev`.
    Flotilla,
    /// Three processes of etcd.
    Etcd,
}

/// How to measure.
#[derive(Debug, Clone, Args)]
pub struct Plan {
    /// The Flotilla program to measure.
    #[arg(long, default_value = "target/release/flotilla")]
    pub flotilla_bin: PathBuf,
    /// The etcd program to measure.
    #[arg(long, default_value = "/usr/bin/etcd")]
    pub etcd_bin: PathBuf,
    /// Timed rounds per number of clients and system.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// How long a round lasts, such as 5s.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub duration: Duration,
    /// Numbers of clients, comma-separated. Each has one connection and writes one thing after another.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=NAMES as i64))]
    pub clients: Vec<u16>,
    /// Threads of the clients, all together.
    #[arg(long, default_value_t = 2)]
    pub client_threads: usize,
    /// Folder on the disk to measure; all data lies in a temporary folder in it [default: the system's]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// First of the ports of loopback: Flotilla takes 3 here and 3 from 1000 higher, etcd 3 from 100 and 3 from 200
    /// higher.
    #[arg(long, default_value_t = 21_000, value_parser = clap::value_parser!(u16).range(1024..=60_000))]
    pub port: u16,
    /// After the rounds of a case, make one more under strace, which counts all syncs of the leader: of log, state and
    /// anything else. It slows the leader; nothing else of that round is used.
    #[arg(long)]
    pub trace_syncs: bool,
    /// Write all samples as JSON to this file (`-`: standard output, instead of the table).
    #[arg(long)]
    pub json: Option<PathBuf>,
}
