//! Programs of the Go world that tests use: `make tools` builds them.

use std::env;
use std::path::PathBuf;

use anyhow::ensure;

/// The folder that `make tools` fills: it lies beside the folders of cargo's profiles. `None` before the first `make tools`.
#[must_use]
pub fn folder() -> Option<PathBuf> {
    let here = env::current_exe().ok()?;
    here.ancestors().map(|folder| folder.join("tools")).find(|tools| tools.is_dir())
}

/// Where the programs are; `None`, said aloud, where one is absent: the test that needs it is skipped then.
///
/// # Errors
/// One is absent in CI, where nothing is skipped.
pub fn find<const N: usize>(names: [&str; N]) -> anyhow::Result<Option<[PathBuf; N]>> {
    let folder = folder().unwrap_or_default();
    let programs = names.map(|name| folder.join(name));
    let Some(absent) = programs.iter().find(|program| !program.is_file()) else { return Ok(Some(programs)) };
    ensure!(env::var_os("CI").is_none(), "in CI nothing is skipped; absent: {} (`make tools`)", absent.display());
    println!("skipped: {} is absent; `make tools` builds it where Go is installed", absent.display());
    Ok(None)
}
