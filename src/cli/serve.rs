//! `flotilla serve`: one node, until SIGTERM.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use crate::config::{Config, Flags, LogFormat};
use crate::node;

/// Run a node until SIGTERM or Ctrl-C.
///
/// Exit status: 0 after SIGTERM, 1 on failure, 2 for a bad configuration.
#[derive(Debug, clap::Args)]
pub(super) struct Serve {
    #[command(flatten)]
    settings: Flags,
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let config = match super::load(&self.settings) {
            Ok(loaded) => loaded.config,
            Err(exit) => return Ok(exit),
        };
        start_log(&config)?;
        // With one thread, a slow piece of work would hold up the heartbeats.
        let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()
            .context("cannot start the threads of the node")?;
        if let Err(error) = runtime.block_on(node::run(config)) {
            // Through the log, so that a reader of JSON lines finds the reason too.
            tracing::error!("node stopped: {error:#}");
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What libraries say that nobody must act on: openraft's of each heartbeat that a stopped node misses, actix's of each
/// client that tries TLS first. A filter that names them hears them all the
/// same, and so are requests logged, one a line: `info,flotilla::access=info`.
const QUIET: &str = "openraft=error,actix_http::h1::dispatcher=off,flotilla::access=off";

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", config.log_level)).context("log_level")?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match config.log_format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start the log: {error}"))
}
