//! [`EnginePorts`]: the folder, the proxy, the state and the clock that a cycle works with, and its settings.

use std::sync::Arc;
use std::time::Duration;

use crate::agent::merge_map::MergeMap;
use crate::agent::world::World;
use crate::disk::Disk;
use crate::local::Folder;
use crate::remote::Remote;
use crate::state::Container;

use super::report::{CycleError, root_halt};

/// True if the rules leave out a path, given by its name on the disk; the flag is true for a folder.
pub type IgnoreFn = Arc<dyn Fn(&str, bool) -> bool + Send + Sync>;

/// Which steps of a plan are sent together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOptions {
    /// Fewer small requests than this are sent one by one, so that a single edit waits for no other.
    pub from: usize,
    /// The smallest and largest number of requests in one batch. Within these limits a plan is spread over the batches
    /// in flight.
    pub least: usize,
    pub most: usize,
    /// Bytes of content in one batch.
    pub bytes: u64,
    /// Larger files, in bytes, are sent by themselves.
    pub small: u64,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self { from: 8, least: 64, most: 512, bytes: 4 * 1024 * 1024, small: 64 * 1024 }
    }
}

/// Settings of one folder.
#[derive(Clone)]
pub struct EngineOptions {
    /// Bytes; larger files are not synced.
    pub max_file_size: u64,
    /// Bytes; new files of at least this size are read once, while they are uploaded.
    pub unread_from: u64,
    /// Share of the tracked files that may be deleted on one side without approval.
    pub max_delete: f64,
    /// Requests in flight.
    pub concurrency: usize,
    pub batch: BatchOptions,
    /// Threads that scan.
    pub threads: usize,
    /// The filesystem does not tell names apart that differ in case only.
    pub fold: bool,
    /// How long a file must rest that a program has open for writing; zero turns this off.
    pub quiet: Duration,
    /// The shortest time between the two scans that prove a deletion.
    pub confirm: Duration,
    /// How files are merged that both sides changed. `None`: both versions are kept.
    pub merge: Option<MergeMap>,
    /// The proxy and the namespace. With others than before, the gate `server_reset` asks for approval.
    pub origin: String,
    pub namespace: String,
}

/// The outside world of a cycle.
pub struct EnginePorts<D: Disk, R: Remote, W: World> {
    pub folder: Folder<D>,
    pub container: Container<D>,
    pub remote: Arc<R>,
    pub world: Arc<W>,
    pub ignored: IgnoreFn,
    pub options: EngineOptions,
}

impl<D: Disk, R: Remote, W: World> EnginePorts<D, R, W> {
    /// The gate for a root that is missing or another one than before.
    pub(crate) fn check_root(&self) -> Result<(), CycleError> {
        match &self.container.header().folder_id {
            Some(id) => self.folder.check(id).map_err(root_halt),
            None => Ok(()),
        }
    }
}
