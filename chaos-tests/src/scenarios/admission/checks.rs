//! What must be true of the answers to many reviews.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, bail, ensure};

use super::{Answer, REPOSITORIES, TAGS, image};
use crate::cluster::Cluster;
use crate::webhooks::Hook;

/// No two nodes say different things at one revision.
pub(super) fn nodes_agree(answers: &[Answer]) -> anyhow::Result<()> {
    let (mut known, mut compared) = (HashMap::new(), 0);
    for answer in answers {
        let key = (answer.revision, answer.hook == Hook::Mutate, &answer.images);
        let Some(other) = known.insert(key, answer) else { continue };
        let same = (answer.allowed, &answer.pinned, answer.policy) == (other.allowed, &other.pinned, other.policy);
        ensure!(same, "nodes {} and {} differ at revision {}", answer.node, other.node, answer.revision);
        compared += u64::from(answer.node != other.node);
    }
    ensure!(compared > 0, "no two nodes were asked the same at one revision");
    println!("{compared} times two nodes were asked the same at one revision");
    Ok(())
}

/// What was allowed and pinned is what the policy of that revision allows.
pub(super) fn policies_held(answers: &[Answer], policies: &BTreeMap<u64, bool>) -> anyhow::Result<()> {
    for answer in answers {
        let (began, allows) = policies.range(..=answer.revision).next_back().context("before the first policy")?;
        let is_denied = |image: &&String| !allows && image.contains("team/tool");
        let held = answer.policy == Some(*began)
            && match answer.hook {
                Hook::Validate => answer.allowed != answer.images.iter().any(|image| is_denied(&image)),
                // What is denied stays as it was asked for.
                Hook::Mutate => {
                    answer.images.iter().all(|image| answer.pinned.contains_key(image) != is_denied(&image))
                }
            };
        ensure!(held, "at revision {} the policy of {began} was in force: {answer:?}", answer.revision);
    }
    Ok(())
}

/// By image, what its tag meant since which revision.
type Histories = HashMap<String, BTreeMap<u64, String>>;

/// What each tag meant, by the registry's own history.
pub(super) async fn histories(cluster: &Cluster) -> anyhow::Result<Histories> {
    let mut histories = Histories::new();
    for repository in REPOSITORIES {
        for tag in TAGS {
            let mut meant = BTreeMap::new();
            let mut path = Some(format!("/api/v1/repositories/{repository}/tags/{tag}/history?n=1000"));
            while let Some(page) = path.take() {
                let reply = cluster.client().get(&page).await?.expect(&[200])?;
                let versions = reply.json()["history"].as_array().cloned().context("a history")?;
                for version in versions {
                    let revision = version["revision"].as_u64().context("a revision")?;
                    meant.insert(revision, version["digest"].as_str().context("a digest")?.to_owned());
                }
                let next = reply.header("link").and_then(|link| link.strip_prefix('<')?.split_once('>'));
                path = next.map(|(path, _)| path.to_owned());
            }
            histories.insert(image(repository, tag), meant);
        }
    }
    Ok(histories)
}

/// What was pinned is what the tag meant at the revision in the answer.
pub(super) fn pins_were_right(answers: &[Answer], histories: &Histories) -> anyhow::Result<()> {
    for answer in answers {
        for (image, digest) in &answer.pinned {
            let history = histories.get(image).with_context(|| image.clone())?;
            let Some((_, meant)) = history.range(..=answer.revision).next_back() else {
                bail!("{image} was not there at revision {}", answer.revision)
            };
            ensure!(meant == digest, "{image} meant {meant} at revision {}, pinned to {digest}", answer.revision);
        }
    }
    Ok(())
}
