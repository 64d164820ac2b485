//! [`Config`]: the sections of the config file as plain values, with the type, the default and the limits of each key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use tracing::level_filters::LevelFilter;

use super::error::ConfigError;
use super::files::{read_ca_file, resolve_links};
use super::value::{RawValue, check_device, sanitise_device};
use crate::agent::{ConflictPolicy, FolderConfig, HistoryConfig, MergeMap, StateConfig, SyncConfig};
use crate::local::ignore::IgnoreRules;
use crate::local::pattern::PathPattern;
use crate::merge::MergeDriver;
use crate::protocol::{BadPin, Namespace, Pin};
use crate::state::StateFormat;

const MIN_DURATION: Duration = Duration::from_millis(100);

/// Every key of the file, in the order of `config.example.toml`. The names of environment variables and the nearest valid
/// key in an error come from here.
pub const KEYS: &[&str] = &[
    "device",
    "log_level",
    "log_file",
    "merge",
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
                merge: MergeMap::default(),
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

/// A fault of a setting, without its origin.
pub(super) enum SettingFault {
    UnknownKey,
    Bad(String),
}

impl From<String> for SettingFault {
    fn from(why: String) -> Self {
        Self::Bad(why)
    }
}

/// Sets one key. `folder` is the number of the `[[folder]]`, for keys of that section.
pub(super) fn apply_setting(
    c: &mut Config,
    home: Option<&Path>,
    key: &str,
    folder: usize,
    value: RawValue<'_>,
) -> Result<(), SettingFault> {
    match key {
        "device" => c.device = check_device(value.text()?)?,
        "log_level" => {
            c.log_level = value.choice(&[
                ("off", LevelFilter::OFF),
                ("error", LevelFilter::ERROR),
                ("warn", LevelFilter::WARN),
                ("info", LevelFilter::INFO),
                ("debug", LevelFilter::DEBUG),
                ("trace", LevelFilter::TRACE),
            ])?;
        }
        "log_file" => c.log_file = value.flag()?,
        "merge" => c.sync.merge = read_merge_map(value)?,
        _ if key.starts_with(MERGE) => add_merge_pattern(&mut c.sync.merge, &key[MERGE.len()..], value)?,
        "proxy.url" => c.proxy.url = check_url(value.text()?)?,
        "proxy.token_file" => c.proxy.token_file = Some(value.path(home)?),
        "proxy.token" => {
            c.proxy.token = Some(SecretString::from(value.text().map_err(|_| "must be a string in quotes".to_owned())?))
        }
        "proxy.ca_file" => c.proxy.ca_file = Some(value.path(home)?),
        "proxy.pin" => c.proxy.pin = Some(value.text()?.parse().map_err(|e: BadPin| e.to_string())?),
        "proxy.allow_http" => c.proxy.allow_http = value.flag()?,
        "proxy.timeout" => c.proxy.timeout = value.duration(MIN_DURATION)?,
        "sync.interval" => c.sync.interval = value.duration(MIN_DURATION)?,
        "sync.debounce" => c.sync.debounce = value.duration(Duration::ZERO)?,
        "sync.rescan" => c.sync.rescan = value.duration(MIN_DURATION)?,
        "sync.concurrency" => c.sync.concurrency = value.count(64)?,
        "sync.max_file_size" => c.sync.max_file_size = value.size()?,
        "sync.max_delete" => c.sync.max_delete = value.share()?,
        "sync.conflict" => {
            c.sync.conflict = value.choice(&[("merge", ConflictPolicy::Merge), ("copy", ConflictPolicy::Copy)])?
        }
        "history.keep" => c.history.keep = value.duration(MIN_DURATION)?,
        "history.max_size" => c.history.max_size = value.size()?,
        "state.format" => {
            c.state.format = value.choice(&[("json", StateFormat::Json), ("msgpack", StateFormat::MsgPack)])?
        }
        "state.pretty" => c.state.pretty = value.flag()?,
        "folder.path" => c.folders[folder].path = value.path(home)?,
        "folder.namespace" => c.folders[folder].namespace = check_namespace(value.text()?)?,
        "folder.ignore" => c.folders[folder].ignore = check_ignore(value.list()?)?,
        _ => return Err(SettingFault::UnknownKey),
    }
    Ok(())
}

/// The beginning of the keys of `[merge]`. Their rests are patterns.
const MERGE: &str = "merge.";

/// The whole of `[merge]`, as the environment has it: one `PATTERN = KIND` a line.
fn read_merge_map(value: RawValue<'_>) -> Result<MergeMap, String> {
    let RawValue::Text(text) = value else { return Err("must be a table: write [merge]".to_owned()) };
    let mut map = MergeMap::default();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let Some((pattern, kind)) = line.rsplit_once('=') else {
            return Err(format!("\"{line}\" is not of the form PATTERN = KIND"));
        };
        add_merge_pattern(&mut map, pattern.trim(), RawValue::Text(kind.trim()))?;
    }
    Ok(map)
}

fn add_merge_pattern(map: &mut MergeMap, pattern: &str, value: RawValue<'_>) -> Result<(), String> {
    let driver = value.choice(&MergeDriver::ALL.map(|driver| (driver.name(), driver)))?;
    let compiled = PathPattern::new(pattern).map_err(|why| format!("the pattern \"{pattern}\" is not right: {why}"))?;
    map.push(compiled, driver);
    Ok(())
}

/// An http or https URL without a query. Removes a trailing `/`.
fn check_url(text: &str) -> Result<String, String> {
    if !text.contains("://") {
        return Err(format!(
            "\"{text}\" has no scheme; write https://{text}, or http://{text} for one without \
             encryption"
        ));
    }
    let url = reqwest::Url::parse(text)
        .map_err(|e| format!("\"{text}\" is not a URL ({e}); write it like https://memory.example.org"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("\"{text}\" is not an http or https URL"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL may not contain a name or a password; put the token into a token file".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("the URL of a proxy has no `?` or `#` part".to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn check_namespace(text: &str) -> Result<String, String> {
    let named = Namespace::parse(text).map_err(|e| format!("\"{text}\" is no namespace: {e}"))?;
    Ok(named.as_str().to_owned())
}

fn check_ignore(patterns: Vec<String>) -> Result<Vec<String>, String> {
    match IgnoreRules::new(&patterns, None) {
        Ok(_) => Ok(patterns),
        Err(e) => Err(format!("the pattern \"{}\" is not right: {}", e.pattern, e.why)),
    }
}
