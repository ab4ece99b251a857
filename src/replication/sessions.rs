//! The upload sessions of this node: found by id and repository, bounded in number and memory, ended after their
//! time to live.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use flotilla_raft::RepositoryName;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::session::{Session, UploadError};
use super::{Replication, upload_id};
use crate::memory::Budget;

/// What all sessions together may hold in memory, in bytes. Beyond it their bytes go to files at once.
const MEMORY_MAX: usize = 16 * 1024 * 1024;

/// How often sessions and copies are looked through for those whose time is over.
const SWEEP_EVERY: Duration = Duration::from_secs(15);

/// A copy that nobody touched for this long is asked for at its owner.
const ASK_OWNER_AFTER: Duration = Duration::from_secs(30);

/// The sessions that this node owns.
pub(super) struct Sessions {
    table: Mutex<HashMap<Uuid, Arc<Session>>>,
    memory: Budget,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { table: Mutex::default(), memory: Budget::new(MEMORY_MAX) }
    }
}

impl Sessions {
    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.table.lock().len()
    }
}

/// An upload session that lives within one request: nobody finds it once this is dropped. A finish that is under way
/// then goes on.
pub(crate) struct OneRequest(pub(crate) Arc<Session>);

impl Drop for OneRequest {
    fn drop(&mut self) {
        self.0.replication().close_session(self.0.id());
    }
}

impl Replication {
    /// Opens an upload session.
    ///
    /// # Errors
    /// Too many are open.
    pub(crate) fn open_session(&self, repository: &RepositoryName) -> Result<Arc<Session>, UploadError> {
        let mut table = self.sessions().table.lock();
        if table.len() >= self.config().max_uploads {
            return Err(UploadError::TooMany);
        }
        let id = upload_id::new(self.consensus().node_id());
        let session = Session::new(self.clone(), id, repository.clone(), self.sessions().memory.clone());
        let session = Arc::new(session);
        table.insert(id, Arc::clone(&session));
        Ok(session)
    }

    /// An open session of this node. One of another repository is as unknown as one that never was.
    ///
    /// # Errors
    /// `Unknown`.
    pub(crate) fn find_session(&self, repository: &RepositoryName, id: Uuid) -> Result<Arc<Session>, UploadError> {
        let table = self.sessions().table.lock();
        let session = table.get(&id).filter(|session| session.repository() == repository);
        session.cloned().ok_or(UploadError::Unknown)
    }

    /// Whether a session of this id is open here.
    pub(super) fn has_session(&self, id: Uuid) -> bool {
        self.sessions().table.lock().contains_key(&id)
    }

    /// Takes a session off the list: it was finished or given up.
    pub(super) fn close_session(&self, id: Uuid) {
        self.sessions().table.lock().remove(&id);
    }

    /// Ends sessions and copies whose time is over, until told to stop.
    pub(super) async fn sweep_uploads(self, stop: CancellationToken) {
        let every = SWEEP_EVERY.min(self.config().upload_ttl / 2).max(Duration::from_millis(100));
        while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            self.sweep_sessions();
            self.sweep_copies().await;
        }
    }

    fn sweep_sessions(&self) {
        let limit = self.config().upload_ttl;
        let mut table = self.sessions().table.lock();
        let before = table.len();
        table.retain(|_, session| session.is_busy() || session.idle() < limit);
        let (ended, open) = (before - table.len(), table.len());
        if ended > 0 {
            tracing::info!(ended, open, "ended upload sessions that nobody went on with");
        }
    }

    /// Drops the copies whose session is over, or whose owner is no member any more.
    async fn sweep_copies(&self) {
        let members = self.consensus().members();
        for upload in self.copies().idle(ASK_OWNER_AFTER.min(self.config().upload_ttl)) {
            let owner = upload_id::owner(&upload);
            let alive = match members.iter().find(|member| Some(member.id) == owner) {
                None => false,
                Some(owner) if owner.id == self.consensus().node_id() => false,
                // An owner that does not answer may be back with its sessions: they end at their time to live.
                Some(owner) => self.peers().has_session(owner, upload).await.unwrap_or(true),
            };
            if !alive {
                self.copies().remove(upload);
            }
        }
        for upload in self.copies().idle(self.config().upload_ttl) {
            self.copies().remove(upload);
        }
    }
}
