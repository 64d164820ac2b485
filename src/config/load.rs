//! Loads a [`Config`]: the settings of the file, then those of the environment, then the checks.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::check::{SettingOrigins, check_config};
use super::error::{ConfigError, SettingOrigin, did_you_mean};
use super::model::{Config, KEYS, MachineContext};
use super::schema::{SettingFault, apply_setting};
use super::token::exposed_mode;
use super::value::{RawValue, nearest};
use crate::agent::FolderConfig;

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
    origins: SettingOrigins,
}

impl<'a> ConfigLoader<'a> {
    fn new(path: &'a Path, machine: &'a MachineContext) -> Self {
        Self { config: Config::defaults(&machine.host), machine, path, origins: SettingOrigins::new() }
    }

    fn finish(self) -> Result<Config, ConfigError> {
        check_config(&self.config, self.machine, self.path, &self.origins)?;
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
