//! The checks that need more than one setting.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::draft::free_namespace;
use super::error::{ConfigError, SettingOrigin};
use super::model::{Config, MachineContext, ProxyConfig};
use super::paths::resolve_links;
use crate::agent::FolderConfig;
use crate::protocol::is_loopback;

/// The origin of each setting, by its key and the number of its `[[folder]]`.
pub(super) type SettingOrigins = BTreeMap<(String, usize), SettingOrigin>;

/// Checks a config that is otherwise complete. `file` is its path.
pub(super) fn check_config(
    config: &Config,
    machine: &MachineContext,
    file: &Path,
    origins: &SettingOrigins,
) -> Result<(), ConfigError> {
    let check = ConfigCheck { config, machine, file, origins };
    check.proxy(&config.proxy)?;
    check.folder_paths()?;
    check.private_files()?;
    check.namespaces()
}

struct ConfigCheck<'a> {
    config: &'a Config,
    machine: &'a MachineContext,
    file: &'a Path,
    origins: &'a SettingOrigins,
}

impl ConfigCheck<'_> {
    fn missing(&self, key: &'static str, fix: &'static str) -> Result<(), ConfigError> {
        Err(ConfigError::Missing { path: self.file.to_owned(), key, fix })
    }

    fn bad(&self, key: &str, folder: usize, why: String) -> Result<(), ConfigError> {
        let origin = self.origins.get(&(key.to_owned(), folder)).cloned().unwrap_or_else(|| self.first_line());
        Err(ConfigError::Bad { origin, key: key.to_owned(), why })
    }

    /// The origin of a fault that has no line.
    fn first_line(&self) -> SettingOrigin {
        SettingOrigin::File { path: self.file.to_owned(), line: 1 }
    }

    fn proxy(&self, proxy: &ProxyConfig) -> Result<(), ConfigError> {
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

    fn folder_paths(&self) -> Result<(), ConfigError> {
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
    fn private_files(&self) -> Result<(), ConfigError> {
        let proxy = &self.config.proxy;
        let token_origin = self.origins.get(&("proxy.token".to_owned(), 0));
        let holds_token = matches!(token_origin, Some(SettingOrigin::File { .. }));
        let files = [
            ("proxy.token", holds_token.then_some(self.file)),
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
    fn namespaces(&self) -> Result<(), ConfigError> {
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
