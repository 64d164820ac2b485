//! The configuration: `config.toml` and the environment, read into resolved options.
//!
//! A key that is not known, a value that is not understood and a unit that does not exist are refused with the
//! file, the line and the nearest key that would have been right: a config that cannot be read never means
//! defaults. The environment, the home folder and the host name are passed in ([`Surroundings`]); nothing here
//! reads them. Other modules get plain values (durations, bytes) and need not know this one.

mod certificate;
mod draft;
mod load;
mod token;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use tracing::level_filters::LevelFilter;

use crate::protocol::Pin;

pub use crate::disk::whole::{create_private, create_private_dir};
pub use certificate::{make_certificate, read_small_file};
pub use draft::{Draft, added_folder};
pub use load::env_name;
pub use token::{TokenSource, parse_token, read_token_file, token_from_env};
pub use value::{parse_duration, parse_size, sanitise_device};

/// Every key of the file, in the order of `config.example.toml`. The one list behind "did you mean" and the
/// names in the environment.
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

/// What a config is resolved against.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// The environment, by name.
    pub env: BTreeMap<String, String>,
    /// What a leading `~/` stands for.
    pub home: Option<PathBuf>,
    /// The host name, from which `device` is made where it is not set.
    pub host: String,
    /// memsync's own folders: no synced folder may be in one of them, nor hold one.
    pub private: Vec<PathBuf>,
}

/// Everything that can be configured, with defaults filled in.
#[derive(Debug, Clone)]
pub struct Config {
    /// Names this machine in conflict copies: 1 to 32 of `A-Z a-z 0-9 -`.
    pub device: String,
    pub log_level: LevelFilter,
    /// Whether `run` writes a log file of its own.
    pub log_file: bool,
    pub proxy: ProxySection,
    pub sync: SyncSection,
    pub history: HistorySection,
    pub state: StateSection,
    /// At least one after [`Config::load`].
    pub folders: Vec<Folder>,
    /// What a person should hear of, though nothing is refused for it: variables that nobody reads.
    pub warnings: Vec<String>,
}

/// `[proxy]`
#[derive(Debug, Clone)]
pub struct ProxySection {
    /// Without a trailing `/`. Set after [`Config::load`].
    pub url: String,
    pub token_file: Option<PathBuf>,
    /// See [`Config::token`] for the other sources.
    pub token: Option<SecretString>,
    /// One more certificate authority, PEM.
    pub ca_file: Option<PathBuf>,
    /// The one certificate that the proxy may show; no authority counts then.
    pub pin: Option<Pin>,
    /// Lets plain http leave this machine.
    pub allow_http: bool,
    pub timeout: Duration,
}

/// `[sync]`
#[derive(Debug, Clone, PartialEq)]
pub struct SyncSection {
    pub interval: Duration,
    pub debounce: Duration,
    pub rescan: Duration,
    /// Requests in flight at once, 1 to 64.
    pub concurrency: usize,
    /// Bytes.
    pub max_file_size: u64,
    /// Share of the tracked files, above 0 up to 1.
    pub max_delete: f64,
    pub conflict: Conflict,
}

/// What is done where both sides changed a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// Merge; keep both where that is not clean.
    Merge,
    /// Always keep both.
    Copy,
}

/// `[history]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistorySection {
    pub keep: Duration,
    /// Bytes.
    pub max_size: u64,
}

/// `[state]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateSection {
    pub format: Format,
    pub pretty: bool,
}

/// How the state container is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    MessagePack,
}

/// `[[folder]]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Folder {
    /// Absolute, without `.`, `..` or a trailing `/`.
    pub path: PathBuf,
    /// Empty: the flat dialect.
    pub namespace: String,
    /// gitignore syntax.
    pub ignore: Vec<String>,
}

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    File { path: PathBuf, line: usize },
    Env(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: there is no config yet; write one with `memsync init`, or start with `memsync up`", path.display())]
    NotFound { path: PathBuf },
    #[error("{}: cannot be read: {why}", path.display())]
    Unreadable { path: PathBuf, why: std::io::Error },
    #[error("{place}: not TOML: {why}")]
    Syntax { place: Place, why: String },
    #[error("{place}: unknown key `{key}`{}", did_you_mean(.nearest.as_deref()))]
    UnknownKey { place: Place, key: String, nearest: Option<String> },
    #[error("{place}: {key}: {why}")]
    Bad { place: Place, key: String, why: String },
    #[error("{}: `{key}` is not set; {fix}", path.display())]
    Missing { path: PathBuf, key: &'static str, fix: &'static str },
    #[error("{}: holds a token and others can read it (mode {mode:04o}); run: chmod 600 {}", path.display(), shell_word(path))]
    Exposed { path: PathBuf, mode: u32 },
    #[error("proxy.ca_file {}: {why}; correct the path, or give memsync's user the right to read it", path.display())]
    Ca { path: PathBuf, why: std::io::Error },
    #[error("the token from {from}: {why}")]
    Token { from: TokenSource, why: String },
    #[error(
        "no token: put it in a file that only you can read and set proxy.token_file, or set MEMSYNC_TOKEN_FILE or MEMSYNC_TOKEN"
    )]
    NoToken,
}

impl Config {
    /// Every default, for a machine called `host`; no proxy and no folder yet.
    pub fn defaults(host: &str) -> Self {
        const SECOND: Duration = Duration::from_secs(1);
        Self {
            device: sanitise_device(host),
            log_level: LevelFilter::INFO,
            log_file: false,
            proxy: ProxySection {
                url: String::new(),
                token_file: None,
                token: None,
                ca_file: None,
                pin: None,
                allow_http: false,
                timeout: 30 * SECOND,
            },
            sync: SyncSection {
                interval: 30 * SECOND,
                debounce: Duration::from_millis(200),
                rescan: 600 * SECOND,
                concurrency: 8,
                max_file_size: 64 << 20,
                max_delete: 0.5,
                conflict: Conflict::Merge,
            },
            history: HistorySection { keep: 30 * 86_400 * SECOND, max_size: 1 << 30 },
            state: StateSection { format: Format::Json, pretty: true },
            folders: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Reads `path` and lays the environment over it. A reload on HUP is simply another call.
    ///
    /// Without a file the environment may stand alone, if it names both a proxy and a folder.
    ///
    /// # Errors
    /// The first thing in the file that is not right, else the first in the environment, else what is missing.
    pub fn load(path: &Path, around: &Surroundings) -> Result<Self, ConfigError> {
        load::load(path, around)
    }

    /// The content of `proxy.ca_file`, `None` where it is not set.
    ///
    /// # Errors
    /// [`ConfigError::Ca`].
    pub fn ca_pem(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        self.proxy.ca_file.as_deref().map(read_ca_file).transpose()
    }

    /// Why a file that holds a token, a key or a certificate, or a store, cannot be where it is: every machine would get
    /// it. `None`: it is in no synced folder.
    pub fn why_not_here(&self, file: &Path) -> Option<String> {
        let at = load::real(file);
        let folder = self.folders.iter().find(|f| at.starts_with(load::real(&f.path)))?;
        let (file, folder) = (file.display(), folder.path.display());
        Some(format!("{file} is inside {folder}, which is synced; keep it elsewhere"))
    }

    /// What [`Config::load`] would make of a file at `path` with this `text`, without the environment's values.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path, around: &Surroundings) -> Result<Self, ConfigError> {
        load::parse(text, path, around)
    }
}

/// The content of a file with certificates.
///
/// # Errors
/// [`ConfigError::Ca`].
pub fn read_ca_file(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|why| ConfigError::Ca { path: path.to_owned(), why })
}

/// `path` as it may be pasted into a shell.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+@%:,".contains(&b)) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |n| format!("; did you mean `{n}`?"))
}
