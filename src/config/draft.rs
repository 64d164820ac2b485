//! Writes the text of a first config, and of a folder to add to a config.

use std::path::{Path, PathBuf};

use super::error::{ConfigError, SettingOrigin};
use super::model::{Config, MachineContext};
use crate::agent::FolderConfig;
use crate::protocol::{Namespace, Pin};

/// A config for one folder. All other keys keep their defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigDraft {
    pub device: String,
    pub url: String,
    pub token_file: PathBuf,
    pub allow_http: bool,
    pub ca_file: Option<PathBuf>,
    pub pin: Option<Pin>,
    pub path: PathBuf,
    pub namespace: String,
}

impl ConfigDraft {
    /// The text of `config.toml`. The paths must be UTF-8.
    pub fn to_toml(&self) -> String {
        let quote = |text: &str| toml::Value::from(text).to_string();
        let path = |path: &Path| quote(&path.to_string_lossy());
        let mut text = format!(
            "# Every key and its default: config.example.toml\ndevice = {}\n\n[proxy]\nurl = {}\ntoken_file = {}\n",
            quote(&self.device),
            quote(&self.url),
            path(&self.token_file),
        );
        if let Some(ca_file) = &self.ca_file {
            text.push_str(&format!("ca_file = {}\n", path(ca_file)));
        }
        if let Some(pin) = &self.pin {
            text.push_str(&format!("pin = {}\n", quote(&pin.to_string())));
        }
        if self.allow_http {
            text.push_str("allow_http = true\n");
        }
        text + &folder_section(&self.path, &self.namespace)
    }
}

/// A `[[folder]]` section, after an empty line. The path must be UTF-8.
fn folder_section(path: &Path, namespace: &str) -> String {
    let quote = |text: &str| toml::Value::from(text).to_string();
    let mut text = format!("\n[[folder]]\npath = {}\n", quote(&path.to_string_lossy()));
    if !namespace.is_empty() {
        text.push_str(&format!("namespace = {}\n", quote(namespace)));
    }
    text
}

/// The section to add to the config in `file`, so that it syncs the folder at `path` too, with a free namespace. Refuses
/// a folder that the config would not accept.
pub(crate) fn added_folder(
    file: &Path,
    machine: &MachineContext,
    path: &Path,
    folders: &[FolderConfig],
) -> Result<String, ConfigError> {
    if path.to_str().is_none() {
        let origin = SettingOrigin::File { path: file.to_owned(), line: 1 };
        let why = "the config cannot hold a path that is not UTF-8; rename the folder".to_owned();
        return Err(ConfigError::Bad { origin, key: "folder.path".to_owned(), why });
    }
    let unreadable = |why| ConfigError::Unreadable { path: file.to_owned(), why };
    let section = folder_section(path, &free_namespace(path, folders));
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    Config::parse(&format!("{text}{section}"), file, machine)?;
    Ok(section)
}

/// A namespace that is not used by `folders`: the last name of `path`, with a number if it is taken.
pub(super) fn free_namespace(path: &Path, folders: &[FolderConfig]) -> String {
    let last = path.file_name().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let stem = last.chars().map(plain).collect::<String>();
    let is_free = |name: &str| folders.iter().all(|f| f.namespace != name);
    let is_usable = |name: &str| Namespace::parse(name).is_ok() && is_free(name);
    let numbered = (2..).map(|n| format!("{stem}-{n}"));
    std::iter::once(stem.clone()).chain(numbered).take(1000).find(|name| is_usable(name)).unwrap_or("folder".to_owned())
}
