//! Who a node is: its id, random, made once, and the cluster that it belongs to; both kept with its data.

use std::path::Path;

use anyhow::Context as _;
use flotilla_raft::NodeId;
use flotilla_storage::durable_file;
use uuid::Uuid;

const FILE: &str = "node.id";
const CLUSTER_FILE: &str = "cluster.id";

/// The id of the node whose data lies in `dir`; makes one for an empty folder. Blocks.
pub(crate) fn load_or_make(dir: &Path) -> anyhow::Result<NodeId> {
    let path = dir.join(FILE);
    match durable_file::read(&path)? {
        Some(text) => {
            parse(&text).with_context(|| format!("{} holds no node id; was it changed by hand?", path.display()))
        }
        None => {
            let id = rand::random_range(1..1u64 << 48);
            durable_file::write_atomically(&path, format!("{id:012x}\n").as_bytes())?;
            Ok(id)
        }
    }
}

/// The cluster that the data in `dir` belongs to, where that is known. State says so too, but is on disk later. Blocks.
pub(crate) fn cluster_of(dir: &Path) -> anyhow::Result<Option<Uuid>> {
    let path = dir.join(CLUSTER_FILE);
    let Some(text) = durable_file::read(&path)? else { return Ok(None) };
    let parsed = std::str::from_utf8(&text).ok().and_then(|text| text.trim_end().parse().ok());
    parsed.map(Some).with_context(|| format!("{} holds no cluster id; was it changed by hand?", path.display()))
}

/// Writes down which cluster the data in `dir` belongs to. Blocks.
pub(crate) fn keep_cluster(dir: &Path, cluster_id: Uuid) -> anyhow::Result<()> {
    if cluster_of(dir)? != Some(cluster_id) {
        durable_file::write_atomically(&dir.join(CLUSTER_FILE), format!("{cluster_id}\n").as_bytes())?;
    }
    Ok(())
}

fn parse(text: &[u8]) -> Option<NodeId> {
    let digits = std::str::from_utf8(text).ok()?.trim_end();
    u64::from_str_radix(digits, 16).ok().filter(|id| digits.len() == 12 && *id != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_made_once_and_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let made = load_or_make(dir.path()).expect("made");
        assert_eq!(load_or_make(dir.path()).expect("read"), made);
    }

    #[test]
    fn the_cluster_is_written_down() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(cluster_of(dir.path()).expect("read"), None);
        keep_cluster(dir.path(), Uuid::from_u128(7)).expect("written");
        assert_eq!(cluster_of(dir.path()).expect("read"), Some(Uuid::from_u128(7)));
        std::fs::write(dir.path().join(CLUSTER_FILE), "seven\n").expect("written");
        assert!(cluster_of(dir.path()).is_err());
    }

    #[test]
    fn a_damaged_id_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join(FILE), "zero\n").expect("written");
        assert!(load_or_make(dir.path()).is_err());
    }
}
