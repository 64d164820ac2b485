//! [`FolderSetup`]: the settings of one synced folder. `config` fills its sections, and they are passed on as they are.

use std::path::PathBuf;
use std::time::Duration;

use super::merge_map::MergeMap;
use crate::remote::http::HttpOptions;
use crate::state::StateFormat;

/// The time between the two scans that prove a file deleted. Longer than any editor takes to save.
pub(crate) const CONFIRM_INTERVAL: Duration = Duration::from_millis(100);

/// The settings of one synced folder.
#[derive(Debug, Clone)]
pub(crate) struct FolderSetup {
    pub folder: FolderConfig,
    pub sync: SyncConfig,
    pub history: HistoryConfig,
    pub state: StateConfig,
    /// The folder's path with its symlinks resolved when the settings were made.
    pub root: PathBuf,
    /// Has the state container, its lock and the status file.
    pub state_dir: PathBuf,
    /// The container's name in `state_dir`.
    pub container: String,
    pub lock: PathBuf,
    pub status_file: PathBuf,
    pub activity_dir: PathBuf,
    /// The device name in conflict copies.
    pub device: String,
    pub http: HttpOptions,
    pub session_id: String,
}

/// `[[folder]]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FolderConfig {
    /// Absolute, without `.`, `..` or a trailing `/`.
    pub path: PathBuf,
    /// Empty for the flat dialect.
    pub namespace: String,
    /// gitignore syntax.
    pub ignore: Vec<String>,
}

/// `[sync]`
#[derive(Debug, Clone, PartialEq)]
pub struct SyncConfig {
    /// The poll interval. Also the interval of full scans without a watcher, the cap of the backoff, and the longest
    /// wait before the event stream reconnects.
    pub interval: Duration,
    pub debounce: Duration,
    /// The interval of full scans.
    pub rescan: Duration,
    /// Requests in flight at the same time, 1 to 64.
    pub concurrency: usize,
    /// Bytes.
    pub max_file_size: u64,
    /// The share of the tracked files, above 0 and up to 1, that one sync may delete without approval.
    pub max_delete: f64,
    pub conflict: ConflictPolicy,
    /// `[merge]`
    pub merge: MergeMap,
}

/// The rule for a file that both sides changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConflictPolicy {
    /// Merge, and keep both if the merge is not clean.
    Merge,
    /// Always keep both.
    Copy,
}

/// `[history]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryConfig {
    pub keep: Duration,
    /// Bytes.
    pub max_size: u64,
}

/// `[state]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateConfig {
    pub format: StateFormat,
    pub pretty: bool,
}
