//! Loads a [`Config`]: the settings of the file, then those of the environment, then the checks.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::draft::free_namespace;
use super::error::{ConfigError, SettingOrigin, did_you_mean};
use super::files::resolve_links;
use super::model::{Config, KEYS, MachineContext, SettingFault, apply_setting};
use super::token::exposed_mode;
use super::value::{RawValue, nearest};
use crate::agent::FolderConfig;
use crate::protocol::is_loopback;

/// Variables that begin with `MEMSYNC_` and belong to no key.
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

impl Config {
    /// Reads the file at `path` and then the environment, which overrides it. Call it again to reload.
    ///
    /// Without a file the environment is enough, if it names a proxy and a folder. The error is the first fault in the
    /// file, else the first in the environment, else a missing key.
    pub fn load(path: &Path, machine: &MachineContext) -> Result<Self, ConfigError> {
        let mut loader = ConfigLoader::new(path, machine);
        match read_file(path) {
            Ok((text, exposed)) => loader.apply_file(&text, exposed)?,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let is_set = |key: &str| machine.env.get(&env_name(key)).is_some_and(|v| !v.is_empty());
                if !(is_set("proxy.url") && is_set("folder.path")) {
                    return Err(ConfigError::NotFound { path: path.to_owned() });
                }
            }
            Err(why) => return Err(ConfigError::Unreadable { path: path.to_owned(), why }),
        }
        loader.apply_environment()?;
        loader.finish()
    }

    /// Parses `text` as the content of a file at `path`, without the environment.
    pub fn parse(text: &str, path: &Path, machine: &MachineContext) -> Result<Self, ConfigError> {
        let mut loader = ConfigLoader::new(path, machine);
        loader.apply_file(text, None)?;
        loader.finish()
    }
}

/// The environment variable of a key: `sync.interval` → `MEMSYNC_SYNC_INTERVAL`.
pub fn env_name(key: &str) -> String {
    format!("MEMSYNC_{}", key.replace('.', "_").to_ascii_uppercase())
}

/// The text, and the file's mode if others may read it.
fn read_file(path: &Path) -> io::Result<(String, Option<u32>)> {
    let mut file = File::open(path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok((text, exposed_mode(&file)?))
}

/// One setting of the file.
struct FileSetting<'a> {
    /// With its section: `sync.interval`.
    key: String,
    /// The number of the `[[folder]]`, for keys of that section.
    folder: usize,
    /// The offset of the key in bytes.
    at: usize,
    value: RawValue<'a>,
}

struct ConfigLoader<'a> {
    config: Config,
    machine: &'a MachineContext,
    path: &'a Path,
    /// The origin of each setting, by its key and the number of its `[[folder]]`.
    origins: BTreeMap<(String, usize), SettingOrigin>,
}

impl<'a> ConfigLoader<'a> {
    fn new(path: &'a Path, machine: &'a MachineContext) -> Self {
        Self { config: Config::defaults(&machine.host), machine, path, origins: BTreeMap::new() }
    }

    /// Makes the checks that need more than one setting.
    fn finish(self) -> Result<Config, ConfigError> {
        self.check_proxy()?;
        self.check_folder_paths()?;
        self.check_private_files()?;
        self.check_namespaces()?;
        Ok(self.config)
    }

    /// `exposed` is the mode of a file that others may read.
    fn apply_file(&mut self, text: &str, exposed: Option<u32>) -> Result<(), ConfigError> {
        let path = self.path;
        let origin = |at: usize| SettingOrigin::File {
            path: path.to_owned(),
            line: 1 + text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count(),
        };
        let root = DeTable::parse(text).map_err(|e| ConfigError::Syntax {
            origin: origin(e.span().map_or(0, |s| s.start)),
            why: e.message().to_owned(),
        })?;
        let (mut settings, folders) = file_settings(root.get_ref(), &origin)?;
        self.config.folders.resize_with(folders, FolderConfig::default);
        settings.sort_by_key(|s| s.at);
        for s in settings {
            self.apply(origin(s.at), &s.key, s.folder, s.value)?;
            if s.key == "proxy.token"
                && let Some(mode) = exposed
            {
                return Err(ConfigError::Exposed { path: path.to_owned(), mode });
            }
        }
        Ok(())
    }

    /// Applies the variables of the keys, and warns of other variables that look like one.
    fn apply_environment(&mut self) -> Result<(), ConfigError> {
        let names: Vec<(String, &str)> = KEYS.iter().map(|key| (env_name(key), *key)).collect();
        let machine = self.machine;
        for (name, value) in machine.env.iter().filter(|(name, _)| name.starts_with("MEMSYNC_")) {
            match names.iter().find(|(known, _)| known == name) {
                None => self.config.warnings.extend(unknown_variable(name, &names)),
                Some(_) if value.is_empty() => {}
                Some((_, key)) => self.apply_variable(name, key, value)?,
            }
        }
        Ok(())
    }

    fn apply_variable(&mut self, name: &str, key: &str, value: &str) -> Result<(), ConfigError> {
        let origin = SettingOrigin::Env(name.to_owned());
        if key.starts_with("folder.") {
            match self.config.folders.len() {
                0 => self.config.folders.push(FolderConfig::default()),
                1 => {}
                n => {
                    let why = format!("the config has {n} folders, so it is not clear which one is meant; unset it");
                    return Err(ConfigError::Bad { origin, key: key.to_owned(), why });
                }
            }
        }
        self.apply(origin, key, 0, RawValue::Text(value))
    }

    fn apply(
        &mut self,
        origin: SettingOrigin,
        key: &str,
        folder: usize,
        value: RawValue<'_>,
    ) -> Result<(), ConfigError> {
        match apply_setting(&mut self.config, self.machine.home.as_deref(), key, folder, value) {
            Ok(()) => {
                self.origins.insert((key.to_owned(), folder), origin);
                Ok(())
            }
            Err(SettingFault::Bad(why)) => Err(ConfigError::Bad { origin, key: key.to_owned(), why }),
            Err(SettingFault::UnknownKey) => {
                Err(ConfigError::UnknownKey { origin, key: key.to_owned(), nearest: nearest_key(key) })
            }
        }
    }

    fn missing(&self, key: &'static str, fix: &'static str) -> Result<(), ConfigError> {
        Err(ConfigError::Missing { path: self.path.to_owned(), key, fix })
    }

    fn bad(&self, key: &str, folder: usize, why: String) -> Result<(), ConfigError> {
        let origin = self.origins.get(&(key.to_owned(), folder)).cloned().unwrap_or_else(|| self.first_line());
        Err(ConfigError::Bad { origin, key: key.to_owned(), why })
    }

    /// The origin of a fault that has no line.
    fn first_line(&self) -> SettingOrigin {
        SettingOrigin::File { path: self.path.to_owned(), line: 1 }
    }

    fn check_proxy(&self) -> Result<(), ConfigError> {
        let proxy = &self.config.proxy;
        if proxy.url.is_empty() {
            return self.missing("proxy.url", "write the address of the Memory Proxy below [proxy]");
        }
        if !proxy.allow_http && !is_confidential(&proxy.url) {
            let why = "plain http would show the token to the network; use https, or set proxy.allow_http = true (in \
                       `memsync init`, --allow-http)";
            return self.bad("proxy.url", 0, format!("{}: {why}", proxy.url));
        }
        if proxy.pin.is_some() && !proxy.url.starts_with("https://") {
            let why = "plain http has no certificate; proxy.url must begin with https://";
            return self.bad("proxy.pin", 0, why.to_owned());
        }
        Ok(())
    }

    fn check_folder_paths(&self) -> Result<(), ConfigError> {
        let folders = &self.config.folders;
        if folders.is_empty() {
            return self.missing("folder.path", "add a [[folder]] with the path of the folder to sync");
        }
        let resolved: Vec<PathBuf> = folders.iter().map(|f| resolve_links(&f.path)).collect();
        for (i, folder) in folders.iter().enumerate() {
            if folder.path.as_os_str().is_empty() {
                return self.missing("folder.path", "every [[folder]] needs a path");
            }
            let fault = self.why_unusable(folder, &resolved[i]).or_else(|| {
                let mut others = folders.iter().zip(&resolved).take(i);
                others.find_map(|(other, at)| why_overlapping((folder, &resolved[i]), (other, at)))
            });
            if let Some(why) = fault {
                return self.bad("folder.path", i, why);
            }
        }
        Ok(())
    }

    fn why_unusable(&self, folder: &FolderConfig, resolved: &Path) -> Option<String> {
        if resolved.parent().is_none() {
            return Some("/ is the whole machine; name a folder".to_owned());
        }
        let own = self.machine.private.iter().find(|own| is_nested(resolved, &resolve_links(own)))?;
        let shown = folder.path.display();
        let why = format!("{shown} and memsync's own {} are one inside the other", own.display());
        Some(format!("{why}; choose another folder"))
    }

    /// Refuses files with secrets inside a synced folder.
    fn check_private_files(&self) -> Result<(), ConfigError> {
        let proxy = &self.config.proxy;
        let token_origin = self.origins.get(&("proxy.token".to_owned(), 0));
        let holds_token = matches!(token_origin, Some(SettingOrigin::File { .. }));
        let files = [
            ("proxy.token", holds_token.then_some(self.path)),
            ("proxy.token_file", proxy.token_file.as_deref()),
            ("proxy.ca_file", proxy.ca_file.as_deref()),
        ];
        for (key, file) in files {
            if let Some(why) = file.and_then(|file| self.config.why_not_here(file)) {
                return self.bad(key, 0, why);
            }
        }
        Ok(())
    }

    /// Refuses two folders with the same namespace: each would get the files of the other.
    fn check_namespaces(&self) -> Result<(), ConfigError> {
        let folders = &self.config.folders;
        for (i, folder) in folders.iter().enumerate() {
            let Some(other) = folders[..i].iter().find(|o| o.namespace == folder.namespace) else { continue };
            let at = |key: &str| self.origins.get(&(key.to_owned(), i)).map(|origin| (key.to_owned(), origin.clone()));
            let unplaced = || ("folder".to_owned(), self.first_line());
            let (key, origin) = at("folder.namespace").or_else(|| at("folder.path")).unwrap_or_else(unplaced);
            let named = if folder.namespace.is_empty() { "no" } else { "the same" };
            let why = format!(
                "{} and {} have {named} namespace on the proxy, so each would get the files of the other; give {} its \
                 own, with this line below its path: namespace = \"{}\"",
                other.path.display(),
                folder.path.display(),
                folder.path.display(),
                free_namespace(&folder.path, folders)
            );
            return Err(ConfigError::Bad { origin, key, why });
        }
        Ok(())
    }
}

/// The settings of the file, and the number of its `[[folder]]` sections.
fn file_settings<'a>(
    root: &'a DeTable<'a>,
    origin: &impl Fn(usize) -> SettingOrigin,
) -> Result<(Vec<FileSetting<'a>>, usize), ConfigError> {
    let (mut settings, mut folders) = (Vec::new(), 0);
    for (key, value) in root {
        let (name, at) = (key.get_ref().as_ref(), key.span().start);
        let bad = |why: &str| ConfigError::Bad { origin: origin(at), key: name.to_owned(), why: why.to_owned() };
        let is_section = |name: &str| KEYS.iter().any(|k| k.strip_prefix(name).is_some_and(|k| k.starts_with('.')));
        match value.get_ref() {
            DeValue::Array(tables) if name == "folder" => {
                for (i, table) in tables.iter().enumerate() {
                    let table = table.get_ref().as_table().ok_or_else(|| bad("must be tables: write [[folder]]"))?;
                    settings.extend(section_settings(name, i, table));
                }
                folders = tables.len();
            }
            _ if name == "folder" => return Err(bad("must be a list of tables: write [[folder]]")),
            DeValue::Table(table) => settings.extend(section_settings(name, 0, table)),
            _ if is_section(name) => return Err(bad(&format!("must be a table: write [{name}]"))),
            value => settings.push(FileSetting { key: name.to_owned(), folder: 0, at, value: RawValue::Toml(value) }),
        }
    }
    Ok((settings, folders))
}

fn section_settings<'a>(name: &str, folder: usize, table: &'a DeTable<'a>) -> impl Iterator<Item = FileSetting<'a>> {
    table.iter().map(move |(key, value): (&Spanned<_>, &Spanned<_>)| FileSetting {
        key: format!("{name}.{}", key.get_ref()),
        folder,
        at: key.span().start,
        value: RawValue::Toml(value.get_ref()),
    })
}

/// The warning about a variable that belongs to no key. `None` if memsync reads it elsewhere.
fn unknown_variable(name: &str, keys: &[(String, &str)]) -> Option<String> {
    if OTHER_VARIABLES.contains(&name) {
        return None;
    }
    let known: Vec<&str> = keys.iter().map(|(n, _)| n.as_str()).chain(OTHER_VARIABLES.iter().copied()).collect();
    let hint = did_you_mean(nearest(name, &known));
    Some(format!("memsync does not know the environment variable {name}{hint}"))
}

/// The nearest valid key, else the same key in another section.
fn nearest_key(key: &str) -> Option<String> {
    let last = |k: &str| k.rsplit('.').next().unwrap_or_default().to_owned();
    let in_other_section = || KEYS.iter().find(|k| last(k) == last(key)).copied();
    nearest(key, KEYS).or_else(in_other_section).map(str::to_owned)
}

fn why_overlapping(
    (folder, at): (&FolderConfig, &PathBuf),
    (other, other_at): (&FolderConfig, &PathBuf),
) -> Option<String> {
    let (shown, beside) = (folder.path.display(), other.path.display());
    if at == other_at {
        return Some(format!("{beside} is already configured; remove one of the two"));
    }
    is_nested(at, other_at).then(|| format!("{shown} and {beside} are one inside the other; sync the outer one alone"))
}

/// True if one path is inside the other, or both are the same.
fn is_nested(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// True if requests to `url` are encrypted or stay on this machine.
fn is_confidential(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    url.scheme() == "https" || is_loopback(url.host_str().unwrap_or_default())
}
