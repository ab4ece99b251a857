//! Arrows point down: `src → raft → storage`, and `chaos-tests` sees none of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use toml::{Table, Value};

const OURS: [&str; 4] = ["flotilla", "flotilla-raft", "flotilla-storage", "chaos-tests"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every package that a manifest names, in any of its dependency tables.
fn dependencies(folder: &str) -> Result<BTreeSet<String>> {
    let path = root().join(folder).join("Cargo.toml");
    let manifest: Table = fs::read_to_string(&path).with_context(|| path.display().to_string())?.parse()?;
    let mut found = names(&manifest);
    for target in manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values) {
        found.extend(target.as_table().map(names).unwrap_or_default());
    }
    Ok(found)
}

fn names(table: &Table) -> BTreeSet<String> {
    ["dependencies", "dev-dependencies", "build-dependencies"]
        .iter()
        .filter_map(|kind| table.get(*kind)?.as_table())
        .flatten()
        .map(|(key, value)| value.get("package").and_then(Value::as_str).unwrap_or(key).to_owned())
        .collect()
}

fn without(folder: &str, forbidden: &[&str]) -> Result<()> {
    let found = dependencies(folder)?;
    let broken: Vec<_> = forbidden.iter().filter(|name| found.contains(**name)).collect();
    ensure!(broken.is_empty(), "{folder}/Cargo.toml depends on {broken:?}");
    Ok(())
}

#[test]
fn storage_knows_neither_raft_nor_http() -> Result<()> {
    without("storage", &["flotilla", "flotilla-raft", "chaos-tests", "openraft", "actix-web", "reqwest", "kube"])
}

#[test]
fn raft_knows_neither_http_servers_nor_kubernetes_nor_the_store_behind_storage() -> Result<()> {
    without("raft", &["flotilla", "chaos-tests", "sled", "actix-web", "kube"])
}

#[test]
fn the_node_reaches_consensus_and_rows_only_through_our_crates() -> Result<()> {
    without(".", &["sled", "openraft"])
}

#[test]
fn chaos_tests_sees_only_what_clients_and_operators_see() -> Result<()> {
    without("chaos-tests", &OURS)?;
    without("chaos-tests", &["sled", "openraft", "actix-web", "kube"])
}

#[test]
fn each_engine_is_where_the_layout_says() -> Result<()> {
    ensure!(dependencies("storage")?.contains("sled"), "sled belongs in storage");
    ensure!(dependencies("raft")?.contains("openraft"), "openraft belongs in raft");
    ensure!(dependencies(".")?.contains("actix-web"), "actix-web belongs in the root");
    Ok(())
}

/// Folders meet in `node.rs`. All may use `config`, `auth` and `audit`, `oci` uses `replication`, and the command line builds
/// whatever it runs.
#[test]
fn folders_of_the_node_do_not_use_each_other() -> Result<()> {
    let src = root().join("src");
    let folders: BTreeSet<String> = fs::read_dir(&src)?
        .filter_map(|entry| entry.ok().filter(|entry| entry.path().is_dir()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let mut broken = Vec::new();
    for folder in folders.iter().filter(|folder| *folder != "cli") {
        for file in sources(&src.join(folder))? {
            let text = fs::read_to_string(&file)?;
            for path in crate_paths(&text) {
                let mut parts = path.split("::");
                let (used, inner) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                let is_other = folders.contains(used) && used != folder;
                let allowed = ["config", "auth", "audit"].contains(&used)
                    || inner.starts_with("error")
                    || (folder == "oci" && used == "replication");
                if is_other && !allowed {
                    broken.push(format!("{}: crate::{path}", file.display()));
                }
            }
        }
    }
    ensure!(broken.is_empty(), "{broken:#?}");
    Ok(())
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

/// What stands behind each `crate::` outside comments, one entry per item of a group.
fn crate_paths(text: &str) -> Vec<String> {
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    for (start, keyword) in code.match_indices("crate::") {
        let before = code[..start].chars().next_back();
        if before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_') {
            continue;
        }
        let rest = &code[start + keyword.len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_items(group)),
            None => found.extend(first_path(rest)),
        }
    }
    found
}

/// The beginnings of a group's items, up to its closing brace.
fn group_items(group: &str) -> Vec<String> {
    let mut depth = 1;
    let mut items = vec![String::new()];
    for letter in group.chars() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => items.push(String::new()),
            _ if depth == 1 => items.last_mut().expect("it starts with one").push(letter),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    items.iter().filter_map(|item| first_path(item.trim())).collect()
}

fn first_path(text: &str) -> Option<String> {
    let end =
        text.find(|letter: char| !letter.is_alphanumeric() && letter != '_' && letter != ':').unwrap_or(text.len());
    (end > 0).then(|| text[..end].trim_end_matches(':').to_owned())
}

#[test]
fn paths_are_found_alone_in_groups_and_inline_but_not_in_comments() {
    let text =
        "use crate::oci::x; // crate::no::no\nuse crate::{auth::A, cluster::{b, c}, node};\nlet x = crate::ui::y();";
    assert_eq!(crate_paths(text), ["oci::x", "auth::A", "cluster", "node", "ui::y"]);
}
