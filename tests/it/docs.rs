//! Every link of the documentation leads somewhere.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

fn documents() -> Result<Vec<PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["", "docs", "docs/adr", "benches/scale", "benches/writes", "deploy"].map(|folder| root.join(folder));
    let mut found = Vec::new();
    for folder in folders {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            found.extend(path.extension().is_some_and(|extension| extension == "md").then_some(path));
        }
    }
    Ok(found)
}

/// What stands in the round brackets behind square ones.
fn links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link).collect()
}

/// As the usual renderers make them of headings.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
    let slug = |heading: &str| {
        let heading = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        heading.chars().filter(|letter| letter.is_alphanumeric() || "-_".contains(*letter)).collect()
    };
    headings.map(slug).collect()
}

#[test]
fn every_link_leads_somewhere() -> Result<()> {
    let mut broken = Vec::new();
    let documents = documents()?;
    ensure!(documents.len() > 20, "{documents:?}");
    for document in documents {
        let text = fs::read_to_string(&document)?;
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => document.clone(),
                file => document.parent().context("a folder")?.join(file),
            };
            let is_there = match (target.exists(), anchor) {
                (is_there, "") => is_there,
                (false, _) => false,
                (true, anchor) => anchors(&fs::read_to_string(&target)?).iter().any(|known| known == anchor),
            };
            if !is_there {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    ensure!(broken.is_empty(), "{broken:#?}");
    Ok(())
}
