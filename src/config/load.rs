//! From text to [`Config`]: the file's settings in their order, then the environment's, then the checks that
//! need them all.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ignore::gitignore::GitignoreBuilder;
use secrecy::SecretString;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use tracing::level_filters::LevelFilter;

use super::draft::own_namespace;
use super::token::exposed_mode;
use super::value::{Given, check_device, nearest};
use super::{Config, ConfigError, Conflict, Folder, Format, KEYS, Place, Surroundings};
use crate::protocol::{BadPin, Namespace};

/// Variables that begin with `MEMSYNC_` and are read elsewhere.
const OTHER_VARIABLES: &[&str] = &[
    "MEMSYNC_CONFIG",
    "MEMSYNC_HOME",
    "MEMSYNC_KILL_AT",
    "MEMSYNC_LISTEN",
    "MEMSYNC_LOG",
    "MEMSYNC_LOG_FORMAT",
    "MEMSYNC_MAX_BODY_SIZE",
    "MEMSYNC_METRICS_LISTEN",
    "MEMSYNC_RATE",
    "MEMSYNC_STOP_AT",
    "MEMSYNC_STORE",
    "MEMSYNC_TOKEN",
    "MEMSYNC_TOKEN_FILE",
    "MEMSYNC_VERIFIED_NAMESPACES",
    "MEMSYNC_VERIFIED_QUOTA",
];

const TENTH: Duration = Duration::from_millis(100);

/// One setting of the file.
struct Setting<'a> {
    /// With its section: `sync.interval`.
    key: String,
    /// Which `[[folder]]`, for keys of that section.
    folder: usize,
    /// Where the key stands, in bytes.
    at: usize,
    value: Given<'a>,
}

/// Why a setting was refused, before its place is known.
enum Fault {
    UnknownKey,
    Bad(String),
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Self::Bad(why)
    }
}

/// The name of a key's twin in the environment: `sync.interval` → `MEMSYNC_SYNC_INTERVAL`.
pub fn env_name(key: &str) -> String {
    format!("MEMSYNC_{}", key.replace('.', "_").to_ascii_uppercase())
}

pub(super) fn load(path: &Path, around: &Surroundings) -> Result<Config, ConfigError> {
    let mut loading = Loading::new(path, around);
    match read(path) {
        Ok((text, exposed)) => loading.file(&text, exposed)?,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let set = |key: &str| around.env.get(&env_name(key)).is_some_and(|v| !v.is_empty());
            if !(set("proxy.url") && set("folder.path")) {
                return Err(ConfigError::NotFound { path: path.to_owned() });
            }
        }
        Err(why) => return Err(ConfigError::Unreadable { path: path.to_owned(), why }),
    }
    loading.environment()?;
    loading.check()?;
    Ok(loading.config)
}

pub(super) fn parse(text: &str, path: &Path, around: &Surroundings) -> Result<Config, ConfigError> {
    let mut loading = Loading::new(path, around);
    loading.file(text, None)?;
    loading.check()?;
    Ok(loading.config)
}

/// The text, and the file's mode where others may read it.
fn read(path: &Path) -> std::io::Result<(String, Option<u32>)> {
    let mut file = File::open(path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok((text, exposed_mode(&file)?))
}

struct Loading<'a> {
    config: Config,
    around: &'a Surroundings,
    path: PathBuf,
    /// Where each setting came from, for the checks that look at several: the key, for a folder with its number.
    places: BTreeMap<(String, usize), Place>,
}

impl<'a> Loading<'a> {
    fn new(path: &Path, around: &'a Surroundings) -> Self {
        let config = Config::defaults(&around.host);
        Self { config, around, path: path.to_owned(), places: BTreeMap::new() }
    }

    fn file(&mut self, text: &str, exposed: Option<u32>) -> Result<(), ConfigError> {
        let place = |at: usize| Place::File {
            path: self.path.clone(),
            line: 1 + text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count(),
        };
        let root = DeTable::parse(text).map_err(|e| ConfigError::Syntax {
            place: place(e.span().map_or(0, |s| s.start)),
            why: e.message().to_owned(),
        })?;
        let mut settings = Vec::new();
        for (key, value) in root.get_ref() {
            let (name, at) = (key.get_ref().as_ref(), key.span().start);
            let bad = |why: &str| ConfigError::Bad { place: place(at), key: name.to_owned(), why: why.to_owned() };
            let is_section = |name: &str| KEYS.iter().any(|k| k.strip_prefix(name).is_some_and(|k| k.starts_with('.')));
            match value.get_ref() {
                DeValue::Array(tables) if name == "folder" => {
                    for (i, table) in tables.iter().enumerate() {
                        let table =
                            table.get_ref().as_table().ok_or_else(|| bad("must be tables: write [[folder]]"))?;
                        section(&mut settings, name, i, table);
                        self.config.folders.push(Folder::default());
                    }
                }
                _ if name == "folder" => return Err(bad("must be a list of tables: write [[folder]]")),
                DeValue::Table(table) => section(&mut settings, name, 0, table),
                _ if is_section(name) => return Err(bad(&format!("must be a table: write [{name}]"))),
                given => settings.push(Setting { key: name.to_owned(), folder: 0, at, value: Given::Toml(given) }),
            }
        }
        settings.sort_by_key(|s| s.at);
        let settings: Vec<_> = settings.into_iter().map(|s| (place(s.at), s)).collect();
        for (place, s) in settings {
            self.apply(place, &s.key, s.folder, s.value)?;
            if s.key == "proxy.token"
                && let Some(mode) = exposed
            {
                return Err(ConfigError::Exposed { path: self.path.clone(), mode });
            }
        }
        Ok(())
    }

    fn environment(&mut self) -> Result<(), ConfigError> {
        let names: Vec<(String, &str)> = KEYS.iter().map(|key| (env_name(key), *key)).collect();
        let around = self.around;
        for (name, value) in around.env.iter().filter(|(name, _)| name.starts_with("MEMSYNC_")) {
            let Some((_, key)) = names.iter().find(|(known, _)| known == name) else {
                if !OTHER_VARIABLES.contains(&name.as_str()) {
                    let known: Vec<&str> =
                        names.iter().map(|(n, _)| n.as_str()).chain(OTHER_VARIABLES.iter().copied()).collect();
                    let hint = super::did_you_mean(nearest(name, &known));
                    self.config.warnings.push(format!("nothing reads the environment variable {name}{hint}"));
                }
                continue;
            };
            if value.is_empty() {
                continue;
            }
            let place = Place::Env(name.clone());
            if key.starts_with("folder.") {
                match self.config.folders.len() {
                    0 => self.config.folders.push(Folder::default()),
                    1 => {}
                    n => {
                        let why =
                            format!("the config has {n} folders, so it is not clear which one is meant; unset it");
                        return Err(ConfigError::Bad { place, key: (*key).to_owned(), why });
                    }
                }
            }
            self.apply(place, key, 0, Given::Text(value))?;
        }
        Ok(())
    }

    fn apply(&mut self, place: Place, key: &str, folder: usize, value: Given<'_>) -> Result<(), ConfigError> {
        match self.set(key, folder, value) {
            Ok(()) => {
                self.places.insert((key.to_owned(), folder), place);
                Ok(())
            }
            Err(Fault::Bad(why)) => Err(ConfigError::Bad { place, key: key.to_owned(), why }),
            Err(Fault::UnknownKey) => {
                Err(ConfigError::UnknownKey { place, key: key.to_owned(), nearest: nearest_key(key) })
            }
        }
    }

    /// The schema: one arm a key.
    fn set(&mut self, key: &str, folder: usize, v: Given<'_>) -> Result<(), Fault> {
        let home = self.around.home.as_deref();
        let c = &mut self.config;
        match key {
            "device" => c.device = check_device(v.text()?)?,
            "log_level" => {
                c.log_level = v.choice(&[
                    ("off", LevelFilter::OFF),
                    ("error", LevelFilter::ERROR),
                    ("warn", LevelFilter::WARN),
                    ("info", LevelFilter::INFO),
                    ("debug", LevelFilter::DEBUG),
                    ("trace", LevelFilter::TRACE),
                ])?;
            }
            "log_file" => c.log_file = v.flag()?,
            "proxy.url" => c.proxy.url = check_url(v.text()?)?,
            "proxy.token_file" => c.proxy.token_file = Some(v.path(home)?),
            "proxy.token" => {
                c.proxy.token = Some(SecretString::from(v.text().map_err(|_| "must be a string in quotes".to_owned())?))
            }
            "proxy.ca_file" => c.proxy.ca_file = Some(v.path(home)?),
            "proxy.pin" => c.proxy.pin = Some(v.text()?.parse().map_err(|e: BadPin| e.to_string())?),
            "proxy.allow_http" => c.proxy.allow_http = v.flag()?,
            "proxy.timeout" => c.proxy.timeout = v.duration(TENTH)?,
            "sync.interval" => c.sync.interval = v.duration(TENTH)?,
            "sync.debounce" => c.sync.debounce = v.duration(Duration::ZERO)?,
            "sync.rescan" => c.sync.rescan = v.duration(TENTH)?,
            "sync.concurrency" => c.sync.concurrency = v.count(64)?,
            "sync.max_file_size" => c.sync.max_file_size = v.size()?,
            "sync.max_delete" => c.sync.max_delete = v.share()?,
            "sync.conflict" => c.sync.conflict = v.choice(&[("merge", Conflict::Merge), ("copy", Conflict::Copy)])?,
            "history.keep" => c.history.keep = v.duration(TENTH)?,
            "history.max_size" => c.history.max_size = v.size()?,
            "state.format" => c.state.format = v.choice(&[("json", Format::Json), ("msgpack", Format::MessagePack)])?,
            "state.pretty" => c.state.pretty = v.flag()?,
            "folder.path" => c.folders[folder].path = v.path(home)?,
            "folder.namespace" => c.folders[folder].namespace = check_namespace(v.text()?)?,
            "folder.ignore" => c.folders[folder].ignore = check_ignore(v.list()?)?,
            _ => return Err(Fault::UnknownKey),
        }
        Ok(())
    }

    /// What can only be judged with everything in hand.
    fn check(&mut self) -> Result<(), ConfigError> {
        let missing = |key, fix| Err(ConfigError::Missing { path: self.path.clone(), key, fix });
        let bad = |key: &str, folder: usize, why: String| {
            let unplaced = || Place::File { path: self.path.clone(), line: 1 };
            let place = self.places.get(&(key.to_owned(), folder)).cloned().unwrap_or_else(unplaced);
            Err(ConfigError::Bad { place, key: key.to_owned(), why })
        };
        let proxy = &self.config.proxy;
        if proxy.url.is_empty() {
            return missing("proxy.url", "write the address of the Memory Proxy below [proxy]");
        }
        if !proxy.allow_http && !is_private(&proxy.url) {
            let why = "plain http would carry the token in the clear; use https, or set proxy.allow_http = true (in `memsync init`, \
                       --allow-http)";
            return bad("proxy.url", 0, format!("{}: {why}", proxy.url));
        }
        if proxy.pin.is_some() && !proxy.url.starts_with("https://") {
            return bad(
                "proxy.pin",
                0,
                "plain http shows no certificate; proxy.url must begin with https://".to_owned(),
            );
        }
        if self.config.folders.is_empty() {
            return missing("folder.path", "add a [[folder]] with the path of the folder to sync");
        }
        let folders: Vec<PathBuf> = self.config.folders.iter().map(|f| real(&f.path)).collect();
        for (i, folder) in self.config.folders.iter().enumerate() {
            if folder.path.as_os_str().is_empty() {
                return missing("folder.path", "every [[folder]] needs a path");
            }
            let shown = folder.path.display();
            if folders[i].parent().is_none() {
                return bad("folder.path", i, "/ is the whole machine; name a folder".to_owned());
            }
            for own in &self.around.private {
                let own_real = real(own);
                if folders[i].starts_with(&own_real) || own_real.starts_with(&folders[i]) {
                    let why = format!("{shown} and memsync's own {} are one inside the other", own.display());
                    return bad("folder.path", i, format!("{why}; choose another folder"));
                }
            }
            for (j, other) in self.config.folders.iter().enumerate().take(i) {
                let beside = other.path.display();
                if folders[i] == folders[j] {
                    return bad("folder.path", i, format!("{beside} is already configured; remove one of the two"));
                }
                if folders[i].starts_with(&folders[j]) || folders[j].starts_with(&folders[i]) {
                    let why = format!("{shown} and {beside} are one inside the other; sync the outer one alone");
                    return bad("folder.path", i, why);
                }
            }
        }
        let in_this_file = matches!(self.places.get(&("proxy.token".to_owned(), 0)), Some(Place::File { .. }));
        let own_files = [
            ("proxy.token", in_this_file.then_some(&self.path)),
            ("proxy.token_file", proxy.token_file.as_ref()),
            ("proxy.ca_file", proxy.ca_file.as_ref()),
        ];
        for (key, file) in own_files {
            if let Some(why) = file.and_then(|file| self.config.why_not_here(file)) {
                return bad(key, 0, why);
            }
        }
        self.check_namespaces()
    }

    /// Refuses two folders with one namespace: each would get the files of the other.
    fn check_namespaces(&self) -> Result<(), ConfigError> {
        let folders = &self.config.folders;
        for (i, folder) in folders.iter().enumerate() {
            let Some(other) = folders[..i].iter().find(|o| o.namespace == folder.namespace) else { continue };
            let at = |key: &str| self.places.get(&(key.to_owned(), i)).map(|place| (key.to_owned(), place.clone()));
            let unplaced = || ("folder".to_owned(), Place::File { path: self.path.clone(), line: 1 });
            let (key, place) = at("folder.namespace").or_else(|| at("folder.path")).unwrap_or_else(unplaced);
            let named = if folder.namespace.is_empty() { "no" } else { "the same" };
            let why = format!(
                "{} and {} have {named} namespace on the proxy, so each would get the files of the other; give {} its \
                 own, with this line below its path: namespace = \"{}\"",
                other.path.display(),
                folder.path.display(),
                folder.path.display(),
                own_namespace(&folder.path, folders)
            );
            return Err(ConfigError::Bad { place, key, why });
        }
        Ok(())
    }
}

fn section<'a>(settings: &mut Vec<Setting<'a>>, name: &str, folder: usize, table: &'a DeTable<'a>) {
    settings.extend(table.iter().map(|(key, value): (&Spanned<_>, &Spanned<_>)| Setting {
        key: format!("{name}.{}", key.get_ref()),
        folder,
        at: key.span().start,
        value: Given::Toml(value.get_ref()),
    }));
}

/// Looks among the keys as a whole, then for the right key in the wrong section.
fn nearest_key(key: &str) -> Option<String> {
    let last = |k: &str| k.rsplit('.').next().unwrap_or_default().to_owned();
    let elsewhere = || KEYS.iter().find(|k| last(k) == last(key)).copied();
    nearest(key, KEYS).or_else(elsewhere).map(str::to_owned)
}

/// http or https, with a host and a path at most; without a trailing `/`.
fn check_url(text: &str) -> Result<String, String> {
    if !text.contains("://") {
        return Err(format!(
            "\"{text}\" does not say how the proxy speaks; write https://{text}, or http://{text} for one without \
             encryption"
        ));
    }
    let url = reqwest::Url::parse(text)
        .map_err(|e| format!("\"{text}\" is not a URL ({e}); write it like https://memory.example.org"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("\"{text}\" is not an http or https URL"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL may not carry a name or a password; the token goes into a token file".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("the URL of a proxy has no `?` or `#` part".to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// Whether what goes to `url` cannot be read on the way: it is encrypted or does not leave this machine.
fn is_private(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    url.scheme() == "https" || crate::protocol::is_loopback(url.host_str().unwrap_or_default())
}

fn check_namespace(text: &str) -> Result<String, String> {
    let named = Namespace::parse(text).map_err(|e| format!("\"{text}\" is no namespace: {e}"))?;
    Ok(named.as_str().to_owned())
}

fn check_ignore(patterns: Vec<String>) -> Result<Vec<String>, String> {
    let mut rules = GitignoreBuilder::new("/");
    for pattern in &patterns {
        rules.add_line(None, pattern).map_err(|e| format!("the pattern \"{pattern}\" is not right: {e}"))?;
    }
    rules.build().map_err(|e| e.to_string())?;
    Ok(patterns)
}

/// `path` with the symlinks of its longest part that exists resolved, so that two names of one folder compare equal.
pub(super) fn real(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(resolved) = std::fs::canonicalize(ancestor) {
            return path.strip_prefix(ancestor).map_or_else(|_| path.to_owned(), |rest| resolved.join(rest));
        }
    }
    path.to_owned()
}
