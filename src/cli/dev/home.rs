//! The folder of a `flotilla dev` cluster: whose it is, and what lies in it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};

use super::{DEFAULT_NODES, DEFAULT_PORT};

const MARKER: &str = "flotilla-dev.toml";
const LOCK: &str = "dev.lock";
const SOCKET: &str = "dev.sock";
const DESCRIPTION: &str = "dev.json";
const JOIN_SECRET: &str = "join.secret";

/// The folder, ours alone while this lives.
#[derive(Debug)]
pub(super) struct Home {
    /// The folder, absolute.
    pub(super) dir: PathBuf,
    /// What cannot change between two starts: the nodes know each other by these ports.
    pub(super) shape: Shape,
    handle: File,
    // Released by the kernel when we end, however that happens.
    _lock: File,
}

/// The content of the marker file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shape {
    pub(super) nodes: u16,
    pub(super) port: u16,
}

impl Home {
    /// Takes possession of a folder that is new, empty or of an earlier `flotilla dev`.
    pub(super) fn open(dir: &Path, nodes: Option<u16>, port: Option<u16>) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("cannot find {}", dir.display()))?;
        // Twice: not to leave a lock in somebody else's folder, and to know what happened before we had it.
        recorded(&dir)?;
        let lock = lock(&dir)?;
        let shape = match recorded(&dir)? {
            Some(shape) => shape.accept(&dir, nodes, port)?,
            None => Shape { nodes: nodes.unwrap_or(DEFAULT_NODES), port: port.unwrap_or(DEFAULT_PORT) },
        };
        let handle = File::open(&dir).with_context(|| format!("cannot open {}", dir.display()))?;
        let home = Self { dir, shape, handle, _lock: lock };
        // A supervisor that was killed leaves these behind; they would speak of processes long gone.
        home.clean_up();
        Ok(home)
    }

    /// Writes the marker that makes the folder ours and fixes its shape. Until then a start that
    /// failed, say because a port is taken, can be tried again with another port.
    pub(super) fn mark(&self) -> anyhow::Result<()> {
        let text = format!("# This folder belongs to `flotilla dev`.\n{}", toml::to_string(&self.shape)?);
        write_whole(&self.dir, MARKER, text.as_bytes())?;
        self.make_join_secret()
    }

    /// The secret by which the nodes know each other.
    pub(super) fn join_secret(&self) -> PathBuf {
        self.dir.join(JOIN_SECRET)
    }

    fn make_join_secret(&self) -> anyhow::Result<()> {
        let path = self.join_secret();
        if path.exists() {
            return Ok(());
        }
        let secret = STANDARD.encode(rand::random::<[u8; 32]>());
        let staged = path.with_extension("new");
        let write = || {
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&staged)?;
            writeln!(file, "{secret}")?;
            file.sync_all()?;
            fs::rename(&staged, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes what is true only while the nodes run.
    pub(super) fn clean_up(&self) {
        for name in [DESCRIPTION, SOCKET] {
            let path = self.dir.join(name);
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                super::super::complain(format_args!("cannot remove {}: {error}", path.display()));
            }
        }
    }

    /// Replaces dev.json at once: a reader finds the old or the new one, never a part.
    pub(super) fn write_description(&self, description: &serde_json::Value) -> anyhow::Result<()> {
        write_whole(&self.dir, DESCRIPTION, format!("{description:#}\n").as_bytes())
    }

    /// Opens the socket on which `flotilla dev node` asks.
    pub(super) fn bind_socket(&self) -> anyhow::Result<UnixListener> {
        UnixListener::bind(socket_path(&self.handle))
            .with_context(|| format!("cannot listen on {}", self.dir.join(SOCKET).display()))
    }
}

impl Shape {
    fn accept(self, dir: &Path, nodes: Option<u16>, port: Option<u16>) -> anyhow::Result<Self> {
        let wanted = Self { nodes: nodes.unwrap_or(self.nodes), port: port.unwrap_or(self.port) };
        ensure!(
            wanted == self,
            "{} holds a cluster of {} nodes at port {}, not of {} at port {}: leave --nodes and --port out to start it, \
             or choose another --data-dir",
            dir.display(),
            self.nodes,
            self.port,
            wanted.nodes,
            wanted.port
        );
        Ok(self)
    }
}

/// A node as dev.json describes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(in crate::cli) struct DescribedNode {
    /// Its name, such as n1.
    pub(in crate::cli) name: String,
    /// Where clients reach it.
    pub(in crate::cli) url: String,
}

#[derive(Deserialize)]
struct Description {
    nodes: Vec<DescribedNode>,
}

/// The nodes of the cluster that runs in a folder, by its dev.json.
///
/// # Errors
/// The file cannot be read: ask the supervisor first whether it runs.
pub(in crate::cli) fn described_nodes(dir: &Path) -> anyhow::Result<Vec<DescribedNode>> {
    let path = dir.join(DESCRIPTION);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let description: Description =
        serde_json::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))?;
    Ok(description.nodes)
}

/// Connects to the supervisor of a folder.
pub(super) async fn connect(dir: &Path) -> anyhow::Result<UnixStream> {
    let connected = async { UnixStream::connect(socket_path(&File::open(dir)?)).await };
    let nobody = || {
        format!(
            "no cluster runs in {0}: start it with `flotilla dev --data-dir {0}`, or name its folder with --data-dir",
            dir.display()
        )
    };
    connected.await.with_context(nobody)
}

/// The socket's path, through an open folder: a socket's address holds no more than 107 bytes.
fn socket_path(dir: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
}

/// What the marker file says; `None` for an empty folder.
fn recorded(dir: &Path) -> anyhow::Result<Option<Shape>> {
    let marker = dir.join(MARKER);
    match fs::read_to_string(&marker) {
        Ok(text) => Ok(Some(toml::from_str(&text).with_context(|| format!("cannot understand {}", marker.display()))?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
                ensure!(
                    entry?.file_name() == LOCK,
                    "{} holds something else than a `flotilla dev` cluster (no {MARKER} in it): choose another --data-dir",
                    dir.display()
                );
            }
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", marker.display())),
    }
}

fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(LOCK);
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another `flotilla dev` runs in {}: stop it first, or choose another --data-dir and --port",
            dir.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

fn write_whole(dir: &Path, name: &str, content: &[u8]) -> anyhow::Result<()> {
    let (path, staged) = (dir.join(name), dir.join(format!("{name}.new")));
    let write = || {
        let mut file = File::create(&staged)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&staged, &path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(dir: &Path, nodes: Option<u16>, port: Option<u16>) -> String {
        format!("{:#}", Home::open(dir, nodes, port).expect_err("should be refused"))
    }

    fn marked(dir: &Path, nodes: Option<u16>, port: Option<u16>) -> Home {
        let home = Home::open(dir, nodes, port).expect("new");
        home.mark().expect("written");
        home
    }

    #[test]
    fn a_start_that_failed_before_the_mark_fixes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(Home::open(folder.path(), Some(5), Some(6000)).expect("new"));
        assert_eq!(Home::open(folder.path(), None, None).expect("still new").shape.port, DEFAULT_PORT);
    }

    #[test]
    fn a_second_start_finds_the_same_shape() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("new/.flotilla");
        assert_eq!(marked(&dir, Some(5), Some(6000)).shape, Shape { nodes: 5, port: 6000 });
        assert_eq!(Home::open(&dir, None, None).expect("ours").shape, Shape { nodes: 5, port: 6000 });
        assert!(refusal(&dir, Some(3), None).contains("a cluster of 5 nodes at port 6000, not of 3"));
        assert!(refusal(&dir, None, Some(7000)).contains("at port 7000"));
    }

    #[test]
    fn the_join_secret_is_made_once_and_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let home = marked(folder.path(), None, None);
        let made = fs::read(home.join_secret()).expect("made");
        assert_eq!(made.len(), 45);
        home.mark().expect("written");
        assert_eq!(fs::read(home.join_secret()).expect("kept"), made);
        let mode = fs::metadata(home.join_secret()).expect("made").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_folder_of_somebody_else_is_refused_and_left_as_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("thesis.txt"), "").expect("a file");
        assert!(refusal(folder.path(), None, None).contains("holds something else"));
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn two_supervisors_cannot_share_a_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let _first = Home::open(folder.path(), None, None).expect("new");
        assert!(refusal(folder.path(), None, None).contains("another `flotilla dev` runs in"));
    }

    #[test]
    fn a_description_of_a_former_run_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let home = marked(folder.path(), None, None);
        home.write_description(&serde_json::json!({"nodes": []})).expect("written");
        drop(home);
        let _again = Home::open(folder.path(), None, None).expect("ours");
        assert!(!folder.path().join(DESCRIPTION).exists());
    }
}
