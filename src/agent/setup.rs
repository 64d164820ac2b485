//! [`FolderSetup`]: the settings of one synced folder.

use std::path::PathBuf;
use std::time::Duration;

use crate::remote::http::HttpOptions;
use crate::state::StateFormat;

/// The time between the two scans that prove a file deleted. Longer than any editor takes to save.
pub const CONFIRM_INTERVAL: Duration = Duration::from_millis(100);

/// The settings of one synced folder.
#[derive(Debug, Clone)]
pub struct FolderSetup {
    /// The folder as the config names it, absolute.
    pub path: PathBuf,
    /// `path` with its symlinks resolved when the settings were made.
    pub root: PathBuf,
    /// Has the state container, its lock and the status file.
    pub state_dir: PathBuf,
    /// The container's name in `state_dir`.
    pub container: String,
    pub lock: PathBuf,
    pub status_file: PathBuf,
    /// The device name in conflict copies.
    pub device: String,
    pub namespace: String,
    /// Ignore patterns in gitignore syntax.
    pub ignore: Vec<String>,
    pub http: HttpOptions,
    pub format: StateFormat,
    pub pretty: bool,
    pub session_id: String,
    /// The poll interval.
    pub interval: Duration,
    pub debounce: Duration,
    /// The interval of full scans.
    pub rescan: Duration,
    pub concurrency: usize,
    /// Bytes.
    pub max_file_size: u64,
    /// The share of files, 0 to 1, that may be deleted without approval.
    pub max_delete: f64,
    pub history_keep: Duration,
    /// Bytes.
    pub history_max: u64,
}
