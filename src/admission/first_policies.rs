//! The policies of files, put once: when a cluster has never had one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use flotilla_raft::{Command, Consensus, PolicyName};
use uuid::Uuid;

use super::policy::parse_all;

/// What the files may hold together, in bytes: they travel as one entry of the log.
const FILES_MAX: usize = 1 << 20;

/// How long to wait before it is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// Reads a file of policies, or all that end with `.yaml`, `.yml` or `.json` in a folder.
///
/// # Errors
/// A file cannot be read, or holds what is no policy, with its place; two policies have one name; too much.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<(PolicyName, String)>> {
    let mut text = String::new();
    for file in files(path)? {
        let read = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        parse_all(&read).with_context(|| file.display().to_string())?;
        text += &format!("{read}\n---\n");
        ensure!(text.len() <= FILES_MAX, "{} holds more than {FILES_MAX} bytes", path.display());
    }
    let policies = parse_all(&text).with_context(|| path.display().to_string())?;
    ensure!(!policies.is_empty(), "{} holds no policy", path.display());
    Ok(policies.into_iter().map(|(document, policy)| (policy.name, document.to_owned())).collect())
}

fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let name = || format!("cannot read {}", path.display());
    if !path.metadata().with_context(name)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries: std::io::Result<Vec<_>> = path.read_dir().and_then(Iterator::collect);
    let paths = entries.with_context(name)?.into_iter().map(|entry| entry.path());
    let is_document = |path: &PathBuf| {
        path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
    };
    let mut files: Vec<_> = paths.filter(is_document).collect();
    files.sort();
    Ok(files)
}

/// Puts the policies, as soon as the cluster can decide whether it ever had one.
pub(crate) async fn put(consensus: Consensus, policies: Vec<(PolicyName, String)>) {
    let request_id = Uuid::new_v4();
    let mut told = String::new();
    loop {
        let reason = match put_once(&consensus, request_id, &policies).await {
            Ok(()) => return,
            Err(reason) => format!("{reason:#}"),
        };
        if reason != told {
            tracing::warn!(reason, "the first policies are not in force yet");
            told = reason;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn put_once(consensus: &Consensus, request_id: Uuid, policies: &[(PolicyName, String)]) -> anyhow::Result<()> {
    consensus.read_barrier().await?;
    let registry = consensus.registry().clone();
    if tokio::task::spawn_blocking(move || registry.policies_revision()).await?? > 0 {
        return Ok(());
    }
    let answer = consensus.propose(request_id, Command::FoundPolicies(policies.to_vec())).await?;
    answer.result?;
    tracing::info!(policies = policies.len(), revision = answer.revision, "the first policies are in force");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_by_name_and_refused_with_their_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("a file");
        let (one, two) = ("name: one\nmode: warn\ndefault: deny\n", "name: two\nmode: warn\ndefault: deny\n");
        assert!(read(folder.path()).expect_err("no file").to_string().contains("holds no policy"));
        put("b.yaml", &format!("# both\n{two}---\n{one}"));
        put("notes.txt", "none");
        let found = read(folder.path()).expect("two policies");
        assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["two", "one"]);
        assert_eq!(read(&folder.path().join("b.yaml")).expect("two policies"), found);
        put("a.yaml", one);
        let refused = format!("{:#}", read(folder.path()).expect_err("two of one name"));
        assert!(refused.contains("one: two policies have this name"), "{refused}");
        put("a.yaml", "name: three\nmode: warn\ndefault: deny\nrule: []\n");
        let refused = format!("{:#}", read(folder.path()).expect_err("an unknown field"));
        assert!(refused.contains("a.yaml") && refused.contains("rule"), "{refused}");
        assert!(read(&folder.path().join("absent")).is_err());
    }
}
