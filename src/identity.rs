//! The node's id: random, made once, kept with its data.

use std::path::Path;

use anyhow::Context as _;
use flotilla_raft::NodeId;
use flotilla_storage::durable_file;

const FILE: &str = "node.id";

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
    fn a_damaged_id_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join(FILE), "zero\n").expect("written");
        assert!(load_or_make(dir.path()).is_err());
    }
}
