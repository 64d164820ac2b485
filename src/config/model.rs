//! [`Config`]: the sections of the config file as plain values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use tracing::level_filters::LevelFilter;

use super::certificate::read_ca_file;
use super::error::ConfigError;
use super::paths::resolve_links;
use super::value::sanitise_device;
use crate::agent::{ConflictPolicy, FolderConfig, HistoryConfig, StateConfig, SyncConfig};
use crate::protocol::Pin;
use crate::state::StateFormat;

/// Every key of the file, in the order of `config.example.toml`. The names of environment variables and the nearest valid
/// key in an error come from here.
pub const KEYS: &[&str] = &[
    "device",
    "log_level",
    "log_file",
    "proxy.url",
    "proxy.token_file",
    "proxy.token",
    "proxy.ca_file",
    "proxy.pin",
    "proxy.allow_http",
    "proxy.timeout",
    "sync.interval",
    "sync.debounce",
    "sync.rescan",
    "sync.concurrency",
    "sync.max_file_size",
    "sync.max_delete",
    "sync.conflict",
    "history.keep",
    "history.max_size",
    "state.format",
    "state.pretty",
    "folder.path",
    "folder.namespace",
    "folder.ignore",
];

/// The part of the machine that a config depends on.
#[derive(Debug, Clone, Default)]
pub struct MachineContext {
    /// The environment, by name.
    pub env: BTreeMap<String, String>,
    /// The home directory, for a leading `~/`.
    pub home: Option<PathBuf>,
    /// The host name, for the default of `device`.
    pub host: String,
    /// The directories of memsync itself. A synced folder may neither be inside one nor contain one.
    pub private: Vec<PathBuf>,
}

/// The whole config, with defaults filled in.
#[derive(Debug, Clone)]
pub struct Config {
    /// The name of this machine in conflict copies: 1 to 32 of `A-Z a-z 0-9 -`.
    pub device: String,
    pub log_level: LevelFilter,
    /// True if `run` also writes a log file.
    pub log_file: bool,
    pub proxy: ProxyConfig,
    pub sync: SyncConfig,
    pub history: HistoryConfig,
    pub state: StateConfig,
    /// At least one after [`Config::load`].
    pub folders: Vec<FolderConfig>,
    /// Faults that are no errors: environment variables with a name that memsync does not know.
    pub warnings: Vec<String>,
}

/// `[proxy]`
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// Without a trailing `/`. Set after [`Config::load`].
    pub url: String,
    pub token_file: Option<PathBuf>,
    /// One of several sources, see [`Config::token`].
    pub token: Option<SecretString>,
    /// One more certificate authority, PEM.
    pub ca_file: Option<PathBuf>,
    /// The only certificate to accept, whichever authority signed it.
    pub pin: Option<Pin>,
    /// Allows plain http to other machines.
    pub allow_http: bool,
    pub timeout: Duration,
}

impl Config {
    /// The defaults for a machine called `host`, without a proxy and without folders.
    pub fn defaults(host: &str) -> Self {
        const SECOND: Duration = Duration::from_secs(1);
        Self {
            device: sanitise_device(host),
            log_level: LevelFilter::INFO,
            log_file: false,
            proxy: ProxyConfig {
                url: String::new(),
                token_file: None,
                token: None,
                ca_file: None,
                pin: None,
                allow_http: false,
                timeout: 30 * SECOND,
            },
            sync: SyncConfig {
                interval: 30 * SECOND,
                debounce: Duration::from_millis(200),
                rescan: 600 * SECOND,
                concurrency: 8,
                max_file_size: 64 << 20,
                max_delete: 0.5,
                conflict: ConflictPolicy::Merge,
            },
            history: HistoryConfig { keep: 30 * 86_400 * SECOND, max_size: 1 << 30 },
            state: StateConfig { format: StateFormat::Json, pretty: true },
            folders: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// The content of `proxy.ca_file`, if it is set.
    pub fn ca_pem(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        self.proxy.ca_file.as_deref().map(read_ca_file).transpose()
    }

    /// An explanation if `file` is inside a synced folder. A token, a key or a store there would go to every machine.
    pub(crate) fn why_not_here(&self, file: &Path) -> Option<String> {
        let at = resolve_links(file);
        let folder = self.folders.iter().find(|f| at.starts_with(resolve_links(&f.path)))?;
        let (file, folder) = (file.display(), folder.path.display());
        Some(format!("{file} is inside {folder}, which is synced; keep it elsewhere"))
    }
}
