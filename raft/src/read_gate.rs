//! Linearizable reads: one round of read index serves all readers that wait, and a reader joins only a round that
//! had not begun when it came (docs/INVARIANTS.md, I2).

use tokio::sync::{mpsc, oneshot};

use crate::consensus::ReadError;

/// Readers that may wait.
const WAITING_MAX: usize = 65_536;

/// The most readers that one round serves; more form the next.
const ROUND_MAX: usize = 4096;

type Waiter = oneshot::Sender<Result<u64, ReadError>>;

/// Where readers queue.
#[derive(Clone)]
pub(crate) struct ReadGate {
    queue: mpsc::Sender<Waiter>,
}

impl ReadGate {
    /// `round` asks for a read index, once for all that wait.
    pub(crate) fn start<F>(round: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<u64, ReadError>> + Send,
    {
        let (queue, mut waiting) = mpsc::channel::<Waiter>(WAITING_MAX);
        tokio::spawn(async move {
            let mut waiters = Vec::new();
            while waiting.recv_many(&mut waiters, ROUND_MAX).await > 0 {
                let index = round().await;
                for waiter in waiters.drain(..) {
                    // A reader whose client went away does not wait any more.
                    let _ = waiter.send(index.clone());
                }
            }
        });
        Self { queue }
    }

    /// The index that must be applied before a read that begins now.
    pub(crate) async fn index(&self) -> Result<u64, ReadError> {
        let (answer, waits) = oneshot::channel();
        self.queue.send(answer).await.map_err(|_| ReadError::Stopped)?;
        waits.await.map_err(|_| ReadError::Stopped)?
    }
}
