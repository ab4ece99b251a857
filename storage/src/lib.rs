//! Bytes at rest on one node's disk: the ordered log, the rows of the registry's state, and blobs by digest.
//!
//! This crate **never** knows what an entry, a row or a blob means: no Raft types, no HTTP, no OCI documents. It
//! never calls durable what the disk did not confirm, and never turns a read error into "not there".
//! Everything here blocks; callers bring their own threads. sled is imported in this crate only.
//!
//! A log append travels `LogStore::append` → queue → writer thread → one sled batch → one `fdatasync` → `done`.
//! A row travels `MetadataStore::write` → memtable → open views set old values aside → one atomic sled batch for many
//! writes → durable with the next `MetadataStore::flush`.
//! A blob travels `BlobStore::stage` → `Staging::write` → `Staging::seal` (compare, fsync, rename, fsync the folder).

#![deny(unsafe_code)]

mod blob_store;
mod database;
mod digest;
pub mod durable_file;
mod error;
pub mod format;
mod keyspace;
mod log_store;
mod metadata_store;
mod pulse;
pub mod sync;

pub use blob_store::{BlobFile, BlobStore, SUMMED_BYTES, SealError, Staging, Summing, Sums};
pub use digest::{Algorithm, Digest, Hasher, ParseDigestError};
pub use durable_file::{Lock, create_dir_durably, lock_folder, sync_folder, write_atomically};
pub use error::StorageError;
pub use format::{DATA_VERSION, check_data_dir};
pub use keyspace::Keyspace;
pub use log_store::{Done, LogMeta, LogStore};
pub use metadata_store::{Install, MAX_KEY_BYTES, MAX_VALUE_BYTES, MetadataStore, PresentRows, Rows, View};
