//! Programs of the Go world that tests use: `make tools` builds them.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, ensure};

/// The folder that `make tools` fills, beside the profiles' folders.
///
/// # Errors
/// This program does not lie in a target folder.
pub fn folder() -> anyhow::Result<PathBuf> {
    let here = env::current_exe().context("where this program lies")?;
    let target = here.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    Ok(target.with_context(|| format!("{} is in no target folder", here.display()))?.join("tools"))
}

/// Where the programs are; `None`, said aloud, where one is absent: the test that needs it is skipped then.
///
/// # Errors
/// One is absent in CI, where nothing is skipped.
pub fn find<const N: usize>(names: [&str; N]) -> anyhow::Result<Option<[PathBuf; N]>> {
    let folder = folder()?;
    let programs = names.map(|name| folder.join(name));
    let Some(absent) = programs.iter().find(|program| !program.is_file()) else { return Ok(Some(programs)) };
    ensure!(env::var_os("CI").is_none(), "in CI nothing is skipped; absent: {} (`make tools`)", absent.display());
    println!("skipped: {} is absent; `make tools` builds it where Go is installed", absent.display());
    Ok(None)
}
